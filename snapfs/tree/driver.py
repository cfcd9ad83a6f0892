"""L3 driver: applies changes in one go, for tests and tools. Synchronous; blocks as its callbacks do."""

from __future__ import annotations

from collections.abc import Callable, Generator

from snapfs.tree.root import Applied, Built, Need, Node


def run_apply(
    generator: Generator[Need | Built, list[Node] | None, Applied],
    load_now: Callable[[list[bytes]], list[Node]],
    store_now: Callable[[list[tuple[bytes, bytes]]], None],
) -> Applied:
    """Run `apply(...)` to its end and return its result.

    `load_now(ids)` returns decoded nodes in this order, `store_now(nodes)` keeps (id, encoded bytes); what
    was stored can be loaded from then on.
    """
    answer: list[Node] | None = None
    while True:
        try:
            step = generator.send(answer)
        except StopIteration as stop:
            applied: Applied = stop.value
            return applied
        if isinstance(step, Need):
            answer = load_now(step.ids)
        else:
            store_now(step.nodes)
            answer = None
