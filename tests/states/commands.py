"""The commands, each as the words of a person; called in this process, as the program does it."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.cli.main import main as snapfs
from snapfs.errors import SnapfsError
from snapfs.service import compose, workers
from tests.images.ways_back import BYTES_MAX
from tests.mutants.setting import StepWorld, small
from tests.support.collecting import job_in_process
from tests.support.lives import on
from tests.support.stores import QuietWorld
from tools.dump.main import main as dump
from tools.fsck import main as fsck


@dataclass(frozen=True, slots=True)
class Command:
    """`words`: STORE and NEW are put in. `still`: it changes no byte. `looks`: it has to work wherever the
    store opens at all. `takes`: roots that it removes or changes on purpose."""

    name: str
    words: tuple[str, ...]
    still: bool = False
    looks: bool = False
    takes: tuple[str, ...] = ()
    program: str = 'snapfs'


def _commands() -> Iterator[Command]:
    at = ('--store', 'STORE')
    yield Command('fsck', ('STORE', '--jobs', '1'), still=True, looks=True, program='fsck')
    yield Command('fsck --quick', ('STORE', '--quick', '--jobs', '1'), still=True, looks=True, program='fsck')
    yield Command('damage', ('damage', 'STORE'), still=True, looks=True)
    yield Command('verify', ('verify', 'home@tuesday', *at), still=True, looks=True)
    yield Command('export', ('export', 'work@base', *at), still=True, looks=True)
    yield Command('export o', ('export', 'home@tuesday', *at), still=True, looks=True)
    for more in ((), ('--known-only',), ('--verify',)):
        words = ('recover', 'home@tuesday', '--dry-run', *more, *at)
        yield Command(' '.join(words[:1] + words[2:-2]), words, still=True, looks=True)
    yield Command('dump', ('STORE',), still=True, program='dump')
    for what in ('catalog', 'packs', 'journal', 'audit', 'superblock', 'lock'):
        yield Command(f'dump {what}', ('STORE', what), still=True, program='dump')
    yield Command('dump tree', ('STORE', 'tree', 'home@tuesday'), still=True, program='dump')
    yield Command('rebuild elsewhere', ('rebuild', 'STORE', 'NEW'), still=True)
    yield Command('rebuild list', ('rebuild', 'STORE', '--list-backups'), still=True)
    yield Command('audit --verify', ('audit', '--verify', *at))
    yield Command('audit', ('audit', *at))
    yield Command('snapshot list', ('snapshot', 'list', *at), looks=True)
    yield Command('status', ('status', *at), looks=True)
    yield Command('incident list', ('incident', 'list', *at), looks=True)
    yield Command('quarantine', ('quarantine', *at), looks=True)
    yield Command('why', ('why', 'home@tuesday:/big', *at))
    yield Command('why volume', ('why', 'home:/big', *at))
    yield Command('space', ('snapshot', 'space', 'home@tuesday', *at))
    yield Command('scrub --status', ('scrub', '--status', *at), looks=True)
    yield Command('open', (), looks=True, program='open')
    yield Command('snapshot create', ('snapshot', 'create', 'home@new', *at))
    yield Command('snapshot delete', ('snapshot', 'delete', 'home@tuesday', *at), takes=('home@tuesday',))
    yield Command('snapshot delete held', ('snapshot', 'delete', 'home@monday', *at))
    yield Command('volume rollback', ('volume', 'rollback', 'home@tuesday', *at), takes=('home',))
    yield Command('scrub', ('scrub', *at))
    yield Command('recover', ('recover', 'home@tuesday', *at))
    yield Command('recover monday', ('recover', 'home@monday', '--verify', *at))
    yield Command('recover --known-only', ('recover', 'home@tuesday', '--known-only', *at))
    yield Command('collect', ('collect', *at))
    yield Command('collect --dry-run', ('collect', '--dry-run', *at))
    yield Command('collect leaks', ('collect', 'leaks', *at))
    yield Command('incident ack', ('incident', 'ack', '1', '--note', 'looked', *at))
    yield Command('rebuild --install', ('rebuild', 'STORE', 'STORE/catalog.new', '--install'))
    yield Command('rebuild --journal', ('rebuild', 'STORE', 'STORE/catalog.new', '--install', '--journal'))


COMMANDS = {one.name: one for one in _commands()}


@dataclass(slots=True)
class Told:
    """What a command has said. `bug`: the traceback of what it died of, or of what it logged."""

    code: int
    out: str
    err: str
    bug: str = ''
    value: Any = None


class _Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.bugs: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and 'bug' in record.getMessage():
            text = ''.join(traceback.format_exception(*record.exc_info))  # type: ignore[arg-type]
            self.bugs.append(f'{record.getMessage()}\n{text}')


@contextlib.contextmanager
def quiet() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Take what is printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8', 'surrogateescape') for _ in range(2))
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def here(patches: list[Callable[[pytest.MonkeyPatch], None]]) -> Iterator[None]:
    """All in this process and thread, whatever a disk does."""
    world = StepWorld()
    with pytest.MonkeyPatch.context() as patch, small():
        patch.setattr(workers, 'run_in_process', job_in_process(world))
        patch.setattr(compose, 'World', QuietWorld)
        for one in patches:
            one(patch)
        yield


def run(
    command: Command, store: Path, new: Path, patches: list[Callable[[pytest.MonkeyPatch], None]]
) -> Told:
    """Carry a command out on a store."""
    words = [one.replace('STORE', str(store)).replace('NEW', str(new)) for one in command.words]
    logged = _Logged()
    logging.getLogger('snapfs').addHandler(logged)
    told = Told(0, '', '')
    try:
        with quiet() as (out, err), here(patches):
            try:
                if command.program == 'snapfs':
                    told.code = snapfs(words)
                elif command.program == 'open':
                    told.value = on(store, lambda collecting: read_all(collecting.engine))
                else:
                    told.code = {'fsck': fsck, 'dump': dump}[command.program](words)
            except SnapfsError as error:
                if command.program != 'open':
                    raise
                told.code = error.exit_code
                print(f'snapfs: {error.line()}', file=sys.stderr)
        for stream, name in ((out, 'out'), (err, 'err')):
            stream.flush()
            setattr(told, name, stream.buffer.getvalue().decode('utf-8', 'replace'))  # type: ignore[attr-defined]
    except SystemExit as error:
        told.code, told.bug = -1, f'exit {error.code!r}'
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        told.code, told.bug = -1, ''.join(traceback.format_exception(error))
    finally:
        logging.getLogger('snapfs').removeHandler(logged)
    told.bug = told.bug or '\n'.join(logged.bugs)
    return told


async def read_all(engine: Any) -> dict[str, dict[str, Any]]:
    """Read every file of every volume and snapshot: by root and path (number, bytes or what was said)."""
    found: dict[str, dict[str, Any]] = {}
    views = dict(engine.heads())
    volumes = {head.row.volume: head.name for head in engine.heads().values()}
    for row in engine.snapshot_list():
        views[f'{volumes[row.volume]}@{row.name}'] = engine.snapshot_view(row.number)
    for name, view in views.items():
        found[name] = {}
        await _below(view, limits.INO_ROOT, '', found[name])
    return found


async def _below(view: Any, ino: int, path: str, found: dict[str, Any]) -> None:
    try:
        inode = await view.inode(ino)
        if not inode.is_directory():
            data = inode.target
            if inode.is_regular():
                data = await view.read(inode, 0, min(inode.size, BYTES_MAX))
            found[path] = (ino, data)
            return
        after, entries = 0, []
        while page := await view.list_directory(inode, after, 100):
            entries += [(name, child) for _, name, child, _ in page]
            after = page[-1][0]
    except SnapfsError as error:
        found[path] = (ino, error)
        return
    for name, child in entries:
        await _below(view, child, f'{path}/{name.decode("utf-8", "replace")}', found)
