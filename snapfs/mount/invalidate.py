"""L5 invalidate: telling the kernel what changed behind its back. Event loop; a thread to send.

The kernel keeps names and attributes without limit, and most changes come through it. Those that do not:
volumes and snapshots made, deleted and renamed on the command line, and rollbacks. The engine reports each
of them (`on_change`); `run` then compares what the kernel was told with what is so, and has it forget the
differences.

A notification waits in the kernel for requests on the same directory that are under way. Sent from a
handler it would wait for itself. So it is sent from a thread, while the event loop goes on answering.

After a rollback the volume has a new view number, hence new node ids. In a mount of the whole store
forgetting the name of the volume is enough. In a mount of this volume alone the root directory stays, so
its names are forgotten one by one, and the attributes of all files of the old view, whose names lead here
by being looked up again (ESTALE).
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pyfuse3
import trio

from snapfs import limits
from snapfs.errors import SnapfsError
from snapfs.mount.namespace import Namespace
from snapfs.mount.nodeids import INO_BITS, ROOT_NODE
from snapfs.mount.root import CONTROL_NAME, SNAPSHOTS_NAME

if TYPE_CHECKING:
    from snapfs.volume.head import Head

log = logging.getLogger(__name__)

LIST_ENTRIES = 512


@dataclass(frozen=True, slots=True)
class Outdated:
    """What the kernel is to forget: entries as (directory, name), and attributes and pages of nodes."""

    entries: tuple[tuple[int, bytes], ...]
    nodes: tuple[int, ...] = ()


class Sender(Protocol):
    """Takes notifications to the kernel."""

    def send(self, outdated: Outdated) -> None: ...
    def close(self) -> None: ...


class KernelSender:
    """Sends notifications, until it is closed. Blocking; any thread but the event loop's."""

    def __init__(self) -> None:
        self._open = True
        self._busy = threading.Lock()  # held while pyfuse3's session is in use

    def send(self, outdated: Outdated) -> None:
        """Have the kernel forget."""
        for parent_node, name in outdated.entries:
            self._send(pyfuse3.invalidate_entry, parent_node, name)
        for node in outdated.nodes:
            self._send(pyfuse3.invalidate_inode, node)

    def close(self) -> None:
        """Return when nothing is being sent and nothing will be: after its close pyfuse3 would crash."""
        self._open = False
        with self._busy:
            pass

    def _send(self, notify: Callable[..., None], *arguments: int | bytes) -> None:
        with self._busy:
            # Without a token the session loop has ended, and nobody would answer what the kernel waits for.
            if not self._open or pyfuse3.trio_token is None:
                return
            try:
                notify(*arguments)
            except OSError as error:
                if error.errno != errno.ENOENT:  # which only says that the kernel does not know it (any more)
                    log.error('the kernel did not take a notification (%s of %r)', error.strerror, arguments)


class Invalidator:
    """Watches the engine and keeps the kernel's caches true. One per mount."""

    def __init__(
        self,
        namespace: Namespace,
        known: Callable[[], Iterable[int]],
        sender: Sender | None = None,
    ) -> None:
        """`known` returns the node ids the kernel knows. `changed` is to be registered with the engine."""
        self._namespace = namespace
        self._known = known
        self._sender: Sender = sender or KernelSender()
        self._scope: trio.CancelScope | None = None
        self._root_head = namespace.root_head
        self._wake = trio.Event()
        self._changes = 0  # noted so far
        self._told = 0  # how many of these the kernel was told of
        self._progress = trio.Event()

    def changed(self, *_: object) -> None:
        """Note that volumes or snapshots changed; the listener for `Engine.on_change`. Does not block."""
        self._namespace.refresh()
        self._changes += 1
        self._wake.set()

    async def settled(self) -> None:
        """Return when the kernel was told of every change up to now, or does not listen for too long.

        Never from a handler of the kernel's requests: what is sent may be waiting for just that handler.
        """
        wanted = self._changes
        with trio.move_on_after(limits.NOTIFY_CLOSE_SECONDS):
            while self._sending() and self._told < wanted:
                await self._progress.wait()

    def _sending(self) -> bool:
        """Return whether there is a session, whose kernel side keeps what it was told, and not its end."""
        return self._scope is not None and not self._scope.cancel_called

    def start(self) -> None:
        """Begin to send, in a task of its own that lives until `stop` or the end of the event loop."""
        if self._scope is None:
            self._scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run, self._scope)

    async def stop(self) -> None:
        """Send no more; return when nothing is being sent, or when the kernel does not let go of it."""
        if self._scope is not None:
            self._scope.cancel()
        self._progress.set()
        with trio.move_on_after(limits.NOTIFY_CLOSE_SECONDS):
            await trio.to_thread.run_sync(self._sender.close, abandon_on_cancel=True)

    async def _run(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                changes = self._changes
                try:
                    outdated = await self.collect()
                    if outdated.entries or outdated.nodes:
                        await trio.to_thread.run_sync(self._sender.send, outdated, abandon_on_cancel=True)
                except Exception:  # a system task that dies takes the daemon with it
                    log.exception('the kernel could not be told of a change')
                self._told = changes
                self._progress.set()
                self._progress = trio.Event()

    async def collect(self) -> Outdated:
        """Return what the kernel has to forget since the last call."""
        entries = self._namespace.stale()
        old, new = self._root_head, self._namespace.root_head
        self._root_head = new
        if old is None or old is new or (new is not None and new.number == old.number):
            return Outdated(tuple(entries))
        nodes = [ROOT_NODE, *(node for node in self._known() if node >> INO_BITS == old.number)]
        names = {SNAPSHOTS_NAME, CONTROL_NAME}
        for head in (old, new):
            if head is not None:
                names.update(await _root_names(head))
        entries += [(ROOT_NODE, name) for name in sorted(names)]
        return Outdated(tuple(entries), tuple(nodes))


async def _root_names(head: Head) -> set[bytes]:
    """Return the names in the root directory of a head; those that can be read if it is damaged."""
    names: set[bytes] = set()
    after = 0
    try:
        directory = await head.inode(limits.INO_ROOT)
        while page := await head.list_directory(directory, after, LIST_ENTRIES):
            names.update(entry[1] for entry in page)
            after = page[-1][0]
    except SnapfsError as error:
        log.info('%s: %s', head.name, error.line())
    return names
