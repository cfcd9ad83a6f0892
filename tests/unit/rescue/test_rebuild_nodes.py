"""What a rebuild knows of nodes is in a file: the same as sets in memory would say."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from snapfs.errors import Unavailable
from snapfs.rescue import work_table
from snapfs.rescue.rebuild_nodes import Nodes
from snapfs.rescue.work_table import WorkTable

Known = dict[bytes, tuple[tuple[int, int], list[bytes]]]


@pytest.mark.parametrize('seed', range(30))
def test_as_sets_in_memory_say(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(work_table, 'ROWS_AT_ONCE', chance.choice([1, 3, 20_000]))
    ids = [chance.randbytes(32) for _ in range(60)]
    nodes, known, before = Nodes(tmp_path), Known(), set[bytes]()
    # Only nodes further on are below one: there are no circles, but there are nodes nobody has.
    below = [
        chance.sample(ids[at + 1 :], min(len(ids) - at - 1, chance.choice([0, 0, 0, 2, 5])))
        for at in range(len(ids))
    ]
    for offset in range(90):
        at = chance.randrange(len(ids))
        nodes.add(ids[at], offset % 7, offset, below[at])
        known.setdefault(ids[at], ((offset % 7, offset), below[at]))
        if chance.random() < 0.7:
            nodes.was_before(ids[at])
            before.add(ids[at])
    for id, (place, _) in known.items():
        assert nodes.place(id) == place, f'seed {seed}'
    with pytest.raises(KeyError):
        nodes.place(b'nobody')
    roots = chance.sample(ids, chance.randrange(4))
    nodes.name(roots)
    assert list(nodes.tops()) == _tops(known, roots), f'seed {seed}'
    assert nodes.tops_count() == len(_tops(known, roots))
    assert nodes.late() == len(known.keys() - before)
    nodes.close()
    assert list(tmp_path.iterdir()) == [], 'nothing is left'


def _tops(known: Known, roots: list[bytes]) -> list[bytes]:
    seen: set[bytes] = set()
    todo = list(roots)
    while todo:
        id = todo.pop()
        if id not in seen:
            seen.add(id)
            todo += known[id][1] if id in known else []
    below = {child for _, children in known.values() for child in children}
    return sorted((id for id in known if id not in below and id not in seen), key=lambda id: known[id][0])


def test_what_was_freed_is_asked_for_pack_by_pack(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    nodes.add_freed(b'a', b'first', 48, 1)
    nodes.add_freed(b'b', b'second', 48, 2)
    nodes.add_freed(b'a', b'first', 48, 3)
    assert nodes.freed_in(b'first') == {(b'a', 48): 3}
    assert nodes.freed_in(b'second') == {(b'b', 48): 2}
    assert nodes.freed_in(b'third') == {}
    nodes.close()


def test_no_room_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match='no room'):
        WorkTable(tmp_path / 'nowhere', ())
