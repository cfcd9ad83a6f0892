"""Recheck an export of a snapfs snapshot from the raw store, without snapfs: reads and hashes each chunk that
it names, and computes the root anew. Exit code 0: all is whole, and the root is right (ROOT, if given);
4: it is not; 2: wrong call. python3 verify_export.py EXPORT STORE [ROOT]
Needs blake3, and before Python 3.14 backports.zstd."""

import json
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def plainly(path: str, flags: int) -> int:
    """A pipe in the place of a pack is not waited for, nor a link followed."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def whole(store: Path, db: sqlite3.Connection, id: bytes, length: int) -> bool:
    """Is there a good copy? A record: magic, kind, codec, 0, stored length, … (52 bytes), payload."""
    for table in ('chunk', 'quarantine', 'freed'):
        select = f'SELECT pack.name, offset FROM {table} JOIN pack USING (pack) WHERE id = ?'
        for name, offset in db.execute(select, (id,)):
            try:
                with open(store / 'packs/data' / name.hex()[:2] / name.hex(), 'rb', opener=plainly) as pack:
                    pack.seek(offset)
                    head = pack.read(52)
                    plain = pack.read(min(int.from_bytes(head[8:12], 'big'), 1 << 17))
                if head[5] == 1:
                    plain = zstd.ZstdDecompressor().decompress(plain, max_length=1 << 17)
                if len(plain) == length and blake3(plain).digest() == id:
                    return True
            except (OSError, IndexError, EOFError, zstd.ZstdError):
                pass  # there may be another copy
    return False


def stop(kind: type, error: BaseException, trace: object) -> None:
    """One line: what cannot be opened is a wrong call, what makes no sense is no whole export or catalog."""
    print(f'{" ".join(sys.argv[1:])}: {error!r:.300}', file=sys.stderr, flush=True)
    folder.cleanup()
    os._exit(2 if issubclass(kind, OSError) else 4)


if len(sys.argv) not in (3, 4) or not Path(sys.argv[2], 'catalog.sqlite').is_file():
    print('say: verify_export.py EXPORT STORE [ROOT]', file=sys.stderr)
    sys.exit(2)
folder = tempfile.TemporaryDirectory()
sys.excepthook = stop
export, store, *wanted = sys.argv[1:]
catalog = copy = Path(store, 'catalog.sqlite').absolute()
if not Path(f'{catalog}-shm').exists():  # nobody has it open, and SQLite would leave files beside it
    for one in filter(Path.is_file, (catalog, Path(f'{catalog}-wal'))):
        copy = Path(shutil.copyfile(one, Path(folder.name, one.name))).with_name(catalog.name)
db = sqlite3.connect((catalog if Path(f'{catalog}-shm').exists() else copy).as_uri() + '?mode=ro', uri=True)
trees: list[tuple[int, bytes]] = []  # (height, hash): the Merkle tree of RFC 6962, section 2.1
path, bad, stated = '', 0, 'nothing'
for number, text in enumerate(open(export, 'rb')):  # noqa: SIM115
    line = json.loads(text)
    stated, path = line.get('root', stated), line.get('path', path)
    if number and 'root' not in line:
        height, digest = 0, blake3(b'\0' + text.rstrip(b'\n')).digest()
        while trees and trees[-1][0] == height:
            height, digest = height + 1, blake3(b'\1' + trees.pop()[1] + digest).digest()
        trees.append((height, digest))
    needs = [(one[2], one[1]) for one in line.get('xattrs', []) if len(one) == 3]
    needs += [(c[2], c[4] if len(c) == 5 else c[1]) for c in line.get('chunks', line.get('more', []))]
    for id, length in needs:
        if not whole(Path(store), db, bytes.fromhex(id), length):
            bad += 1
            print(f'{path!a}: chunk {id} is missing or wrong')
root = trees.pop()[1] if trees else blake3(b'').digest()
while trees:
    root = blake3(b'\1' + trees.pop()[1] + root).digest()
right = [root.hex()] * (1 + len(wanted)) == [stated, *wanted]
print(f'{bad} chunks are damaged; root {root.hex()}', 'is right' if right else f'is not {[stated, *wanted]}')
sys.exit(0 if right and not bad else 4)
