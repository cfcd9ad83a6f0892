"""L1 format: every byte on disk, as prose and as code. Pure functions; safe from any thread.

Reading order for a stranger: superblock, records, packs (the files that hold everything), then ids and
codec (what a record's payload is), then keys, items, nodes (what the payload of a NODE record means), then
journal.

Common to all structures of format version 1:

- Integers in headers are big-endian and unsigned unless said otherwise; there is no padding and no alignment.
- "CRC" is CRC-32C (Castagnoli), stored big-endian, over the bytes named.
- "A stream" is one msgpack array, written in the shortest form; stream.py says which types may occur in it.
- A version or kind or codec not named here is an error, never skipped. Reserved bytes are zero; a reader
  insists.
- Every decoder raises `errors.Corrupt` with one line, and nothing else, whatever the bytes are.

This package alone uses struct and msgpack.
"""
