"""L4 survey: what a snapshot has lost, and who may have it. Blocking; in a process of its own
(collect/worker.py).

The tree is walked from left to right. A lost node is noted with the keys that it had, and the walk goes on
beside it. Data is looked at as deep as was asked (presence.py), a slice of leaves at a time. Memory follows
what is lost, and not the tree: the names that paths are made of lie in a table on the disk, and in such
tables is decided what becomes of a tree that has lost nodes (links.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from snapfs import limits
from snapfs.errors import Corrupt, Unavailable
from snapfs.format.keys import DIRENT, EXTENT, INODE, XATTR, decode_key, ino_range, suffix_number
from snapfs.format.nodes import Branch, Leaf, decode_node
from snapfs.rescue import donors
from snapfs.rescue.links import DIRECTORY, Links
from snapfs.rescue.presence import Presence
from snapfs.rescue.reader import Place, Reader
from snapfs.rescue.recover_values import Depth, Lost, Mend, Survey, SurveySpec, Use
from snapfs.rescue.work_table import WorkTable

Progress = Callable[[int, int], None]
KEY_END = ino_range(limits.INO_MAX)[1]
ABOVE = (
    'CREATE TABLE above (child INTEGER, at INTEGER, name BLOB, PRIMARY KEY (child, at, name)) WITHOUT ROWID'
)
ADD_ABOVE = 'INSERT OR IGNORE INTO above VALUES (?, ?, ?)'
FIND_ABOVE = 'SELECT at, name FROM above WHERE child = ?'


def survey(spec: SurveySpec, progress: Progress = lambda done, known: None) -> Survey:
    """Look through a tree. Corrupt when the catalog cannot be read; Unavailable when too much is lost."""
    reader = Reader(spec.store, spec.uuid, still=spec.still)
    try:
        found = _Survey(reader, spec, progress).run()
        wanted = {one.id: one for one in found.lost}
        offers = donors.search(reader, wanted, spec.donors, progress) if wanted else {}
        lost = [replace(one, donors=tuple(offers.get(one.id, ()))) for one in found.lost]
        return replace(found, lost=tuple(lost))
    finally:
        reader.close()


class _Survey:
    def __init__(self, reader: Reader, spec: SurveySpec, progress: Progress) -> None:
        self._reader = reader
        self._spec = spec
        self._progress = progress
        self._presence = Presence(reader, Depth(spec.depth))
        self._waiting: list[Leaf] = []
        self._waiting_ids = 0
        self._lost: dict[bytes, Lost] = {}
        self._uses: dict[bytes, list[Use]] = {}
        self._nodes = self._references = 0
        self._also: list[tuple[str, str]] = []

    def run(self) -> Survey:
        for _ in self._leaves(self._on_leaf):
            pass
        self._look()
        broken = [one for one in self._lost.values() if one.kind == 2]
        mend = self._mend(broken) if broken else Mend()
        self._note_cut(broken, mend)
        paths = self._paths({use.ino for uses in self._uses.values() for use in uses})
        above = self._paths({at for at, _ in mend.entries}, also=False)
        names = (f'{above[at].rstrip("/")}/{_text_of(bytes.fromhex(name))}' for at, name in mend.entries)
        lost = []
        for id, one in self._lost.items():
            uses = [replace(use, path=paths[use.ino]) for use in self._uses.get(id, ())]
            lost.append(replace(one, uses=tuple(uses)))
        seen = self._presence
        counts = (self._nodes, self._references, seen.bytes, seen.unhashed)
        return Survey(tuple(lost), mend, *counts, tuple(names), tuple(self._also))

    # --- walking -----------------------------------------------------------------------------------------
    def _leaves(self, see: Callable[[Leaf], None]) -> Iterator[None]:
        # Of what is still to be done: level of the parent, id, the keys that it may have; the next one last.
        todo: list[tuple[int, bytes, bytes, bytes]] = []
        if self._spec.root is not None:
            todo = [(limits.TREE_LEVELS_MAX, self._spec.root, b'\0' * 8 + b'\x01', KEY_END)]
        while todo:
            part = [todo.pop()]
            while todo and part[0][0] == todo[-1][0] == 1 and len(part) < limits.LOCATE_IDS_MAX:
                part.append(todo.pop())  # leaves: nothing below them waits for its turn
            places = self._reader.places_of_many([id for _, id, _, _ in part])
            for _, id, low, high in part:
                node = self._node(id, places.get(id), low, high)
                if isinstance(node, Branch):
                    keys = [low, *node.keys[1:], high]
                    below = zip(node.children, keys[:-1], keys[1:], strict=True)
                    todo += reversed([(node.level, *one) for one in below])
                elif node is not None:
                    see(node)
                    yield
            self._progress(self._nodes, 0)

    def _node(self, id: bytes, place: Place | None, low: bytes, high: bytes) -> Leaf | Branch | None:
        self._nodes += 1
        try:
            return decode_node(self._presence.plain(id, place))
        except (Corrupt, OSError) as error:
            if id not in self._lost:
                self._lose(Lost(id, 2, _text(error), (), (), low, high))
            return None

    def _lose(self, lost: Lost) -> None:
        if len(self._lost) >= limits.RECOVER_LOST_MAX:
            raise Unavailable(f'more than {limits.RECOVER_LOST_MAX} chunks are lost; bring packs back first')
        self._lost.setdefault(lost.id, lost)

    # --- data --------------------------------------------------------------------------------------------
    def _on_leaf(self, leaf: Leaf) -> None:
        self._waiting.append(leaf)
        self._waiting_ids += len(leaf.ref_ids())
        if self._waiting_ids >= limits.SURVEY_SLICE:
            self._look()

    def _look(self) -> None:
        """Look at the data of the leaves that wait, and note who uses what is lost."""
        leaves, self._waiting, self._waiting_ids = self._waiting, [], 0
        ids = {id for leaf in leaves for id in leaf.ref_ids()}
        self._references += sum(len(leaf.ref_ids()) for leaf in leaves)
        places = self._reader.places_of_many(ids)
        bad = self._presence.lost({id: places.get(id) for id in ids})
        for leaf in leaves if bad else ():
            self._note_uses(leaf, bad)

    def _note_uses(self, leaf: Leaf, bad: dict[bytes, str]) -> None:
        for index, key in enumerate(leaf.keys):
            if key[8] not in (EXTENT, XATTR):
                continue
            value = leaf.value(index)
            id = value[-1]
            if id not in bad:
                continue
            ino, _, suffix = decode_key(key)
            self._lose(Lost(id, 1, bad[id], (), ()))
            start = suffix_number(key) if key[8] == EXTENT else 0
            end, name = (start + value[0], '') if key[8] == EXTENT else (0, suffix.hex())
            self._uses.setdefault(id, []).append(Use(ino, '', start, end, name))

    def _note_cut(self, broken: list[Lost], mend: Mend) -> None:
        """A lost node may begin in the middle of a file, whose beginning is there: say what it has lost."""
        sizes = {ino: size for ino, size, _ in mend.cut}
        for one in broken:
            ino = int.from_bytes(one.low[:8], 'big')
            if ino in sizes and one.low[8] == EXTENT:
                same = one.high[:9] == one.low[:9]
                end = min(sizes[ino], suffix_number(one.high)) if same else sizes[ino]
                self._uses.setdefault(one.id, []).append(Use(ino, '', suffix_number(one.low), end))

    # --- names and links ---------------------------------------------------------------------------------
    def _paths(self, inos: set[int], also: bool = True) -> dict[int, str]:
        """Return a path of each inode, as far as one leads there; note other names of a file as well, where
        `also` is wanted."""
        if not inos:
            return {}
        table = WorkTable(None, (ABOVE,))

        def see(leaf: Leaf) -> None:
            for key, value in zip(leaf.keys, leaf.values, strict=True):
                if key[8] == DIRENT:
                    for name, child, child_type in value:
                        if child_type == DIRECTORY or child in inos:
                            table.add(ADD_ABOVE, (child, int.from_bytes(key[:8], 'big'), name))

        try:
            for _ in self._leaves(see):
                pass
            paths = {ino: _path(ino, table) for ino in inos}
            for ino in sorted(inos) if also else ():
                for at, name in list(table.query(FIND_ABOVE, (ino,)))[1:]:
                    self._also.append((paths[ino], f'{_path(at, table).rstrip("/")}/{_text_of(bytes(name))}'))
            return paths
        finally:
            table.close()

    def _mend(self, broken: list[Lost]) -> Mend:
        links = Links({int.from_bytes(one.low[:8], 'big') for one in broken if one.low[8] > INODE})
        try:
            for _ in self._leaves(links.see):
                pass
            return links.mend()
        finally:
            links.close()


def _path(ino: int, above: WorkTable) -> str:
    parts: list[str] = []
    seen: set[int] = set()
    while ino != limits.INO_ROOT:
        found = next(above.query(FIND_ABOVE, (ino,)), None)
        if found is None or ino in seen:
            parts.append(f'(inode {ino})')
            break
        seen.add(ino)
        ino = found[0]
        parts.append(_text_of(bytes(found[1])))
    return '/' + '/'.join(reversed(parts))


def _text_of(name: bytes) -> str:
    return name.decode('utf-8', 'surrogateescape')


def _text(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
