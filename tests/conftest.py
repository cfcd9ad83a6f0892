"""For all tests: what they log may hold names that are not UTF-8, and has to travel between processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Let nothing into a report that the workers' channel cannot carry: it would end the whole run."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(title, _clean(text)) for title, text in report.sections]
    if isinstance(report.longrepr, str):
        report.longrepr = _clean(report.longrepr)


def _clean(text: str) -> str:
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')
