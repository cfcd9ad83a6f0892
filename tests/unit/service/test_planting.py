"""A canary that lost its bytes is replaced; after a recovery nothing of the store is damaged any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapfs.collect.canary import canaries as read
from snapfs.format.records import HEADER_BYTES
from snapfs.service.collecting import Collecting
from snapfs.service.planting import plant
from snapfs.service.recovering import Recovering, Wish
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tests.support.lives import on
from tools.breaking.edit import Patient
from tools.breakit import break_it


def canaries(collecting: Collecting) -> list[tuple[Any, ...]]:
    return collecting.engine.store.catalog.query('SELECT number, root FROM canary ORDER BY number')


def test_a_canary_is_planted_once(kept_store):
    async def work(collecting: Collecting) -> None:
        await plant(collecting.engine, collecting.world)
        before = canaries(collecting)
        await plant(collecting.engine, collecting.world)
        assert canaries(collecting) == before and len(before) == 1

    on(kept_store, work)


def test_one_that_has_lost_bytes_is_replaced_by_a_recovery(kept_store):
    """Nobody has a copy of it, and fsck named it for ever, with advice that could not help."""

    async def planted(collecting: Collecting) -> bytes:
        store = collecting.engine.store
        await plant(collecting.engine, collecting.world)
        (found,) = read(store.catalog, store.chunks.get)
        return found.data[3]

    id = on(kept_store, planted)
    patient = Patient(kept_store, 1)
    ((pack, offset),) = patient.sql('SELECT pack, offset FROM chunk WHERE id = ?', id)
    patient.flip(patient.pack(pack), offset + HEADER_BYTES + 100)
    patient.close()
    break_it(kept_store, 'payload-flip', seed=1)
    assert [file for file in damaged(kept_store) if file.startswith('canary 1')]

    async def work(collecting: Collecting) -> None:
        await Recovering(collecting).run(Wish('home', 'monday', None, (), True, False, 'ann'))
        assert [number for number, _ in canaries(collecting)] == [2]
        assert id not in collecting.engine.store.chunks.unreadable

    on(kept_store, work)
    assert damaged(kept_store) and not [file for file in damaged(kept_store) if 'canary' in file]


def damaged(path: Path) -> list[str]:
    with small():
        report = report_of(path)
    return [file[0] for one in report.findings if one.severity == 'damage' for file in one.files]
