"""Recount 2 against a brute-force oracle, over random small stores: other code, other direction
(top-down)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapfs import limits
from snapfs.format.ids import node_id
from tests.unit.collect.kit2 import Built, branch, build, leaf

SEEDS = range(40)


@dataclass
class Model:
    """What the test knows of the store it makes; the oracle reads nothing else."""

    children: dict[bytes, list[bytes]] = field(default_factory=dict)  # of every node record
    rows: dict[bytes, set[object]] = field(default_factory=dict)  # id -> 'chunk', 'freed', numbers of batches
    claims: list[tuple[bytes, bool, int | None]] = field(default_factory=list)  # id, reach, batch
    asked: list[tuple[bytes, bool, int | None]] = field(
        default_factory=list
    )  # likewise: nobody takes these back

    def reach(self, top: bytes) -> set[bytes]:
        found: set[bytes] = set()
        waiting = [top]
        while waiting:
            id = waiting.pop()
            if id not in found:
                found.add(id)
                waiting += self.children.get(id, [])
        return found

    def verdict(self, batch: int) -> tuple[set[bytes], set[bytes]]:
        """(ids with a live mention, leftovers) by the words of the contract."""
        condemned = {id for id, places in self.rows.items() if batch in places}
        excused = {id for id in condemned if 'chunk' not in self.rows[id]}
        standing = [claim for claim in self.claims if claim[2] != batch]
        reaches = [(self.reach(id), owner) for id, reach, owner in standing if reach]
        asked: set[bytes] = set()
        for id, reach, owner in self.asked:
            if owner != batch:
                asked |= self.reach(id) if reach else {id}
        live, leftovers = set(), set()
        for x in condemned:
            if 'chunk' in self.rows[x]:
                continue
            # Somebody names it himself.
            for id, _, owner in standing:
                if id == x and not (owner is not None and owner in self.rows[x]):
                    live.add(x)
            for node, children in self.children.items():
                if x not in children or node in excused:
                    continue
                owners = {owner for reach, owner in reaches if node in reach}
                if any(owner is None or owner not in self.rows[x] for owner in owners):
                    live.add(x)
                elif not owners and node not in asked and self.rows.get(node, set()) != {'freed'}:
                    leftovers.add(x)
        return live, leftovers


def random_store(path: Path, seed: int, *, copies: bool = True) -> tuple[Built, Model]:
    """A store and what is in it. `copies`: rows in quarantine may name places where nothing stands."""
    chance = random.Random(seed)
    built, model = build(path), Model()
    data = built.put_data(*(b'%d %d' % (seed, n) for n in range(chance.randrange(4, 20))))
    levels: list[list[bytes]] = [[]]
    for n in range(chance.randrange(3, 12)):
        ids = chance.sample(data, chance.randrange(1, min(5, len(data))))
        levels[0].append(leaf(ids, n + 1))
        model.children[node_id(levels[0][-1])] = ids
    for _ in range(chance.randrange(1, 4)):
        below, here = levels[-1], []
        for _ in range(chance.randrange(1, 5)):
            chosen = chance.sample(below, chance.randrange(1, min(4, len(below) + 1)))
            here.append(branch(chosen))
            model.children[node_id(here[-1])] = [node_id(one) for one in chosen]
        levels.append(list(dict.fromkeys(here)))
    nodes = [one for level in levels for one in level]
    chance.shuffle(nodes)
    for one in nodes:
        built.put_nodes(one)
        if chance.random() < 0.1:
            built.commit()
            built.seal()
    built.commit()
    model.rows = {id: {'chunk'} for id in [*data, *map(node_id, nodes)]}
    batches = range(1, 4)
    for number in batches:
        built.batch_row(number, 'QUARANTINED')
    move_rows(built, model, chance, 1000 if copies else 0)
    add_claims(built, model, chance, nodes, data)
    return built, model


def move_rows(built: Built, model: Model, chance: random.Random, apart: int) -> None:
    rare = 1 if apart else 0
    ids = sorted(model.rows)
    for id in ids:
        choice = chance.choices(
            ['stay', 'b1', 'b2', 'freed', 'lost', 'b1+chunk', 'b1+b2'], [9, 5, 2, 1, 1, rare, rare]
        )[0]
        places: set[object] = {
            'stay': {'chunk'},
            'b1': {1},
            'b2': {2},
            'freed': {'freed'},
            'lost': set(),
        }.get(choice, {1, 'chunk'} if choice == 'b1+chunk' else {1, 2})
        columns = 'id, pack, offset, stored, plain, codec, kind, epoch'
        for place in sorted(places, key=str):
            if place in (1, 2):
                # Another place for each, as a copy stored afresh has.
                shift = 'offset + ' + str(apart * int(place == 2))
                moved = columns.replace('offset', shift)
                built.sql(f'INSERT INTO quarantine SELECT {moved}, ? FROM chunk WHERE id = ?', (place, id))
        if 'freed' in places:
            built.sql(f'INSERT INTO freed SELECT {columns}, 3 FROM chunk WHERE id = ?', (id,))
        if 'chunk' not in places:
            built.forget_row(id)
        model.rows[id] = places
    folder = built.path / 'batches' / '1'
    folder.mkdir()
    extra = chance.sample(ids, chance.randrange(len(ids)))  # subtracted when the rows moved
    own = [id for id, places in model.rows.items() if 1 in places]
    (folder / 'condemned').write_bytes(b''.join(sorted({*own, *extra})))


def add_claims(
    built: Built, model: Model, chance: random.Random, nodes: list[bytes], data: list[bytes]
) -> None:
    for number in range(10, 10 + chance.randrange(1, 6)):
        top = chance.choice(nodes)
        kind = chance.choice(['volume', 'snapshot', 'request', 'request', 'part', 'part'])
        batch = chance.choice([None, 1, 1, 2])
        if kind == 'volume' or (kind == 'snapshot' and not built.sql('SELECT 1 FROM volume')):
            built.volume(number, top)
            model.claims.append((node_id(top), True, None))
        elif kind == 'snapshot':
            ((owner,),) = built.sql('SELECT volume FROM volume LIMIT 1')
            built.snapshot(number, top, owner)  # type: ignore[arg-type]
            model.claims.append((node_id(top), True, None))
        elif kind == 'request':
            built.request(number, plain=top, batch=batch)
            model.claims.append((node_id(top), True, batch))
        else:
            alone = chance.sample([*data, *map(node_id, nodes)], 2)
            built.request(number, 'dropped', batch=batch, chunks=alone, subtrees=[node_id(top)])
            model.asked += [(id, False, batch) for id in alone]
            model.asked.append((node_id(top), True, batch))


@pytest.mark.parametrize('seed', SEEDS)
def test_the_verdict_is_that_of_the_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    compare(tmp_path, monkeypatch, seed)


def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Counter[str]:
    for name in ('JOURNAL_BYTES', 'RESERVE_BYTES', 'FREE_BYTES_MIN'):
        monkeypatch.setattr(limits, name, 64 * limits.KIB)
    monkeypatch.setattr(limits, 'MENTION_BLOCK_IDS', 1 + seed % 9)
    built, model = random_store(tmp_path / f'store{seed}', seed)
    try:
        seen = built.mentions()
        live, leftovers = model.verdict(1)
        assert {one.id for one in seen.live} == live, f'seed {seed}'
        assert set(seen.leftovers) == leftovers, f'seed {seed}'
        assert list(seen.leftovers) == sorted(leftovers)
        return Counter(live=bool(live), leftovers=bool(leftovers), clear=not live and not leftovers)
    finally:
        built.store.close(clean=False)


def test_the_seeds_see_every_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total: Counter[str] = Counter()
    for seed in range(12):
        total += compare(tmp_path, monkeypatch, seed)
    assert min(total['live'], total['leftovers']) >= 3, total
