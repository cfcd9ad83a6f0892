"""Tool fsck, trust: what a quick check takes for granted, and how it learns that it must not. Plain."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

# What odd values lead to where nobody has looked at them. A check that looks closer says what they are.
ODD = (sqlite3.Error, ArithmeticError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Trust:
    """What a quick check takes for granted until something looks odd: pages and rows of the big tables, and
    that a pack has the records whose sum it has, but for the packs in `listed`. `in_place`: and that nobody
    begins to work in the store meanwhile, so that its catalog need not be copied."""

    listed: frozenset[int] = frozenset()
    in_place: bool = True


class LookCloser(Exception):
    """Something is not as it should be: a check that takes most for granted is to begin anew, and takes
    nothing for granted. `packs`: all that is odd is that the catalog names other records of these."""

    def __init__(self, packs: frozenset[int] = frozenset()) -> None:
        super().__init__(packs)
        self.packs = packs


class Moved(Exception):
    """Somebody has begun to work in the store while its catalog was read in place."""
