"""L7 progress: a bar on the terminal for what the collector moves. Main thread. Imports rich when shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Watch = Callable[[Any], None]


@contextmanager
def bar(shown: bool) -> Iterator[Watch | None]:
    """Yield what takes the progress of the collector ({'stage', 'batch', 'done', 'total'}, or None) and shows
    it on standard error; None when nothing is to be shown."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task('waiting', total=None)

        def watch(moving: Any) -> None:
            if moving is None:
                return
            total = moving['total'] or None
            progress.update(task, description=describe(moving), completed=moving['done'], total=total)

        yield watch


def describe(moving: Any) -> str:
    """Say what moves: the step, and the batch if it has a number."""
    batch = '' if moving['batch'] is None else f' (batch {moving["batch"]})'
    return f'{moving["stage"]}{batch}'
