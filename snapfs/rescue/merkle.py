"""L4 merkle: one hash over a list of lines. One thread.

The tree of RFC 6962, section 2.1, with BLAKE3 in the place of SHA-256: a leaf is the hash of a zero byte and
the line; what is above is the hash of a one byte, the left and the right one; the left has the largest power
of two of leaves that leaves something to the right. No lines at all have the hash of nothing."""

from __future__ import annotations

from snapfs.format.ids import data_id


class Merkle:
    """Takes lines one by one and holds one hash for each bit of their number."""

    def __init__(self) -> None:
        self.lines = 0
        self._whole: list[tuple[int, bytes]] = []  # (height, hash) of whole trees, from left to right

    def add(self, line: bytes) -> None:
        """Append a line, which has no line feed."""
        self.lines += 1
        height, digest = 0, data_id(b'\0' + line)
        while self._whole and self._whole[-1][0] == height:
            digest = data_id(b'\1' + self._whole.pop()[1] + digest)
            height += 1
        self._whole.append((height, digest))

    def root(self) -> bytes:
        """Return the hash over all lines so far; more may follow."""
        if not self._whole:
            return data_id(b'')
        digest = self._whole[-1][1]
        for _, left in reversed(self._whole[:-1]):
            digest = data_id(b'\1' + left + digest)
        return digest
