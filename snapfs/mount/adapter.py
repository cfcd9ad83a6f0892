"""L5 adapter: the kernel's requests, handed to views and places. Event loop only; pyfuse3's loop calls.

What a request means is decided elsewhere: files of volumes and snapshots are `snapfs.volume`'s, all other
places `namespace`'s. A handler finds the view by one shift and one dictionary look-up; only when there is
none does it ask the namespace. Attributes are made once per change and kept in the inode.

What the kernel is told, and why:

- Entries and attributes of volumes and snapshots hold without limit, missing names included: nobody else
  changes them.
- Page caches survive `open` (keep_cache), for the same reason.
- `flush` is answered ENOSYS, the kernel's sign for "never ask again": close() has nothing to do here.
  `access` and `poll` likewise; permissions are the kernel's work (the mount option default_permissions).
- Extended attributes cannot be answered so, for that would switch all of them off. POSIX ACLs are not kept:
  ENOTSUP.
- The kernel does not send access times of FUSE files, and reads served by its cache are not seen here. So
  atime is what utimensat set; all mounts behave as with noatime.
- O_TRUNC comes with `open`. The umask is applied by the kernel.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from snapfs import limits
from snapfs.errors import Latched, Refused
from snapfs.mount import nodeids, virtual
from snapfs.mount.answers import translate_errors
from snapfs.mount.attributes import MISSING, MISSING_NOW, absent
from snapfs.mount.invalidate import Invalidator
from snapfs.mount.listing import list_place, list_view
from snapfs.mount.namespace import Namespace
from snapfs.mount.nodeids import INO_BITS, INO_MASK, TEXT_HANDLE

if TYPE_CHECKING:
    from snapfs.volume.engine import Engine
    from snapfs.volume.head import Head
    from snapfs.volume.inode import Inode
    from snapfs.volume.view import View

log = logging.getLogger(__name__)

DOT = ord('.')
WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class Adapter(pyfuse3.Operations):
    """The request handlers of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self, engine: Engine, *, volume: str | None = None, uid: int | None = None, gid: int | None = None
    ) -> None:
        """Show the whole store, or `volume` alone (Unavailable when there is none such).

        `uid` and `gid` own the directories that are in no volume; by default those of the store.
        """
        below = os.stat(engine.store.path)
        owner = below.st_uid if uid is None else uid, below.st_gid if gid is None else gid
        now = engine.world.time_ns()
        self.namespace = namespace = Namespace(engine, owner=owner, volume=volume, started_ns=now)
        self.invalidator = Invalidator(namespace, self.known)
        self._engine = engine
        self._views = namespace.views
        self._heads = namespace.heads
        self._counts: dict[int, int] = {}  # how often the kernel was given each node id
        self._texts: dict[int, bytes] = {}  # contents of open text files, by file handle
        self._text_handle = TEXT_HANDLE
        namespace.appeared = self._refer
        engine.on_change(self.invalidator.changed)

    def init(self) -> None:
        """Called by pyfuse3 when the first request comes. From here on the kernel has caches."""
        self.invalidator.start()

    async def stop(self) -> None:
        """Send no more notifications. Call between the end of the session loop and `pyfuse3.close`."""
        await self.invalidator.stop()

    # --- helpers -----------------------------------------------------------------------------------------
    def unexpected(self, name: str, error: Exception) -> None:
        """Log and count an exception that no handler should raise."""
        self.namespace.unexpected_errors += 1
        log.error('unexpected error in %s', name, exc_info=error)
        if isinstance(error, AssertionError):
            self._engine.core.fail(Latched(f'a bug in {name}: {error}'))

    def _given(self, view: View, inode: Inode) -> EntryAttributes:
        """Return the attributes of an inode that the kernel learns of, and count that."""
        attributes: EntryAttributes = inode.attributes
        if attributes is None:
            attributes = self.namespace.attributes(view, inode)
        counts = self._counts
        node = attributes.st_ino
        count = counts.get(node)
        if count is not None:
            counts[node] = count + 1
        else:
            counts[node] = 1
            if view.writable:
                view.referenced(inode.ino)  # type: ignore[attr-defined]
        return attributes

    def _given_place(self, attributes: EntryAttributes) -> EntryAttributes:
        """Count that the kernel learns of whatever these attributes are of."""
        node = attributes.st_ino
        count = self._counts.get(node, 0)
        self._counts[node] = count + 1
        head = self._heads.get(node >> INO_BITS)
        if count == 0 and head is not None:
            head.referenced(node & INO_MASK)
        return attributes

    def _head(self, node: int) -> Head:
        """Return the live volume a node is in. Refused: EROFS in a snapshot, EPERM in places, ESTALE."""
        head = self._heads.get(node >> INO_BITS)
        if head is not None:
            return head
        raise Refused(errno.EROFS if self.namespace.find_view(node) is not None else errno.EPERM)

    def _free(self, parent_node: int, name: bytes) -> None:
        """Refused(EPERM) for the names that mean something else in every directory."""
        if name[0] == DOT and self.namespace.reserved(parent_node, name):
            raise Refused(errno.EPERM)

    # --- names -------------------------------------------------------------------------------------------
    @translate_errors
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        view = self._views.get(parent_inode >> INO_BITS)
        if view is None or name[0] == DOT:
            found = await self._lookup_special(parent_inode, name, ctx)
            if found is not None:
                return found
            view = self._views[parent_inode >> INO_BITS]
        parent = view.cached(parent_inode & INO_MASK) or await view.inode(parent_inode & INO_MASK)
        inode = await view.lookup(parent, name)
        if inode is None:
            return absent(name, MISSING)
        return self._given(view, inode)

    async def _lookup_special(
        self, parent_node: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes | None:
        """Look up in a place, or one of our names in a view. None: an ordinary name in a view now known."""
        space = self.namespace
        view = space.find_view(parent_node)
        if view is not None:
            if name not in (b'.', b'..') and not space.reserved(parent_node, name):
                return None
            found = await space.lookup_reserved(view, parent_node & INO_MASK, name)
        else:
            place = space.place(parent_node)
            if name == b'.':
                found = await place.attributes()
            elif name == b'..':
                found = await space.place_or_tree(await place.parent_node())
            else:
                await place.admit(name, ctx)
                found = await place.lookup(name)
        return absent(name, MISSING_NOW) if found is None else self._given_place(found)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            counts = self._counts
            for node, count in inode_list:
                left = counts.get(node, 0) - count
                if left > 0:
                    counts[node] = left
                else:
                    counts.pop(node, None)
                    self._forgotten(node)
        except Exception as error:
            self.unexpected('forget', error)

    def known(self) -> list[int]:
        """Return the node ids the kernel knows."""
        return list(self._counts)

    def _refer(self, head: Head) -> None:
        """Tell a head that came back (an undelete) which of its inodes the kernel still uses."""
        for node in self._counts:
            if self._heads.get(node >> INO_BITS) is head:
                head.referenced(node & INO_MASK)

    def _forgotten(self, node: int) -> None:
        head = self._heads.get(node >> INO_BITS)
        if head is not None:
            head.forgotten(node & INO_MASK)
        if node in self.namespace.given:
            self.namespace.forget(node)

    @translate_errors
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        head = self._heads.get(parent_inode >> INO_BITS) or self._head(parent_inode)
        if name[0] == DOT:
            self._free(parent_inode, name)
        parent = head.cached(parent_inode & INO_MASK) or await head.inode(parent_inode & INO_MASK)
        inode = await head.make(parent, name, stat.S_IFREG | mode & 0o7777, ctx.uid, ctx.gid)
        attributes = self._given(head, inode)
        return FileInfo(attributes.st_ino), attributes

    @translate_errors
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        head = self._head(parent_inode)
        self._free(parent_inode, name)
        parent = await head.inode(parent_inode & INO_MASK)
        return self._given(head, await head.make(parent, name, mode, ctx.uid, ctx.gid, rdev))

    @translate_errors
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        head = self._head(parent_inode)
        self._free(parent_inode, name)
        parent = await head.inode(parent_inode & INO_MASK)
        inode = await head.make(parent, name, stat.S_IFLNK | 0o777, ctx.uid, ctx.gid, 0, target)
        return self._given(head, inode)

    @translate_errors
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        head = self._heads.get(parent_inode >> INO_BITS)
        if head is None:
            return self._given_place(
                await self.namespace.writable_place(parent_inode).make_directory(name, mode, ctx)
            )
        self._free(parent_inode, name)
        parent = await head.inode(parent_inode & INO_MASK)
        inode = await head.make(parent, name, stat.S_IFDIR | mode & 0o7777, ctx.uid, ctx.gid)
        return self._given(head, inode)

    @translate_errors
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        head = self._head(new_parent_inode)
        self._free(new_parent_inode, new_name)
        if self._heads.get(inode >> INO_BITS) is not head:
            raise Refused(errno.EXDEV)
        parent = await head.inode(new_parent_inode & INO_MASK)
        return self._given(head, await head.link(await head.inode(inode & INO_MASK), parent, new_name))

    @translate_errors
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        head = self._head(parent_inode)
        parent = head.cached(parent_inode & INO_MASK) or await head.inode(parent_inode & INO_MASK)
        await head.unlink(parent, name)

    @translate_errors
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        head = self._heads.get(parent_inode >> INO_BITS)
        if head is None:
            await self.namespace.writable_place(parent_inode).remove_directory(name, ctx)
            return
        self._free(parent_inode, name)
        await head.remove_directory(await head.inode(parent_inode & INO_MASK), name)

    @translate_errors
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        old = self._heads.get(parent_inode_old >> INO_BITS)
        new = self._heads.get(parent_inode_new >> INO_BITS)
        if old is None or new is None:
            places = self.namespace.rename_places(parent_inode_old, parent_inode_new, flags)
            await places[1].receive(places[0], name_old, name_new, ctx)
            return
        if old is not new:
            raise Refused(errno.EXDEV)
        self._free(parent_inode_old, name_old)
        self._free(parent_inode_new, name_new)
        parent = await old.inode(parent_inode_old & INO_MASK)
        new_parent = await old.inode(parent_inode_new & INO_MASK)
        await old.rename(parent, name_old, new_parent, name_new, flags)

    # --- attributes --------------------------------------------------------------------------------------
    @translate_errors
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        view = self._views.get(inode >> INO_BITS)
        if view is None:
            return await self.namespace.place_or_tree(inode)
        found = view.cached(inode & INO_MASK)
        if found is None:
            return await self.namespace.tree_attributes(view, inode & INO_MASK)
        return found.attributes or self.namespace.attributes(view, found)

    @translate_errors
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        head = self._heads.get(inode >> INO_BITS) or self._head(inode)
        found = head.cached(inode & INO_MASK) or await head.inode(inode & INO_MASK)
        # UTIME_OMIT is a field not to be updated; for UTIME_NOW pyfuse3 has filled in the time.
        await head.set_attributes(
            found,
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return found.attributes or self.namespace.attributes(head, found)

    @translate_errors
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        view = self.namespace.find_view(inode)
        if view is None:
            raise Refused(errno.EINVAL)
        return (await view.inode(inode & INO_MASK)).target

    @translate_errors
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name.startswith(b'system.'):
            raise FUSEError(errno.ENOTSUP)
        view = self._views.get(inode >> INO_BITS) or self.namespace.find_view(inode)
        if view is not None:
            found = view.cached(inode & INO_MASK) or await view.inode(inode & INO_MASK)
            value = await view.xattr_get(found, name)
            if value is None and name.startswith(virtual.PREFIX):
                value = virtual.attribute(self.namespace.engine, view.number, inode & INO_MASK, name)
            if value is not None:
                return value
        raise FUSEError(pyfuse3.ENOATTR)

    @translate_errors
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        view = self._views.get(inode >> INO_BITS) or self.namespace.find_view(inode)
        if view is None:
            return ()
        return await view.xattr_list(await view.inode(inode & INO_MASK))

    @translate_errors
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        head = self._head(inode)
        if name.startswith(b'system.'):
            raise Refused(errno.ENOTSUP)
        if len(name) > limits.XATTR_NAME_BYTES_MAX:
            raise Refused(errno.ERANGE)
        if len(value) > limits.XATTR_VALUE_BYTES_MAX:
            raise Refused(errno.E2BIG)
        # XATTR_CREATE and XATTR_REPLACE were already seen to by pyfuse3.
        await head.xattr_set(await head.inode(inode & INO_MASK), name, value, 0)

    @translate_errors
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        head = self._head(inode)
        await head.xattr_remove(await head.inode(inode & INO_MASK), name)

    @translate_errors
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = StatvfsData()
        below = self._engine.statfs()
        for field in ('bsize', 'frsize', 'blocks', 'bfree', 'bavail', 'files', 'ffree', 'favail'):
            setattr(answer, f'f_{field}', getattr(below, f'f_{field}'))
        answer.f_namemax = limits.NAME_BYTES_MAX
        return answer

    # --- file data ---------------------------------------------------------------------------------------
    @translate_errors
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        head = self._heads.get(inode >> INO_BITS)
        if head is None:
            return await self._open_special(inode, flags)
        if flags & os.O_TRUNC:
            await head.set_attributes(await head.inode(inode & INO_MASK), size=0)
        return FileInfo(inode)

    async def _open_special(self, node: int, flags: int) -> FileInfo:
        """Open a file of a snapshot, or a text file: its content is made now and stays until it is closed."""
        view = self.namespace.find_view(node)
        if flags & WRITING:
            raise Refused(errno.EROFS if view is not None else errno.EPERM)
        if view is not None:
            self.namespace.pin(node)
            return FileInfo(node)
        text = await self.namespace.place(node).text()
        self._text_handle += 1
        self._texts[self._text_handle] = text
        return FileInfo(self._text_handle, direct_io=True, keep_cache=False)

    @translate_errors
    async def read(self, fh: int, off: int, size: int) -> bytes:
        view = self._views.get(fh >> INO_BITS)
        if view is None:
            if fh >= TEXT_HANDLE:
                return self._texts[fh][off : off + size]
            view = self.namespace.find_view(fh)
            assert view is not None, 'a place without text was opened'
        inode = view.cached(fh & INO_MASK) or await view.inode(fh & INO_MASK)
        return await view.read(inode, off, size)

    @translate_errors
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        head = self._heads.get(fh >> INO_BITS) or self._head(fh)
        inode = head.cached(fh & INO_MASK) or await head.inode(fh & INO_MASK)
        return await head.write(inode, off, buf, False)  # the kernel does it, and knows who may keep setuid

    async def release(self, fh: int) -> None:
        if fh >= TEXT_HANDLE:
            self._texts.pop(fh, None)
        else:
            self.namespace.unpin(fh)

    @translate_errors
    async def fsync(self, fh: int, datasync: bool) -> None:
        try:
            await self._engine.sync()
        except Latched as error:
            log.error('fsync: %s', error.line())
            raise FUSEError(errno.EIO) from error  # programs know what EIO from fsync means (P5)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.fsync(fh, datasync)

    # --- directories -------------------------------------------------------------------------------------
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self.namespace.pin(inode)
        return inode

    async def releasedir(self, fh: int) -> None:
        self.namespace.unpin(fh)

    @translate_errors
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        view = self._views.get(fh >> INO_BITS) or self.namespace.find_view(fh)
        if view is None:
            await list_place(self.namespace, fh, start_id, token, self._given_place)
        else:
            await list_view(self.namespace, view, fh, start_id, token, self._given)


assert nodeids.TEXT_HANDLE < 1 << 64
