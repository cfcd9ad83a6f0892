"""The proof: every reference of every standing root is there, or the proof says which is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import tools.certificate
from snapfs import limits
from snapfs.collect.certificate import encode_certificate
from snapfs.collect.proof import prove, store_uuid
from snapfs.collect.proof_values import Proof, ProofSpec
from snapfs.errors import Corrupt
from snapfs.format.ids import RecordKind, data_id, node_id
from snapfs.format.packs import PACK_HEADER_BYTES, PackHeader, encode_pack_header
from tests.unit.collect.kit2 import Built, branch, build, leaf
from tests.unit.collect.test_mentions_oracle import Model, random_store


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    for name in ('JOURNAL_BYTES', 'RESERVE_BYTES', 'FREE_BYTES_MIN'):
        monkeypatch.setattr(limits, name, 64 * limits.KIB)
    made = build(tmp_path / 'store')
    yield made
    made.store.close(clean=False)


class Scene:
    """A volume of three levels, a snapshot that shares a leaf with it, a canary, and a pending request."""

    def __init__(self, built: Built) -> None:
        self.d = built.put_data(*(b'data %d' % n for n in range(12)))
        self.leaves = [leaf(self.d[n : n + 2], n + 1) for n in range(0, 12, 2)]
        self.low, self.high = branch(self.leaves[:2]), branch(self.leaves[2:4])
        self.top = branch([self.low, self.high])
        self.old = branch([self.leaves[0], self.leaves[4]])
        built.put_nodes(*self.leaves, self.low, self.high, self.top, self.old)
        built.commit()
        built.volume(1, self.top)
        built.snapshot(2, self.old)
        built.canary(self.leaves[5])
        built.request(1, plain=self.old)


def proof(built: Built, **changes: object) -> Proof:
    return prove(ProofSpec(built.path, built.uuid, **changes))  # type: ignore[arg-type]


def why(made: Proof) -> tuple[bytes, str, str]:
    (one,) = made.missing
    assert made.missing_count == 1
    assert not made.passed
    return one.id, one.by, one.why


def test_a_store_in_which_everything_is_there(built: Built) -> None:
    scene = Scene(built)
    told: list[tuple[int, int]] = []
    made = prove(
        ProofSpec(built.path, built.uuid, hashed=True), lambda done, total: told.append((done, total))
    )
    assert (made.passed, made.missing) == (True, ())
    assert (made.nodes, made.chunks) == (6 + 3 + 1, 12)
    assert made.references == 6 * 2 + 2 + 2 + 2 + 2
    assert made.packs == 2
    assert [(one.kind, one.number, one.name) for one in made.roots] == [
        ('canary', 1, ''),
        ('request', 1, 'v@'),
        ('snapshot', 2, 's2'),
        ('volume', 1, 'v1'),
    ]
    volume = made.roots[-1]
    assert (volume.root, volume.refs, volume.resting) == (node_id(scene.top).hex(), 8 + 4 + 2, None)
    assert told == [(6, 6)]
    assert store_uuid(built.path) == built.uuid


def test_every_single_reference_counts(built: Built) -> None:
    """Each chunk in turn, data and node, loses its row: the proof names it."""
    scene = Scene(built)
    rows = built.sql('SELECT * FROM chunk')
    assert len(rows) == 12 + 10
    for row in rows:
        built.forget_row(row[0])  # type: ignore[arg-type]
        made = proof(built)
        assert not made.passed
        assert row[0] in {one.id for one in made.missing}
        built.sql('INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)', row)
    assert proof(built).passed
    built.forget_row(scene.d[5])
    assert why(proof(built)) == (
        scene.d[5],
        f'node {node_id(scene.leaves[2]).hex()}',
        'it has no row in the index',
    )


def test_a_chunk_in_quarantine_is_there_only_for_requests_of_a_resting_batch(built: Built) -> None:
    scene = Scene(built)
    only_old = [scene.d[8], scene.d[9], node_id(scene.leaves[4])]
    built.sql('DELETE FROM snapshot')
    built.batch(1, only_old)
    assert proof(built).missing_count == 1  # the request may still be taken back, and is in no batch
    built.sql('UPDATE request SET batch = 1')
    assert proof(built).passed
    assert [one.resting for one in proof(built).roots] == [None, 1, None]
    built.batch(2, [scene.d[0]])  # of the volume
    assert why(proof(built))[:2] == (scene.d[0], f'node {node_id(scene.leaves[0]).hex()}')
    built.sql('DELETE FROM quarantine WHERE batch = 2')
    built.sql('DELETE FROM batch WHERE number = 2')
    assert why(proof(built))[0] == scene.d[0]
    built.put_data(b'data 0')
    built.commit()
    built.sql('DELETE FROM quarantine WHERE id = ?', (scene.d[9],))
    assert why(proof(built)) == (scene.d[9], f'node {only_old[2].hex()}', 'it has no row in the index')
    built.sql("UPDATE batch SET state = 'CONFIRMED'")
    assert proof(built).passed
    assert [one.kind for one in proof(built).roots] == ['canary', 'volume']


@pytest.mark.parametrize('kind', ['dropped', 'returned', 'leaked'])
def test_what_nobody_can_take_back_need_not_be_there(built: Built, kind: str) -> None:
    """Another batch may have condemned or freed it already."""
    scene = Scene(built)
    lone = built.put_data(b'lone', b'other', b'below')
    sub = leaf([lone[2]], 40)
    built.put_nodes(sub)
    built.commit()
    built.request(5, kind, chunks=lone[:2], subtrees=[node_id(sub)])
    for id in (lone[1], lone[2]):
        built.forget_row(id)
    made = proof(built)
    assert made.passed
    assert 5 not in [one.number for one in made.roots if one.kind == 'request']
    assert scene.d


def test_a_place_that_cannot_be_is_missing(built: Built) -> None:
    scene = Scene(built)
    ((pack, size),) = built.sql('SELECT pack, bytes FROM pack WHERE kind = 1')
    ((offset,),) = built.sql('SELECT offset FROM chunk WHERE id = ?', (scene.d[7],))
    changes = {
        'offset = bytes - 52 - stored + 1': 'is not within',
        'offset = 47': 'is not within',
        'pack = 99': 'its pack 99 is not in the catalog',
        'kind = 2': 'of another kind',
    }
    for change, text in changes.items():
        change = change.replace('bytes', str(size))
        built.sql(f'UPDATE chunk SET {change} WHERE id = ?', (scene.d[7],))
        assert text in why(proof(built))[2]
        values = (pack, offset, scene.d[7])
        built.sql('UPDATE chunk SET pack = ?, offset = ?, kind = 1 WHERE id = ?', values)
    assert proof(built).passed
    built.sql('UPDATE chunk SET offset = offset - 52 - stored WHERE id = ?', (scene.d[7],))
    assert proof(built).passed  # a place like any other, as long as nobody reads
    assert 'stands another record' in why(proof(built, hashed=True))[2]


def test_a_pack_that_is_gone_or_cut_off_or_another_one(built: Built) -> None:
    Scene(built)
    built.seal(RecordKind.DATA)
    ((name,),) = built.sql("SELECT name FROM pack WHERE kind = 1 AND state = 'sealed'")
    path = built.path / 'packs' / 'data' / name.hex()[:2] / name.hex()  # type: ignore[attr-defined]
    whole = path.read_bytes()
    path.unlink()
    made = proof(built)
    assert made.missing_count == 12
    assert 'is not on the disk' in made.missing[0].why
    path.write_bytes(whole[:-1])
    assert f'has {len(whole) - 1} bytes, the catalog says {len(whole)}' in proof(built).missing[0].why
    path.write_bytes(bytes(60) + whole[60:])
    assert 'wrong magic' in proof(built).missing[0].why
    header = PackHeader(built.uuid, bytes(16), RecordKind.DATA)
    path.write_bytes(encode_pack_header(header) + whole[PACK_HEADER_BYTES:])
    assert 'is another one inside' in proof(built).missing[0].why
    path.write_bytes(whole[:200] + b'?' + whole[201:])
    assert proof(built).passed
    assert proof(built, hashed=True).missing_count >= 1
    path.write_bytes(whole)
    assert proof(built, hashed=True).passed


def test_a_damaged_node_is_missing_and_the_rest_is_still_looked_at(built: Built) -> None:
    scene = Scene(built)
    ((offset,),) = built.sql('SELECT offset FROM chunk WHERE id = ?', (node_id(scene.high),))
    (path,) = built.pack_files('meta')
    raw = bytearray(path.read_bytes())
    raw[offset + 60] ^= 1  # type: ignore[operator]
    path.write_bytes(raw)
    built.forget_row(scene.d[0])
    assert {one.id for one in proof(built).missing} == {node_id(scene.high), scene.d[0]}


def test_totals_of_a_row_that_the_tree_does_not_have(built: Built) -> None:
    scene = Scene(built)
    built.sql('UPDATE snapshot SET root_refs = root_refs + 1')
    id, by, text = why(proof(built))
    assert (id, by) == (node_id(scene.old), 'snapshot 2')
    assert text == 'totals (6, 6), the row says (6, 7)'


def test_a_node_of_the_wrong_level_is_missing(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(built)
    from snapfs.format.nodes import encode_branch

    crooked = encode_branch(3, [b''], [node_id(scene.leaves[0])], [3], [2])
    built.put_nodes(crooked)
    built.commit()
    built.volume(3, crooked)
    assert why(proof(built))[2] == 'a node of level 0 where one of 2 must be'


@pytest.mark.parametrize('rows', [1, 3, 7])
def test_an_index_that_does_not_fit_into_memory_is_taken_in_parts(
    built: Built, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    scene = Scene(built)
    whole = proof(built, hashed=True)
    monkeypatch.setattr(limits, 'PROOF_INDEX_ROWS', rows)
    monkeypatch.setattr(limits, 'PROOF_IDS_WAITING', 2)
    monkeypatch.setattr(limits, 'PROOF_NODES_AT_ONCE', 2)
    monkeypatch.setattr(limits, 'MENTION_BLOCK_IDS', 3)
    assert proof(built, hashed=True) == whole
    for id in scene.d:
        built.forget_row(id)
        assert why(proof(built))[0] == id
        built.put_data(built.data[id])
        built.commit()
    built.forget_row(node_id(scene.leaves[3]))
    assert why(proof(built))[0] == node_id(scene.leaves[3])


def test_an_id_that_begins_like_one_in_the_index_is_not_there(built: Built) -> None:
    scene = Scene(built)
    near = [scene.d[0][:8] + b'?' * 24, scene.d[1][:16] + b'?' * 16]
    odd = leaf(near, 50)
    built.put_nodes(odd)
    built.commit()
    built.volume(5, odd)
    found = {one.id for one in proof(built).missing}
    assert near[0] in found


def test_another_store_or_an_old_catalog_is_refused(built: Built) -> None:
    Scene(built)
    with pytest.raises(Corrupt, match='not the one'):
        prove(ProofSpec(built.path, bytes(16)))
    with pytest.raises(Corrupt, match='an old one'):
        proof(built, epoch=99)
    built.sql('UPDATE snapshot SET root = ?', (b'short',))
    with pytest.raises(Corrupt, match='no id'):
        proof(built)
    with pytest.raises(Corrupt, match='not a snapfs store'):
        store_uuid(built.path / 'packs')


def test_an_empty_store_has_a_proof(built: Built) -> None:
    made = proof(built)
    assert (made.passed, made.nodes, made.references, made.roots) == (True, 0, 0, ())


def test_the_certificate_is_canonical_and_carries_its_digest(built: Built) -> None:
    scene = Scene(built)
    built.forget_row(scene.d[7])
    raw = encode_certificate(proof(built, batch=4))
    fields = json.loads(raw)
    digest = fields.pop('digest')
    again = json.dumps(fields, sort_keys=True, separators=(',', ':')) + '\n'
    assert digest == data_id(again.encode()).hex()
    assert (fields['store'], fields['batch'], fields['passed'], fields['missing']) == (
        built.uuid.hex(),
        4,
        False,
        1,
    )
    assert fields['evidence'] == [
        [scene.d[7].hex(), f'node {node_id(scene.leaves[3]).hex()}', 'it has no row in the index']
    ]
    assert fields['roots'][-1][:4] == ['volume', 1, 'v1', node_id(scene.top).hex()]


def test_what_is_on_its_way_out_serves_nobody(built: Built) -> None:
    """A resting batch's request needs a chunk; only a batch that is being freed still has it."""
    Scene(built)
    own = leaf(built.put_data(b'own'), 20)
    built.put_nodes(own)
    built.commit()
    built.batch(1, [node_id(own)])
    built.request(9, plain=own, batch=1)
    built.batch(2, built.put_data(b'own'))
    assert proof(built).passed
    built.sql("UPDATE batch SET state = 'CONFIRMED' WHERE number = 2")
    assert why(proof(built))[0] == data_id(b'own')
    built.sql("UPDATE batch SET state = 'CONFIRMED' WHERE number = 1")
    assert proof(built).passed
    built.batch(3, built.put_data(b'data 11'))
    assert why(proof(built))[0] == data_id(b'data 11')


def expected(model: Model) -> set[bytes]:
    """What does not resolve, by going through the model from each claim."""
    missing: set[bytes] = set()
    for resting in (False, True):
        waiting = [(id, reach) for id, reach, owner in model.claims if (owner is not None) == resting]
        seen = set()
        while waiting:
            id, reach = waiting.pop()
            if (id, reach) in seen:
                continue
            seen.add((id, reach))
            if 'chunk' not in model.rows[id] and not (resting and model.rows[id] & {1, 2}):
                missing.add(id)
            elif reach:
                waiting += [(child, True) for child in model.children.get(id, [])]
    return missing


@pytest.mark.parametrize('seed', range(100, 130))
def test_what_is_missing_is_what_the_oracle_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """The proof, the tool that replays it, and a walk over the model: three programs."""
    for name in ('JOURNAL_BYTES', 'RESERVE_BYTES', 'FREE_BYTES_MIN'):
        monkeypatch.setattr(limits, name, 64 * limits.KIB)
    monkeypatch.setattr(limits, 'PROOF_INDEX_ROWS', 1 + seed % 40)
    built, model = random_store(tmp_path / 'random', seed, copies=False)
    try:
        made = proof(built, batch=1)
        assert {one.id for one in made.missing} == expected(model), f'seed {seed}'
        (built.path / 'batches' / '1' / 'certificate.json').write_bytes(encode_certificate(made))
        assert tools.certificate.main([str(built.path)]) == (0 if made.passed else 13)
        said = {
            line.split()[1].rstrip(',')
            for line in capsys.readouterr().out.splitlines()
            if 'MISSING ' in line[:8]
        }
        assert said == {id.hex() for id in expected(model)}, f'seed {seed}'
    finally:
        built.store.close(clean=False)
