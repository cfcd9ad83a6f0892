"""L2 lost packs: packs that are seen to be missing or too short, without reading them. Blocking; any thread.

One look costs a stat for each pack. Only where it finds one the index is asked, once, whether anything needs
what is gone: a pack that nothing needs any more is no loss. What nobody lets us see is not missing (P10)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from snapfs.errors import SnapfsError
from snapfs.format.records import HEADER_BYTES
from snapfs.store.catalog import Catalog
from snapfs.store.missing import missing_packs, size_of
from snapfs.store.recovery import Recovered
from snapfs.store.rows import PackRow

log = logging.getLogger('snapfs.store')

_AT_ONCE = 500
_NEEDED = 'SELECT pack, max(offset + stored) FROM chunk WHERE pack IN ({marks}) GROUP BY pack'


class LostPacks:
    """The packs of one open store that were lost when it was last looked. `recovered`: by name, what opening
    it made of the packs that were open; of an odd one the catalog counts only what was found."""

    def __init__(self, store: Path, catalog: Catalog, recovered: Mapping[bytes, Recovered]) -> None:
        self._store = store
        self._catalog = catalog
        self._odd = {name for name, one in recovered.items() if one.oddity is not None}
        self._lost: list[tuple[PackRow, int]] = []  # and how many bytes it should have at least
        self.look()

    def look(self) -> None:
        """Look at all packs. Never raises: what cannot be looked at is as it was."""
        try:
            rows = self._catalog.packs()
            seen = missing_packs(self._store, rows)
            odd = [*seen.gone, *seen.short, *(row for row in rows if row.name in self._odd)]
            self._lost = self._needed({row.pack: row for row in odd})
        except (SnapfsError, OSError) as error:
            log.warning('packs were not looked at: %s', error)
            return
        for row, _ in self._lost:
            log.error('pack %s is missing or too short', row.name.hex())

    def _needed(self, odd: dict[int, PackRow]) -> list[tuple[PackRow, int]]:
        found, numbers = [], list(odd)
        for start in range(0, len(numbers), _AT_ONCE):
            part = numbers[start : start + _AT_ONCE]
            text = _NEEDED.format(marks=','.join('?' * len(part)))
            for number, end in self._catalog.query(text, part):
                if self._lacks(odd[number], end + HEADER_BYTES):
                    found.append((odd[number], end + HEADER_BYTES))
        return found

    def _lacks(self, row: PackRow, end: int) -> bool:
        """Say whether a pack is seen to end before it should. A retired one is on its way out."""
        size = size_of(self._store, row)
        return row.state != 'retired' and size is not None and size < end

    def text(self) -> str:
        """Say how many there are; nothing when there is none. What has come back since is not counted."""
        self._lost = [(row, end) for row, end in self._lost if self._lacks(row, end)]
        count = '1 pack is' if len(self._lost) == 1 else f'{len(self._lost)} packs are'
        return f'{count} missing or too short' if self._lost else ''
