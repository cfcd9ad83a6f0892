"""Tool: chunks, nodes and trees. One thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, SnapfsError
from snapfs.format.codec import decompress
from snapfs.format.items import REF_KINDS, ref_of
from snapfs.format.keys import DIRENT, KIND_POSITION, dirent_key, ino_range, kind_range, name_hash
from snapfs.format.nodes import Branch, Leaf, decode_node, peek_header
from snapfs.format.records import RecordKind, decode_payload
from tools.dump.items import key_text, put_item
from tools.dump.report import Report
from tools.dump.source import Place, Source

KEY_END = b'\xff' * 9
_ROOT = 'SELECT root, root_items, root_refs FROM '


def place_fields(place: Place) -> dict[str, object]:
    """Return where a chunk is, by name."""
    return {
        'source': place.source,
        'pack': place.pack_name.hex() or None,
        'offset': place.offset,
        'stored': place.stored,
        'plain': place.plain,
        'codec': place.codec,
    }


# --- chunks and nodes ------------------------------------------------------------------------------------
def find(source: Source, prefix: str, only: RecordKind | None = None) -> list[Place]:
    """Return the places of all chunks with this prefix. Invalid when it is none or nothing is found."""
    text = prefix.lower()
    if not 0 < len(text) <= 2 * limits.ID_BYTES or set(text) - set('0123456789abcdef'):
        raise Invalid(f'{prefix!r} is not the beginning of a chunk id (hexadecimal digits)')
    places = [place for place in source.places(text, scan=True) if only is None or place.kind == only]
    if not places:
        raise Invalid(f'no {"node" if only else "chunk"} begins with {text}')
    return places


def chunk(source: Source, report: Report, prefix: str) -> None:
    """Print where every chunk with this prefix is, and whether its bytes are good."""
    for place in find(source, prefix):
        kind = {1: 'data', 2: 'node'}.get(place.kind, place.kind)
        epoch = place.epoch if place.epoch >= 0 else None
        report.fact('chunk', place.id.hex(), kind=kind, **place_fields(place), epoch=epoch)
        with report.guard(f'chunk {place.id.hex()}'):
            header, payload = source.record(place)
            decode_payload(header, payload)
            if header[1:4] != (place.codec, place.stored, place.plain):
                raise Corrupt(f'the {place.source} has other lengths than the record: {header[1:4]}')
            report.fact('payload', place.id.hex(), state='good')


def raw(source: Source, prefix: str) -> bytes:
    """Return the verified plain bytes of the one chunk with this prefix. Invalid when there are several."""
    ids = {place.id for place in find(source, prefix)}
    if len(ids) > 1:
        raise Invalid(f'{len(ids)} chunks begin with {prefix}: give more digits')
    return source.plain(ids.pop())


def node(source: Source, report: Report, prefix: str) -> None:
    """Print header, refs table and items of every node with this prefix; of a damaged one what is left."""
    for place in find(source, prefix, RecordKind.NODE):
        where = f'node {place.id.hex()}'
        report.fact('node', place.id.hex(), **place_fields(place))
        with report.guard(where):
            header, payload = source.record(place)
            try:
                plain = decode_payload(header, payload)
            except Corrupt as error:
                report.oddity(where, error)
                # Still worth a look: only the bytes' id is wrong.
                plain = decompress(header.codec, payload, header.plain_length)
            fields = peek_header(plain)
            report.fact('header', where[5:], **{**fields._asdict(), 'kind': _KINDS[fields.kind]})
            _put_node(report, decode_node(plain))


_KINDS = {1: 'leaf', 2: 'branch'}


def _put_node(report: Report, decoded: Leaf | Branch) -> None:
    for number, id in enumerate(decoded.ref_ids()):
        report.fact('ref', number, id.hex())
    if isinstance(decoded, Leaf):
        for key, value in zip(decoded.keys, decoded.values_with_ids(), strict=True):
            put_item(report, key, value, 'item')
        return
    rows = zip(decoded.keys, decoded.children, decoded.child_items, decoded.child_refs, strict=True)
    for key, child, items, refs in rows:
        report.fact('child', child.hex(), 'from', key_text(key), items_below=items, refs_below=refs)


# --- trees -----------------------------------------------------------------------------------------------
class Walk:
    """Goes through a tree in key order and around what is damaged. `counts` are the totals that were seen."""

    def __init__(self, source: Source, report: Report, nodes: bool = False) -> None:
        self._source = source
        self._report = report
        self._nodes = nodes

    def leaves(self, id: bytes, lo: bytes, hi: bytes) -> Iterator[Leaf]:
        """Yield the leaves that may have keys in lo <= key < hi."""
        yield from self._below(id, None, None, (b'', KEY_END), (lo, hi))

    def _below(
        self,
        id: bytes,
        level: int | None,
        totals: tuple[int, int] | None,
        bounds: tuple[bytes, bytes],
        wanted: tuple[bytes, bytes],
    ) -> Iterator[Leaf]:
        try:
            decoded = self._source.node(id)
            _check(decoded, level, totals, bounds)
        except SnapfsError as error:
            self._report.oddity(f'node {id.hex()} {key_text(bounds[0])}', error)
            return
        if self._nodes:
            below = {'items_below': decoded.items_below, 'refs_below': decoded.refs_below}
            self._report.fact('node', id.hex(), level=decoded.level, **below)
        if isinstance(decoded, Leaf):
            yield decoded
            return
        lows = (bounds[0], *decoded.keys[1:])
        for number, child in enumerate(decoded.children):
            high = lows[number + 1] if number + 1 < len(lows) else bounds[1]
            if lows[number] < wanted[1] and wanted[0] < high:
                below_it = decoded.child_items[number], decoded.child_refs[number]
                yield from self._below(child, decoded.level - 1, below_it, (lows[number], high), wanted)


def _check(
    decoded: Leaf | Branch, level: int | None, totals: tuple[int, int] | None, bounds: tuple[bytes, bytes]
) -> None:
    """Corrupt unless the node is what its parent says. This also bounds the work: nodes with keys out of
    place are not entered, so nobody can make a small tree look endless by naming one node many times."""
    if level is not None and decoded.level != level:
        raise Corrupt(f'level {decoded.level} where {level} must stand')
    if totals is not None and (decoded.items_below, decoded.refs_below) != totals:
        raise Corrupt(
            f'{decoded.items_below} items and {decoded.refs_below} refs below, the parent says {totals}'
        )
    keys = decoded.keys if isinstance(decoded, Leaf) else decoded.keys[1:]
    if keys and not (bounds[0] <= keys[0] and keys[-1] < bounds[1]):
        raise Corrupt('its keys are not between those that its parent says')


def root_of(source: Source, name: str) -> tuple[bytes | None, int, int]:
    """Return (root, items, refs) of VOLUME or VOLUME@SNAPSHOT. Invalid when there is none of this name."""
    volume, at, snapshot = name.partition('@')
    raw_volume = volume.encode('utf-8', 'surrogateescape')
    if at:
        text = _ROOT + 'snapshot WHERE name = ? AND volume = (SELECT volume FROM volume WHERE name = ?)'
        rows = list(source.query(text, (snapshot.encode('utf-8', 'surrogateescape'), raw_volume)))
    else:
        rows = list(source.query(_ROOT + 'volume WHERE name = ?', (raw_volume,)))
    if not rows:
        raise Invalid(f'there is no {"snapshot" if at else "volume"} {name!r}')
    return rows[0]


def tree(
    source: Source, report: Report, name: str, *, ino: int | None, path: str | None, nodes: bool
) -> None:
    """Print the committed tree of a volume or snapshot: all items, or those of one inode."""
    root, items, refs = root_of(source, name)
    report.fact('tree', name, root=root.hex() if root else None, items=items, refs=refs)
    if root is None:
        return
    walk = Walk(source, report, nodes)
    if path is not None:
        ino = _resolve(source, report, walk, root, path)
    if ino is not None and not 0 < ino <= limits.INO_MAX:
        raise Invalid(f'inode numbers are 1 to {limits.INO_MAX}')
    lo, hi = ino_range(ino) if ino is not None else (b'', KEY_END)
    seen = [0, 0]
    for leaf in walk.leaves(root, lo, hi):
        for key, value in zip(leaf.keys, leaf.values_with_ids(), strict=True):
            if lo <= key < hi:
                seen[0] += 1
                id = ref_of(key, value) if key[KIND_POSITION] in REF_KINDS else None
                seen[1] += id is not None
                put_item(report, key, value, 'item', **_where(source, report, id))
    report.fact('seen', name, items=seen[0], extents_and_xattrs=seen[1])
    if ino is not None and not seen[0]:
        raise Invalid(f'{name!r} has no inode {ino}')


def _where(source: Source, report: Report, id: bytes | None) -> dict[str, object]:
    if id is None:
        return {}
    places = source.places(id.hex())
    if not places:
        report.oddity(f'chunk {id.hex()}', 'is nowhere')
        return {'source': None}
    fields = place_fields(places[0])
    return {name: fields[name] for name in ('source', 'pack', 'offset', 'stored')}


def _resolve(source: Source, report: Report, walk: Walk, root: bytes, path: str) -> int:
    """Return the inode number at a path. Symbolic links are not followed. Invalid when there is none."""
    ino = limits.INO_ROOT
    for part in PurePosixPath('/', path).parts[1:]:
        name = part.encode('utf-8', 'surrogateescape')
        lo, hi = kind_range(ino, DIRENT)
        if source.superblock is not None:
            lo = dirent_key(ino, name_hash(source.superblock.name_key, name))
            hi = lo + b'\0'
        found = [
            entry[1]
            for leaf in walk.leaves(root, lo, hi)
            for key, value in zip(leaf.keys, leaf.values, strict=True)
            if lo <= key < hi
            for entry in value
            if entry[0] == name
        ]
        if not found:
            raise Invalid(f'there is no {part!r} in inode {ino}')
        ino = found[0]
        report.fact('entry', name=name, ino=ino)
    return ino
