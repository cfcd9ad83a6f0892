"""Model, rules: what the protocol demands, each rule a switch that a search can take away. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol with every rule; `dataclasses.replace` takes one away."""

    put_is_recorded: bool = True  # a put since the horizon is never condemned
    record_before_look_up: bool = True  # the record is made before the table is asked …
    quarantine_between_puts: bool = True  # … and no quarantine falls between the two
    writers_blind_to_quarantine: bool = True  # a put of condemned content stores a fresh copy
    flushes_drained: bool = True  # before the horizon commit: an id in flight was looked up unrecorded
    horizon_supersedes_journal: bool = True  # the horizon commit is never skipped for a clean head
    outside_requests_are_roots: bool = True  # somebody may still take them back
    pins_are_roots: bool = True  # open handles on a deleted snapshot's view
    undelete_ends_plan: bool = True
    plan_dies_in_crash: bool = True  # the record of puts is memory
    undelete_restores_batch: bool = True  # out of quarantine
    restore_asks_catalog: bool = True  # only a committed row makes a quarantined copy superfluous
    receipt_before_free: bool = True
    undelete_refused_after_receipt: bool = True
    abandoned_nodes_get_no_row: bool = True  # nodes of a commit that never came are not live
    kept_goes_back: bool = True  # what only a put or a pin kept goes back to the requests
    last_look: bool = True  # at every record of a pack before its unlink
    last_look_counts_rows: bool = True  # a copy elsewhere counts only if the index points at it
    retire_asks_catalog: bool = True  # only packs without rows in chunk or quarantine
    fresh_packs_stand: bool = True  # a pack with puts that no commit has named is not retired
    repack_target_stands: bool = True  # nor is the pack a repack writes
    repoint_if_row_unchanged: bool = True
    recount_2: bool = True
    recount_2_asks_catalog: bool = True
    recount_2_asks_journal: bool = True
    recount_2_asks_pins: bool = True
    # Not relied on: the search lets recount 2 begin at any time. The table shows what this adds.
    recount_2_commits_first: bool = False  # and waits out flushes: memory cannot hide a mention
    # Faults, not rules: False is health.
    recount_1_forgets_id: bool = False
    recount_1_forgets_root: bool = False
    recount_2_forgets: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """What there is in the modelled store."""

    name: str
    volumes: int = 1
    snapshots: int = 1
    contents: int = 2
    nodes: bool = False  # trees are made of a node that names the content; a commit takes two steps
    shared: bool = False  # both nodes name the same content (one file, two names)
    packs: bool = False  # copies share packs; packs are retired, unlinked, repacked
    split_put: bool = False  # a put is two steps: look-up, return
    pins: bool = False
    rollback: bool = False
    columns: int = 2  # copies of an id at one time
    leftovers: bool = False  # a crash may leave records that no table names
    rules: Rules = field(default_factory=Rules)
