#!/usr/bin/env python3
"""Rechecks an export of snapfs from the raw store, without snapfs: verify_export.py EXPORT STORE.
Needs blake3, and backports.zstd or Python 3.14. Exit codes: 0 all is there and right, 1 something is not."""

import json
import sqlite3
import sys

import blake3

try:
    from compression import zstd
except ImportError:
    from backports import zstd


def chunk(db, packs, store, id):
    row = db.execute('SELECT pack, offset, stored, codec FROM chunk WHERE id = ?', (id,)).fetchone()
    kind, name = packs[row[0]]
    with open(f'{store}/packs/{kind}/{name[:2]}/{name}', 'rb') as pack:
        pack.seek(row[1] + 52)  # a record is a header of 52 bytes, and the payload
        data = pack.read(row[2])
    return zstd.decompress(data) if row[3] else data


def main(export, store):
    db = sqlite3.connect(f'file:{store}/catalog.sqlite?mode=ro', uri=True)
    packs = {
        n: ('data' if k == 1 else 'meta', x.hex())
        for n, k, x in db.execute('SELECT pack, kind, name FROM pack')
    }
    level, wrong, root = [], 0, ''
    for line in open(export, 'rb'):
        if line.startswith(b'root '):
            root = line.split()[1].decode()
            continue
        level.append(blake3.blake3(b'\0' + line).digest())
        entry = json.loads(line)
        for _offset, _length, id, _skip in entry.get('parts', ()):
            try:
                right = blake3.blake3(chunk(db, packs, store, bytes.fromhex(id))).hexdigest() == id
            except Exception:
                right = False
            if not right:
                wrong += 1
                print('WRONG', entry['path'], 'from byte', _offset)
    while len(level) > 1:  # neighbours are hashed together, a last one alone goes up as it is
        pairs = [level[n : n + 2] for n in range(0, len(level), 2)]
        level = [
            blake3.blake3(b'\1' + b''.join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs
        ]
    if not level or level[0].hex() != root:
        wrong += 1
        print('WRONG the list itself: its root is', level and level[0].hex(), 'and not', root)
    print('root', root, 'right' if not wrong else f'{wrong} WRONG')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:3]))
