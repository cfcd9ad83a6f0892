"""tools bench: snapfs, the null filesystem and their peers, measured side by side in one run. Needs
/dev/fuse.

    python -m tools.bench [--quick] [--rounds N] [--only GROUP]... [--filesystem NAME]... [--json FILE]

`filesystems` says what is measured and how each is mounted; `groups` and `deletion` what is done on it;
`metrics` what comes out; `sizes` how much of it; `table` prints it. In each round every group of workloads
runs on one filesystem after the other, so that a machine that grows slower during the run is unfair to none;
only the filesystem at work is mounted. `synthetic` makes a store of millions of references in seconds, on
which `recounts` measures the collector's long jobs.
"""
