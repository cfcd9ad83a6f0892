"""L1 ids: a chunk's identity is a hash of its plain bytes. Pure; safe from any thread.

Specification. An id is 32 bytes.

- A data chunk (kind DATA: a piece of a file, or the value of a large extended attribute): BLAKE3 in its plain
  hashing mode, 256-bit output, over the plain (uncompressed) bytes.
- A node chunk (kind NODE): BLAKE3 in its key derivation mode with the context string ``snapfs 1 node`` (13
  ASCII bytes), the plain bytes as key material, 256-bit output.

The two functions share no outputs, so no file content, however chosen, can ever be taken for a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from blake3 import blake3

from snapfs import errors, limits

Buffer = bytes | bytearray | memoryview

NODE_CONTEXT = 'snapfs 1 node'


class RecordKind(IntEnum):
    """What a chunk, and so the payload of a record, is: file data, or a node of a tree."""

    DATA = 1
    NODE = 2


def data_id(plain: Buffer) -> bytes:
    """Return the 32-byte id of a data chunk with these plain bytes."""
    return blake3(plain).digest()


def stream_id(blocks: Iterable[Buffer]) -> bytes:
    """Return `data_id` of these blocks joined; what a large file is known by."""
    hasher = blake3()
    for block in blocks:
        hasher.update(block)
    return hasher.digest()


def data_hasher() -> blake3:
    """Return a hasher: `update` it piece by piece, then `digest()` is the id of all of it as a data chunk."""
    return blake3()


def node_id(plain: Buffer) -> bytes:
    """Return the 32-byte id of a node chunk with these plain bytes."""
    return blake3(plain, derive_key_context=NODE_CONTEXT).digest()


def chunk_id(kind: int, plain: Buffer) -> bytes:
    """Return the id of a chunk of this kind (a RecordKind). An unknown kind is Corrupt."""
    if kind == RecordKind.DATA:
        return blake3(plain).digest()
    if kind == RecordKind.NODE:
        return blake3(plain, derive_key_context=NODE_CONTEXT).digest()
    raise errors.Corrupt(f'chunk kind {kind} is unknown')


assert blake3().digest_size == limits.ID_BYTES
