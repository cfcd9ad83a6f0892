"""What several programs do in one volume, call by call, and which states of it a power cut may leave.

Each worker has a directory of its own. What its n-th call does follows from the seed and the calls before, so
the state after any number of calls is known. A counter is taken before and after each call: of two calls the
earlier is the one that ended before the other began, in whatever workers they are.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import itertools
import os
import random
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.oracle import differences
from tests.support.model import Node

Call = tuple[Any, ...]
NAMES = ['a', 'b', 'c', 'd']
BYTES = [1, 100, 4096, 5000, 40_000]  # one request of the kernel each
PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')
EXCHANGE, AT_FDCWD = 2, -100
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(old: Path, new: Path) -> None:
    """renameat2 with RENAME_EXCHANGE."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _with_fd(path: Path, flags: int, what: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        what(fd)
    finally:
        os.close(fd)


def do(top: Path, call: Call) -> None:
    """Make one call for real."""
    name, path, *more = call
    there = top / path
    if name == 'create':
        os.close(os.open(there, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    elif name == 'write':
        _with_fd(there, os.O_WRONLY, lambda fd: _whole(os.pwrite(fd, more[1], more[0]), len(more[1])))
    elif name == 'truncate':
        os.truncate(there, more[0])
    elif name == 'fsync':
        _with_fd(there, os.O_RDONLY, os.fsync)
    elif name == 'rename':
        os.rename(there, top / more[0])
    elif name == 'exchange':
        exchange(there, top / more[0])
    elif name == 'link':
        os.link(there, top / more[0])
    elif name == 'symlink':
        os.symlink(more[0], there)
    elif name == 'xattr':
        os.setxattr(there, 'user.x', more[0])
    elif name == 'chmod':
        os.chmod(there, more[0])
    else:
        {'mkdir': os.mkdir, 'rmdir': os.rmdir, 'unlink': os.unlink}[name](there)


def _whole(done: int, wanted: int) -> None:
    if done != wanted:  # the power went between its two requests
        raise OSError(errno.EIO, f'{done} of {wanted} bytes written')


def requests(call: Call) -> list[Call]:
    """Return what the kernel makes of a call: it ends the request of a write at the end of a first page that
    it has not read, and sends the rest as another. A moment (P5) may lie between these two.
    """
    if call[0] != 'write':
        return [call]
    name, path, offset, data = call
    first = -offset % PAGE_BYTES
    if not 0 < first < len(data):
        return [call]
    return [(name, path, offset, data[:first]), (name, path, offset + first, data[first:])]


def note(root: Node, call: Call) -> None:
    """Make one call in the model."""
    name, path, *more = call
    parent, last, node = _find(root, path)
    if name == 'create':
        parent.entries[last] = Node(stat.S_IFREG | 0o644)
    elif name == 'mkdir':
        parent.entries[last] = Node(stat.S_IFDIR | 0o755, nlink=2)
    elif name == 'symlink':
        parent.entries[last] = Node(stat.S_IFLNK | 0o777, target=more[0].encode())
    elif name == 'fsync':
        return
    elif name in ('unlink', 'rmdir'):
        del parent.entries[last]
        node.nlink -= 1
    elif name == 'write':
        end = more[0] + len(more[1])
        node.data.extend(bytes(max(0, end - len(node.data))))
        node.data[more[0] : end] = more[1]
    elif name == 'truncate':
        del node.data[more[0] :]
        node.data.extend(bytes(more[0] - len(node.data)))
    elif name == 'xattr':
        node.xattrs[b'user.x'] = more[0]
    elif name == 'chmod':
        node.mode = stat.S_IFMT(node.mode) | more[0]
    else:
        _note_two(name, parent, last, node, *_find(root, more[0]))


def _note_two(name: str, parent: Node, last: bytes, node: Node, other: Node, new: bytes, victim: Any) -> None:
    if name == 'link':
        node.nlink += 1
    elif name == 'exchange':
        parent.entries[last] = victim
    elif victim is node:
        return
    else:
        if victim is not None:
            victim.nlink -= 1
        del parent.entries[last]
    other.entries[new] = node


def _find(root: Node, path: str) -> tuple[Node, bytes, Any]:
    """Return the directory, the last name, and what is there. '.' is the top."""
    *above, last = os.fsencode(path).split(b'/')
    for name in above:
        root = root.entries[name]
    return root, last, root if last == b'.' else root.entries.get(last)


def freeze(path: Path) -> Any:
    """Return what a mount holds in the form of Node.freeze."""
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    links = kind == stat.S_IFLNK
    xattrs = () if links else tuple([(os.fsencode(n), os.getxattr(path, n)) for n in os.listxattr(path)])
    if kind == stat.S_IFDIR:
        entries = tuple(sorted((os.fsencode(name), freeze(path / name)) for name in os.listdir(path)))
        return ('dir', found.st_mode, xattrs, entries)
    data = path.read_bytes() if kind == stat.S_IFREG else b''
    target = os.fsencode(os.readlink(path)) if links else b''
    return ('file', found.st_mode, found.st_nlink, data, target, xattrs)


class Chooser:
    """Chooses the next call of a worker: one that will work."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))

    def choose(self, root: Node) -> Call:
        """Return a call that suits the model. A third of all are fsyncs: without them nothing is promised."""
        files, folders, others, free = _places(root)
        pick = self.random.choice
        ways: list[Callable[[], Call]] = [lambda: ('fsync', pick(files + folders))] * 3
        if free:
            ways += [lambda: ('create', pick(free))] * 2
            ways += [lambda: ('mkdir', pick(free)), lambda: ('symlink', pick(free), 'to/where')]
        if files:
            ways += [lambda: self._write(root, pick(files))] * 4
            ways += [
                lambda: ('truncate', pick(files), pick([0, 10, 5000, 90_000])),
                lambda: ('xattr', pick(files), self.random.randbytes(pick([3, 2000]))),
                lambda: ('chmod', pick(files), pick([0o600, 0o644])),
                lambda: ('rename', pick(files), pick(files + free)),
            ]
            if free:
                ways.append(lambda: ('link', pick(files), pick(free)))
            if len(files) > 1:
                ways.append(lambda: ('exchange', *self.random.sample(files, 2)))
        if files + others:
            ways.append(lambda: ('unlink', pick(files + others)))
        empty = [path for path in folders if path != '.' and not _find(root, path)[2].entries]
        if empty:
            ways.append(lambda: ('rmdir', pick(empty)))
        return pick(ways)()

    def _write(self, root: Node, path: str) -> Call:
        size = len(_find(root, path)[2].data)
        offset = self.random.choice([size, self.random.randrange(size + 1), 0])
        if offset > 150_000:
            offset = 0
        return ('write', path, offset, self.random.randbytes(self.random.choice(BYTES)))


def _places(root: Node) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return the paths of files, directories, others, and of names that are free."""
    files: list[str] = []
    folders, others, free = ['.'], list[str](), list[str]()
    todo = [('', root)]
    while todo:
        prefix, node = todo.pop()
        for name in NAMES:
            child = node.entries.get(name.encode())
            path = prefix + name
            if child is None:
                free.append(path)
            elif child.is_directory():
                folders.append(path)
                if path.count('/') < 1:
                    todo.append((path + '/', child))
            else:
                (files if stat.S_ISREG(child.mode) else others).append(path)
    return files, folders, others, free


@dataclass(slots=True)
class Done:
    """One call, or a snapshot: when it began and ended (None: never, the power went)."""

    call: Call
    begun: int
    ended: int | None = None


@dataclass(eq=False)
class Clock:
    """The counter, and the cut: `cut` is called by the worker that begins call number `cut_at`."""

    cut_at: int
    cut: Callable[[], None]
    begun: int = 0
    cut_begun: bool = False
    off: bool = False
    _time: itertools.count = field(default_factory=itertools.count)  # type: ignore[type-arg]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        with self._lock:
            self.begun += 1
            now = next(self._time)
            mine = self.begun == self.cut_at
        if mine:  # the others are in the middle of their calls
            self.cut_begun = True
            self.cut()
            self.off = True
        return now

    def end(self) -> int:
        with self._lock:
            return next(self._time)


class Worker:
    """One program in a directory of its own."""

    def __init__(self, top: Path, name: str, seed: object, root: Node) -> None:
        self.top, self.name = top, name
        self.chooser = Chooser(seed)
        self.start = copy.deepcopy(root)
        self.root = root
        self.done: list[Done] = []
        self.odd: BaseException | None = None

    def run(self, clock: Clock) -> None:
        """Work until the power goes."""
        try:
            while not clock.off:
                call = self.chooser.choose(self.root)
                begun = clock.begin()
                parts = [Done(part, begun) for part in requests(call)]
                self.done += parts
                do(self.top / self.name, call)
                ended = clock.end()
                for part in parts:
                    part.ended = ended
                note(self.root, call)
        except OSError as error:
            if not clock.cut_begun:
                self.odd = error
        except BaseException as error:
            self.odd = error

    def states(self) -> list[Any]:
        """Return the state after each number of calls, from none on."""
        root, found = copy.deepcopy(self.start), [self.start.freeze()]
        for done in self.done:
            note(root, done.call)
            found.append(root.freeze())
        return found

    def ended_before(self, moment: int) -> int:
        return sum(one.ended is not None and one.ended < moment for one in self.done)

    def begun_before(self, moment: int) -> int:
        return sum(one.begun < moment for one in self.done)


def promised(workers: list[Worker], people: list[Done]) -> int:
    """Return the moment up to which all that had ended is promised: the last sync that was acknowledged."""
    syncs = [one for worker in workers for one in worker.done if one.call[0] == 'fsync']
    syncs += [one for one in people if one.call[0] == 'take']
    return max((one.begun for one in syncs if one.ended is not None), default=-1)


def explain(workers: list[Worker], found: dict[str, Any], low: int, high: int) -> str | None:
    """Return None when `found` is the volume at one moment not before `low` and not after `high`; else what
    is wrong."""
    ranges = []
    for worker in workers:
        states = worker.states()
        numbers = range(worker.ended_before(low), worker.begun_before(high) + 1)
        fits = [number for number in numbers if states[number] == found[worker.name]]
        if not fits:
            early = [number for number, state in enumerate(states) if state == found[worker.name]]
            lines = differences(found[worker.name], states[numbers.start], worker.name)
            return (
                f'{worker.name} is at no moment of calls {numbers.start} to {numbers.stop - 1} (P5), but as '
                f'after {early or "none"} of {len(worker.done)}; against {numbers.start}: {lines[:5]}'
            )
        ranges.append(fits)
    for cut in itertools.product(*ranges):
        if _is_moment(workers, cut):
            return None
    return f'reordered between workers (P5): {ranges}'


def _is_moment(workers: list[Worker], cut: tuple[int, ...]) -> bool:
    """Whether these numbers of calls are one moment: whatever is there, all that ended before it is too."""
    latest = max((w.done[n - 1].begun for w, n in zip(workers, cut, strict=True) if n), default=-1)
    return all(n >= w.ended_before(latest) for w, n in zip(workers, cut, strict=True))
