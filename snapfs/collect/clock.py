"""L4 clock: trusted time, with which graces are measured: it never runs ahead of time that has really
passed. Any thread.

A wall clock jumps, a monotonic clock stands still while the machine sleeps and ends with it. So:

- While the store is open, trusted time grows at each tick by the smaller of what the two clocks say. A jump,
  in either direction, adds nothing; a suspend adds nothing.
- Over a gap between two openings only the wall clock speaks. It is believed for at most one day, and for no
  more than the boot clock says when that shows no restart of the machine.

What is kept (settings trusted_ns, trusted_wall_ns, trusted_boot_ns) is written together in one transaction,
so a crash counts no time twice.
"""

from __future__ import annotations

import threading

from snapfs import limits
from snapfs.errors import Corrupt
from snapfs.store.catalog import Catalog
from snapfs.world import World

SECOND_NS = 1_000_000_000
_KEYS = ('trusted_ns', 'trusted_wall_ns', 'trusted_boot_ns')


def session_growth(wall_ns: int, monotonic_ns: int) -> int:
    """Return what a tick adds, given how far the two clocks have moved since the tick before. Pure."""
    return max(0, min(wall_ns, monotonic_ns))


def gap_growth(wall_ns: int, boot_ns: int) -> int:
    """Return what a gap between openings adds. Pure. `boot_ns` < 0 says that the machine was restarted; not
    negative, it is either the time that has passed or, after a restart, less than that."""
    believed = min(wall_ns, limits.CLOCK_GAP_NS_MAX)
    return max(0, believed if boot_ns < 0 else min(believed, boot_ns))


class TrustedClock:
    """The trusted clock of an open store. Made once per opening, by the owner of the store."""

    def __init__(self, catalog: Catalog, world: World) -> None:
        self._catalog = catalog
        self._world = world
        self._lock = threading.RLock()  # two ticks at once would both add the time since the last one
        trusted, wall, boot = (catalog.setting(key) for key in _KEYS)
        if trusted < 0:
            raise Corrupt(f'catalog: the trusted time is {trusted}')
        self._wall_ns, self._monotonic_ns, boot_now = self._clocks()
        self._trusted_ns = trusted
        if wall:
            self._trusted_ns += gap_growth(self._wall_ns - wall, boot_now - boot)
        self._written_ns = -1
        self.save()

    @property
    def now_ns(self) -> int:
        """Trusted time as of the last tick, in ns since the store was made. Never falls."""
        return self._trusted_ns

    def tick(self) -> int:
        """Take account of the time since the last tick; return trusted time. Written down once a minute."""
        with self._lock:
            wall_ns, monotonic_ns, _ = self._clocks()
            self._trusted_ns += session_growth(wall_ns - self._wall_ns, monotonic_ns - self._monotonic_ns)
            self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
            if self._trusted_ns - self._written_ns >= limits.CLOCK_WRITE_NS:
                self.save()
            return self._trusted_ns

    def save(self) -> None:
        """Write trusted time down, together with what the next opening compares with. One transaction; none
        where nothing is written any more: graces are longer then, and the store can be looked at."""
        with self._lock:
            if self._catalog.latched is not None:
                return
            boot_ns = self._clocks()[2]
            values = zip((self._trusted_ns, self._wall_ns, boot_ns), _KEYS, strict=True)
            with self._catalog.transaction() as db:
                db.executemany('UPDATE settings SET value = ? WHERE key = ?', list(values))
            self._written_ns = self._trusted_ns

    def _clocks(self) -> tuple[int, int, int]:
        world = self._world
        monotonic_ns = int(world.monotonic() * SECOND_NS)
        return world.time_ns(), monotonic_ns, int(world.boottime() * SECOND_NS)
