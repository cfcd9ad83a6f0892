"""Power cut at every sync and every commit of a short workload, and again during the recovery from it."""

from __future__ import annotations

import random

import pytest

from snapfs import limits
from snapfs.format.records import RecordKind
from snapfs.store.store import Store
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.world import SimWorld
from tests.unit.store.kit import append, commit, index, plains_of, put, record, replayed

SEEDS = 6


class Workload:
    """Puts, journal records, commits and a clean close and reopen, in an order that a seed decides. What has
    been promised is in `promised` (ids by content) and `recorded` (marks)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.promised: dict[bytes, bytes] = {}
        self.recorded: list[int] = []
        self.begun: list[int] = []
        self.committing = False

    def run(self, path, disk, world) -> None:
        store = Store.open(path, disk, world)
        chance = random.Random(self.seed)
        for writer in store.chunks.writers.values():
            writer.bytes_max = 40_000  # a few batches, then the next pack
        waiting: dict[bytes, bytes] = {}
        for step in range(14):
            kind = chance.choice(list(RecordKind))
            plains = plains_of(self.seed * 100 + chance.randrange(12), 5)
            waiting.update(zip(put(store, plains, kind), plains, strict=True))
            what = chance.choice(('nothing', 'record', 'record', 'append', 'commit', 'reopen'))
            if what == 'record':
                self.begun.append(step + 1)
                record(store, step + 1)
                self.recorded[:] = self.begun
                self.promised.update(waiting)
            elif what == 'append':  # written, but no fsync has returned; the one before it is durable
                self.begun.append(step + 1)
                append(store, step + 1)
                self.recorded[:] = self.begun[:-1]
            elif what in ('commit', 'reopen'):
                self.committing = True
                left = store.journal.switch()
                commit(store)
                store.journal.release(left)
                self.committing = False
                self.begun.clear()
                self.recorded.clear()
                self.promised.update(waiting)
            if what == 'reopen':
                store.close(clean=True)
                store = Store.open(path, disk, world)
                assert store.was_clean
                for writer in store.chunks.writers.values():
                    writer.bytes_max = 40_000
        store.close(clean=True)


def made(tmp_path, world) -> SimDisk:
    root = tmp_path / 'root'
    root.mkdir()
    disk = SimDisk(root)
    Store.create(root / 'store', disk, world).close(clean=True)
    return disk


def check(store: Store, work: Workload, note: str) -> None:
    """After a crash: what was promised is there, and what is named is there (P4, P5)."""
    marks = replayed(store)
    if not (work.committing and not marks):  # else the commit got through, and contains them all
        assert marks == work.begun[: len(marks)], f'{note}: {marks} is no prefix of {work.begun}'
        assert len(marks) >= len(work.recorded), f'{note}: {marks} lacks some of {work.recorded}'
    for id, plain in work.promised.items():
        assert store.chunks.get(id) == plain, f'{note}: promised chunk lost'
    for id in index(store):
        store.chunks.get(id)
    states = {row.state for row in store.catalog.packs()}
    assert states <= {'sealed'} or store.was_clean, note


def recover(store: Store, work: Workload, note: str) -> None:
    """What the engine does after an unclean stop; then write on."""
    check(store, work, note)
    if not store.was_clean:
        commit(store)
        store.journal.restart(store.committed_sequence)
        assert replayed(store) == []
    again = plains_of(99, 3)
    ids = put(store, again)
    record(store, 77)
    assert store.chunks.get_many(ids) == again


@pytest.mark.parametrize('seed', range(SEEDS))
def test_power_cut_at_every_event(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(limits, 'JOURNAL_FRAME_BYTES_TARGET', 300)  # a record has several frames
    cut, cuts = 0, 0
    while True:
        cut += 1
        folder = tmp_path / str(cut)
        folder.mkdir()
        world = SimWorld(seed)
        disk = made(folder, world)
        disk.cut_at = disk.events + cut
        work = Workload(seed)
        try:
            work.run(disk.root / 'store', disk, world)
        except PowerCut:
            cuts += 1
        else:
            disk.forget()
            break
        note = f'seed {seed}, cut at event {cut}: {disk.history[-1]}'
        after = disk.crash(seed * 1000 + cut, folder / 'after')
        disk.forget()
        second = SimDisk(after)
        # The power fails once more, at some moment of the recovery.
        second.cut_at = random.Random(seed * 7919 + cut).randrange(1, 12)
        try:
            store = Store.open(after / 'store', second, world)
            recover(store, work, note)
            store.close(clean=True)
        except PowerCut:
            third = SimDisk(second.crash(seed * 1000 + cut + 500, folder / 'later'))
            second.forget()
            store = Store.open(folder / 'later' / 'store', third, world)
            replayed(store)
            for id, plain in work.promised.items():
                assert store.chunks.get(id) == plain, f'{note}: lost in the second cut'
            store.close(clean=False)
            third.forget()
        else:
            second.forget()
    assert cuts > 15
