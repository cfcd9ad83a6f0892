"""L4 flush: from buffered bytes to chunks in packs and EXTENT items. Event loop; cutting and storing in a
thread.

One flush at a time, under `core.flush_lock`. A flush freezes buffers (no await: all as of one moment),
widens their dirty runs to the extents they touch, and cuts each region anew. While it runs, readers look
through the frozen buffer and writers fill a new one; whoever wants to shorten such a file waits for the lock.

Where such an extent cannot be read, what is written over it stands alone, and what is left of it goes on
naming its part of the chunk. So no flush, fsync or other file waits for bytes that may never come back;
no zeros stand in for them; and should the chunk come back, so do they.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Refused, SnapfsError
from snapfs.format.keys import ItemKind
from snapfs.volume.buffer import Range, subtract_range
from snapfs.volume.core import Core
from snapfs.volume.files import Files
from snapfs.volume.head import Head
from snapfs.volume.inode import Inode
from snapfs.volume.memtable import OFFSET_END, Layer
from snapfs.volume.view import Extent, bytes_of, is_part

_EXTENT = int(ItemKind.EXTENT)

# A chunk that is missing or wrong, or in a pack that may not be read.
UNREADABLE = (Corrupt, Invalid)

Stretch = tuple[int, bytes | bytearray | memoryview]  # offset in the file, bytes
Cut = list[tuple[int, bytes]]  # length and id of each chunk

BATCH_BYTES = 4 * limits.MIB
# A run of one file is cut in regions no longer than this, so that memory is bounded whatever the run.
REGION_BYTES_MAX = 4 * limits.MIB


@dataclass(slots=True)
class Region:
    """A stretch of a file to be cut anew, and the extents it replaces."""

    inode: Inode
    start: int
    end: int
    old: list[Extent] = field(default_factory=list)
    kept: list[Extent] = field(default_factory=list)  # what is left of those that cannot be read
    last: bool = False  # the last region of its inode


@dataclass(slots=True)
class Job:
    """The frozen buffers of one head, and the layer that gets their extents."""

    head: Head
    layer: Layer
    inodes: list[Inode]


def freeze(head: Head) -> list[Inode]:
    """Freeze every buffer of `head` as of now and return the inodes. No await: part of a moment."""
    inodes = list(head.buffered.values())
    for inode in inodes:
        assert inode.flushing is None, 'two flushes at once'
        inode.flushing, inode.buffer = inode.buffer, None
        head.mark(inode)
    head.buffered = {}
    return inodes


async def flush(core: Core, job: Job) -> None:
    """Bring the frozen buffers of `job` into packs. On an error the buffers are what they were, and the error
    goes on.

    Refused(ENOSPC) when the disk below is full; the reserve has been tried by then.
    """
    head = job.head
    try:
        batch: list[Region] = []
        size = 0
        for inode in job.inodes:
            async for region in _regions(head, inode):
                batch.append(region)
                size += region.end - region.start
                if size >= BATCH_BYTES:
                    await _store_batch(core, job, batch)
                    batch, size = [], 0
        if batch:
            await _store_batch(core, job, batch)
    finally:
        thaw(head, job.inodes)


def thaw(head: Head, inodes: list[Inode]) -> None:
    """Undo `freeze` for those inodes whose bytes did not get into packs. No await."""
    for inode in inodes:
        if inode.flushing is not None:
            _thaw(head, inode)
    head.reclaim_waiting()


def _thaw(head: Head, inode: Inode) -> None:
    """Undo `freeze` for an inode whose flush did not end."""
    frozen = inode.flushing
    assert frozen is not None
    inode.flushing = None
    before = frozen.cost + (inode.buffer.cost if inode.buffer is not None else 0)
    inode.buffer = frozen.laid_over(inode.buffer)
    head.core.budget.dirty += inode.buffer.cost - before
    head.buffered[inode.ino] = inode
    head.mark(inode)  # some of its regions may be stored, and its allocated size with them


async def _regions(head: Files, inode: Inode) -> AsyncIterator[Region]:
    """Yield the regions of a file that have to be cut anew, in order and disjoint."""
    frozen = inode.flushing
    assert frozen is not None
    pending: Region | None = None
    for run_start, run_end in frozen.runs():
        start = run_start
        while start < run_end:
            await head.core.breathe()
            end = min(run_end, start + REGION_BYTES_MAX)
            region = await _widened(head, inode, start, end)
            if pending is not None and region.start < pending.end:
                pending.end = max(pending.end, region.end)
                known = {extent[0] for extent in pending.old}
                pending.old += [extent for extent in region.old if extent[0] not in known]
            else:
                if pending is not None:
                    yield pending
                pending = region
            start = end
    if pending is not None:
        pending.last = True
        yield pending


async def _widened(head: Files, inode: Inode, start: int, end: int) -> Region:
    """Return the region for a dirty run: with the extents it overlaps, and a small one right beside it."""
    if not inode.allocated:
        return Region(inode, start, end)
    found = await head.extents(inode.ino, max(start - 1, 0), end + 1)
    old = [
        extent
        for extent in found
        if (extent[0] < end and extent[0] + extent[1] > start)
        or (extent[1] < limits.CHUNK_BYTES_MIN and not is_part(extent))
    ]
    if old:
        start = min(start, old[0][0])
        end = max(end, old[-1][0] + old[-1][1])
    return Region(inode, start, end, old)


async def _store_batch(core: Core, job: Job, batch: list[Region]) -> None:
    stretches = [await _contents(core, job.head, region) for region in batch]
    pieces = iter(await core.put_regions([plain for found in stretches for _, plain in found]))
    for region, found in zip(batch, stretches, strict=True):
        _apply(core, job, region, [(start, len(plain), next(pieces)) for start, plain in found])


async def _contents(core: Core, head: Head, region: Region) -> list[Stretch]:
    """Return the bytes of a region, what is buffered over what was there: one stretch, unless some of what
    was there cannot be read.
    """
    frozen = region.inode.flushing
    assert frozen is not None
    whole = frozen.whole(region.start, region.end)
    if whole is not None:
        return [(region.start, whole)]
    result = bytearray(region.end - region.start)
    clean = [extent for extent in region.old if not frozen.covers(extent[0], extent[0] + extent[1])]
    holes: list[Range] = []
    try:
        plains = await core.chunks_of([extent[2] for extent in clean])
        for extent, plain in zip(clean, plains, strict=True):
            _lay(result, region, extent, plain)
    except UNREADABLE:
        for extent in clean:
            try:
                _lay(result, region, extent, await core.chunk(extent[2]))
            except UNREADABLE as error:
                holes += _keep(head, region, extent, error)
    frozen.copy_into(result, region.start)
    view, stretches = memoryview(result), [(region.start, region.end)]
    for start, end in holes:
        stretches = subtract_range(stretches, start, end)
    return [(start, view[start - region.start : end - region.start]) for start, end in stretches]


def _lay(result: bytearray, region: Region, extent: Extent, chunk: bytes) -> None:
    start = extent[0] - region.start
    result[start : start + extent[1]] = bytes_of(extent, chunk)


def _keep(head: Head, region: Region, extent: Extent, error: SnapfsError) -> list[Range]:
    """Note what is left of an extent that cannot be read; return the ranges of the file that this is."""
    inode, (offset, length, chunk_id, skip, whole) = region.inode, extent
    head.core.report_damage(f'{head.name}, inode {inode.ino}: {error}', head.number)
    assert inode.flushing is not None
    left = [(offset, offset + length)]
    for start, end in inode.flushing.runs():
        left = subtract_range(left, start, end)
    region.kept += [(start, end - start, chunk_id, skip + start - offset, whole) for start, end in left]
    return left


def _apply(core: Core, job: Job, region: Region, stored: list[tuple[int, int, Cut]]) -> None:
    """Put the extents of a region into the layer in place of the old ones. `stored`: of each stretch its
    offset, length and chunks. No await.
    """
    inode, layer = region.inode, job.layer
    new: dict[int, tuple[int, bytes] | tuple[int, int, int, bytes] | None]
    new = dict.fromkeys(extent[0] for extent in region.old)
    for start, size, cut in stored:
        position = start
        for length, chunk_id in cut:
            new[position] = (length, chunk_id)
            position += length
        assert position == start + size, 'a region was cut into more or fewer bytes than it has'
    for start, length, chunk_id, skip, whole in region.kept:
        new[start] = (length, skip, whole, chunk_id)
    for offset, value in new.items():
        layer.put(inode.ino, _EXTENT, offset, value)
    inode.allocated += region.end - region.start - sum(extent[1] for extent in region.old)
    if region.last:
        _finish(core, job, inode)


def _finish(core: Core, job: Job, inode: Inode) -> None:
    """The whole file is in packs: forget the frozen buffer and correct the allocated size."""
    frozen = inode.flushing
    assert frozen is not None
    inode.flushing = None
    if frozen.logged:
        job.layer.drops.append((inode.ino, 0, OFFSET_END))
    core.budget.given_back(frozen.cost)
    value = job.layer.inodes.get(inode.ino)
    if value is not None:  # the record or commit of this moment must say what is really there
        job.layer.inodes[inode.ino] = (*value[:5], inode.allocated, *value[6:])
        inode.attributes = None
    else:
        job.head.mark(inode)


def is_full(error: BaseException) -> bool:
    """Return whether the disk below is full."""
    return isinstance(error, Refused) and error.errno == errno.ENOSPC
