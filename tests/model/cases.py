"""Model, cases: configurations, which rule is taken away where, what the search must find. Pure constants."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.rules import Config, Rules

DATA = Config('data', split_put=True)
NODES = Config('nodes', nodes=True, leftovers=True)
SHARED = Config('shared content', nodes=True, shared=True, leftovers=True)
PINS = Config('pins, rollback', pins=True, rollback=True)
TWO_SNAPSHOTS = Config('two snapshots', snapshots=2, rollback=True)
TWO_VOLUMES = Config('two volumes', volumes=2, rollback=True)
TWO_VOLUMES_SMALL = Config('two volumes, one content', volumes=2, contents=1, rollback=True)
PACKS = Config('packs, repack', packs=True, columns=3, contents=1, leftovers=True)
PACKS_TWO = Config('packs, two contents', packs=True, columns=3, leftovers=True)
TINY = Config('small, whole', contents=1, split_put=True, pins=True, rollback=True)

CONFIGS = (
    DATA, NODES, SHARED, PINS, TWO_SNAPSHOTS, TWO_VOLUMES, TWO_VOLUMES_SMALL, PACKS, PACKS_TWO, TINY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A change to the protocol. `finding` must come, first after `steps` steps; `safe`: never a loss."""

    title: str
    config: Config
    removed: tuple[str, ...]
    finding: str | None
    steps: int | None
    safe: bool = False

    def changed(self) -> Config:
        """The configuration with the switches of `removed` turned over."""
        rules = replace(Rules(), **{name: not getattr(Rules(), name) for name in self.removed})
        return replace(self.config, rules=rules)


def _taken(config: Config, removed: str, finding: str, steps: int) -> Case:
    """Rules whose absence is found."""
    return Case(_title(removed), config, tuple(removed.split()), finding, steps)


def _caught(config: Config, removed: str, steps: int) -> Case:
    """Rules whose absence another guard catches: the latch falls and nothing is ever lost."""
    return Case(_title(removed), config, tuple(removed.split()), 'latch', steps, safe=True)


def _spare(config: Config, removed: str) -> Case:
    """Rules whose work another rule does as well: nothing at all is seen."""
    return Case(_title(removed), config, tuple(removed.split()), None, None, safe=True)


def _title(removed: str) -> str:
    names = removed.split()
    added = [name for name in names if not getattr(Rules(), name)]
    taken = [name for name in names if getattr(Rules(), name)]
    words = [name.replace('_', ' ') for name in (*added, *taken)]
    return ', without '.join(words) if added else ' + '.join(words)


RULES_REMOVED = (
    _taken(DATA, 'put_is_recorded', 'loss', 12),
    _taken(DATA, 'writers_blind_to_quarantine', 'loss', 12),
    _taken(DATA, 'flushes_drained', 'loss', 12),
    _spare(DATA, 'record_before_look_up'),
    _spare(DATA, 'quarantine_between_puts'),
    _taken(DATA, 'record_before_look_up quarantine_between_puts', 'loss', 12),
    _caught(DATA, 'horizon_supersedes_journal', 12),
    _taken(DATA, 'horizon_supersedes_journal recount_2_asks_journal', 'loss', 15),
    _caught(DATA, 'plan_dies_in_crash', 12),
    _taken(DATA, 'plan_dies_in_crash recount_2_asks_journal', 'loss', 15),
    _caught(DATA, 'outside_requests_are_roots', 9),
    _taken(DATA, 'outside_requests_are_roots recount_2', 'loss', 13),
    _caught(DATA, 'undelete_ends_plan', 8),
    _taken(DATA, 'undelete_ends_plan recount_2', 'loss', 11),
    _caught(PINS, 'pins_are_roots', 7),
    _taken(PINS, 'pins_are_roots recount_2_asks_pins', 'loss', 10),
    _taken(DATA, 'undelete_restores_batch', 'loss', 11),
    _taken(DATA, 'restore_asks_catalog', 'loss', 10),
    _taken(DATA, 'receipt_before_free', 'loss', 9),
    _taken(DATA, 'undelete_refused_after_receipt', 'loss', 11),
    _taken(SHARED, 'abandoned_nodes_get_no_row', 'latch', 14),
    _taken(DATA, 'kept_goes_back', 'leak', 9),
    _taken(PINS, 'kept_goes_back', 'leak', 7),
    _spare(PACKS, 'last_look'),
    _spare(PACKS, 'retire_asks_catalog'),
    _spare(PACKS, 'fresh_packs_stand'),
    _taken(PACKS, 'last_look retire_asks_catalog', 'loss', 2),
    _taken(PACKS, 'last_look fresh_packs_stand', 'loss', 12),
    _spare(PACKS, 'last_look_counts_rows'),
    _taken(PACKS, 'last_look_counts_rows retire_asks_catalog', 'loss', 3),
    _taken(PACKS, 'last_look_counts_rows fresh_packs_stand', 'loss', 12),
    _taken(PACKS, 'repack_target_stands', 'loss', 4),
    _taken(PACKS, 'repoint_if_row_unchanged', 'leak', 11),
)

# The accident of 2011 is a recount 1 that forgets.
ACCIDENT = tuple(
    case
    for config, offset in ((DATA, 0), (NODES, 1), (SHARED, 1))
    for fault in ('recount_1_forgets_id', 'recount_1_forgets_root')
    for case in (
        _caught(config, fault, 8 + offset),
        _taken(config, f'{fault} recount_2', 'loss', 11 + offset),
        _taken(config, f'{fault} recount_2_asks_catalog', 'loss', 11 + offset),
    )
) + tuple(_spare(config, 'recount_2_forgets') for config in (DATA, NODES, SHARED))

# What a commit at the beginning of recount 2 adds: what only memory knows is in the catalog before it looks.
STRENGTHENED = (
    _caught(DATA, 'recount_2_commits_first put_is_recorded', 9),
    _caught(DATA, 'recount_2_commits_first flushes_drained', 9),
)

CASES = RULES_REMOVED + ACCIDENT + STRENGTHENED
