"""Tool fuzz, corpus: inputs that are worth keeping. A file for each target, an input on each line, in
hexadecimal, so that a change of one shows in a diff.

Which are worth it: smallest first, those that take a way through snapfs that none before took. A way is a
pair of lines, one after the other, as sys.settrace sees them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tools.fuzz.target import Target, answers

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / 'tests' / 'fuzz' / 'corpus'
WATCHED = tuple(str(ROOT / part) for part in ('snapfs/', 'tools/certificate.py'))
KEPT_BYTES_MAX = 3000  # of one input
KEPT_TARGET_BYTES_MAX = 3500  # of all of one target, before they are written in hexadecimal


def kept(name: str, folder: Path = KEPT) -> list[bytes]:
    """Return the kept inputs of a target; none when there is no file."""
    path = folder / f'{name}.hex'
    if not path.exists():
        return []
    return [bytes.fromhex(line) for line in path.read_text('ascii').splitlines() if line != '']


def keep(target: Target, inputs: Iterable[bytes], folder: Path = KEPT) -> int:
    """Write the inputs that are worth it; return how many these are."""
    seen: set[Any] = set()
    for seed in target.seeds():
        seen |= ways(target, seed)
    chosen: list[bytes] = []
    room = KEPT_TARGET_BYTES_MAX
    for data in sorted(
        {one for one in inputs if 0 < len(one) <= KEPT_BYTES_MAX}, key=lambda one: (len(one), one)
    ):
        new = ways(target, data) - seen
        if new and len(data) <= room:
            seen |= new
            room -= len(data)
            chosen.append(data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{target.name}.hex').write_text(''.join(f'{one.hex()}\n' for one in chosen), 'ascii')
    return len(chosen)


def ways(target: Target, data: bytes) -> set[tuple[str, int, int]]:
    """Return the ways through snapfs that an input takes: (file, line before, line)."""
    found: set[tuple[str, int, int]] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if not name.startswith(WATCHED):
            return None
        before = -frame.f_lineno

        def line(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            nonlocal before
            found.add((name, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    sys.settrace(enter)
    try:
        answers(target, data)
    except Exception:  # a defect is looked at elsewhere
        pass
    finally:
        sys.settrace(None)
    return found
