"""The session loop on a real mount: sleeping handlers, endings, errors. The filesystem runs in the test."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from snapfs.mount import session


class Files(pyfuse3.Operations):
    """A directory with files; opening one whose name begins with 's' sleeps until `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.release_opens = trio.Event()
        self.sleeping = 0
        self.bug = False

    @staticmethod
    def entry(ino: int, mode: int) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = ino
        attributes.st_mode = mode
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    async def getattr(self, inode, ctx):
        if self.bug:
            raise RuntimeError('a handler with a bug')
        return self.entry(inode, stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o644)

    async def lookup(self, parent_inode, name, ctx):
        return self.entry(2 if name.startswith(b's') else 3, stat.S_IFREG | 0o644)

    async def open(self, inode, flags, ctx):
        if inode == 2:
            self.sleeping += 1
            await self.release_opens.wait()
            self.sleeping -= 1
        return pyfuse3.FileInfo(fh=inode)

    async def release(self, fh):
        pass


def open_and_close(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def open_and_fail(path: Path) -> None:
    with pytest.raises(OSError):
        os.open(path, os.O_RDONLY)


@pytest.fixture
async def mounted(tmp_path: Path) -> AsyncIterator[tuple[Files, Path]]:
    assert Path('/dev/fuse').exists(), 'the mount tests need /dev/fuse'
    files = Files()
    pyfuse3.init(files, str(tmp_path), {'fsname=test'})
    closed = False

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            pyfuse3.close(unmount=True)

    files.close = close  # type: ignore[attr-defined]
    yield files, tmp_path
    close()
    # pyfuse3 leaves the mount of an aborted connection in place.
    subprocess.run(['umount', '-l', str(tmp_path)], capture_output=True)


@contextlib.asynccontextmanager
async def served(
    files: Files, serve: Callable[[], Awaitable[None]] = session.serve
) -> AsyncIterator[trio.Event]:
    """Serve while the body runs, and demand that serving has ended by itself when the body is done."""
    ended = trio.Event()

    async def run() -> None:
        try:
            await serve()
        finally:
            ended.set()
            files.close()  # type: ignore[attr-defined]  # callers that still wait get an answer

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield ended
        await ended.wait()


async def in_thread(function, *arguments):
    return await trio.to_thread.run_sync(function, *arguments)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_a_sleeping_handler_does_not_block_others(mounted):
    files, path = mounted
    async with served(files), trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(in_thread, open_and_close, path / f'slow{number}')
        await until(lambda: files.sleeping == 5)
        for _ in range(50):
            await in_thread(open_and_close, path / 'fast')
        assert files.sleeping == 5
        files.release_opens.set()
        await until(lambda: files.sleeping == 0)
        await in_thread(open_and_close, path / 'slow')
        session.terminate()


async def test_more_sleeping_handlers_than_workers_recover(mounted):
    files, path = mounted
    async with served(files, lambda: session.serve(1, 3)):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(in_thread, open_and_close, path / f'slow{number}')
            await until(lambda: files.sleeping == 3)
            files.release_opens.set()
        assert files.sleeping == 0
        await in_thread(open_and_close, path / 'fast')
        session.terminate()


async def test_idle_workers_are_few(mounted):
    files, path = mounted
    async with served(files):
        for _ in range(200):
            await in_thread(os.stat, path / 'fast')
        await trio.testing.wait_all_tasks_blocked()
        workers = [task for task in _tasks() if task.name.startswith('pyfuse-')]
        assert 2 <= len(workers) <= 3
        session.terminate()


def _tasks() -> list[trio.lowlevel.Task]:
    found, heap = [], [trio.lowlevel.current_root_task()]
    while heap:
        task = heap.pop()
        found.append(task)
        heap += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


async def test_unmounting_ends_it(mounted):
    files, path = mounted
    async with served(files):
        await in_thread(os.stat, path / 'fast')
        await in_thread(subprocess.run, ['fusermount3', '-u', str(path)])


@pytest.mark.skipif(os.geteuid() != 0, reason='only root may abort a connection with umount -f')
async def test_aborting_the_connection_ends_it(mounted):
    files, path = mounted
    async with trio.open_nursery() as nursery, served(files) as ended:
        nursery.start_soon(in_thread, open_and_fail, path / 'slow')
        await until(lambda: files.sleeping == 1)
        await in_thread(lambda: subprocess.run(['umount', '-f', str(path)], capture_output=True))
        files.release_opens.set()
        await ended.wait()


async def test_terminate_ends_it_before_the_first_request(mounted):
    files, _path = mounted
    async with served(files):
        await trio.testing.wait_all_tasks_blocked()
        session.terminate()
        session.terminate()


async def test_terminate_ends_it_under_load(mounted):
    files, path = mounted
    stopped = False

    def flood() -> int:
        count = 0
        while not stopped:
            with contextlib.suppress(OSError):
                os.stat(path / 'fast')
            count += 1
        return count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, flood)
        async with served(files):
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            session.terminate()
        stopped = True


async def test_terminate_waits_for_handlers(mounted):
    files, path = mounted
    opened: list[int] = []
    async with trio.open_nursery() as nursery, served(files) as ended:
        nursery.start_soon(in_thread, lambda: opened.append(os.open(path / 'slow', os.O_RDONLY)))
        await until(lambda: files.sleeping == 1)
        session.terminate()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        files.release_opens.set()
        await ended.wait()
        await until(lambda: bool(opened))
        with contextlib.suppress(OSError):  # the connection is gone
            os.close(opened[0])


async def test_cancelling_ends_it_and_its_handlers(mounted):
    files, path = mounted
    failed: list[int] = []

    def open_slow() -> None:
        try:
            os.open(path / 'slow', os.O_RDONLY)
        except OSError as error:
            failed.append(error.errno)

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def serve() -> None:
            with scope:
                await session.serve()

        async with served(files, serve):
            nursery.start_soon(in_thread, open_slow)
            await until(lambda: files.sleeping == 1)
            scope.cancel()
    assert failed[0] in (errno.ECONNABORTED, errno.ENOTCONN, errno.EIO)


async def test_an_error_that_escapes_a_handler_is_raised(mounted):
    files, path = mounted
    files.bug = True

    def look() -> None:
        with contextlib.suppress(OSError):
            os.stat(path)

    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match='a handler with a bug'), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, look)
            async with served(files):
                pass


def test_nullfs_ends_on_sigterm_and_unmounts(tmp_path: Path):
    daemon = subprocess.Popen(
        [sys.executable, '-m', 'tools.nullfs', '--ready', str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert daemon.stdout.readline() == b'ready\n'
        (tmp_path / 'file').write_text('here')
        assert (tmp_path / 'file').read_text() == 'here'
        daemon.terminate()
        assert daemon.wait(timeout=20) == 0
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    assert list(tmp_path.iterdir()) == []
