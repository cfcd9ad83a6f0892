"""What a disk did not give, and gives again: everybody is whole again, by what the program itself names."""

from __future__ import annotations

import pytest

from tests.mount.bad_disk_kit import BIG, Bad

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('way', ['scrub', 'recover'])
def test_what_the_disk_gives_again_is_whole_again(bad: Bad, way: str) -> None:
    """A fault that goes away: by what the program itself names, everybody is healthy again."""
    bad.mount.expected += ['damaged: ', 'cannot read', 'the collector stops', 'whole again']
    bad.disk.fail(bad.record(1).sector())
    bad.mount.start()
    assert None in bad.pages(bad.home / 'big').values()
    bad.says(4, 'scrub')
    assert 'recover --verify VOLUME@SNAPSHOT' in bad.says(4, 'damage')
    bad.disk.mend()
    if way == 'scrub':
        assert '1 chunk that was lost is whole again' in bad.says(0, 'scrub')
    else:
        bad.says(0, 'recover', '--verify', 'home@monday')
    assert 'DAMAGED' not in bad.says(0, 'snapshot', 'list')
    assert 'Nothing is known to be lost' in bad.says(0, 'damage')
    assert bad.health().startswith('the collector is stopped: incident 1')
    bad.says(0, 'incident', 'ack', '1')
    assert bad.health() == 'ok'
    assert '0 damages, 0 warnings, 0 notes' in bad.says(0, 'fsck')
    bad.says(0, 'collect')
    bad.mount.restart()
    assert bad.health() == 'ok' and (bad.home / 'big').read_bytes() == BIG


def test_what_a_read_found_lost_is_looked_at_by_the_next_scrub(bad: Bad) -> None:
    """Also where all of it was verified a moment before."""
    bad.mount.expected += ['damaged: ', 'cannot read', 'whole again']
    bad.mount.start()
    bad.says(0, 'scrub')
    bad.disk.fail(bad.record(1).sector())
    assert None in bad.pages(bad.home / 'big').values()
    bad.disk.mend()
    assert bad.health().startswith('damaged: ')
    bad.says(0, 'scrub')
    assert bad.health() == 'ok'
