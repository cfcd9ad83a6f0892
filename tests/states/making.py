"""The states that a small store is brought into, one function each; they can be put on top of each other.

States are made in the order of STATES, whatever order they are named in: the catalog by SQL first, then
packs, other files, the catalog's log, its pages, the journal and the superblock. Nothing opens the store, so
that no state mends another. What a disk does (full, read-only) is a patch while a command runs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from snapfs.collect.states import CONFIRMED, batches
from snapfs.format.records import HEADER_BYTES
from snapfs.service.collecting import Collecting
from snapfs.store.catalog import Catalog
from snapfs.store.durable import Disk
from snapfs.volume.engine import Engine
from tests.images.image import make
from tests.mutants.setting import PowerCut, StepWorld, small
from tests.support.collecting import DAY, job_in_process
from tests.support.lives import backup_at, on
from tests.support.losses import lose_top_node
from tools.breaking.edit import Patient
from tools.breaking.evidence import _frames
from tools.breaking.kinds import data_place, extents, node_place, packs_of
from tools.breakit import break_it

Make = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class State:
    """A state: its name, how it is made, and what it means.

    `closed`: nothing opens, by the README. `loses`: bytes of files, or nodes of trees, are gone. `stands`:
    the collector stands still. `patch`: what the disk does while a command runs. `base`: the image that it
    begins with."""

    name: str
    make: Make
    closed: bool = False
    loses: bool = False
    stands: bool = False
    patch: Callable[[Path, pytest.MonkeyPatch], None] | None = None
    base: str = 'clean'


STATES: dict[str, State] = {}


def state(name: str, **facts: Any) -> Callable[[Make], Make]:
    """Enter a function as a state."""

    def enter(function: Make) -> Make:
        assert name not in STATES
        STATES[name] = State(name, function, **facts)
        return function

    return enter


def nothing(store: Path) -> None:
    """The state is one of the image, or of the disk."""


# --- the images ------------------------------------------------------------------------------------------
def images(folder: Path) -> dict[str, Path]:
    """Make the images that all states begin with; return their paths by name. All of them have a held
    snapshot, a pending request and two batches that rest."""
    found = {name: folder / name for name in ('cut', 'clean', 'confirmed')}
    make(found['cut'])
    shutil.copytree(found['cut'], found['clean'])
    on(found['clean'], backup_at(10**18))
    VICTIMS['it'] = _victims(found['clean'])
    shutil.copytree(found['clean'], found['confirmed'])
    _confirm(found['confirmed'])
    return found


def _confirm(store: Path) -> None:
    """Let a batch be confirmed, and the power be cut before anything of it is freed."""

    async def life() -> None:
        world = StepWorld()
        world._random.seed('confirmed')
        engine = await Engine.open(store, Disk(), world)
        collecting = Collecting(engine, world, job_in_process(world))
        await collecting.begin()
        world.advance(8 * DAY)

        async def step(name: str) -> None:
            if batches(engine.store.catalog, CONFIRMED):
                raise PowerCut

        world.step, world.wanted = step, frozenset({'next'})
        with contextlib.suppress(PowerCut):
            await collecting.collect()
        assert batches(engine.store.catalog, CONFIRMED)
        engine.store.close(clean=False)
        engine.closed = True

    with small():
        trio.run(life)


# --- the disk --------------------------------------------------------------------------------------------
def read_only(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the filesystem below a directory be read-only, as far as we write ourselves."""
    real, access = Disk._sys_open, os.access

    def opened(self: Disk, name: Path, flags: int) -> int:
        if name.is_relative_to(path) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        return real(self, name, flags)

    def refuse(*arguments: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    patch.setattr(Disk, '_sys_open', opened)
    patch.setattr(Disk, 'is_read_only', lambda self, name: Path(name).is_relative_to(path))
    patch.setattr(os, 'access', lambda name, mode: path not in (name, *name.parents) and access(name, mode))
    for name in ('_sys_rename', '_sys_unlink', '_sys_mkdir'):
        inner = getattr(Disk, name)

        def called(self: Disk, where: Path, *more: Any, inner: Any = inner) -> Any:
            return refuse() if where.is_relative_to(path) else inner(self, where, *more)

        patch.setattr(Disk, name, called)


def full(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Let no file below a directory grow by more than the store's reserve had, once that is given up; and the
    catalog not at all."""
    real_write, real_truncate, connect = Disk._sys_pwritev, Disk._sys_ftruncate, Catalog._connect
    reserve = path / 'reserve'
    kept, grown = (reserve.stat().st_size if reserve.exists() else 0), 0

    def grows(fd: int, end: int) -> None:
        nonlocal grown
        inside = os.readlink(f'/proc/self/fd/{fd}').startswith(f'{path}/')
        if inside and end > os.fstat(fd).st_size:
            more = end - os.fstat(fd).st_size
            if grown + more > (0 if reserve.exists() else kept):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            grown += more

    def write(self: Disk, fd: int, buffers: Any, offset: int) -> int:
        grows(fd, offset + sum(len(one) for one in buffers))
        return real_write(self, fd, buffers, offset)

    def truncate(self: Disk, fd: int, size: int) -> None:
        grows(fd, size)
        real_truncate(self, fd, size)

    def connected(self: Catalog, mode: str) -> sqlite3.Connection:
        found = connect(self, mode)
        if self._path.is_relative_to(path):
            found.execute('PRAGMA max_page_count = 1')  # as many as there are
        return found

    patch.setattr(Disk, '_sys_pwritev', write)
    patch.setattr(Disk, '_sys_ftruncate', truncate)
    patch.setattr(Catalog, '_connect', connected)


state('clean')(nothing)
state('cut', base='cut')(nothing)
state('confirmed', base='confirmed')(nothing)
state('read-only', patch=read_only)(nothing)
state('full', patch=full)(nothing)


# --- the catalog, by SQL ---------------------------------------------------------------------------------
def sql(store: Path, *texts: str) -> None:
    """Run statements, and take the log into the catalog."""
    db = sqlite3.connect(store / 'catalog.sqlite', isolation_level=None)
    for text in texts:
        db.execute(text)
    db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    db.close()


def incident(store: Path, scope: str, reason: str) -> None:
    """Let something have stopped by itself."""
    sql(
        store,
        f"INSERT INTO incident (number, scope, reason, opened_ns) SELECT value, '{scope}', '{reason}', 1 "
        "FROM settings WHERE key = 'next_incident'",
        "UPDATE settings SET value = value + 1 WHERE key = 'next_incident'",
    )


@state('stopped', stands=True)
def _(store: Path) -> None:
    incident(store, 'store', 'a sync failed')


@state('collector stopped', stands=True)
def _(store: Path) -> None:
    incident(store, 'collector', 'a test')


@state('version 2')
def _(store: Path) -> None:
    sql(store, 'DROP TABLE IF EXISTS damage', 'DROP TABLE IF EXISTS verified', 'PRAGMA user_version = 2')


# --- packs -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Victims:
    """What is damaged, found in a whole store: (path in the store, offset of the record, stored bytes)."""

    known_id: bytes
    known: tuple[Path, int, int]
    unknown: tuple[Path, int, int]
    leaf: tuple[Path, int, int]
    top: tuple[Path, int, int]
    data_pack: Path
    meta_pack: Path


VICTIMS: dict[str, Victims] = {}  # one entry, made with the images


def _victims(store: Path) -> Victims:
    p = Patient(store, 1)
    try:

        def inside(place: tuple[Any, ...]) -> tuple[Path, int, int]:
            return place[0].relative_to(store), place[1], place[2]

        known, unknown = inside(data_place(p)), inside(data_place(p, 1))
        leaf = inside(node_place(p, 0))
        pack, offset, stored = p.place(p.root('volume', b'home')[1])
        packs = {kind: [p.pack(pack) for pack in packs_of(p, kind)] for kind in (1, 2)}
        (data_pack, *_) = [
            one.relative_to(store)
            for one in reversed(packs[1])
            if one.relative_to(store) not in (known[0], unknown[0])
        ]
        return Victims(
            extents(p)[0][1][-1], known, unknown, leaf, inside((p.pack(pack), offset, stored)), data_pack,
            packs[2][-1].relative_to(store),
        )  # fmt: skip
    finally:
        p.close()


def flip(store: Path, place: tuple[Path, int, int], bit: int, copy: bool = False) -> None:
    """Turn one bit in the middle of a record; `copy`: in its second copy as well, where there is one."""
    path, offset, stored = place
    paths = [store / path, *([store / 'mirror' / path.relative_to('packs/meta')] if copy else ())]
    for one in paths:
        if one.exists():
            data = bytearray(one.read_bytes())
            data[offset + HEADER_BYTES + stored // 2] ^= 1 << bit
            one.write_bytes(data)


@state('known loss', loses=True, stands=True)
def _(store: Path) -> None:
    """As a scrub leaves it."""
    known = VICTIMS['it'].known_id.hex()
    flip(store, VICTIMS['it'].known, 5)
    sql(
        store,
        f"INSERT INTO damage VALUES (x'{known}', 1, 'scrub', 'payload: a test')",
        "INSERT INTO damage SELECT id, 1, 'read', 'freed since' FROM freed LIMIT 1",
    )
    incident(store, 'collector', 'a scrub found damage: 1 chunks')


@state('rotten chunk', loses=True)
def _(store: Path) -> None:
    flip(store, VICTIMS['it'].unknown, 5)


@state('rotten leaf')
def _(store: Path) -> None:
    flip(store, VICTIMS['it'].leaf, 4)


@state('rotten leaf twice', loses=True)
def _(store: Path) -> None:
    flip(store, VICTIMS['it'].leaf, 3, copy=True)


@state('rotten volume top')
def _(store: Path) -> None:
    flip(store, VICTIMS['it'].top, 4)


@state('data pack gone', loses=True)
def _(store: Path) -> None:
    (store / VICTIMS['it'].data_pack).unlink()


@state('meta pack gone', stands=True)
def _(store: Path) -> None:
    (store / VICTIMS['it'].meta_pack).unlink()


@state('volume top gone', loses=True)
def _(store: Path) -> None:
    lose_top_node(store, 'volume', 'home')


@state('snapshot top gone', loses=True)
def _(store: Path) -> None:
    lose_top_node(store, 'snapshot', 'tuesday')


# --- other files -----------------------------------------------------------------------------------------
@state('audit gone', stands=True)
def _(store: Path) -> None:
    (store / 'audit.log').unlink()


@state('audit damaged', stands=True)
def _(store: Path) -> None:
    if (store / 'audit.log').exists():
        break_it(store, 'audit-flip', 1)


@state('backups gone')
def _(store: Path) -> None:
    shutil.rmtree(store / 'backups')


@state('mirror gone')
def _(store: Path) -> None:
    shutil.rmtree(store / 'mirror')


@state('strays')
def _(store: Path) -> None:
    for folder in ('', 'packs', 'packs/data', 'packs/meta', 'packs/meta/00', 'mirror', 'backups', 'batches',
                   'batches/1', 'journal', 'incidents'):  # fmt: skip
        if folder == 'mirror' and not (store / folder).exists():
            continue
        (store / folder).mkdir(exist_ok=True)
        (store / folder / 'notes.txt').write_text('mine')
        (store / folder / 'core').mkdir(exist_ok=True)
        (store / folder / os.fsdecode(b'\xff')).write_text('mine')
        (store / folder / '.DS_Store').symlink_to('nowhere')


# --- the catalog's log and pages -------------------------------------------------------------------------
def _with_log(store: Path, suffixes: tuple[str, ...]) -> None:
    db = sqlite3.connect(store / 'catalog.sqlite', isolation_level=None)
    db.execute('PRAGMA journal_mode = WAL')
    db.execute("UPDATE hold SET why = 'in the log'")
    files = {one: Path(f'{store}/catalog.sqlite{one}') for one in suffixes}
    data = {one: path.read_bytes() for one, path in files.items()}
    db.close()
    for one, text in data.items():
        files[one].write_bytes(text)


@state('log')
def _(store: Path) -> None:
    _with_log(store, ('', '-wal'))


@state('log and index')
def _(store: Path) -> None:
    _with_log(store, ('', '-wal', '-shm'))


def _page(store: Path, table: str) -> None:
    path = store / 'catalog.sqlite'
    db = sqlite3.connect(f'file:{path}?immutable=1', uri=True)
    ((page,),) = db.execute('SELECT rootpage FROM sqlite_schema WHERE name = ?', (table,)).fetchall()
    ((size,),) = db.execute('PRAGMA page_size').fetchall()
    db.close()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : page * size] = b'\x55' * size
    path.write_bytes(data)


@state('page of the index', closed=True, stands=True)
def _(store: Path) -> None:
    _page(store, 'chunk')


@state('page of snapshots', closed=True, stands=True)
def _(store: Path) -> None:
    _page(store, 'snapshot')


@state('catalog gone', closed=True, stands=True)
def _(store: Path) -> None:
    (store / 'catalog.sqlite').unlink()


# --- journal, superblock ---------------------------------------------------------------------------------
@state('journal damaged', closed=True, stands=True, base='cut')
def _(store: Path) -> None:
    class Bare:
        path = store

    bare: Any = Bare()
    number, at = _frames(bare)[-2]
    path = store / 'journal' / str(number)
    data = bytearray(path.read_bytes())
    data[at + 50] ^= 1
    path.write_bytes(data)


@state('journal gone', closed=True, stands=True)
def _(store: Path) -> None:
    (store / 'journal' / '0').unlink()


@state('superblock damaged', closed=True, stands=True)
def _(store: Path) -> None:
    path = store / 'superblock'
    data = bytearray(path.read_bytes())
    data[30] ^= 8
    path.write_bytes(data)


@state('superblock gone', closed=True, stands=True)
def _(store: Path) -> None:
    (store / 'superblock').unlink()


def fits(names: tuple[str, ...]) -> bool:
    """Whether states can be put on top of each other at all."""
    bases = {STATES[one].base for one in names} - {'clean'}
    gone = 'catalog gone' in names and {'page of the index', 'page of snapshots'} & set(names)
    return (
        len(bases) <= 1
        and not gone
        and not ('clean' in names and len(names) > 1 and bases)
        and not {'version 2', 'known loss'} <= set(names)
        and not {'log', 'log and index'} <= set(names)
        and not {'audit gone', 'audit damaged'} <= set(names)
        and not {'journal gone', 'journal damaged'} <= set(names)
        and not {'superblock gone', 'superblock damaged'} <= set(names)
    )


def bring(store: Path, names: tuple[str, ...], bases: dict[str, Path]) -> None:
    """Make a store at a new path and bring it into these states."""
    (base,) = ({STATES[one].base for one in names} - {'clean'}) or {'clean'}
    shutil.copytree(bases[base], store, symlinks=True)
    for name, one in STATES.items():
        if name in names:
            one.make(store)
