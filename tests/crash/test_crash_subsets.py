"""The simulated disk can keep exactly the subset of unsynced changes that is asked for."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from tests.sim.disk import SimDisk


def test_every_subset_of_unsynced_changes(tmp_path: Path) -> None:
    root = tmp_path / 'root'
    root.mkdir()
    (root / 'file').write_bytes(b'old old')
    disk = SimDisk(root)
    assert disk.unsynced_count() == 0
    fd = disk.open_write(root / 'file', create=False)
    disk.pwrite(fd, [b'new'], 0)
    disk.pwrite(fd, [b'tail'], 7)
    disk.close(disk.open_write(root / 'other', create=True))
    assert disk.unsynced_count() == 3
    found = {}
    for number, kept in enumerate(product((False, True), repeat=3)):
        path = disk.crash(0, tmp_path / f'after-{number}', kept=kept)
        disk.off = False
        found[kept] = ((path / 'other').exists(), (path / 'file').read_bytes())
    assert len(set(found.values())) == 8
    assert found[False, False, False] == (False, b'old old')
    assert found[True, False, True] == (True, b'old oldtail')
    assert found[True, True, True] == (True, b'new oldtail')
    disk.sync_data(fd)
    assert disk.unsynced_count() == 1
    disk.sync_directory(root)
    assert disk.unsynced_count() == 0
    disk.close(fd)
    disk.forget()
