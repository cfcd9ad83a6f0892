"""L2 durable: every write, sync, rename and unlink of a store. Blocking; any thread.

This is the only module that opens for writing, writes, syncs, renames or unlinks. The methods named
`_sys_...` are the system calls themselves and the whole port: the simulated disk of the tests overrides
these, so that what stands above them (loops over partial writes, the order of a durable replacement, the
latch) is the code under test.

Rules held here:
- Files are 0600, directories 0700. Neither a file nor the directory it stands in may be a symbolic link, and
  a file is a regular file; anything else is Corrupt. (Links further up are the owner's business.)
- A failed sync is never retried and never forgotten: the kernel drops the pages it could not write, so that a
  second fsync would report success for lost bytes (P5). The first failure latches the disk, from then on
  every write and sync raises Latched. A write that fails for any reason but lack of space latches as well.
- Lack of space is Refused(ENOSPC), before a promise is broken: nothing was synced, the call may be made
  again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from snapfs.errors import Corrupt, Invalid, Latched, Refused, SnapfsError, Unavailable

Buffer = bytes | bytearray | memoryview

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = 'Make room on it and try again.'
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
NO_RIGHT = (
    'The files of a store must be readable and writable for who uses it: call as its owner, or give '
    'the right back with chmod u+rw.'
)
IOV_MAX = os.sysconf('SC_IOV_MAX')
ZEROS = bytes(1 << 20)


class Disk:
    """The disk below a store. One per process and store. `latched` is None, or why no more is written."""

    def __init__(self) -> None:
        self.latched: str | None = None
        self.advice: str | None = None  # what to do about that, where it is not the usual
        self._exit_code = Latched.exit_code
        self.syncs = 0  # file syncs asked of the disk below, the catalog's own not counted
        self._nowait = True

    # --- the latch ---------------------------------------------------------------------------------------
    def latch(self, reason: str, advice: str | None = None, exit_code: int | None = None) -> Latched:
        """Stop writing for ever (the first reason stays) and return the error to raise. `exit_code`: how a
        command ends that wants to write, where nothing has failed."""
        if self.latched is None:
            self.latched, self.advice = reason, advice
            self._exit_code = exit_code or self._exit_code
        return self.refusal()

    def refusal(self, what: str = '') -> Latched:
        """Return the error for who wants to write all the same; the disk is latched. `what` goes before the
        reason."""
        assert self.latched is not None
        error = Latched(what + self.latched, advice=self.advice)
        error.exit_code = self._exit_code
        return error

    def check(self) -> None:
        """Raise Latched when the disk has been latched."""
        if self.latched is not None:
            raise self.refusal()

    def _write_error(self, error: OSError, what: str) -> SnapfsError:
        if error.errno in NO_SPACE:
            return Refused(errno.ENOSPC, f'{what}: no space left on the disk below', advice=MAKE_ROOM)
        return self.latch(f'{what}: {os.strerror(error.errno or errno.EIO)}')

    # --- files -------------------------------------------------------------------------------------------
    def open_read(self, path: Path) -> int:
        """Open a regular file for reading. FileNotFoundError when it is not there; Corrupt when it is
        something else."""
        return self._open(path, os.O_RDONLY)

    def open_write(self, path: Path, create: bool) -> int:
        """Open for reading and writing. `create` makes a new file (FileExistsError when there is one); the
        name is durable only after `sync_directory`."""
        self.check()
        return self._open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0))

    def _open(self, path: Path, flags: int) -> int:
        # O_NONBLOCK: a named pipe in the place of a file must not hang us.
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            if not stat.S_ISDIR(os.lstat(path.parent).st_mode):
                raise Corrupt(f'{path.parent} is not a directory')
            fd = self._sys_open(path, flags)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            if error.errno in (*NO_DESCRIPTORS, errno.EROFS):
                raise Unavailable(f'cannot open {path}: {error.strerror}') from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise Invalid(f'cannot open {path}: {error.strerror}', advice=NO_RIGHT) from error
            if error.errno in NO_SPACE:
                text = f'cannot create {path}: no space left on the disk below'
                raise Refused(errno.ENOSPC, text, advice=MAKE_ROOM) from error
            raise Corrupt(f'cannot open {path}: {error.strerror}') from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self.close(fd)
            raise Corrupt(f'{path} is not a regular file')
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor. Says nothing about durability."""
        self._sys_close(fd)

    def size(self, where: Path | int) -> int:
        """Return the size in bytes of an open descriptor or of a path (not followed)."""
        return os.fstat(where).st_size if isinstance(where, int) else os.lstat(where).st_size

    def pread(self, fd: int, count: int, offset: int) -> Buffer:
        """Return up to `count` bytes at `offset`; fewer only at the end of the file. Corrupt on an I/O error.
        The caller has checked `count` against a limit."""
        try:
            data = self._sys_pread(fd, count, offset)
            while 0 < len(data) < count:
                more = self._sys_pread(fd, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise Corrupt(f'cannot read {count} bytes at {offset}: {error.strerror}') from error
        return data

    def preadv_nowait(self, fd: int, count: int, offset: int) -> Buffer | None:
        """Return exactly `count` bytes if the page cache has all of them, else None (also where the
        filesystem cannot tell, and at the end of the file): then use `pread`, in a thread."""
        if not self._nowait:
            return None
        buffer = bytearray(count)
        try:
            done = self._sys_preadv_nowait(fd, buffer, offset)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                self._nowait = False
            return None
        return buffer if done == count else None

    def read_ahead(self, fd: int, offset: int, count: int) -> None:
        """Tell the kernel that these bytes will be wanted soon. Never waits for them, never fails."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)

    def write_out(self, fd: int) -> None:
        """Begin to bring a file's bytes to disk; those that are there already leave the page cache. Says
        nothing about durability and never fails: what goes wrong in the background is told to `sync_data`."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def pwrite(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers one after the other at `offset`, in as few calls as possible; return the bytes
        written.

        Refused(ENOSPC) leaves an unknown part written: the caller must not count on it and may write over it.
        """
        self.check()
        start = offset
        for first in range(0, len(buffers), IOV_MAX):
            part = list(buffers[first : first + IOV_MAX])
            while part:
                try:
                    done = self._sys_pwritev(fd, part, offset)
                except OSError as error:
                    raise self._write_error(error, f'write of {len(part)} buffers at {offset}') from error
                offset += done
                while part and done >= len(part[0]):
                    done -= len(part.pop(0))
                if part and done:
                    part[0] = memoryview(part[0])[done:]
        return offset - start

    def sync_data(self, fd: int) -> None:
        """Make a file's bytes and size durable. Any failure latches; there is no second try (P5)."""
        self.check()
        self.syncs += 1
        try:
            self._sys_fdatasync(fd)
        except OSError as error:
            raise self.latch(f'sync of a file failed: {os.strerror(error.errno or errno.EIO)}') from error

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend a file to `size` bytes."""
        self.check()
        try:
            self._sys_ftruncate(fd, size)
        except OSError as error:
            raise self._write_error(error, f'truncate to {size}') from error

    def preallocate(self, path: Path, size: int) -> None:
        """Create a file of `size` zero bytes, written and synced, so that later writes into it allocate
        nothing. The name is durable after `sync_directory`. On an error the file is gone again."""
        fd = self.open_write(path, create=True)
        try:
            self._fill(fd, size)
            self.sync_data(fd)
        except SnapfsError:
            if self.latched is None:
                self._sys_unlink(path)
            raise
        finally:
            self.close(fd)

    def _fill(self, fd: int, size: int) -> None:
        for offset in range(0, size, len(ZEROS)):
            self.pwrite(fd, [memoryview(ZEROS)[: min(len(ZEROS), size - offset)]], offset)

    def read_file(self, path: Path, bytes_max: int) -> bytes:
        """Return a small file whole; Corrupt when it is larger than `bytes_max`, FileNotFoundError when not
        there."""
        fd = self.open_read(path)
        try:
            size = self.size(fd)
            if size > bytes_max:
                raise Corrupt(f'{path} has {size} bytes, more than {bytes_max}')
            return bytes(self.pread(fd, size, 0)) if size else b''
        except Corrupt as error:
            if error.__cause__ is None:
                raise
            raise Corrupt(f'{path}: {error}') from error.__cause__
        finally:
            self.close(fd)

    def write_file(self, path: Path, data: bytes) -> None:
        """Durably replace a file: temporary file, sync, rename, sync of the directory. After a crash there is
        the old file or the new one, whole."""
        self.write_blocks(path, (data,))

    def write_blocks(self, path: Path, blocks: Iterable[Buffer]) -> None:
        """As `write_file`, for a file that is made block by block."""
        temporary = path.with_name(path.name + '.new')
        if self.exists(temporary):
            self.unlink(temporary)
        fd = self.open_write(temporary, create=True)
        try:
            offset = 0
            for block in blocks:
                offset += self.pwrite(fd, [block], offset)
            # The bytes before the name: in the other order a crash leaves the name with nothing in it.
            self.sync_data(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    # --- names -------------------------------------------------------------------------------------------
    def is_at(self, fd: int, path: Path) -> bool:
        """Return whether an open file is what has this name; also when the disk does not tell."""
        try:
            return os.path.samestat(os.lstat(path), os.fstat(fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def on_same_disk(self, fd: int, directory: Path) -> bool:
        """Return whether an open file is on the filesystem that a directory is on; not when the disk does not
        tell."""
        try:
            return os.stat(directory).st_dev == os.fstat(fd).st_dev
        except OSError:
            return False

    def check_named(self, fd: int, path: Path) -> None:
        """Latch when a file that was synced has no name any more: nobody will find its bytes. (A disk that
        fails to tell has synced all the same.)"""
        try:
            names = os.fstat(fd).st_nlink
        except OSError:
            return
        if not names:
            raise self.latch(f'{path} was deleted while it was written')

    def exists(self, path: Path) -> bool:
        """Say whether the name exists (a symbolic link counts, followed or not). Corrupt when the disk does
        not say: what cannot be seen is not gone (P10)."""
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise Corrupt(f'cannot look for {path}: {error.strerror}') from error
        return True

    def rename(self, old: Path, new: Path) -> None:
        """Rename inside one directory, replacing `new`. Durable after `sync_directory`."""
        assert old.parent == new.parent, 'one directory, so that one sync makes both halves durable'
        self.check()
        try:
            self._sys_rename(old, new)
        except OSError as error:
            raise self._write_error(error, f'rename of {old}') from error

    def unlink(self, path: Path) -> None:
        """Remove a file's name. FileNotFoundError when it is not there. Durable after `sync_directory`."""
        self.check()
        try:
            self._sys_unlink(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._write_error(error, f'unlink of {path}') from error

    def mkdir(self, path: Path) -> bool:
        """Make a directory (0700); return False when there is one already. Corrupt when the name is something
        else. Durable after `sync_directory` of its parent."""
        self.check()
        try:
            self._sys_mkdir(path)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise Corrupt(f'{path} is not a directory') from None
            return False
        except OSError as error:
            raise self._write_error(error, f'mkdir of {path}') from error
        return True

    def restrict(self, path: Path) -> None:
        """Give a directory mode 0700."""
        os.chmod(path, DIRECTORY_MODE, follow_symlinks=True)

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted; an empty list when there is no directory. Corrupt when
        unreadable."""
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise Corrupt(f'{path} is not a directory')
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Corrupt(f'cannot list {path}: {error.strerror}') from error

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable. Any failure latches."""
        self.check()
        try:
            self._sys_fsync_directory(path)
        except OSError as error:
            raise self.latch(f'sync of {path} failed: {os.strerror(error.errno or errno.EIO)}') from error

    def statvfs(self, path: Path) -> os.statvfs_result:
        """Return the figures of the disk below."""
        return os.statvfs(path)

    def is_read_only(self, path: Path) -> bool:
        """Return whether the filesystem that `path` lies in is mounted read-only."""
        return bool(self.statvfs(path).f_flag & os.ST_RDONLY)

    def database_committed(self, connection: sqlite3.Connection) -> None:
        """Called after every COMMIT of the catalog, which SQLite has synced itself. The simulation takes an
        image here."""

    # --- the system calls --------------------------------------------------------------------------------
    def _sys_open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, FILE_MODE)

    def _sys_close(self, fd: int) -> None:
        os.close(fd)

    def _sys_pread(self, fd: int, count: int, offset: int) -> bytes:
        return os.pread(fd, count, offset)

    def _sys_preadv_nowait(self, fd: int, buffer: bytearray, offset: int) -> int:
        return os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)

    def _sys_pwritev(self, fd: int, buffers: list[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def _sys_ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def _sys_fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def _sys_rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def _sys_unlink(self, path: Path) -> None:
        os.unlink(path)

    def _sys_mkdir(self, path: Path) -> None:
        os.mkdir(path, DIRECTORY_MODE)

    def _sys_fsync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
