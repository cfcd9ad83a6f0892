"""L1 stream: msgpack within limits, for nodes and journal frames. Pure; safe from any thread.

Specification. A stream is one msgpack array of any number of elements. An element is an integer (64 bits at
most), a `bin`, `nil`, `true`, `false`, or an array of at most 64 elements, of the same types again. `str`,
maps, floats and extension types do not occur. The structure's own header says how long the stream is in
bytes; it ends there exactly.

Why the outer array is read by its header and then element by element: msgpack reserves room for the length
that an array claims before it reads the elements, once per nested array. With 64 elements at most and the
1,024 levels that the library allows, lying lengths reserve half a MiB; the honest outer length is counted
in elements that exist.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgpack

from snapfs import errors, limits
from snapfs.format.ids import Buffer


def pack_stream(elements: list[Any]) -> bytes:
    """Return the elements as one stream. A fresh packer each time: threads and the event loop both encode."""
    return msgpack.Packer(buf_size=limits.PACKER_BUFFER_BYTES).pack(elements)  # type: ignore[no-any-return]


def _refuse(*_: object) -> Any:
    # At the first one, even if empty: an empty map is one byte on disk and 72 in memory.
    raise ValueError('a map or an extension')


def unpack_stream(body: Buffer, count: int | None, what: str) -> list[Any]:
    """Return the elements of a stream that fills `body` exactly; `what` names the structure in errors.

    `count` is how many there must be (None: whatever the array says). Elements are of the types named above,
    or a float, or an empty str: those the caller's schema refuses. Raises Corrupt. Memory: up to 56 bytes for
    each byte of a hostile body, which then consists of arrays of one element.
    """
    length = len(body)
    if length == 0:
        raise errors.Corrupt(f'{what}: the stream is empty')
    unpacker = msgpack.Unpacker(
        None,
        read_size=length,
        max_buffer_size=length,
        use_list=False,
        raw=False,
        max_array_len=limits.STREAM_ARRAY_ELEMENTS_MAX,
        max_bin_len=length,
        max_str_len=0,
        max_map_len=0,
        max_ext_len=0,
        object_hook=_refuse,
        ext_hook=_refuse,
    )
    try:
        unpacker.feed(body)
        claimed = unpacker.read_array_header()
        if claimed > length or (count is not None and claimed != count):
            raise errors.Corrupt(f'{what}: the stream claims {claimed} elements')
        # Not one more than claimed: after an element that is cut off, `tell` no longer says where it began.
        elements = list(islice(unpacker, claimed))
    except (msgpack.exceptions.UnpackException, ValueError) as error:
        raise errors.Corrupt(f'{what}: not a msgpack stream ({type(error).__name__})') from error
    if len(elements) != claimed:
        raise errors.Corrupt(f'{what}: {len(elements)} elements where the stream claims {claimed}')
    if unpacker.tell() != length:
        raise errors.Corrupt(f'{what}: {length - unpacker.tell()} bytes left over after the stream')
    return elements
