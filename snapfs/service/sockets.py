"""L6 sockets: the name of the control socket, and who is at the other end. Any thread, but for `Asker`: event
loop only. Never waits."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from snapfs import limits

NAME = 'control.sock'


class Asker:
    """Whoever waits for an answer. Once he has hung up, what only looks for him ends; what changes something
    goes on to its end."""

    def __init__(self) -> None:
        self.gone = False
        self._ends: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def ends(self, end: Callable[[], None]) -> Iterator[None]:
        """Call `end` when he hangs up while this is entered, or has done so before."""
        self._ends.append(end)
        try:
            if self.gone:
                end()
            yield
        finally:
            self._ends.remove(end)

    def leave(self) -> None:
        """He has hung up."""
        self.gone = True
        for end in list(self._ends):
            end()


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end, as the kernel vouches for it. `name` is the user's, or his number."""

    pid: int
    uid: int
    gid: int
    asker: Asker = field(default_factory=Asker, compare=False)

    @property
    def name(self) -> str:
        return user_name(self.uid)


@contextlib.contextmanager
def address(store: Path) -> Iterator[str]:
    """Yield a name of STORE/control.sock that fits into a socket address, however long the store's own
    name is."""
    plain = str(store / NAME)
    if len(os.fsencode(plain)) <= limits.SOCKET_PATH_BYTES_MAX:
        yield plain
        return
    fd = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f'/proc/self/fd/{fd}/{NAME}'
    finally:
        os.close(fd)


def peer_of(connection: socket.socket) -> Peer:
    """Return the peer of a connected Unix socket (SO_PEERCRED: pid, uid, gid as three native integers)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = (int.from_bytes(data[i : i + 4], sys.byteorder) for i in (0, 4, 8))
    return Peer(pid, uid, gid)


def has_hung_up(connection: socket.socket) -> bool:
    """Say whether the other end is closed. One that only says no more and still listens is not."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP and POLLERR are told unasked
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def this_process() -> Peer:
    """Return this process in the same form."""
    return Peer(os.getpid(), os.geteuid(), os.getegid())


def user_name(uid: int) -> str:
    """Return the login name of `uid`, or its digits when it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
