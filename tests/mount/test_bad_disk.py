"""A disk that does not give some bytes of packs: files lose these ranges and nothing else."""

from __future__ import annotations

import sys

import pytest

from tests.mount.bad_disk_kit import BIG, PAGE, Bad, damage_json
from tests.support.bad_disk import PROJECT, fault

pytestmark = pytest.mark.slow


def test_the_disk_itself(bad: Bad) -> None:
    """The pass-through fails exactly where it is told to, and tells how often."""
    path, data = bad.disk.path / 'file', bytes(range(256)) * 64
    path.write_bytes(data)
    bad.disk.fail(fault('read', 'file', PAGE + 5, PAGE + 6), fault('open', 'store/superblock', times=1))
    pages = bad.pages(path)
    assert [offset for offset, page in pages.items() if page is None] == [PAGE]
    assert pages[2 * PAGE] == data[2 * PAGE : 3 * PAGE]
    with pytest.raises(OSError, match='Input/output'):
        (bad.store / 'superblock').read_bytes()
    assert len((bad.store / 'superblock').read_bytes()) == 80
    met = bad.disk.fail(fault('write', 'f*', PAGE, 2 * PAGE), fault('list', 'store/packs'))
    assert met[0] >= 1 and met[1] == 1
    assert path.read_bytes() == data
    with open(path, 'r+b', buffering=0) as file:
        assert file.write(b'x' * PAGE) == PAGE
        with pytest.raises(OSError, match='Input/output'):
            file.write(b'x')
    with pytest.raises(OSError, match='Input/output'):
        list((bad.store / 'packs').iterdir())
    assert bad.disk.mend() == [1, 1]


def test_a_bad_sector_in_a_data_pack(bad: Bad) -> None:
    where = bad.record(1)
    sector = where.sector()
    bad.mount.expected += ['damaged: ', 'cannot read', 'the collector stops', 'was recovered']
    bad.disk.fail(sector)
    name = f'packs/data/{where.pack[:2]}/{where.pack}'
    full = bad.says(4, 'fsck')
    assert f'pack-unreadable {name}: the disk does not give' in full
    assert 'home@monday: /big bytes ' in full and 'missing' not in full
    assert bad.call(sys.executable, PROJECT / 'tools/fsck.py', '--quick', bad.store)[0] == 0
    assert '0 damages' in bad.says(0, 'fsck', '--quick'), 'it reads no data'
    bad.mount.start()
    pages = bad.pages(bad.home / 'big')
    lost = [offset for offset, page in pages.items() if page is None]
    assert lost and lost == list(range(lost[0], lost[-1] + PAGE, PAGE)) and len(lost) < len(pages) // 2
    assert all(page in (None, BIG[offset : offset + PAGE]) for offset, page in pages.items())
    assert len((bad.home / '.snapshots/monday/d1/small').read_bytes()) == 3000
    assert bad.health().startswith('damaged: ')
    before = bad.files()
    assert 'the collector waits: damaged' in bad.says(11, 'collect')
    assert {one: data for one, data in bad.files().items() if one.startswith('packs/')} == {
        one: data for one, data in before.items() if one.startswith('packs/')
    }
    assert bad.disk.mend()[0] > 0


def test_what_a_scrub_finds_unreadable_is_recovered_with_zeros(bad: Bad) -> None:
    where = bad.record(1)
    bad.mount.expected += ['damaged: ', 'cannot read', 'the collector stops', 'was recovered']
    bad.disk.fail(where.sector())
    bad.mount.start()
    assert 'damaged: 1' in bad.says(4, 'scrub')
    listed = bad.says(0, 'snapshot', 'list')
    assert listed.count('DAMAGED') == 2
    assert where.pack in bad.says(0, 'incident', 'list')
    said = bad.says(4, 'damage')
    assert 'home@monday' in said and '/big' in said
    assert 'zeros' in bad.says(4, 'recover', 'home@monday')
    ((one,),) = [told['ranges'] for told in damage_json(bad, 'monday-recovered')['lost']]
    start, end = one['start'], one['end']
    assert one['path'] == '/big' and 0 < end - start < len(BIG) // 4
    back = (bad.home / '.snapshots/monday-recovered/big').read_bytes()
    assert back == BIG[:start] + bytes(end - start) + BIG[end:]
    assert None not in bad.pages(bad.home / '.snapshots/monday-recovered/big').values()


def test_a_bad_sector_in_a_pack_of_nodes_is_read_from_the_second_copy(bad: Bad) -> None:
    node = bad.top_node('monday')
    bad.mount.expected += ['read from its second copy', 'damaged: ']
    bad.disk.fail(node.sector('packs/meta'))
    assert 'its second copy is whole: snapfs scrub puts it back' in bad.says(4, 'fsck', '--quick')
    bad.mount.start()
    assert (bad.home / '.snapshots/monday/old').read_text() == 'old'
    assert len((bad.home / '.snapshots/monday/d1/small').read_bytes()) == 3000
    assert 'read from their second copies' in bad.health()
    bad.says(11, 'collect')
    # Both copies: the rest of the store is there all the same, and nothing is taken for empty.
    bad.disk.fail(node.sector('packs/meta'), node.sector('mirror'))
    bad.mount.expected += ['lookup: ', 'cannot read']
    bad.mount.restart()
    with pytest.raises(OSError, match='Input/output error'):
        list((bad.home / '.snapshots/monday').iterdir())
    assert len((bad.home / 'd1/small').read_bytes()) == 3000
    assert bad.health().startswith('damaged: ')
    bad.disk.mend()
    assert (bad.home / '.snapshots/monday/old').read_text() == 'old'
