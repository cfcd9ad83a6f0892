"""Tool breakit, evidence: damage to catalog, batches, journal and audit log. Pure but for the patient."""

from __future__ import annotations

from pathlib import Path

from snapfs.errors import Invalid
from snapfs.format.packs import PACK_HEADER_BYTES
from snapfs.format.records import HEADER_BYTES
from tools.breaking.edit import Patient
from tools.breaking.kinds import KINDS, extents, kind, victim

BLOCK = 4096


# --- the catalog -----------------------------------------------------------------------------------------
@kind('catalog-gone', 'the catalog is gone')
def _(p: Patient) -> None:
    p.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    p.gone(p.path / 'catalog.sqlite')


@kind('catalog-garbage', 'the catalog begins with nonsense')
def _(p: Patient) -> None:
    p.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    p.put(p.path / 'catalog.sqlite', 0, b'nonsense' * 8)


@kind('catalog-page', 'a page of the index is zeros')
def _(p: Patient) -> None:
    p.db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    ((page,),) = p.db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'chunk'").fetchall()
    ((size,),) = p.db.execute('PRAGMA page_size').fetchall()
    p.put(p.path / 'catalog.sqlite', (page - 1) * size, bytes(size))


@kind('catalog-schema', 'a trigger was put into the catalog')
def _(p: Patient) -> None:
    p.sql('CREATE TRIGGER bad AFTER INSERT ON chunk BEGIN DELETE FROM snapshot; END')


@kind('catalog-version', 'a catalog of a version that nobody knows')
def _(p: Patient) -> None:
    p.sql('PRAGMA user_version = 99')


@kind('epoch-back', 'the store counts fewer commits than its snapshots')
def _(p: Patient) -> None:
    p.sql("UPDATE settings SET value = 1 WHERE key = 'epoch'")


@kind('setting-gone', 'a setting is missing')
def _(p: Patient) -> None:
    p.sql("DELETE FROM settings WHERE key = 'next_pack'")


@kind('snapshot-rootless', 'a snapshot has lost its root, and still counts what was below')
def _(p: Patient) -> None:
    p.sql('UPDATE snapshot SET root = NULL WHERE name = ?', victim(p)[1])


@kind('snapshot-other-root', 'a snapshot has the root of another volume')
def _(p: Patient) -> None:
    rows = p.db.execute('SELECT root FROM volume WHERE root IS NOT NULL ORDER BY volume DESC').fetchall()
    p.sql('UPDATE snapshot SET root = ? WHERE name = ?', rows[0][0], victim(p)[1])


@kind('snapshot-root-end', "the last bit of a snapshot's root")
def _(p: Patient) -> None:
    _, name, root = victim(p)
    p.sql('UPDATE snapshot SET root = ? WHERE name = ?', root[:-1] + bytes([root[-1] ^ 1]), name)


@kind('hold-of-nobody', 'a hold on a snapshot that is not there')
def _(p: Patient) -> None:
    p.sql("INSERT INTO hold VALUES (77777, x'61', 'ann', 'why', 1, NULL)")


@kind('request-empty', 'a request has lost the list of what it asks for')
def _(p: Patient) -> None:
    rows = p.db.execute(
        'SELECT min(request) FROM request_part JOIN request ON number = request WHERE batch IS NULL'
    )
    number = rows.fetchall()[0][0]
    if number is None:
        raise Invalid('there is no such request')
    p.sql('DELETE FROM request_part WHERE request = ?', number)


@kind('damage-row', 'the catalog knows a chunk as lost')
def _(p: Patient) -> None:
    p.sql("INSERT INTO damage VALUES (?, 1, 'read', 'a test')", extents(p)[0][1][-1])


@kind('incident-open', 'the collector has stopped')
def _(p: Patient) -> None:
    p.sql("UPDATE settings SET value = 50 WHERE key = 'next_incident'")
    p.sql("INSERT INTO incident VALUES (49, 'collector', 1, 'a test', NULL, NULL, NULL)")


# --- deletion --------------------------------------------------------------------------------------------
def batch(p: Patient, state: str) -> int:
    """Return the last batch in a state."""
    rows = p.db.execute('SELECT max(number) FROM batch WHERE state = ?', (state,)).fetchall()
    if rows[0][0] is None:
        raise Invalid(f'there is no batch that is {state}')
    return int(rows[0][0])


def _moved(p: Patient, table: str, number: int) -> None:
    id = extents(p)[0][1][-1]
    p.sql(f'INSERT INTO {table} SELECT *, {number} FROM chunk WHERE id = ?', id)
    p.sql('DELETE FROM chunk WHERE id = ?', id)


@kind('live-condemned', 'a chunk that a snapshot needs is in quarantine (2011, before the end)')
def _(p: Patient) -> None:
    _moved(p, 'quarantine', batch(p, 'QUARANTINED'))


@kind('live-freed', 'a chunk that a snapshot needs counts as freed (2011)')
def _(p: Patient) -> None:
    _moved(p, 'freed', batch(p, 'FREED'))


@kind('quarantine-lost', 'quarantine has lost a chunk that could still be taken back')
def _(p: Patient) -> None:
    rows = p.db.execute('SELECT id FROM quarantine WHERE kind = 1 ORDER BY batch DESC, id').fetchall()
    p.sql('DELETE FROM quarantine WHERE id = ?', rows[0][0])


@kind('batch-forged', 'a batch that rests says it was confirmed')
def _(p: Patient) -> None:
    p.sql("UPDATE batch SET state = 'CONFIRMED' WHERE number = ?", batch(p, 'QUARANTINED'))


def _flipped(name: str, what: str, file: str, state: str) -> None:
    def make(p: Patient) -> None:
        p.flip(p.path / 'batches' / str(batch(p, state)) / file, 90, 0)

    kind(name, what)(make)


def _lost(name: str, what: str, file: str, state: str) -> None:
    def make(p: Patient) -> None:
        p.gone(p.path / 'batches' / str(batch(p, state)) / file)

    kind(name, what)(make)


_flipped('plan-flip', 'one bit of a plan', 'plan.json', 'FREED')
_flipped('receipt-flip', 'one bit of a receipt', 'receipt', 'FREED')
_flipped('certificate-flip', 'one bit of a certificate', 'certificate.json', 'FREED')
_flipped('condemned-flip', 'one bit of the list of what is condemned', 'condemned', 'QUARANTINED')
_lost('plan-gone', 'a plan is gone', 'plan.json', 'FREED')
_lost('receipt-gone', 'a receipt is gone', 'receipt', 'FREED')
_lost('certificate-gone', 'a certificate is gone', 'certificate.json', 'FREED')


# --- journal ---------------------------------------------------------------------------------------------
def _frames(p: Patient) -> list[tuple[int, int]]:
    """Return (file, offset) of every frame that begins like one."""
    found = []
    for number in (0, 1):
        data = (p.path / 'journal' / str(number)).read_bytes()
        at = data.find(b'SfJ1', BLOCK)
        while at >= 0:
            found.append((int.from_bytes(data[at + 8 : at + 16], 'big'), number, at))
            at = data.find(b'SfJ1', at + 1)
    last = max(found)[0] if found else 0
    return [(number, at) for sequence, number, at in sorted(found) if sequence > last - 3]


@kind('journal-gone', 'a file of the journal is gone')
def _(p: Patient) -> None:
    p.gone(p.path / 'journal' / '0')


@kind('journal-short', 'a file of the journal was cut')
def _(p: Patient) -> None:
    p.cut(p.path / 'journal' / '1', BLOCK)


@kind('journal-block', 'one bit in the first block of a journal file')
def _(p: Patient) -> None:
    p.flip(p.path / 'journal' / str(_frames(p)[-1][0]), 14, 0)


@kind('journal-middle', 'a record in the middle of the journal')
def _(p: Patient) -> None:
    number, at = _frames(p)[-2]
    p.flip(p.path / 'journal' / str(number), at + 50, 0)


@kind('journal-last', 'the last record of the journal (looks as if a power cut had torn it)')
def _(p: Patient) -> None:
    number, at = _frames(p)[-1]
    p.flip(p.path / 'journal' / str(number), at + 50, 0)


@kind('journal-zeros', 'a journal file that is zeros')
def _(p: Patient) -> None:
    path = p.path / 'journal' / str(_frames(p)[-1][0])
    p.put(path, 0, bytes(path.stat().st_size))


# --- audit log -------------------------------------------------------------------------------------------
def _lines(p: Patient) -> list[bytes]:
    return (p.path / 'audit.log').read_bytes().splitlines(keepends=True)


@kind('audit-flip', 'one bit in a line of the audit log')
def _(p: Patient) -> None:
    p.flip(p.path / 'audit.log', len(_lines(p)[0]) + 60, 0)


@kind('audit-line-gone', 'a line of the audit log was taken out')
def _(p: Patient) -> None:
    lines = _lines(p)
    (p.path / 'audit.log').write_bytes(b''.join(lines[:1] + lines[2:]))
    p.say('audit.log: line 2 is gone')


@kind('audit-cut', 'the audit log has lost its last lines')
def _(p: Patient) -> None:
    p.cut(p.path / 'audit.log', len(b''.join(_lines(p)[:-2])))


@kind('audit-gone', 'the audit log is gone')
def _(p: Patient) -> None:
    p.gone(p.path / 'audit.log')


@kind('catalog-stale', 'the catalog is that of an earlier day: the audit log goes on')
def _(p: Patient) -> None:
    p.sql('DELETE FROM snapshot WHERE number = (SELECT max(number) FROM snapshot)')


# --- second copies ---------------------------------------------------------------------------------------
def _copies(p: Patient) -> list[Path]:
    found = sorted((p.path / 'mirror').glob('??/' + '?' * 32))
    if not found:
        raise Invalid('the store has no second copies of nodes yet')
    return found


@kind('mirror-flip', 'one bit in the second copy of a node')
def _(p: Patient) -> None:
    p.flip(_copies(p)[0], PACK_HEADER_BYTES + HEADER_BYTES + 20, 3)


@kind('mirror-cut', 'a second copy has lost its end (harmless)')
def _(p: Patient) -> None:
    p.cut(_copies(p)[0], PACK_HEADER_BYTES + HEADER_BYTES + 20)


@kind('mirror-gone', 'the second copies of nodes are gone (harmless)')
def _(p: Patient) -> None:
    for path in _copies(p):
        p.gone(path)


@kind('mirror-gone-top-flip', 'one bit in the top node of a tree that has no second copy')
def _(p: Patient) -> None:
    for path in _copies(p):
        p.gone(path)
    KINDS['top-flip'].make(p)
