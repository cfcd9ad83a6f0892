"""snapfs-certificate replays the proof without the daemon, by code of its own, and says what changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs import limits
from snapfs.collect.certificate import encode_certificate
from snapfs.collect.proof import prove
from snapfs.collect.proof_values import ProofSpec
from snapfs.format.ids import data_id, node_id
from tests.unit.collect.kit2 import Built, branch, build, leaf
from tools.certificate import main


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Built]:
    """A store with a volume, a snapshot, a canary and a certificate of batch 1."""
    for name in ('JOURNAL_BYTES', 'RESERVE_BYTES', 'FREE_BYTES_MIN'):
        monkeypatch.setattr(limits, name, 64 * limits.KIB)
    made = build(tmp_path / 'store')
    d = made.put_data(*(b'data %d' % n for n in range(8)))
    leaves = [leaf(d[n : n + 2], n + 1) for n in range(0, 8, 2)]
    top = branch([branch(leaves[:2]), branch(leaves[2:3])])
    made.put_nodes(*leaves, branch(leaves[:2]), branch(leaves[2:3]), top)
    made.commit()
    made.volume(1, top)
    made.snapshot(2, leaves[0])
    made.snapshot(3, leaves[2])
    made.canary(leaves[3])
    certify(made)
    yield made
    made.store.close(clean=False)


def certify(built: Built, batch: int = 1) -> Path:
    folder = built.path / 'batches' / str(batch)
    folder.mkdir(exist_ok=True)
    made = prove(ProofSpec(built.path, built.uuid, batch=batch))
    (folder / 'certificate.json').write_bytes(encode_certificate(made))
    return folder / 'certificate.json'


def run(built: Built, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main([str(built.path), *map(str, arguments)])
    out, err = capsys.readouterr()
    assert not err, err
    return code, out.splitlines()


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(one) for one in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith('snapfs-certificate: ') and err.count('\n') == 1
    return err


def test_a_store_as_it_was(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(built, capsys)
    assert code == 0
    assert lines == [
        'certificate of batch 1, epoch 1: everything was there',
        'epoch 1: 4 roots, 7 nodes, 13 references: all there',
    ]
    made = json.loads((built.path / 'batches/1/certificate.json').read_text())
    assert (made['nodes'], made['references']) == (7, 13)  # two programs, one result


def test_it_changes_nothing_and_works_beside_the_daemon_and_on_a_closed_store(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> dict[str, Any]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in built.path.rglob('*')}

    before = state()
    assert run(built, capsys)[0] == 0  # the store is open, and its lock is held
    assert state() == before
    built.store.close(clean=True)
    before = state()
    assert run(built, capsys, '--data')[0] == 0
    assert state() == before


def test_what_changed_since(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    old = leaf(built.put_data(b'data 0', b'data 1'), 1)
    new = leaf(built.put_data(b'new'), 9)
    built.put_nodes(new)
    built.commit()
    built.sql('UPDATE volume SET root = ?', (node_id(new),))
    built.sql('DELETE FROM snapshot WHERE number = 2')
    built.request(7, plain=old)
    built.sql("UPDATE snapshot SET name = CAST('other' AS BLOB)")
    built.snapshot(9, new)
    code, lines = run(built, capsys)
    assert code == 0
    assert lines[1:-1] == [
        "since snapshot 2 's2' is gone, request 7 is about it",
        "since snapshot 3 's3' is called 'other' now",
        "since volume 1 'v1' has another root",
        "since request 7 'v@' is new",
        "since snapshot 9 's9' is new",
    ]


@pytest.mark.parametrize('table', ['snapshot', 'canary'])
def test_a_root_that_must_not_change_has_changed(
    built: Built, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    [other] = built.sql('SELECT root FROM volume')
    built.sql(f'UPDATE {table} SET root = ?', other)
    code, lines = run(built, capsys)
    assert code == 13
    assert any(line.startswith(f'BROKEN {table} ') and line.endswith('has another root') for line in lines)


def test_every_reference_is_looked_at(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    for row in built.sql('SELECT * FROM chunk'):
        id = row[0]
        assert isinstance(id, bytes)
        built.forget_row(id)
        code, lines = run(built, capsys)
        assert code == 13
        assert any(line.startswith(f'MISSING {id.hex()}, referred to by ') for line in lines)
        assert lines[-1].endswith('MISSING')
        built.sql('INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)', row)
    assert run(built, capsys)[0] == 0


def test_quarantine_serves_only_requests_of_a_resting_batch(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    own = leaf(built.put_data(b'own'), 20)
    built.put_nodes(own)
    built.commit()
    ids = [node_id(own), *built.put_data(b'own')]
    built.batch(2, ids)
    ((top,),) = built.sql('SELECT root FROM volume')
    built.request(4, plain=own, batch=2)
    built.request(5, plain=own, batch=2)
    built.sql('UPDATE request SET root = ? WHERE number = 5', (top,))
    # Each node once, though a request and the volume come to it.
    assert run(built, capsys)[1][-1] == 'epoch 2: 6 roots, 8 nodes, 14 references: all there'
    built.sql('DELETE FROM request WHERE number = 5')
    built.sql('UPDATE request SET batch = NULL')
    assert run(built, capsys)[0] == 13
    built.sql('UPDATE request SET batch = 2')
    built.snapshot(5, own)
    assert run(built, capsys)[0] == 13
    built.sql('DELETE FROM snapshot WHERE number = 5')
    built.sql("UPDATE batch SET state = 'FREED'")
    built.sql('DELETE FROM quarantine')
    assert run(built, capsys)[0] == 0


def test_what_nobody_can_take_back_need_not_be_there(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = built.put_data(b'alone', b'below')
    below = leaf([b], 20)
    built.put_nodes(below)
    built.commit()
    before = run(built, capsys)
    built.request(4, 'dropped', chunks=[a], subtrees=[node_id(below)])
    for id in (a, b):
        built.forget_row(id)
    assert run(built, capsys) == before


def test_packs_and_places(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    (data,) = built.pack_files('data')
    whole = data.read_bytes()
    data.write_bytes(whole[:60] + b'?' + whole[61:])
    assert run(built, capsys)[0] == 0
    code, lines = run(built, capsys, '--data')
    assert code == 13
    for odd, text in ((whole[:-1], 'the catalog says'), (b'?' + whole[1:], 'wrong magic')):
        data.write_bytes(odd)
        code, lines = run(built, capsys)
        assert code == 13
        assert text in lines[0]
    data.unlink()
    assert run(built, capsys)[0] == 13
    data.write_bytes(whole)
    changes = ('offset = 9999999', 'offset = 3', 'pack = 77', 'kind = 2')
    for change in changes:
        rows = built.sql('SELECT * FROM chunk WHERE kind = 1 ORDER BY id LIMIT 1')
        built.sql(f'UPDATE chunk SET {change} WHERE id = ?', rows[0][:1])
        assert run(built, capsys)[0] == 13
        built.sql('DELETE FROM chunk WHERE id = ?', rows[0][:1])
        built.sql('INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?)', rows[0])
    assert run(built, capsys)[0] == 0


def test_an_old_catalog_and_a_proof_that_failed_then(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    [id] = built.put_data(b'data 1')
    built.forget_row(id)
    certify(built)
    built.put_data(b'data 1')
    built.commit()
    code, lines = run(built, capsys)
    assert (code, lines[0]) == (0, 'certificate of batch 1, epoch 1: 1 references were missing')
    certify(built)
    built.sql("UPDATE settings SET value = 1 WHERE key = 'epoch'")
    code, lines = run(built, capsys)
    assert (code, lines[1]) == (13, 'BROKEN the catalog is of epoch 1, older than the certificate')


def test_the_newest_certificate_is_taken_unless_one_is_named(
    built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    certify(built, 9)
    certify(built, 10)
    assert run(built, capsys)[1][0].startswith('certificate of batch 10,')
    named = run(built, capsys, built.path / 'batches/9/certificate.json')[1]
    assert named[0].startswith('certificate of batch 9,')


def test_a_certificate_of_another_store(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from snapfs.store.durable import Disk
    from snapfs.store.store import Store
    from snapfs.world import World

    Store.create(tmp_path / 'other', Disk(), World()).close(clean=True)
    path = built.path / 'batches/1/certificate.json'
    assert f'of store {built.uuid.hex()}, this one is ' in refused([tmp_path / 'other', path], capsys)
    assert 'has no certificate yet' in refused([tmp_path / 'other'], capsys)
    assert 'is not a snapfs store' in refused([tmp_path, path], capsys)
    assert 'cannot read' in refused([built.path, tmp_path / 'nothing'], capsys)
    assert 'cannot read' in refused([built.path, tmp_path], capsys)


def test_a_certificate_that_was_altered_or_is_none(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (built.path / 'batches/1/certificate.json').read_bytes()
    path = tmp_path / 'odd.json'
    path.write_bytes(good.replace(b'"missing":0', b'"missing":1'))
    assert 'has been altered' in refused([built.path, path], capsys)

    def signed(**changes: object) -> bytes:
        fields = {**json.loads(good), **changes}
        del fields['digest']
        text = json.dumps(fields, sort_keys=True, separators=(',', ':')) + '\n'
        return json.dumps({**fields, 'digest': data_id(text.encode()).hex()}).encode()

    for odd in (
        b'',
        b'[]',
        b'{}',
        b'[' * 100_000,
        b'\xff\xfe',
        good[:-2],
        signed(certificate=2),
        signed(more=1),
        signed(roots=[[1, 2]]),
        signed(roots=[7]),
        signed(roots=None),
    ):
        path.write_bytes(odd)
        assert 'is not a certificate' in refused([built.path, path], capsys)


def test_a_catalog_that_cannot_be_read(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    built.store.close(clean=True)
    path = built.path / 'catalog.sqlite'
    whole = path.read_bytes()
    for odd in (b'?' * 9000, b'', whole[: len(whole) // 2]):
        path.write_bytes(odd)
        assert main([str(built.path)]) == 13
        err = capsys.readouterr().err
        assert err.startswith('snapfs-certificate: the store cannot be read: ')
        assert err.count('\n') == 1
    path.unlink()
    assert main([str(built.path)]) == 13


def test_it_runs_as_a_program(built: Built) -> None:
    command = [sys.executable, '-m', 'tools.certificate', str(built.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines()[-1].endswith('all there')
