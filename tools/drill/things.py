"""Tool: things: drills in which clocks, disks and files do what they do. Event loop only."""

from __future__ import annotations

import shutil
from pathlib import Path

from snapfs.collect import mentions, proof, recount
from snapfs.format.ids import RecordKind
from snapfs.store.packs import pack_path
from tools.drill import faults
from tools.drill.counting import nothing_moved
from tools.drill.drill import Drill
from tools.drill.lab import Lab
from tools.drill.world import DAY

YEAR = 365 * DAY


async def nothing_freed(lab: Lab, what: str) -> None:
    """Collect: nothing may be freed by it."""
    report = await lab.collect()
    lab.must(not report['freed'] and not lab.count('freed'), f'{what} freed something')


async def clock_jump(lab: Lab) -> None:
    """The wall clock is set, forward and back, while batches rest, and while the store is closed."""
    await lab.week()
    await lab.collect()
    for years in (10, -20, 11, -1):
        lab.world.jump(years * YEAR)
        await nothing_freed(lab, f'a jump of {years} years')
    await lab.close()
    lab.world.jump(10 * YEAR)
    await lab.open()
    await nothing_freed(lab, 'a jump of 10 years while the store was closed')
    trusted = lab.collecting.collector.clock.now_ns / 1e9
    lab.note('trusted clock', f'jumps of 42 years in all: {trusted:.0f} s have passed, nothing was freed')
    lab.world.advance(2 * 3600)
    report = await lab.collect()
    lab.must(
        [row.grace_class for row in report['freed']] == ['dropped'],
        'two hours that have passed do not count as two hours',
    )


async def suspend(lab: Lab) -> None:
    """The machine sleeps while a recount runs, while a batch rests, and while recount 2 and the proof run."""
    await lab.week()

    def sleep() -> None:
        lab.world.suspend(3600)

    await lab.with_fault('recount', faults.around(recount, 'recount', sleep))
    with lab.stopped_by('suspend check'):
        await lab.collect()
    nothing_moved(lab)
    lab.mend()
    await lab.collect()
    lab.world.suspend(30 * DAY)
    await nothing_freed(lab, 'a suspend of 30 days')
    lab.note('trusted clock', 'the machine slept for 30 days: nothing was freed')
    lab.world.advance(8 * DAY)
    await lab.with_fault('mentions', faults.around(mentions, 'look_for_mentions', sleep))
    with lab.stopped_by('suspend check'):
        await lab.collect()
    lab.must(not lab.count('freed'), 'something was freed')
    lab.mend()
    await lab.with_fault('proof', faults.around(proof, 'prove', sleep))
    with lab.stopped_by('suspend check'):
        await lab.collect()


async def vanished_pack(lab: Lab) -> None:
    """Somebody takes away a pack: one of nodes, then one of data, each before both recounts."""
    await lab.week()
    away = lab.path.parent / 'away'
    for row in lab.engine.store.catalog.packs():  # what the daemon has open it would put back itself
        lab.engine.store.chunks.seal_pack(row.kind, row.pack)
    await lab.engine.commit(always=True)
    nodes, data = [needed_pack(lab, kind) for kind in (RecordKind.NODE, RecordKind.DATA)]
    shutil.move(nodes, away)
    with lab.stopped_by('pack list'):
        await lab.collect()
    nothing_moved(lab)
    shutil.move(away, nodes)
    await lab.collect()
    lab.world.advance(8 * DAY)
    for path in (nodes, data):
        shutil.move(path, away)
        with lab.stopped_by('pack list'):
            await lab.collect()
        lab.must(not lab.count('freed'), 'something was freed')
        shutil.move(away, path)


def needed_pack(lab: Lab, kind: RecordKind) -> Path:
    """Return the path of a pack that what stands needs."""
    needed = 'SELECT root FROM snapshot' if kind == RecordKind.NODE else 'SELECT id FROM chunk'
    text = (
        'SELECT p.name FROM pack p JOIN chunk c ON c.pack = p.pack '
        f'WHERE p.kind = ? AND c.id IN ({needed}) ORDER BY p.pack LIMIT 1'
    )
    name = lab.engine.store.catalog.query(text, (kind,))[0][0]
    return pack_path(lab.path / 'packs', kind, name)


async def lost_rows(lab: Lab) -> None:
    """The index forgets rows of a pack that is needed: the catalog says that nothing is in it."""
    await lab.week()
    await lab.collect_all()
    catalog = lab.engine.store.catalog
    sealed = "SELECT pack FROM pack WHERE kind = 1 AND state = 'sealed'"
    text = f'SELECT pack FROM chunk WHERE pack IN ({sealed}) GROUP BY pack ORDER BY count(*) DESC LIMIT 1'
    pack = catalog.query(text)[0][0]
    rows = catalog.query('SELECT * FROM chunk WHERE pack = ?', (pack,))
    with catalog.transaction() as db:
        db.execute('DELETE FROM chunk WHERE pack = ?', (pack,))
    swept = lab.collecting.collector.sweep(lambda: None)
    name = catalog.query('SELECT name, state FROM pack WHERE pack = ?', (pack,))
    lab.must(name, 'the pack is gone, with everything in it')
    lab.must(name[0][0].hex() in swept.kept, f'nothing kept the pack: {swept}')
    path = pack_path(lab.path / 'packs', RecordKind.DATA, name[0][0])
    lab.must(path.exists(), 'the pack is not on the disk any more')
    lab.note('last look', f'{len(rows)} records of a pack have neither a receipt nor a copy: it stays')
    with catalog.transaction() as db:
        db.executemany(f'INSERT INTO chunk VALUES ({",".join("?" * len(rows[0]))})', rows)
        db.execute("UPDATE pack SET state = 'sealed' WHERE pack = ?", (pack,))


async def cut_audit(lab: Lab) -> None:
    """The end of the audit log is cut off, at a line; who looks at the file alone sees nothing."""
    await lab.week()
    await lab.collect()
    await lab.close()
    path = lab.path / 'audit.log'
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(lines[:-2]))
    await lab.open()
    lab.must(lab.latched(), 'the collector runs on with a log that lacks lines')
    lab.note('audit head', str(lab.latched()))
    lab.world.advance(8 * DAY)
    with lab.stopped_by('latch'):
        await lab.collect()
    lab.must(not lab.count('freed'), 'something was freed')


async def old_catalog(lab: Lab) -> None:
    """The catalog is taken from a backup of yesterday. What has been written since is known to nobody."""
    await lab.week()
    await lab.reopen()
    backup = lab.path.parent / 'yesterday.sqlite'
    await lab.close()
    shutil.copy(lab.path / 'catalog.sqlite', backup)
    await lab.open()
    for n in range(10):
        await lab.write(f'today-{n:03}', lab.noise(12_000))
    await lab.snapshot('today')
    await lab.collect()  # batches of today; yesterday knows none
    lab.world.advance(8 * DAY)
    lab.must((await lab.collect())['freed'], 'nothing was freed today')
    packs = files_in(lab)
    await lab.close()
    today = lab.path.parent / 'today.sqlite'
    shutil.copy(lab.path / 'catalog.sqlite', today)
    put_back(lab, backup)
    await lab.open()
    with lab.stopped_by('receipt', latch=True):
        await lab.collect()
    for _ in range(3):
        lab.world.advance(8 * DAY)
        with lab.stopped_by('latch'):
            await lab.collect()
    lab.must(packs <= files_in(lab), 'packs that today needs are gone')
    # The people find out, and put today's catalog back.
    await lab.close()
    put_back(lab, today)
    await lab.open()


def files_in(lab: Lab) -> set[Path]:
    """Return all packs on the disk."""
    return {path for path in (lab.path / 'packs').rglob('*') if path.is_file()}


def put_back(lab: Lab, catalog: Path) -> None:
    """Replace the catalog of a closed store."""
    for name in ('catalog.sqlite-wal', 'catalog.sqlite-shm'):
        (lab.path / name).unlink(missing_ok=True)
    shutil.copy(catalog, lab.path / 'catalog.sqlite')


DRILLS = (
    Drill(
        'clock-jump',
        (
            'A clock that is wrong makes a week of grace pass in a second.',
            'Gitaly (4416) pruned without the grace; Iceberg (4194): older_than was shorter than a writer.',
        ),
        'the wall clock jumps by years, forward and back, with the store open and closed',
        ('trusted clock',),
        clock_jump,
    ),
    Drill(
        'suspend',
        (
            'A laptop goes to sleep in the middle of the collection, and what it knew is old when it wakes.',
            'kopia (1949): a full maintenance of five hours, a suspend in it; blobs in use were deleted.',
        ),
        'the machine sleeps during recount 1, during a grace, during recount 2 and during the proof',
        ('suspend check', 'trusted clock'),
        suspend,
    ),
    Drill(
        'vanished-pack',
        (
            'A file of the store is not there, and what is not there refers to nothing.',
            'Timeshift (48): what could not be read was "incomplete", and good snapshots were removed.',
        ),
        'a pack of nodes, then one of data, is moved away before recount 1 and before recount 2',
        ('pack list',),
        vanished_pack,
    ),
    Drill(
        'lost-rows',
        (
            'The index has forgotten entries, so a file full of data counts as empty.',
            'borg before 1.1.11 (4829): a hash table lost entries, and compaction trusted it.',
        ),
        'all rows of a data pack disappear from the index, and packs are swept',
        ('last look',),
        lost_rows,
    ),
    Drill(
        'cut-audit',
        (
            'The log of deletions ends earlier than it did: somebody does not want it to be known.',
            'HBase (PR 922): the back-reference that should have kept a file was just not there.',
        ),
        'the last two lines of the audit log are cut off while the store is closed',
        ('audit head', 'latch'),
        cut_audit,
    ),
    Drill(
        'old-catalog',
        (
            'A database comes back from a backup, and what was stored since is garbage in its eyes.',
            'Duplicacy (465): chunks of a backup that had no record yet were taken for fossils.',
        ),
        "the catalog is replaced by yesterday's, after batches of today were freed",
        ('receipt', 'latch'),
        old_catalog,
    ),
)
