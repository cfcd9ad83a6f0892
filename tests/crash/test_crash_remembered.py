"""fsck with a memory finds what fsck finds, of every file of a store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.crash.enumerate import place, small
from tests.crash.remembered import remembering
from tests.crash.word_run import make_base
from tests.support.fsck import report_of
from tools.checker import check as checker
from tools.checker import packs
from tools.checker.catalog import Catalog
from tools.checker.evidence import Evidence
from tools.checker.store import Store


@pytest.fixture(autouse=True)
def small_store() -> None:
    """The sizes of these stores are those of `small`."""


@pytest.fixture(scope='module')
def store() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place()) as scratch, small(Path(scratch)):
        yield trio.run(make_base, Path(scratch) / 'base').root / 'store'


def files(store: Path) -> list[Path]:
    """Return the files of a store that have bytes, all but the lock, whose text means nothing."""
    every = [path for path in sorted(store.rglob('*')) if path.is_file() and path.stat().st_size]
    return [path.relative_to(store) for path in every if path.name != 'lock']


def told(store: Path) -> list[str]:
    """Return all that fsck says."""
    report = report_of(store)
    return sorted(f'{one.code} {one.place}: {one.what}' for one in report.findings) + report.unchecked


def spoilt(data: bytes, at: float | None) -> bytes | None:
    """Return the bytes with one turned round, at a part of them; None for None: the file is not there."""
    if at is None:
        return None
    found = bytearray(data)
    found[int(len(data) * at)] ^= 0x41
    return bytes(found)


def put(path: Path, data: bytes | None) -> None:
    """Let a file have these bytes, or not be."""
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(data)


def test_nothing_of_it_stays() -> None:
    """Whatever is tested after it in this process is tested without it."""
    places = [
        (checker, 'look'),
        (Catalog, 'check'),
        (Evidence, 'check'),
        (Store, 'connect'),
        (Store, 'close'),
    ]
    before = [getattr(place, name) for place, name in places] + [packs.Nodes]
    with remembering():
        inside = [getattr(place, name) for place, name in places] + [packs.Nodes]
    assert not any(one is other for one, other in zip(before, inside, strict=True))
    assert [getattr(place, name) for place, name in places] + [packs.Nodes] == before


@pytest.mark.slow
def test_a_memory_changes_nothing(store: Path) -> None:
    """Each file of a store that is known by heart is spoilt, taken away and put back."""
    copy, seen = store.parent / 'copy', 0
    shutil.copytree(store, copy)
    with remembering():
        pass  # `small` had a memory: what is checked outside of such a block has none from here on
    for name in files(store):
        path = copy / name
        good = path.read_bytes()
        for at in (0.1, 0.4, 0.7, None):
            bad = spoilt(good, at)
            put(path, bad)
            plain = told(copy)
            with remembering() as memory:
                path.write_bytes(good)
                whole = told(copy)
                assert memory.known == 0 < memory.asked
                assert told(copy) == whole
                assert memory.known * 2 == memory.asked, 'it remembers nothing'
                for _ in range(2):
                    put(path, bad)
                    assert told(copy) == plain, f'{name} at {at}: another finding with a memory'
            path.write_bytes(good)
            seen += plain != whole
    assert seen > 2 * len(files(store)), 'damage is seen'
