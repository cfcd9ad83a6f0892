"""Nodes by the number that references have, against a dictionary."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tools.checker.graph import NOBODY, Graph
from tools.checker.nodes import CHILDREN, NODES, OWNER_SHIFT, NodeTable


@pytest.mark.parametrize('seed', range(20))
def test_owners_are_found(seed: int) -> None:
    """Packs without nodes, nodes that stand twice, numbers that none has."""
    chance = random.Random(seed)
    packs = sorted(chance.sample(range(8), chance.randrange(6)))
    tables, expected, seen = [], {}, set()
    for pack in packs:
        count = chance.randrange(1, 40)
        nodes = np.zeros(count, dtype=NODES)
        nodes['own'] = [pack << OWNER_SHIFT | number for number in range(count)]
        nodes['a'] = [chance.randrange(60) for _ in range(count)]
        tables.append(NodeTable(nodes, np.zeros(0, dtype=CHILDREN), []))
        for own, a in zip(nodes['own'].tolist(), nodes['a'].tolist(), strict=True):
            if a not in seen:  # packs come in order, so the first has the least number
                expected[own] = a
            seen.add(a)
    graph = Graph(tables, [])
    asked = [
        pack << OWNER_SHIFT | chance.choice([*range(45), 65535]) for pack in range(12) for _ in range(30)
    ]
    found = graph.by_owner(np.array(asked, dtype=np.uint32))
    for own, node in zip(asked, found.tolist(), strict=True):
        assert (int(graph.nodes['a'][node]) if node != NOBODY else None) == expected.get(own), own
