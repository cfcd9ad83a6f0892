"""Tool: counting: drills of the kind of 2011: what is needed was not counted. Event loop only."""

from __future__ import annotations

import shutil
from pathlib import Path

from snapfs.collect import moves
from tools.drill import faults
from tools.drill.drill import Drill
from tools.drill.guards import guard_of
from tools.drill.lab import Failed, Fault, Lab, replaced
from tools.drill.world import DAY


def only_of_tuesday(lab: Lab) -> frozenset[bytes]:
    """Return the reference pages (leaves) that Tuesday's snapshot shares with nothing else that stands."""
    leaves = dict(lab.read().leaves)
    mine = set(leaves.pop('snapshot tuesday'))
    return frozenset(mine.difference(*leaves.values()))


def nothing_moved(lab: Lab) -> None:
    """Failed when anything is condemned."""
    lab.must(not lab.batches(), 'a batch was made')
    lab.must(not lab.count('quarantine') and not lab.count('freed'), 'something was condemned')


async def lost_page(lab: Lab) -> None:
    """A page of references is lost on the way from the disk to the one who counts."""
    await lab.week()
    await lab.with_fault('recount', faults.loses_pages(only_of_tuesday(lab)))
    with lab.stopped_by('totals'):
        await lab.collect()
    nothing_moved(lab)


async def blind(lab: Lab) -> None:
    """A recount that sees no reference at all, of anything, and no total that would tell."""
    await lab.week()
    await lab.with_fault('recount', faults.loses_pages(None))
    with lab.stopped_by('canary control', latch=True):
        await lab.collect()
    nothing_moved(lab)
    with lab.stopped_by('latch'):
        await lab.collect()


async def truncated_listing(lab: Lab) -> None:
    """A listing of roots, of ids, of packs comes back without its end, and without an error."""
    await lab.week()
    await lab.with_fault('recount', faults.truncated_query('FROM snapshot s'))
    with lab.stopped_by('root count'):
        await lab.collect()
    await lab.with_fault('recount', faults.truncated_query('SELECT part FROM request_part'))
    with lab.stopped_by('request count'):
        await lab.collect()
    nothing_moved(lab)
    lab.mend()
    await lab.collect()
    lab.world.advance(8 * DAY)
    await lab.with_fault('mentions', faults.truncated_listing)
    with lab.stopped_by('pack list'):
        await lab.collect()
    lab.must(not lab.count('freed'), 'something was freed')


async def eio(lab: Lab) -> None:
    """The disk gives an error at each read of a recount in turn, then of the second, then of the proof."""
    await lab.week()
    await at_each_read(lab)
    lab.mend()
    await lab.collect()
    lab.world.advance(8 * DAY)
    reads = 0
    while True:
        await lab.with_fault('mentions', faults.FailingReads(reads + 1).put_in)
        if not await fails(lab, ('read error',)) or lab.batches('FREED'):  # of two, the first went through
            break
        reads += 1
        lab.must(not lab.count('freed'), 'something was freed')
    lab.must(reads > 2, 'recount 2 has read nothing')
    lab.say(f'  recount 2: {reads} reads, an error at each of them in turn')
    lab.mend()
    # The proof is not of those who may free: what it cannot read it reports as lost, and the latch falls.
    await lab.with_fault('proof', faults.FailingReads(3).put_in)
    with lab.stopped_by('proof', latch=True):
        await lab.collect()


async def at_each_read(lab: Lab, *others: Fault) -> None:
    """Let each read of the first recount fail in turn: nothing may be condemned as long as one does."""
    reads = 0
    while True:
        await lab.with_fault('recount', faults.fails_at_read(reads + 1), *others)
        failed = await fails(lab, ('node count', 'read error'))
        if not failed or lab.batches():  # it came only after the last read of the first recount
            break
        nothing_moved(lab)
        reads += 1
    lab.must(reads > 3, 'recount 1 has read nothing')
    lab.must(lab.batches(), 'without an error nothing is condemned either')
    lab.say(f'  recount 1: {reads} reads, an error at each of them in turn')


async def fails(lab: Lab, guards: tuple[str, ...]) -> bool:
    """Collect; return False when that went through, True when one of these guards stopped it."""
    try:
        await lab.collect()
    except Exception as error:
        found = guard_of(str(error))
        if found not in guards:
            raise Failed(f'{" or ".join(guards)} was to stop it, but: {error!r}') from error
        if found not in dict(lab.seen):
            lab.note(found, str(error))
        return True
    return False


async def error_as_empty(lab: Lab) -> None:
    """Whoever reads takes an error for the end of what there is to read."""
    await lab.week(letters=180, size=600)  # several leaves, and a branch above them
    await at_each_read(lab, faults.takes_errors_for_ends)


async def stale_catalog(lab: Lab) -> None:
    """A recount reads a catalog of a moment ago, as a replica or a cached pointer would give it."""
    await lab.week()
    await lab.with_fault('recount', faults.reads_store_at(copy_of(lab, 'stale')))
    with lab.stopped_by('horizon'):
        await lab.collect()
    nothing_moved(lab)
    lab.mend()
    await lab.collect()
    lab.world.advance(8 * DAY)
    await lab.with_fault('mentions', faults.second_reads_store_at(copy_of(lab, 'stale too')))
    with lab.stopped_by('horizon'):
        await lab.collect()
    lab.must(not lab.count('freed'), 'something was freed')


def copy_of(lab: Lab, name: str) -> Path:
    """Copy what recounts read of the store, as it is now."""
    path = lab.path.parent / name
    shutil.copytree(lab.path, path, ignore=shutil.ignore_patterns('journal', 'reserve', 'lock'))
    return path


async def unregistered_root(lab: Lab) -> None:
    """Nobody told the registry of a kind of root: it knows of no snapshots, here and in the worker."""
    await lab.week()
    with faults.forgets_kind('snapshot'):
        with lab.stopped_by('standing root'):
            await lab.collect()
        # That guard asks the rows themselves. Now it is gone, too, and the batch goes into quarantine.
        with replaced(moves, '_ROOTS', 'SELECT root FROM canary'):
            await lab.collect()
    wrong = len(lab.read().elsewhere)
    lab.must(wrong, 'nothing that is needed was condemned: the drill is none')
    lab.say(f'  {wrong} chunks that snapshots need are in quarantine now')
    lab.world.advance(8 * DAY)
    with lab.stopped_by('recount 2', latch=True):
        await lab.collect()


async def wrong_total(lab: Lab) -> None:
    """The row of a snapshot claims a reference more than its tree has, or one less."""
    await lab.week()
    for change in (1, -1):
        change_total(lab, change)
        with lab.stopped_by('totals'):
            await lab.collect()
        change_total(lab, -change)
    nothing_moved(lab)


def change_total(lab: Lab, change: int) -> None:
    with lab.engine.store.catalog.transaction() as db:
        db.execute('UPDATE snapshot SET root_refs = root_refs + ? WHERE name = ?', (change, b'tuesday'))


async def vanished_root(lab: Lab) -> None:
    """The row of a snapshot is gone, and nobody asked for that."""
    await lab.week()
    await lab.collect_all()
    catalog = lab.engine.store.catalog
    row = catalog.query('SELECT * FROM snapshot WHERE name = ?', (b'tuesday',))[0]
    with catalog.transaction() as db:
        db.execute('DELETE FROM snapshot WHERE name = ?', (b'tuesday',))
    await lab.delete('wednesday')
    report = await lab.collect()
    reasons = [reason for one in report['waiting'] for reason in one.reasons]
    lab.must(not report['quarantined'] and reasons, 'it was condemned without a word')
    lab.must(guard_of(reasons[0]) == 'day over day', reasons[0])
    lab.note('day over day', f'waits for a person: {reasons[0]}')
    with catalog.transaction() as db:
        db.execute(f'INSERT INTO snapshot VALUES ({",".join("?" * len(row))})', row)
    await lab.reopen()


DRILLS = (
    Drill(
        'lost-page',
        (
            "A page of a snapshot's references is lost while it is counted; what it named looks unused.",
            'Two accidents in one: the block store of 2011; bup, where live trees lost their leaves.',
        ),
        'recount 1 gets a leaf of one snapshot without the references in it',
        ('totals',),
        lost_page,
    ),
    Drill(
        'blind',
        (
            'The count runs to its end and has seen nothing: everything is unused.',
            'Proxmox Backup Server touches a probe chunk first, because access times may be off.',
        ),
        'recount 1 finds no reference in any leaf, and the totals of nodes are right',
        ('canary control', 'latch'),
        blind,
    ),
    Drill(
        'truncated-listing',
        (
            'A listing ends too early and does not say so; what it did not name is taken for absent.',
            'restic over rclone (restic 4612): an error of the listing read as "no files", and prune ran.',
        ),
        'roots, ids of a request, and packs are listed without the last of them',
        ('root count', 'request count', 'pack list'),
        truncated_listing,
    ),
    Drill(
        'eio',
        (
            'The disk fails in the middle of the count: the hardware failure that the job of 2011 met.',
            'MinIO (14053) judged objects dangling while drives were still coming up.',
        ),
        'EIO at every single read of recount 1, of recount 2 and of the proof in turn',
        ('read error', 'proof'),
        eio,
    ),
    Drill(
        'error-as-empty',
        (
            'The error of a scan is thrown away, so the scan just ends, and its list is a part of the list.',
            'JuiceFS gc (6479): `_ = scan(...)`, and live objects were deleted by the thousand.',
        ),
        'recount 1 takes an error of each read in turn for the end of the nodes',
        ('read error', 'node count'),
        error_as_empty,
    ),
    Drill(
        'stale-catalog',
        (
            'The count starts from a pointer that is a little old, and the newest files are not in it.',
            'ClickHouse over Iceberg (114194): rooted at a stale hint, files of a snapshot were lost.',
        ),
        'recount 1, then recount 2, read a copy of the catalog from before the horizon',
        ('horizon',),
        stale_catalog,
    ),
    Drill(
        'unregistered-root',
        (
            'A new kind of thing refers to data, and nobody told the collector.',
            'Trino (19965), Amoro, Iceberg: statistics files were not in the walk, and were deleted.',
        ),
        'the registry of roots forgets that there are snapshots; then a second guard is taken away, too',
        ('standing root', 'recount 2'),
        unregistered_root,
    ),
    Drill(
        'wrong-total',
        (
            'The number that says how much there must be is wrong itself.',
            'S3QL (275): a bug of the database returned wrong rows, and fsck deleted what they missed.',
        ),
        'the row of a snapshot claims a reference too many, then one too few',
        ('totals',),
        wrong_total,
    ),
    Drill(
        'vanished-root',
        (
            'The entry of a snapshot gets lost, so that nothing says that its data is needed.',
            'borg 2 compact: an archive whose entry is gone is garbage; only a slow check finds it again.',
        ),
        'the row of a snapshot disappears from the catalog without a request',
        ('day over day',),
        vanished_root,
    ),
)
