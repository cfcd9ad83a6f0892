"""One process owns a store."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import time

import pytest

from snapfs.errors import Unavailable
from snapfs.store.durable import Disk
from snapfs.store.lock import StoreLock
from snapfs.world import World


def lock_at(tmp_path, world=None):
    return StoreLock(Disk(), tmp_path / 'lock', world or World())


def test_the_second_one_is_told_who_has_it(tmp_path):
    first, second = lock_at(tmp_path), lock_at(tmp_path)
    assert first.holder() is None
    first.acquire(mountpoint='/mnt/somewhere')
    with pytest.raises(Unavailable) as caught:
        second.acquire()
    assert str(os.getpid()) in str(caught.value)
    assert '/mnt/somewhere' in str(caught.value)
    assert second.holder() == first.holder()
    assert second.holder().mountpoint == '/mnt/somewhere'
    first.describe('')
    assert second.holder().mountpoint == ''
    first.release()
    assert second.holder() is None
    second.acquire()
    second.release()
    second.release()


def hold(path, ready, leave):
    lock = StoreLock(Disk(), path, World())
    lock.acquire(mountpoint='/mnt/other')
    ready.set()
    leave.wait()
    os._exit(9)  # without releasing anything


def test_a_dead_holders_lock_is_no_obstacle(tmp_path):
    context = multiprocessing.get_context('spawn')
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / 'lock', ready, leave))
    process.start()
    assert ready.wait(60)
    mine = lock_at(tmp_path)
    with pytest.raises(Unavailable, match=str(process.pid)):
        mine.acquire()
    leave.set()
    mine.acquire(wait_seconds=60)  # waits for it to die
    process.join()
    assert mine.held
    mine.release()


def test_waiting_ends(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(time, 'sleep', slept.append)
    first, second = lock_at(tmp_path), lock_at(tmp_path)
    first.acquire()
    with pytest.raises(Unavailable):
        second.acquire(wait_seconds=1.0)
    assert sum(slept) == pytest.approx(1.0)
    first.release()


@pytest.mark.parametrize('text', [b'', b'garbage', b'[1]', b'{}', b'[null, 2, "x", 3]', b'\xff' * 4096])
def test_a_strange_text_is_no_obstacle(tmp_path, text):
    first, second = lock_at(tmp_path), lock_at(tmp_path)
    first.acquire()
    (tmp_path / 'lock').write_bytes(text)
    assert second.holder() is None
    with pytest.raises(Unavailable, match='another process'):
        second.acquire()
    first.release()


def test_who_only_asks_is_not_taken_for_an_owner(tmp_path, monkeypatch):
    """`holder` takes the lock for a moment; an acquire at that moment must not fail because of it."""
    asking = os.open(tmp_path / 'lock', os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, 'sleep', lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
    lock = lock_at(tmp_path)
    lock.acquire()
    lock.release()
    os.close(asking)
