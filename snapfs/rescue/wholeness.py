"""L4 wholeness: which of some trees have lost nothing that is known. Blocking; in a process of its own
(collect/worker.py).

After a healing: what came back for one snapshot may have been all that others had lost. Trees that share
nodes share their verdict, so that many snapshots of one tree cost little more than one. Of data, only whether
it is there is asked, as a survey does. About 100 bytes of memory for each node."""

from __future__ import annotations

from collections.abc import Callable

from snapfs.errors import Corrupt
from snapfs.format.nodes import Branch, decode_node
from snapfs.rescue.presence import Presence
from snapfs.rescue.reader import Place, Reader
from snapfs.rescue.recover_values import Whole, WholeSpec

Progress = Callable[[int, int], None]
TELL_NODES = 256


def wholeness(spec: WholeSpec, progress: Progress = lambda done, known: None) -> Whole:
    """Return for each tree whether all below its top is there. Corrupt when the catalog cannot be read."""
    reader = Reader(spec.store, spec.uuid)
    try:
        return _Wholeness(reader, progress).run(spec.tops)
    finally:
        reader.close()


class _Wholeness:
    def __init__(self, reader: Reader, progress: Progress) -> None:
        self._reader = reader
        self._presence = Presence(reader)
        self._progress = progress
        self._sound: set[bytes] = set()
        self._nodes = 0

    def run(self, tops: tuple[bytes, ...]) -> Whole:
        places = self._reader.places_of_many(list(tops))
        return Whole(tuple(self._is_whole(top, places.get(top)) for top in tops), self._nodes)

    def _is_whole(self, id: bytes, place: Place | None) -> bool:
        """As deep as trees are: a level stands below each."""
        if id in self._sound:
            return True
        self._nodes += 1
        if self._nodes % TELL_NODES == 0:
            self._progress(self._nodes, 0)
        try:
            node = decode_node(self._presence.plain(id, place))
        except (Corrupt, OSError):
            return False
        ids = list(node.children) if isinstance(node, Branch) else node.ref_ids()
        places = self._reader.places_of_many(ids)
        if isinstance(node, Branch):
            whole = all(self._is_whole(child, places.get(child)) for child in ids)
        else:
            whole = not any(self._presence.why(one, places.get(one)) for one in ids)
        if whole:
            self._sound.add(id)
        return whole
