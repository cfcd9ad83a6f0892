"""L5 listing: one answer to readdirplus: names with their attributes. Event loop only; the adapter calls.

The kernel gives a position and a buffer; a listing fills the buffer with what is behind that position. Every
entry that fits is also a look-up: `given` counts it, so that the kernel may keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from snapfs import limits
from snapfs.mount.attributes import dot_entry
from snapfs.mount.namespace import Namespace
from snapfs.mount.nodeids import INO_MASK

if TYPE_CHECKING:
    from snapfs.volume.inode import Inode
    from snapfs.volume.view import View

READDIR_ENTRIES = limits.READDIR_ENTRIES


async def list_view(
    space: Namespace,
    view: View,
    node: int,
    start_id: int,
    token: ReaddirToken,
    given: Callable[[View, Inode], EntryAttributes],
) -> None:
    """List a directory of a volume or a snapshot from behind position `start_id` on (0: from its start)."""
    directory = view.cached(node & INO_MASK) or await view.inode(node & INO_MASK)
    if start_id < 2:
        above = space.tree_node(view, directory.parent) if directory.ino != limits.INO_ROOT else 0
        if not _reply_dots(token, start_id, node, above or space.above_root(view)):
            return
    # Position 2 is behind `..`, and cookies begin at 2. Of the 2^63 hashes this listing may therefore
    # lose the first one, when a buffer ends between `..` and it.
    after = start_id if start_id > 1 else 1
    reply = pyfuse3.readdir_reply
    cached = view.cached
    while True:
        page = await view.list_directory(directory, after, READDIR_ENTRIES)
        if not page:
            return
        for index, (cookie, name, ino, _) in enumerate(page, 1):
            # Names with one hash share a cookie: only behind the last of them may a listing go on.
            behind = page[index][0] if index < len(page) else -1
            position = cookie if behind != cookie else cookie - 1
            inode = cached(ino) or await view.inode(ino)
            attributes = inode.attributes or space.attributes(view, inode)
            if not reply(token, name, attributes, position):
                return
            given(view, inode)
        after = page[-1][0]


async def list_place(
    space: Namespace,
    node: int,
    start_id: int,
    token: ReaddirToken,
    given: Callable[[EntryAttributes], EntryAttributes],
) -> None:
    """List a directory that is in no volume from behind position `start_id` on."""
    place = space.place(node)
    if start_id < 2 and not _reply_dots(token, start_id, node, await place.parent_node()):
        return
    for entry in await place.entries(start_id):
        if not pyfuse3.readdir_reply(token, entry.name, entry.attributes, entry.cookie):
            return
        given(entry.attributes)


def _reply_dots(token: ReaddirToken, start_id: int, node: int, above: int) -> bool:
    """List `.` and `..` from a position below 2. False: the buffer is full."""
    if start_id < 1 and not pyfuse3.readdir_reply(token, b'.', dot_entry(node), 1):
        return False
    return pyfuse3.readdir_reply(token, b'..', dot_entry(above), 2)
