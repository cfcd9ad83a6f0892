"""Nodes that packs have lost come back from the mirror: everybody's, and so that fsck has nothing to say."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.errors import Corrupt, Latched, SnapfsError
from snapfs.format.codec import Compressor
from snapfs.format.ids import chunk_id
from snapfs.format.records import HEADER_BYTES, RecordKind, encode_record
from snapfs.rescue import copies
from snapfs.rescue.copies import look_at_copies
from snapfs.rescue.recover_values import Copies, CopiesSpec, PackCopy
from snapfs.rescue.restore import restore_packs
from snapfs.rescue.scrub_values import SLOTS
from snapfs.service.collecting import Collecting
from snapfs.service.putting_back import PuttingBack
from snapfs.service.recovering import Recovering, Wish
from snapfs.service.scrubbing import Scrubbing
from tests.images.image import make
from tests.mutants.setting import small
from tests.support.fsck import report_of
from tests.support.lives import on, trees
from tools.breakit import break_it


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was closed clean: its last packs are open, and the mirror has all of them."""
    path = tmp_path_factory.mktemp('whole') / 'store'
    make(path)
    on(path, nothing)
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / 'store'
    shutil.copytree(whole, path)
    return path


async def nothing(collecting: Collecting) -> None:
    await collecting.engine.commit(always=True)


async def recover(collecting: Collecting) -> Any:
    return await Recovering(collecting).run(Wish('home', 'monday', None, (), False, False, 'ann'))


async def scrub(collecting: Collecting) -> Any:
    return await Scrubbing(collecting).run(range(SLOTS), 0)


def meta_packs(path: Path) -> list[tuple[int, str, str, int]]:
    """Number, hexadecimal name, state and bytes."""
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        rows = db.execute('SELECT pack, name, state, bytes FROM pack WHERE kind = 2 ORDER BY pack').fetchall()
    return [(number, name.hex(), state, size) for number, name, state, size in rows]


def file_of(path: Path, name: str) -> Path:
    return path / 'packs' / 'meta' / name[:2] / name


def damages(path: Path) -> list[Any]:
    """What fsck says and is no mere note; but for what stopped the collector."""
    with small():
        report = report_of(path)
    assert not report.unchecked
    return [one for one in report.findings if one.severity != 'note' and one.code != 'incident']


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    def make_shorter(file: Path) -> None:
        with file.open('r+b') as handle:
            handle.truncate(size(file.stat().st_size))

    return make_shorter


WAYS = {
    'gone': Path.unlink,
    'with its folder': lambda file: shutil.rmtree(file.parent),
    'empty': cut(lambda size: 0),
    'only a header': cut(lambda size: 48),
    'a half': cut(lambda size: size // 2),
    'its last byte': cut(lambda size: size - 1),
}


@pytest.mark.parametrize('number', range(4))
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('command', [recover, scrub])
def test_a_pack_that_is_gone_or_cut_is_made_again(store, way, number, command):
    wanted = trees(store)
    packs = meta_packs(store)
    assert [state for _, _, state, _ in packs] == ['sealed', 'sealed', 'sealed', 'open']
    _, name, state, size = packs[number]
    file = file_of(store, name)
    before = file.read_bytes()
    WAYS[way](file)
    said = damages(store)
    assert {one.code for one in said} <= {'pack-missing', 'pack-short', 'pack-header'}
    assert all('its second copy is whole: snapfs scrub puts it back' in one.what
               for one in said if one.code != 'pack-header')  # fmt: skip

    async def work(collecting: Collecting) -> Any:
        return await command(collecting), collecting.collector.incidents.latched()

    told, stopped = on(store, work)
    assert told['put_back'] == {'packs': 1, 'nodes': 0}
    assert bool(stopped) == (command is scrub), 'who scrubs is a schedule; who recovers is a person'
    now = file.read_bytes()
    assert now == before if state == 'sealed' else now.startswith(before[:size])
    assert damages(store) == []
    shutil.rmtree(store / 'mirror')
    assert trees(store) == wanted
    assert list(file.parent.glob('*.new')) == []


def test_everything_meta_is_gone_and_comes_back(store):
    wanted = trees(store)
    shutil.rmtree(store / 'packs' / 'meta')
    (store / 'packs' / 'meta').mkdir()
    assert on(store, recover)['put_back']['packs'] >= 4
    assert damages(store) == []
    assert trees(store) == wanted


def damaged_ids(path: Path) -> int:
    with sqlite3.connect(path / 'catalog.sqlite') as db:
        (count,) = db.execute('SELECT count(*) FROM damage').fetchone()
    return int(count)


@pytest.mark.parametrize('command', [recover, scrub])
def test_the_whole_directory_is_gone_and_what_the_refusal_says_brings_it_back(store, command):
    """Everybody refused, and nobody said what to do."""
    wanted = trees(store)
    packs = {name: file_of(store, name).read_bytes() for _, name, _, _ in meta_packs(store)}
    shutil.rmtree(store / 'packs/meta')
    with pytest.raises(Corrupt, match='packs/meta is missing') as caught:
        on(store, command)
    made = (
        f'mkdir {store}/packs/meta; snapfs recover VOLUME@SNAPSHOT --store {store}, or snapfs scrub --store '
    )
    assert made in caught.value.line()
    (store / 'packs/meta').mkdir()
    assert on(store, command)['put_back']['packs'] >= 3
    for name, data in packs.items():
        assert file_of(store, name).read_bytes().startswith(data), name
    assert damages(store) == [] and not damaged_ids(store)
    assert trees(store) == wanted


@pytest.mark.parametrize('name', ['leaf-flip', 'branch-flip', 'top-flip'])
@pytest.mark.parametrize('command', [recover, scrub])
def test_a_node_that_has_rotted_is_stored_anew(store, name, command):
    wanted = trees(store)
    break_it(store, name, seed=1)
    (said,) = damages(store)
    assert 'its second copy is whole: snapfs scrub puts it back' in said.what

    async def work(collecting: Collecting) -> Any:
        told = await command(collecting)
        return told, collecting.collector.incidents.latched(), collecting.engine.health()

    told, stopped, health = on(store, work)
    if command is recover:
        assert told['put_back'] == {'packs': 0, 'nodes': 1} and not told['lost'] and health == 'ok'
    else:
        assert (told['put_back'], told['bad']) == ({'packs': 0, 'nodes': 1}, 0)
        assert 'found 1 nodes damaged' in stopped, (
            'somebody should look at the disk before anything is deleted'
        )
        assert health.startswith('the collector is stopped')
    assert damages(store) == []
    shutil.rmtree(store / 'mirror')
    assert trees(store) == wanted


@pytest.mark.parametrize('part', [1, 2])
def test_a_scrub_that_has_just_read_everything_puts_nodes_back_all_the_same(store, part):
    """fsck says that it does. A part of a scrub costs what a part costs, and does not."""

    async def work(collecting: Collecting) -> Any:
        assert (await scrub(collecting))['bad'] == 0
        break_it(store, 'leaf-flip', seed=1)
        return await Scrubbing(collecting).run(range(SLOTS // part), 0)

    told = on(store, work)
    assert told['skipped'] == SLOTS // part and told['put_back']['nodes'] == (1 if part == 1 else 0)


def test_for_data_that_has_rotted_no_node_is_read(store):
    """It has no second copy, and each pass of a scrub would read all nodes for it."""
    break_it(store, 'payload-flip', seed=1)

    async def work(collecting: Collecting) -> Any:
        jobs, run = [], collecting._runner

        async def runner(spec: Any, progress: Any) -> Any:
            jobs.append(type(spec).__name__)
            return await run(spec, progress)

        collecting._runner = runner
        told = await Scrubbing(collecting).run(range(SLOTS // 2), 0)
        other = await Scrubbing(collecting).run(range(SLOTS // 2, SLOTS), 0)
        return told['bad'] + other['bad'], jobs.count('CopiesSpec')

    assert on(store, work) == (1, 2), 'the two that begin a scrub, and no more'


def test_what_is_there_and_is_damaged_and_cut_is_made_again_and_kept(store):
    _, name, _, _ = meta_packs(store)[0]
    file = file_of(store, name)
    data = bytearray(file.read_bytes()[:3000])
    data[2000] ^= 1
    file.write_bytes(data)
    wanted = trees(store)
    told = on(store, lambda collecting: PuttingBack(collecting).run(every_node=False))
    assert told.packs == 1
    (kept,) = store.glob('pack.lost-*')
    assert kept.read_bytes() == data
    assert damages(store) == []
    shutil.rmtree(store / 'mirror')
    assert trees(store) == wanted


def test_of_a_copy_that_has_rotted_as_well_only_whole_nodes_come_back(store):
    _, name, _, _ = meta_packs(store)[0]
    copy = store / 'mirror' / name[:2] / name
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        text = 'SELECT id, offset FROM chunk WHERE pack = 1 ORDER BY offset'
        rows = db.execute(text).fetchall()
    data = bytearray(copy.read_bytes())
    data[rows[2][1] + HEADER_BYTES + 5] ^= 1
    copy.write_bytes(data)
    file_of(store, name).unlink()
    (lost,) = [one for one in damages(store) if one.code == 'pack-missing']
    assert 'its second copy has 16 of 17 nodes: snapfs scrub puts them back' in lost.what
    told = on(store, lambda collecting: PuttingBack(collecting).run(every_node=False))
    assert told.packs == 0
    assert told.nodes == {id for id, _ in rows} - {rows[2][0]}
    assert not file_of(store, name).exists(), 'half a pack would look like a whole one'


def test_a_dry_run_says_what_would_come_back_and_changes_nothing(store):
    _, name, _, _ = meta_packs(store)[1]
    file_of(store, name).unlink()

    async def look(collecting: Collecting) -> Any:
        return await Recovering(collecting).run(Wish('home', 'monday', None, (), False, True, 'ann'))

    assert on(store, look)['put_back'] == {'packs': 1, 'nodes': 0}
    assert not file_of(store, name).exists()


def test_a_retired_pack_is_never_made_again(store):
    """Its file went after the last look. What brings it back would bring back what was freed."""
    number, name, _, _ = meta_packs(store)[1]
    file_of(store, name).unlink()
    with sqlite3.connect(store / 'catalog.sqlite') as db:
        db.execute("UPDATE pack SET state = 'retired' WHERE pack = ?", (number,))

    async def work(collecting: Collecting) -> Copies:
        found = collecting.engine.store
        spec = CopiesSpec(found.path, found.superblock.uuid, False, ())
        planned = look_at_copies(spec)
        assert restore_packs(found, [PackCopy(number, bytes.fromhex(name))]) == {}
        return planned

    assert on(store, work).packs == ()
    assert not file_of(store, name).exists()


def test_nothing_is_put_into_an_open_pack_whose_file_has_gone(store):
    wanted = trees(store)

    async def work(collecting: Collecting) -> Any:
        engine = collecting.engine
        await engine.commit(always=True)
        engine.store.keep_copies()
        for _, name, _, _ in meta_packs(store):
            file_of(store, name).unlink(missing_ok=True)
        return await PuttingBack(collecting).run(every_node=True)

    assert on(store, work).packs == 4
    assert damages(store) == []
    shutil.rmtree(store / 'mirror')
    assert trees(store) == wanted


def test_the_collector_goes_on_after_a_pack_was_made_again(store):
    """A recount wants every pack of nodes of the catalog on the disk."""
    file_of(store, meta_packs(store)[0][1]).unlink()

    async def work(collecting: Collecting) -> Any:
        await recover(collecting)
        return await collecting.collect()

    on(store, work)
    assert damages(store) == []


@pytest.mark.parametrize('way', ['gone', 'a half'])
@pytest.mark.parametrize('step', ['_sys_pwritev', '_sys_fdatasync', '_sys_rename'])
def test_a_pack_that_cannot_be_made_again_leaves_what_was_there(store, monkeypatch, way, step):
    """The disk is full, or fails: there is what was there, or all of the pack, and no row has changed."""
    _, name, _, _ = meta_packs(store)[1]
    file = file_of(store, name)
    WAYS[way](file)
    before = file.read_bytes() if file.exists() else None
    rows = meta_packs(store)

    async def work(collecting: Collecting) -> Any:
        disk, found = collecting.engine.store.disk, collecting.engine.store

        def fail(*arguments: Any) -> Any:
            raise OSError(errno.ENOSPC if step == '_sys_pwritev' else errno.EIO, 'no')

        monkeypatch.setattr(disk, step, fail)
        (row,) = [one for one in found.catalog.packs() if one.name.hex() == name]
        with pytest.raises(SnapfsError):
            restore_packs(found, [PackCopy(row.pack, row.name)])
        monkeypatch.undo()
        return disk.latched

    latched = None
    try:
        latched = on(store, work)
    except Latched as error:
        latched = error  # the close says so, too
    assert bool(latched) == (step != '_sys_pwritev')
    assert (file.read_bytes() if file.exists() else None) == before
    assert bool(list(file.parent.glob('*.new'))) == (step != '_sys_pwritev'), (
        'nothing is written after a failure'
    )
    assert [row for row in meta_packs(store) if row[1] == name] == [row for row in rows if row[1] == name]
    if not latched:  # else the store opens for no writer before a person has looked
        assert on(store, recover)['put_back']['packs'] == 1, 'another time it goes'
        assert damages(store) == []


def flip(file: Path, where: int) -> bytes:
    data = bytearray(file.read_bytes())
    data[where] ^= 4
    file.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize('behind', [40, 60])  # in the trailer, in the list of records
@pytest.mark.parametrize('command', [recover, scrub])
def test_a_pack_with_a_wrong_footer_is_made_again_and_the_wrong_one_kept(store, command, behind):
    _, name, _, size = meta_packs(store)[1]
    file = file_of(store, name)
    before = file.read_bytes()
    assert len(before) == size
    wrong = flip(file, size - behind)
    assert {one.code for one in damages(store)} == {'pack-footer', 'mirror-bad'}, 'they are not the same'
    assert on(store, command)['put_back'] == {'packs': 1, 'nodes': 0}
    assert file.read_bytes() == before
    assert (store / f'pack.lost-{name}-1').read_bytes() == wrong
    assert damages(store) == []
    assert [one for one in report_of(store).findings if 'pack.lost' in one.place] == []


@pytest.mark.parametrize('places', [('header',), ('record',), ('header', 'record', 'footer')])
def test_a_pack_that_is_damaged_in_whatever_place_is_made_again_and_kept(store, places):
    """A wrong header stayed for ever: nobody missed it, and fsck called the store damaged."""
    _, name, _, size = meta_packs(store)[1]
    file, wanted = file_of(store, name), trees(store)
    at = {'header': 20, 'record': 48 + HEADER_BYTES + 5, 'footer': size - 60}
    for place in places:
        wrong = flip(file, at[place])
    told = on(store, recover)['put_back']
    if places == ('record',):  # nothing is seen of it without reading; its node came back elsewhere
        assert told == {'packs': 0, 'nodes': 1}
        return
    assert told['packs'] == 1
    assert (store / f'pack.lost-{name}-1').read_bytes() == wrong
    assert damages(store) == []
    shutil.rmtree(store / 'mirror')
    assert trees(store) == wanted


def test_what_has_a_whole_record_of_its_own_is_not_only_damaged(store):
    """Whoever wrote it there: it would be lost."""
    _, name, _, _ = meta_packs(store)[1]
    data = file_of(store, name).read_bytes()
    entries, _ = copies._records(data)
    content = copies.Content(data, tuple(entries))
    assert not copies.only_damaged(data, content), 'there is nothing to mend'
    first = entries[0]
    other = encode_record(RecordKind.NODE, chunk_id(RecordKind.NODE, b'x' * 40), b'x' * 40, Compressor())
    record = b''.join(map(bytes, other))
    now = data[: first.offset] + record + data[first.offset + len(record) :]
    assert not copies.only_damaged(now, content)
    broken = bytearray(now)
    broken[first.offset + HEADER_BYTES] ^= 1
    assert copies.only_damaged(bytes(broken), content)
    assert not copies.only_damaged(bytes(broken) + b'more', content)


@pytest.mark.parametrize('way', ['the copy', 'no copy'])
def test_it_stays_where_the_copy_is_not_the_same_but_for_the_footer(store, way):
    _, name, _, size = meta_packs(store)[1]
    file, copy = file_of(store, name), store / 'mirror' / name[:2] / name
    wrong = flip(file, size - 60)
    if way == 'the copy':
        flip(copy, 48 + HEADER_BYTES + 5)
    else:
        copy.unlink()
    assert on(store, recover)['put_back']['packs'] == 0
    assert file.read_bytes() == wrong and not list(store.glob('pack.lost-*'))
