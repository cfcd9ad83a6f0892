"""tools bench: the result as a table in Markdown. Pure but for the line that names the machine."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from tools.bench.metrics import METRICS, Metric
from tools.bench.sizes import Sizes

Results = Mapping[str, Mapping[str, Sequence[float]]]  # filesystem -> metric -> one value a round


def number(value: float) -> str:
    """Return three digits that matter, more only before the point."""
    if abs(value) >= 1000:
        return f'{value:,.0f}'
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.1f}' if abs(value) >= 10 else f'{value:.2f}'


def machine() -> str:
    """Return the line about where and when."""
    today = datetime.now(UTC).date().isoformat()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30)
    return (
        f'{today}, Linux {platform.release()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, '
        f'Python {platform.python_version()}'
    )


def summary(results: Results, filesystem: str, metric: Metric) -> float | None:
    """Return the median over the rounds (or the least), None when never measured."""
    values = results.get(filesystem, {}).get(metric.name)
    if not values:
        return None
    return min(values) if metric.least else statistics.median(values)


def cell(metric: Metric, value: float | None, null: float | None, is_null: bool) -> str:
    """Return a value and how many times worse than the null filesystem it is."""
    if value is None:
        return '–'
    text = f'{number(value)} {metric.unit}'.rstrip()
    if value and null and not is_null and metric.compare:
        ratio = metric.ratio(value, null)
        text += f' ({ratio:.0f} ×)' if ratio >= 100 else f' ({ratio:.2g} ×)'
    return text


def render(results: Results, sizes: Sizes, rounds: int, notes: Sequence[str]) -> str:
    """Return the whole text: machine, table, notes."""
    names = list(results)
    lines = [
        f'{machine()}. Medians of {rounds} {"round" if rounds == 1 else "rounds"}; '
        'in brackets how many times worse than the null filesystem.',
        '',
        '| | ' + ' | '.join(names) + ' | aim of snapfs |',
        '|---|' + '---:|' * len(names) + '---|',
    ]
    words = sizes.words()
    for metric in METRICS:
        values = {name: summary(results, name, metric) for name in names}
        if all(value is None for value in values.values()):
            continue
        null = values.get('null')
        cells = [cell(metric, values[name], null, name == 'null') for name in names]
        aim, ours = metric.aim_text(), values.get('snapfs')
        if ours is not None and (reached := metric.reached(ours, null)) is not None:
            aim += ', reached' if reached else ', **missed**'
        title = metric.title.format(**words)
        lines.append(f'| {title} | ' + ' | '.join(cells) + f' | {aim} |')
    if notes:
        lines += ['', *(f'- {note}' for note in notes)]
    return '\n'.join(lines)
