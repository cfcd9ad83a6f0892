"""L4 head: the live state of a volume: names, links, life and death of inodes. Event loop only.

Directory entries change in two places at once: in the directory's known entries and in the newest layer. A
look-up
that has to read the tree may await; what it read is checked again before anything changes, because another
request
may have come between. No await stands between the first change of an operation and its last.
"""

from __future__ import annotations

import errno
import stat

from snapfs import limits
from snapfs.errors import Corrupt, Refused
from snapfs.format import keys
from snapfs.format.keys import ItemKind
from snapfs.store.rows import VolumeRow
from snapfs.volume.core import Core
from snapfs.volume.files import ITEM_BYTES_ESTIMATE, Files, check_name
from snapfs.volume.inode import Entries, Entry, Inode
from snapfs.volume.view import HASH_END

_DIRENT = int(ItemKind.DIRENT)
_ORPHAN = int(ItemKind.ORPHAN)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Head(Files):
    """The live tree of a volume."""

    def __init__(self, core: Core, row: VolumeRow) -> None:
        super().__init__(core, row)
        self._referenced: set[int] = set()  # unlinked inodes the kernel or a command still uses
        self.unlinked: set[int] = set()  # inodes without a name that still exist
        self._reclaim_later: list[int] = []

    # --- entries -----------------------------------------------------------------------------------------
    def _add_entry(self, parent: Inode, cookie: int, entry: Entry) -> None:
        """Put a new entry into a directory. The caller has looked that there is none of that name."""
        self._store_entries(parent, cookie, tuple(sorted((*self._known(parent, cookie), entry))))
        parent.size += 1

    def _refuse_crowd(self, parent: Inode, cookie: int) -> None:
        """Refuse one more name with this hash if there are too many. Asked before anything changes."""
        if len(self._known(parent, cookie)) >= limits.HASH_COLLISIONS_MAX:
            raise Refused(errno.ENOSPC, 'too many names of this directory share one hash')

    def _remove_entry(self, parent: Inode, cookie: int, name: bytes) -> None:
        """Take an entry out of a directory. The caller has looked that it is there."""
        left = tuple(entry for entry in self._known(parent, cookie) if entry[0] != name)
        self._store_entries(parent, cookie, left)
        assert parent.size > 0, f'directory {parent.ino} counts fewer entries than it has'
        parent.size -= 1

    def _known(self, parent: Inode, cookie: int) -> Entries:
        """Return the entries with this hash, which the caller's own look-up has brought into memory."""
        assert parent.entries is not None, 'a directory is changed whose entry was not looked up'
        return parent.entries.get(cookie, ())

    def _store_entries(self, parent: Inode, cookie: int, entries: Entries) -> None:
        assert parent.entries is not None, 'a directory is changed whose entry was not looked up'
        known = parent.entries
        if entries:
            if cookie not in known:
                parent.order = None
                self._entries_cached += 1
            known[cookie] = entries
        elif known.pop(cookie, None) is not None:
            self._entries_cached -= 1
        self.fresh.put(parent.ino, _DIRENT, cookie, entries or None)

    async def _find_entry(self, parent: Inode, name: bytes) -> tuple[int, Entry | None]:
        """Return the name's hash and its entry or None; afterwards the hash's entries are in memory until an
        await.
        """
        cookie = self.core.name_hash(name)
        if parent.entries is None or (cookie not in parent.entries and not parent.complete):
            found = await self.entries_at(parent, cookie)
            if parent.entries is None:
                parent.entries = {}
            if found is not None and cookie not in parent.entries:
                parent.entries[cookie] = found
                self._entries_cached += 1
        for entry in parent.entries.get(cookie, ()):
            if entry[0] == name:
                return cookie, entry
        return cookie, None

    async def _find_place(self, parent: Inode, name: bytes) -> tuple[int, Entry | None]:
        """As `_find_entry`, and the gate is open then: what is changed before the next await is not lost
        behind it.
        """
        while True:
            found = await self._find_entry(parent, name)
            if self.gate is None and not self.dropped:
                return found
            await self.pass_gate()

    async def _parent(self, parent: Inode, need: int) -> None:
        """Check that names may be added to `parent`."""
        self.directory(parent)
        if self.gate is not None or self.dropped:
            await self.pass_gate()
        if parent.nlink == 0:
            raise Refused(errno.ENOENT)
        budget = self.core.budget
        if budget.tight(need):
            await budget.admit(need)
        budget.allowance -= need

    def _touch(self, directory: Inode, now: int) -> None:
        directory.mtime_ns = directory.ctime_ns = now
        self.mark(directory)
        known = directory.entries
        if known is not None and len(known) > limits.DIRECTORY_COMPLETE_ENTRIES_MAX:
            self._forget_entries(directory)
        elif self._entries_cached > limits.DIRECTORY_CACHE_ENTRIES:
            self._shrink_directories(directory)

    # --- making ------------------------------------------------------------------------------------------
    async def make(
        self, parent: Inode, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0, target: bytes = b''
    ) -> Inode:
        """Make a file of any kind (`mode` with its S_IFMT bits) and return it.

        Refused: EEXIST, ENAMETOOLONG, ENOSPC, ENOTDIR, EMLINK.
        """
        check_name(name)
        if len(target) > limits.SYMLINK_BYTES_MAX:
            raise Refused(errno.ENAMETOOLONG)
        await self._parent(parent, ITEM_BYTES_ESTIMATE)
        cookie, found = await self._find_place(parent, name)
        if found is not None:
            raise Refused(errno.EEXIST)
        directory = stat.S_ISDIR(mode)
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if directory:
                mode |= stat.S_ISGID
        if directory and parent.nlink >= limits.NLINK_MAX:
            raise Refused(errno.EMLINK)
        self._refuse_crowd(parent, cookie)
        now = self.core.world.time_ns()
        self.mark(
            parent
        )  # busy from here on: making room for a new inode must not forget this directory's entries
        inode = self._new_inode(parent, mode, uid, gid, rdev, target, now)
        self._add_entry(parent, cookie, (name, inode.ino, mode >> 12))
        if directory:
            parent.nlink += 1
        self._touch(parent, now)
        return inode

    def _new_inode(
        self, parent: Inode, mode: int, uid: int, gid: int, rdev: int, target: bytes, now: int
    ) -> Inode:
        ino = self.next_ino
        if ino > limits.INO_MAX:
            raise Refused(errno.ENOSPC, 'the volume has used up its inode numbers')
        self.next_ino = ino + 1
        directory = stat.S_ISDIR(mode)
        size = len(target)
        nlink = 2 if directory else 1
        above = parent.ino if directory else 0
        inode = Inode(ino, (mode, uid, gid, rdev, size, 0, nlink, 1, above, now, now, now, now, 0, target))
        if directory:
            inode.entries = {}
            inode.complete = True
        self._remember(inode)
        self.mark(inode)
        return inode

    async def link(self, inode: Inode, parent: Inode, name: bytes) -> Inode:
        """Give `inode` one more name. Refused: EEXIST, EPERM for directories, EMLINK, ENOENT when it has no
        name left.
        """
        check_name(name)
        if inode.is_directory():
            raise Refused(errno.EPERM)
        await self._parent(parent, ITEM_BYTES_ESTIMATE)
        cookie, found = await self._find_place(parent, name)
        if found is not None:
            raise Refused(errno.EEXIST)
        if inode.nlink == 0:
            raise Refused(errno.ENOENT)
        if inode.nlink >= limits.NLINK_MAX:
            raise Refused(errno.EMLINK)
        self._refuse_crowd(parent, cookie)
        now = self.core.world.time_ns()
        self._add_entry(parent, cookie, (name, inode.ino, inode.mode >> 12))
        inode.nlink += 1
        inode.ctime_ns = now
        self.mark(inode)
        self._touch(parent, now)
        return inode

    # --- unmaking ----------------------------------------------------------------------------------------
    async def _find_inode(self, parent: Inode, name: bytes) -> tuple[int, Inode]:
        """Return the hash of `name` and its inode. Refused(ENOENT). The entry is in memory until the next
        await.
        """
        self.directory(parent)
        if self.core.budget.stopped is not None:
            raise self.core.budget.stopped
        if self.gate is not None or self.dropped:
            await self.pass_gate()
        while True:
            cookie, entry = await self._find_place(parent, name)
            if entry is None:
                raise Refused(errno.ENOENT)
            inode = self.inodes.get(entry[1])
            if inode is not None:
                return cookie, inode
            await self.inode(entry[1])  # the entry may have changed meanwhile: look again

    async def unlink(self, parent: Inode, name: bytes) -> Inode:
        """Take away a name that is not a directory's and return its inode. Refused: ENOENT, EISDIR."""
        cookie, inode = await self._find_inode(parent, name)
        if inode.is_directory():
            raise Refused(errno.EISDIR)
        now = self.core.world.time_ns()
        self._remove_entry(parent, cookie, name)
        self._touch(parent, now)
        self._drop_link(inode, now)
        return inode

    async def remove_directory(self, parent: Inode, name: bytes) -> Inode:
        """Take away an empty directory and return its inode. Refused: ENOENT, ENOTDIR, ENOTEMPTY."""
        cookie, inode = await self._find_inode(parent, name)
        self.directory(inode)
        if inode.size:
            raise Refused(errno.ENOTEMPTY)
        now = self.core.world.time_ns()
        self._remove_entry(parent, cookie, name)
        parent.nlink -= 1
        self._touch(parent, now)
        inode.nlink = 0
        self._orphan(inode, now)
        return inode

    def _drop_link(self, inode: Inode, now: int) -> None:
        inode.nlink -= 1
        assert inode.nlink >= 0, f'inode {inode.ino} has fewer links than names'
        inode.ctime_ns = now
        if inode.nlink == 0:
            self._orphan(inode, now)
        else:
            self.mark(inode)

    def _orphan(self, inode: Inode, now: int) -> None:
        """The last name is gone: keep the inode while it is in use, and let a crash not forget to
        remove it.
        """
        inode.ctime_ns = now
        self.unlinked.add(inode.ino)
        if inode.ino in self._referenced:
            self.fresh.put(limits.INO_ORPHANS, _ORPHAN, inode.ino, ())
            self.mark(inode)
        else:
            self.reclaim(inode)

    def referenced(self, ino: int) -> None:
        """Note that the kernel (or a command) uses this inode: it outlives its last name."""
        self._referenced.add(ino)

    def forgotten(self, ino: int) -> None:
        """Note that nobody outside uses this inode any more; one without a name is removed now."""
        self._referenced.discard(ino)
        if ino in self.unlinked:
            inode = self.inodes.get(ino) or self._alive.get(ino)
            if inode is not None:
                self.reclaim(inode)
            else:
                self.reclaim_number(ino)

    def reclaim(self, inode: Inode) -> None:
        """Remove an inode without a name, with all it holds. Bytes in flight are waited for."""
        if inode.flushing is not None:
            self._reclaim_later.append(inode.ino)
            return
        buffer = inode.buffer
        if buffer is not None:
            if buffer.logged:
                self.fresh.drops.append((inode.ino, 0, HASH_END))
            self.core.budget.taken(-buffer.cost)
            inode.buffer = None
            self.buffered.pop(inode.ino, None)
        inode.changed = False
        self._forget_entries(inode)
        self.inodes.pop(inode.ino, None)
        self._alive.pop(inode.ino, None)
        self.reclaim_number(inode.ino)

    def reclaim_number(self, ino: int) -> None:
        """Remove an inode without a name that is not in memory."""
        self.unlinked.discard(ino)
        self.fresh.put(limits.INO_ORPHANS, _ORPHAN, ino, None)
        self.fresh.delete_inode(ino)

    def reclaim_waiting(self) -> None:
        """Remove the inodes whose bytes were in flight when they were forgotten; called after each flush."""
        waiting, self._reclaim_later = self._reclaim_later, []
        for ino in waiting:
            inode = self.inodes.get(ino)
            if inode is not None and ino in self.unlinked and ino not in self._referenced:
                self.reclaim(inode)

    def reclaim_all(self) -> None:
        """Remove every inode without a name: nobody uses one any more."""
        self._referenced.clear()
        for ino in list(self.unlinked):
            self.forgotten(ino)

    async def orphans(self, count: int, after: int = 0) -> list[int]:
        """Return up to `count` inodes above `after` that are kept without a name."""
        low = keys.kind_range(limits.INO_ORPHANS, ItemKind.ORPHAN)[0]
        if after:
            low = keys.orphan_key(after) + b'\0'  # the least key behind it
        return [ino for ino, _ in await self._merged(limits.INO_ORPHANS, _ORPHAN, after, low, count)]

    async def remove_orphans(self) -> None:
        """Remove the inodes without a name that a new head has: open when the store stopped, or when the
        snapshot was taken that this head comes from. What the kernel still uses goes when it is forgotten.
        """
        after, found = 0, [0]
        while found:
            try:
                found = await self.orphans(limits.EXTENTS_PAGE, after)
            except Corrupt as error:  # they only take room; the volume can be read (P7)
                self.core.report_damage(f'{self.name}, its inodes without a name: {error}', self.number)
                return
            for ino in found:
                inode = self.inodes.get(ino)
                if ino in self._referenced:
                    self.unlinked.add(ino)
                elif inode is not None:
                    self.reclaim(inode)
                else:
                    self.reclaim_number(ino)
                after = ino

    # --- renaming ----------------------------------------------------------------------------------------
    async def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int = 0
    ) -> Inode | None:
        """Move a name; return the inode whose name it replaced, if any.

        Flags: RENAME_NOREPLACE, RENAME_EXCHANGE. Refused: ENOENT, EEXIST, ENOTEMPTY, ENOTDIR, EISDIR, EINVAL
        for a
        directory moved below itself or unknown flags.
        """
        check_name(new_name)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise Refused(errno.EINVAL)
        await self._parent(new_parent, ITEM_BYTES_ESTIMATE)
        while True:
            inode, victim = await self._rename_ends(parent, name, new_parent, new_name)
            if victim is not None and flags & RENAME_NOREPLACE:
                raise Refused(errno.EEXIST)
            if victim is None and flags & RENAME_EXCHANGE:
                raise Refused(errno.ENOENT)
            if inode is victim:
                return None  # two names of one file: POSIX wants nothing done
            await self._refuse_loop(inode, new_parent)
            if victim is not None and flags & RENAME_EXCHANGE:
                await self._refuse_loop(victim, parent)
            if self.gate is not None or self.dropped:
                await self.pass_gate()
            elif self._still(parent, name, inode) and self._still(new_parent, new_name, victim):
                break
        if flags & RENAME_EXCHANGE:
            assert victim is not None
            self._exchange(parent, name, inode, new_parent, new_name, victim)
            return None
        self._move(parent, name, inode, new_parent, new_name, victim)
        return victim

    async def _rename_ends(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes
    ) -> tuple[Inode, Inode | None]:
        """Return the inode to be moved and the one in its way, both in memory."""
        _, inode = await self._find_inode(parent, name)
        _, found = await self._find_entry(new_parent, new_name)
        victim = await self.inode(found[1]) if found is not None else None
        return inode, victim

    def _still(self, parent: Inode, name: bytes, inode: Inode | None) -> bool:
        """Return whether `name` still leads to `inode` (None: to nothing), by what is in memory without an
        await.
        """
        cookie = self.core.name_hash(name)
        if parent.entries is None or (
            cookie not in parent.entries and not parent.complete and inode is not None
        ):
            return False
        for entry in parent.entries.get(cookie, ()):
            if entry[0] == name:
                return inode is not None and entry[1] == inode.ino
        return inode is None

    async def _refuse_loop(self, inode: Inode, new_parent: Inode) -> None:
        """Refused(EINVAL) when directory `inode` would come to lie below itself."""
        if not inode.is_directory():
            return
        above = new_parent
        while above.ino != limits.INO_ROOT:
            if above is inode:
                raise Refused(errno.EINVAL)
            above = await self.inode(above.parent)

    def _move(
        self,
        parent: Inode,
        name: bytes,
        inode: Inode,
        new_parent: Inode,
        new_name: bytes,
        victim: Inode | None,
    ) -> None:
        directory = inode.is_directory()
        if victim is not None:
            if directory and not victim.is_directory():
                raise Refused(errno.ENOTDIR)
            if victim.is_directory() and not directory:
                raise Refused(errno.EISDIR)
            if victim.is_directory() and victim.size:
                raise Refused(errno.ENOTEMPTY)
        now = self.core.world.time_ns()
        cookie, new_cookie = self.core.name_hash(name), self.core.name_hash(new_name)
        if victim is None and (parent is not new_parent or cookie != new_cookie):
            self._refuse_crowd(new_parent, new_cookie)
        if victim is not None:
            self._remove_entry(new_parent, new_cookie, new_name)
            if directory:
                new_parent.nlink -= 1
                victim.nlink = 0
                self._orphan(victim, now)
            else:
                self._drop_link(victim, now)
        self._remove_entry(parent, cookie, name)
        self._add_entry(new_parent, new_cookie, (new_name, inode.ino, inode.mode >> 12))
        if directory and parent is not new_parent:
            parent.nlink -= 1
            new_parent.nlink += 1
            inode.parent = new_parent.ino
        inode.ctime_ns = now
        self.mark(inode)
        self._touch(parent, now)
        self._touch(new_parent, now)

    def _exchange(
        self, parent: Inode, name: bytes, inode: Inode, new_parent: Inode, new_name: bytes, other: Inode
    ) -> None:
        now = self.core.world.time_ns()
        cookie, new_cookie = self.core.name_hash(name), self.core.name_hash(new_name)
        self._remove_entry(parent, cookie, name)
        self._remove_entry(new_parent, new_cookie, new_name)
        self._add_entry(parent, cookie, (name, other.ino, other.mode >> 12))
        self._add_entry(new_parent, new_cookie, (new_name, inode.ino, inode.mode >> 12))
        if parent is not new_parent:
            for moved, old, new in ((inode, parent, new_parent), (other, new_parent, parent)):
                if moved.is_directory():
                    old.nlink -= 1
                    new.nlink += 1
                    moved.parent = new.ino
        for moved in (inode, other):
            moved.ctime_ns = now
            self.mark(moved)
        self._touch(parent, now)
        self._touch(new_parent, now)
