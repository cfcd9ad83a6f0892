"""L5 places: what the computed directories and files of a mount have in common. Event loop only.

A place is everything in a mount that is not a file of a volume or a snapshot: the root of the mount,
`.snapshots`, and `.snapfs` with what is below it. Places are small objects made for one request: all they
know is in their node id and in the engine. Each class says what may be done in it; the rest is refused
here.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyfuse3 import EntryAttributes

from snapfs.errors import Refused

if TYPE_CHECKING:
    from snapfs.mount.namespace import Namespace

COOKIE_FIRST = 3  # 0 begins a listing, 1 and 2 are `.` and `..`


class Caller(Protocol):
    """Who asks: what a pyfuse3 RequestContext says of the process."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...


class PlaceEntry(NamedTuple):
    """One line of a listing. Cookies are `COOKIE_FIRST` or more, ascending, the same for the same thing."""

    cookie: int
    name: bytes
    attributes: EntryAttributes


class Place:
    """A computed directory or text file. Here: a directory that is empty and in which nothing is allowed."""

    def __init__(self, namespace: Namespace, node: int) -> None:
        self.namespace = namespace
        self.engine = namespace.engine
        self.node = node

    async def attributes(self) -> EntryAttributes:
        """Return the attributes. Refused(ESTALE) when the place is gone."""
        raise NotImplementedError

    async def parent_node(self) -> int:
        """Return the node id of the directory that this place is in."""
        raise NotImplementedError

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        """Return the attributes of the entry `name`, or None. Never called for `.` and `..`."""
        raise NotImplementedError

    async def admit(self, name: bytes, caller: Caller) -> None:
        """Refused(EACCES) when `caller` may not pass by `name`, and no mode tells the kernel so."""

    async def entries(self, after: int) -> list[PlaceEntry]:
        """Return the entries with a cookie above `after`."""
        raise NotImplementedError

    async def make_directory(self, name: bytes, mode: int, caller: Caller) -> EntryAttributes:
        """Make what a directory in this place stands for, and return its attributes."""
        raise Refused(errno.EPERM)

    async def remove_directory(self, name: bytes, caller: Caller) -> None:
        """Request the deletion of what the directory `name` stands for."""
        raise Refused(errno.EPERM)

    async def receive(self, source: Place, name: bytes, new_name: bytes, caller: Caller) -> None:
        """Do what `mv SOURCE/NAME THIS/NEW_NAME` stands for. Never replaces anything."""
        raise Refused(errno.EPERM)

    def refuse_tree(self) -> Refused:
        """Return the answer to a rename between this place and a volume."""
        return Refused(errno.EPERM)

    async def text(self) -> bytes:
        """Return the content of a text file."""
        raise Refused(errno.EISDIR)


class TextFile(Place):
    """A computed text file. A subclass renders it."""

    async def lookup(self, name: bytes) -> EntryAttributes | None:
        raise Refused(errno.ENOTDIR)

    async def entries(self, after: int) -> list[PlaceEntry]:
        raise Refused(errno.ENOTDIR)


def text_name(name: bytes) -> str:
    """Return a name as the engine knows it."""
    return name.decode('utf-8', 'surrogateescape')


def byte_name(name: str) -> bytes:
    """Return a name as the kernel knows it."""
    return name.encode('utf-8', 'surrogateescape')


def caller_name(caller: Caller) -> str:
    """Return who asks, as requests, snapshots and the audit log name them."""
    return f'uid {caller.uid}'


def directory_mode(mode: int) -> int:
    """Return the mode of a directory with these permissions."""
    return stat.S_IFDIR | stat.S_IMODE(mode)
