"""The session loop without a kernel: a pipe stands for the device, small workers for pyfuse3's."""

import errno
import os
from collections.abc import AsyncIterator, Callable

import pyfuse3
import pytest
import trio
import trio.testing

from snapfs.mount import session


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def polls(monkeypatch) -> list[int]:
    """Count the polls without waiting."""
    seen: list[int] = []
    real = session._poll_holding_gil

    def counting(*arguments):
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(session, '_poll_holding_gil', counting)
    return seen


@pytest.fixture
async def ours() -> AsyncIterator[session._Session]:
    yield session._Session()


def test_install_replaces_only_the_name_pyfuse3_looks_up():
    try:
        session.install()
        session.install()
        assert pyfuse3.trio is session._session
        assert trio.lowlevel.wait_readable is not session._session.wait_readable
    finally:
        session.uninstall()
    assert pyfuse3.trio is trio


async def test_other_tasks_run_while_requests_flood(ours, pipe, polls):
    reader, writer = pipe
    os.write(writer, b'request')  # nobody reads it: always ready
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        requests = 0
        while turns < 3:
            await ours.wait_readable(reader)
            requests += 1
            assert requests < 1_000_000, 'the flood starves the other task'
        nursery.cancel_scope.cancel()
    assert len(polls) > turns * 3, 'trio was asked nearly every time'


async def test_idle_waits_in_trio_and_polls_no_more(ours, pipe, polls, autojump_clock):
    reader, writer = pipe
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def wait() -> None:
            await ours.wait_readable(reader)
            done.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        before = len(polls)
        await trio.sleep(3600)
        assert not done.is_set()
        assert len(polls) == before
        os.write(writer, b'request')
        await done.wait()


async def test_waiting_can_be_cancelled(ours, pipe):
    with trio.move_on_after(0) as scope:
        await ours.wait_readable(pipe[0])
    assert scope.cancelled_caught


async def test_a_flood_can_be_cancelled(ours, pipe):
    reader, writer = pipe
    os.write(writer, b'request')
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(1_000_000):
            await ours.wait_readable(reader)
    assert scope.cancelled_caught


async def test_closing_reaches_a_worker_that_waits(ours, pipe):
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.wait_readable(pipe[0])

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        ours.notify_closing(pipe[0])


async def test_closing_reaches_a_worker_that_lets_others_run(ours, pipe):
    os.write(pipe[1], b'request')
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await ours.wait_readable(pipe[0])

        nursery.start_soon(wait)
        await trio.lowlevel.checkpoint()  # a new session yields first, so it is there now, or not yet begun
        ours.notify_closing(pipe[0])


async def test_closing_ends_a_flood_at_once(ours, pipe):
    os.write(pipe[1], b'request')
    await ours.wait_readable(pipe[0])
    ours.notify_closing(pipe[0])
    with pytest.raises(trio.ClosedResourceError):
        await ours.wait_readable(pipe[0])


async def test_the_device_is_made_nonblocking(ours, pipe):
    os.write(pipe[1], b'request')
    await ours.wait_readable(pipe[0])
    assert not os.get_blocking(pipe[0])


async def test_parked_workers_wake_last_first_and_one_at_a_time():
    lock = session._Lock()
    order: list[str] = []
    await lock.__aenter__()

    async def worker(name: str) -> None:
        async with lock:
            order.append(name)
            await trio.lowlevel.checkpoint()
        lock.wake()

    async with trio.open_nursery() as nursery:
        for name in 'abc':
            nursery.start_soon(worker, name)
            await trio.testing.wait_all_tasks_blocked()
        await lock.__aexit__()
        lock.wake()
        lock.wake()
        assert len(lock.parked) == 2
    assert order == ['c', 'b', 'a']


async def test_a_cancelled_worker_leaves_the_parking_lot():
    lock = session._Lock()
    await lock.__aenter__()
    with trio.move_on_after(0):
        async with lock:
            raise AssertionError('held')
    assert not lock.parked
    await lock.__aexit__()
    lock.wake()
    async with lock:
        assert lock.held


async def test_a_woken_worker_that_finds_the_lock_taken_parks_again():
    lock = session._Lock()
    await lock.__aenter__()
    entered = trio.Event()

    async def worker() -> None:
        async with lock:
            entered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker)
        await trio.testing.wait_all_tasks_blocked()
        await lock.__aexit__()
        lock.wake()
        await lock.__aenter__()  # first come: there is no hand-over
        await trio.testing.wait_all_tasks_blocked()
        assert not entered.is_set()
        await lock.__aexit__()
        lock.wake()


async def test_a_worker_that_sleeps_in_a_handler_wakes_a_reader(ours):
    sleeping, answered = trio.Event(), trio.Event()

    async def slow() -> None:
        async with ours.Lock():
            pass  # took a request
        sleeping.set()
        await answered.wait()

    async def spare() -> None:
        async with ours.Lock():
            answered.set()

    async with ours.open_nursery() as workers:
        await ours.Lock().__aenter__()
        workers.start_soon(spare, name='spare')
        await trio.testing.wait_all_tasks_blocked()
        await ours.Lock().__aexit__()
        workers.start_soon(slow, name='slow')
    assert sleeping.is_set()


async def test_a_worker_that_ends_wakes_a_reader(ours):
    async def ends() -> None:
        pass  # without ever giving control to trio

    async def last() -> None:
        async with ours.Lock():
            pass

    async with ours.open_nursery() as workers:
        await ours.Lock().__aenter__()
        workers.start_soon(last, name='parked')
        await trio.testing.wait_all_tasks_blocked()
        await ours.Lock().__aexit__()
        workers.start_soon(ends, name='ends')


async def test_starting_a_worker_makes_the_reader_yield(ours, pipe):
    os.write(pipe[1], b'request')
    started = trio.Event()

    async def worker() -> None:
        started.set()

    async with ours.open_nursery() as workers:
        await ours.wait_readable(pipe[0])
        for _ in range(2):  # trio may resume us first, once
            workers.start_soon(worker, name='new')
            await ours.wait_readable(pipe[0])
        assert started.is_set()


@pytest.mark.parametrize('number', [errno.EAGAIN, errno.ENOENT])
async def test_a_request_taken_back_does_not_end_the_worker(ours, number):
    calls: list[int] = []

    async def worker() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(number, f'fuse_session_receive_buf failed with {os.strerror(number)}')

    await ours.work(worker, ())
    assert len(calls) == 2


async def _raise(make: Callable[[], BaseException]) -> None:
    await trio.lowlevel.checkpoint()
    raise make()


@pytest.mark.parametrize(
    'make',
    [
        lambda: OSError(errno.EAGAIN, 'from a handler'),
        lambda: OSError(errno.EIO, 'fuse_session_receive_buf failed with EIO'),
        lambda: RuntimeError('a bug'),
    ],
)
async def test_other_errors_pass(ours, make):
    with pytest.raises(type(make()), match=str(make().args[-1])):
        await ours.work(_raise, (make,))


async def test_values_and_errors_pass_through_the_driver(ours):
    heard: list[object] = []

    async def worker() -> None:
        heard.append(await trio.to_thread.run_sync(lambda: 7))
        with pytest.raises(ZeroDivisionError):
            await trio.to_thread.run_sync(lambda: 1 // 0)
        heard.append('caught')

    await ours.work(worker, ())
    assert heard == [7, 'caught']


def test_what_is_thrown_into_the_driver_reaches_the_worker():
    heard: list[str] = []

    async def worker() -> None:
        try:
            await trio.lowlevel.cancel_shielded_checkpoint()
        except KeyboardInterrupt:
            heard.append('thrown')

    driver = session._drive(session._Lock(), worker())
    next(driver)
    with pytest.raises(StopIteration):
        driver.throw(KeyboardInterrupt())
    assert heard == ['thrown']
