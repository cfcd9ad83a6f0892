"""What the kernel is told to forget."""

from __future__ import annotations

import errno
import logging

import pyfuse3
import pytest
import trio
import trio.testing

from snapfs import limits
from snapfs.mount import invalidate
from snapfs.mount.invalidate import Invalidator, KernelSender, Outdated
from tests.unit.mount.kit import ADMIN, ROOT, Kit, RecordingSender


async def forgotten(kit: Kit) -> Outdated:
    return await kit.adapter.invalidator.collect()


async def test_volumes_changed_on_the_command_line(kit: Kit) -> None:
    await kit.engine.volume_create('work', 0, 0)
    await kit.node('home')
    await kit.node('work')
    assert await forgotten(kit) == Outdated(())
    await kit.engine.volume_rename('home', 'house')
    assert await forgotten(kit) == Outdated(((ROOT, b'home'),))
    assert await forgotten(kit) == Outdated(()), 'once is enough'
    await kit.engine.volume_delete('work', 'me')
    assert await forgotten(kit) == Outdated(((ROOT, b'work'),))
    await kit.engine.volume_create('new', 0, 0)
    assert await forgotten(kit) == Outdated(())


async def test_snapshots_changed_on_the_command_line(kit: Kit) -> None:
    await kit.mkdir('home/d')
    await kit.mkdir('home/.snapshots/a')
    await kit.mkdir('home/.snapshots/b')
    await kit.node('home/d/.snapshots/a')
    await kit.list('home/d/.snapshots')
    top = await kit.node('home/.snapshots')
    await kit.engine.snapshot_rename('home', 'a', 'c')
    assert set((await forgotten(kit)).entries) == {(top, b'a')}
    await kit.engine.snapshot_delete('home', 'b', 'me')
    assert set((await forgotten(kit)).entries) == {(top, b'b')}


async def test_the_kernel_asks_again_for_a_snapshot_of_a_deeper_directory(kit: Kit) -> None:
    await kit.mkdir('home/d')
    await kit.mkdir('home/.snapshots/a')
    deep = await kit.adapter.lookup(await kit.node('home/d/.snapshots'), b'a', ADMIN)
    top = await kit.adapter.lookup(await kit.node('home/.snapshots'), b'a', ADMIN)
    assert (deep.entry_timeout, top.entry_timeout) == (0.0, limits.KERNEL_CACHE_SECONDS)


async def test_a_command_can_wait_until_the_kernel_was_told(kit: Kit) -> None:
    sender = RecordingSender()
    invalidator = Invalidator(kit.space, kit.adapter.known, sender)
    kit.engine.on_change(invalidator.changed)
    await invalidator.settled()
    invalidator.start()
    await kit.node('home')
    await kit.engine.volume_rename('home', 'house')
    assert sender.sent == []
    await invalidator.settled()
    assert sender.sent == [Outdated(((ROOT, b'home'),))]
    await kit.engine.volume_rename('house', 'home')
    await invalidator.stop()
    with trio.fail_after(limits.NOTIFY_CLOSE_SECONDS / 2):
        await invalidator.settled()


async def test_what_comes_through_the_mount_is_known_for_later(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/a')
    await kit.rename('home/.snapshots/a', 'home/.snapshots/b')
    await forgotten(kit)
    await kit.engine.snapshot_delete('home', 'b', 'me')
    assert (await forgotten(kit)).entries == ((await kit.node('home/.snapshots'), b'b'),)


async def test_nothing_is_kept_of_directories_the_kernel_has_dropped(kit: Kit) -> None:
    await kit.mkdir('home/.snapshots/a')
    await kit.node('home/.snapshots/a')
    top = await kit.node('home/.snapshots')
    assert top in kit.space.given
    await kit.adapter.forget([(top, kit.adapter._counts[top])])
    assert top not in kit.space.given
    await kit.engine.snapshot_delete('home', 'a', 'me')
    assert top not in {node for node, _ in (await forgotten(kit)).entries}


async def test_a_rollback_leads_the_name_of_the_volume_to_the_new_view(kit: Kit) -> None:
    await kit.write('home/f', b'old')
    await kit.mkdir('home/.snapshots/s')
    before = await kit.node('home')
    await kit.engine.volume_rollback('home', 's', 'me')
    assert (ROOT, b'home') in (await forgotten(kit)).entries
    assert await kit.node('home') != before
    assert await kit.read('home/f') == b'old'


async def test_a_rollback_of_the_mounted_volume(kit: Kit) -> None:
    alone = Kit(kit.engine, 'home')
    await alone.write('kept', b'old')
    await alone.write('lost', b'')
    await alone.mkdir('.snapshots/s')
    await alone.unlink('lost')
    await alone.write('new', b'')
    kept, new = await alone.node('kept'), await alone.node('new')
    await kit.engine.volume_rollback('home', 's', 'me')
    outdated = await forgotten(alone)
    names = {name for node, name in outdated.entries if node == ROOT}
    assert names == {b'kept', b'lost', b'new', b'.snapshots', b'.snapfs'}
    assert {ROOT, kept, new} <= set(outdated.nodes)
    assert sorted(await alone.list('')) == [b'kept', b'lost']
    assert await alone.node('kept') != kept


async def test_it_is_sent_later_and_from_a_thread(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    sender = RecordingSender()
    one = Invalidator(kit.space, kit.adapter.known, sender)
    kit.engine.on_change(one.changed)
    one.start()
    await kit.node('home')
    await kit.engine.volume_rename('home', 'house')
    assert sender.sent == [], 'not inside the request'
    while not sender.sent:
        await trio.testing.wait_all_tasks_blocked()
    assert sender.sent == [Outdated(((ROOT, b'home'),))]
    await one.stop()
    await kit.node('house')
    await kit.engine.volume_rename('house', 'home')
    await trio.testing.wait_all_tasks_blocked()
    assert await one.collect() == Outdated(((ROOT, b'house'),)), 'nobody has taken it'


async def test_a_failure_is_logged_and_the_next_is_sent(
    kit: Kit, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    class Failing(RecordingSender):
        def send(self, outdated: Outdated) -> None:
            super().send(outdated)
            if len(self.sent) == 1:
                raise RuntimeError('no')

    sender = Failing()
    one = Invalidator(kit.space, kit.adapter.known, sender)
    kit.engine.on_change(one.changed)
    one.start()
    for number, (old, new) in enumerate((('home', 'a'), ('a', 'b')), 1):
        await kit.node(old)
        await kit.engine.volume_rename(old, new)
        while len(sender.sent) < number:
            await trio.testing.wait_all_tasks_blocked()
    assert 'RuntimeError: no' in caplog.text
    await one.stop()


# --- the door to the kernel ------------------------------------------------------------------------------
@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(pyfuse3, 'trio_token', object())
    monkeypatch.setattr(pyfuse3, 'invalidate_entry', lambda *args: calls.append(('entry', *args)))
    monkeypatch.setattr(pyfuse3, 'invalidate_inode', lambda *args: calls.append(('inode', *args)))
    return calls


def test_entries_then_nodes(kernel: list[tuple[object, ...]]) -> None:
    KernelSender().send(Outdated(((1, b'a'), (2, b'b')), (3,)))
    assert kernel == [('entry', 1, b'a'), ('entry', 2, b'b'), ('inode', 3)]


def test_nothing_is_sent_without_a_session(
    kernel: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = KernelSender()
    sender.close()
    sender.send(Outdated(((1, b'a'),), (3,)))
    monkeypatch.setattr(pyfuse3, 'trio_token', None)
    KernelSender().send(Outdated(((1, b'a'),), (3,)))
    assert kernel == []


def test_what_the_kernel_does_not_know_is_no_error(
    kernel: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(code: int) -> object:
        def notify(*_: object) -> None:
            raise OSError(code, 'refused')

        return notify

    caplog.set_level(logging.INFO, invalidate.__name__)
    monkeypatch.setattr(pyfuse3, 'invalidate_entry', refuse(errno.ENOENT))
    KernelSender().send(Outdated(((1, b'a'),), (3,)))
    assert caplog.text == ''
    assert kernel == [('inode', 3)]
    monkeypatch.setattr(pyfuse3, 'invalidate_entry', refuse(errno.EINVAL))
    KernelSender().send(Outdated(((1, b'a'),), (3,)))
    assert 'did not take' in caplog.text
    assert kernel == [('inode', 3)] * 2
