"""Tool fuzz: every decoder of snapfs against hostile bytes, guided by coverage (atheris).

    python -m tools.fuzz [TARGET|all] [--seconds N] [--corpus DIR] [--seed N]

A target is one structure: how it is read and what must then hold, what it looks like when whole (the seeds),
how it is damaged, and how damage is sealed again with right checksums, so that it gets past them. A reader
either takes the bytes or raises the error that it documents; anything else is a defect: another exception, a
hang, memory out of proportion, or an encoder that does not give back what was read.

The same targets run without atheris in tests/fuzz/test_fuzz_decoders.py, on a kept corpus and on mutations
that a seed decides. Nothing here runs in a store's process; structures are private to one call."""
