"""L4 cutter: where file data is cut into chunks (FastCDC). Pure; each thread has its own cutter.

Source: Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems",
IEEE TPDS 2020. The library's average is the expected distance beyond the minimum, so it is told the
difference.
"""

from __future__ import annotations

from typing import Literal, cast

import pyfastcdc

from snapfs.format.superblock import ChunkerParameters


class Cutter:
    """Cuts regions of files by the parameters of one store."""

    def __init__(self, chunker: ChunkerParameters) -> None:
        self._whole = chunker.whole_file_max
        self._cdc = pyfastcdc.FastCDC(
            chunker.average - chunker.minimum,
            min_size=chunker.minimum,
            max_size=chunker.maximum,
            normalized_chunking=cast(Literal[0, 1, 2, 3], chunker.normalization),
        )

    def cut(self, region: bytes | bytearray | memoryview) -> list[memoryview]:
        """Return the chunks of a region in order, as views of it. A small region is one chunk."""
        whole = memoryview(region)
        if len(whole) <= self._whole:
            return [whole]
        return [chunk.data for chunk in self._cdc.cut_buf(whole)]


def is_native() -> bool:
    """Return whether the library's compiled form is in use; the other one is a hundred times slower."""
    return 'cy' in pyfastcdc.FastCDC.__module__.split('.')
