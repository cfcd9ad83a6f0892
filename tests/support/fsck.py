"""A full check of a store by the program that shares nothing with it, in this process."""

from __future__ import annotations

from pathlib import Path

from tools.checker.check import Options, check
from tools.checker.findings import Report


def report_of(store: Path, *, full: bool = True) -> Report:
    """Return what fsck finds."""
    report = Report()
    check(store, Options(full=full, jobs=1), report)
    return report


def damages(store: Path, *, full: bool = True) -> list[str]:
    """Return the damages that fsck finds, and what it could not check."""
    report = report_of(store, full=full)
    found = [f'{one.code} {one.place}: {one.what}' for one in report.findings if one.severity == 'damage']
    return found + report.unchecked
