"""Whole stores with mutated structures behind right checksums, handed to fsck and to the program: a clear
error or a finding, never a crash, a hang or a runaway of memory. A seed replays.

What was found stands first, each by itself: seeds and mutations may change."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from snapfs.format.keys import EXTENT, KIND_POSITION
from snapfs.format.nodes import Leaf
from tests.fuzz.stores_kit import WAYS, Way, audit_events, loosened, plan_of_batch
from tests.fuzz.uses_kit import use
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tools.breaking.edit import Patient

SEEDS = int(os.environ.get('SNAPFS_SEEDS', '20'))
SEEDS_SHARE = 10  # each way gets this part of them: there are many ways, and a store takes some seconds
MEMORY_MAX = 64 << 20


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)
    return path


def wrong(table: str, column: str, value: Any) -> Callable[[Patient], None]:
    """A value of another type in every row."""

    def damage(p: Patient) -> None:
        with loosened(p, table):
            p.sql(f'UPDATE {table} SET {column} = ?', value)

    return damage


def sql(text: str, *values: Any) -> Callable[[Patient], None]:
    """Rows that SQLite lets be."""

    def damage(p: Patient) -> None:
        p.db.execute('PRAGMA ignore_check_constraints = ON')
        p.sql(text, *values)

    return damage


def long_extent(p: Patient) -> None:
    def change(found: dict[bytes, Any]) -> None:
        key = next(key for key in found if key[KIND_POSITION] == EXTENT)
        found[key] = (1 << 60, found[key][-1])

    p.change_items('snapshot', b'monday', change)


def node_that_is_none(p: Patient) -> None:
    # Recovery took the same bytes for those of a donor, stored them once more, and began again, for ever.
    _, root = p.root('snapshot', b'monday')
    way = next(way for way, _, node in p.nodes(root) if isinstance(node, Leaf))
    p.replace_node('snapshot', b'monday', way, bytes(60))


def plan_with_text(p: Patient) -> None:
    plan_of_batch(p, 4, condemned='x')


def deep_certificate(p: Patient) -> None:
    (p.path / 'batches' / '2' / 'certificate.json').write_bytes(b'[' * 5000)


def event_that_is_a_list(p: Patient) -> None:
    audit_events(p, [b'{"event":["x"]}'])


FOUND: dict[str, Callable[[Patient], None]] = {
    'a pack with half a record': wrong('pack', 'records', 1.5),
    'a pack with records without end': wrong('pack', 'records', float('inf')),
    'a pack number below zero': sql('UPDATE pack SET pack = -2 WHERE pack = (SELECT min(pack) FROM pack)'),
    'a chunk in a pack without end': wrong('chunk', 'pack', float('inf')),
    'a chunk at text': wrong('chunk', 'offset', 'x'),
    'a chunk of half a kind': wrong('chunk', 'kind', 1.5),
    'a chunk of a TiB': sql('UPDATE chunk SET stored = 1 << 40, plain = 1 << 40'),
    'an id too short': sql("UPDATE chunk SET id = x'00' WHERE id = (SELECT min(id) FROM chunk)"),
    'a snapshot with a number for a name': wrong('snapshot', 'who', 7),
    'a root that is text': wrong('snapshot', 'root', 'zz'),
    'a hold until text': wrong('hold', 'until_ns', 'x'),
    'a canary whose root is a number': wrong('canary', 'root', 7),
    'a setting that is nothing': wrong('config', 'value', None),
    'an end of the audit log at text': wrong('audit_head', 'end_bytes', 'x'),
    'an epoch that is not there': sql("DELETE FROM settings WHERE key = 'epoch'"),
    'views without end': sql("UPDATE settings SET value = 1 << 62 WHERE key = 'next_view'"),
    'an extent of an EiB': long_extent,
    'a node that is none behind a right hash': node_that_is_none,
    'a plan that condemns text': plan_with_text,
    'a certificate nested too deep': deep_certificate,
    'an event that is a list': event_that_is_a_list,
}


@pytest.mark.slow
@pytest.mark.parametrize('case', list(FOUND))
def test_what_was_found(whole: Path, tmp_path: Path, case: str) -> None:
    path = damaged(whole, tmp_path, lambda p, _: FOUND[case](p), 0)
    most = used(path)
    assert most < MEMORY_MAX, f'{case}: {most >> 20} MiB'
    assert report_of(path).findings, f'{case}: fsck says nothing'


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS, ids=lambda one: one.__name__)
@pytest.mark.parametrize('seed', range(max(1, SEEDS // SEEDS_SHARE)))
def test_a_mutated_store(whole: Path, tmp_path: Path, way: Way, seed: int) -> None:
    most = used(damaged(whole, tmp_path, way, seed))
    assert most < MEMORY_MAX, f'{way.__name__} seed {seed}: {most >> 20} MiB'


def damaged(whole: Path, tmp_path: Path, way: Way, seed: int) -> Path:
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    patient = Patient(path, seed + 1000)  # other names of packs than the store has
    try:
        way(patient, Random(f'{getattr(way, "__name__", "")} {seed}'))
    finally:
        patient.db.close()
    return path


def used(path: Path) -> int:
    """Use the store in every way; return the most bytes that this took."""
    tracemalloc.start()
    try:
        with small():
            use(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
