"""Tool: ebs2011: the accident itself, told step by step with the numbers of the run. Event loop only."""

from __future__ import annotations

from dataclasses import replace

from snapfs.collect.mention_values import Mentions
from tools.drill import faults
from tools.drill.counting import nothing_moved, only_of_tuesday
from tools.drill.drill import Drill
from tools.drill.lab import Fault, Lab
from tools.drill.walker import Reading
from tools.drill.world import DAY

LETTERS, LETTER_BYTES, BOOKS = 240, 600, 60
HALF_AN_HOUR = 1800.0


async def accident(lab: Lab) -> None:
    """Lose a page of references of one snapshot, as the job of 2011 did; then take guard after guard away."""
    say = lab.say
    await lab.week(LETTERS, LETTER_BYTES, BOOKS)
    say('August 2011. A store, a volume "home", three snapshots; Monday\'s is to be deleted.')
    say(
        f'  {len(lab.live)} files, {lab.count("chunk")} chunks in {lab.count("pack")} packs; '
        "Tuesday's snapshot alone keeps 72 letters that Monday's had, too"
    )
    page = job_of_2011(lab, lab.read())
    say('')
    say('Now snapfs, with the same page lost in the same way.')
    await totals_stop_it(lab, page)
    await reader_stops_it(lab, page)
    await canary_stops_it(lab)
    await later_run_stops_it(lab, page)
    await recount_2_stops_it(lab, page)
    await proof_stops_it(lab)


def job_of_2011(lab: Lab, reading: Reading) -> bytes:
    """Do what the job did, on paper; return the page that it lost."""
    say = lab.say
    deleted = reading.reach['request monday']
    others = {title: reach for title, reach in reading.reach.items() if title != 'request monday'}
    right = deleted.difference(*others.values())
    say('')
    say('The job of those days makes three lists and saves the difference:')
    say(f'  {len(deleted)} chunks in the deleted snapshot, minus those of the volume and of other snapshots')
    say(f'  = {len(right)} that nobody needs any more. That would be right.')
    candidates = {page: len(needed_alone(reading, page, deleted)) for page in only_of_tuesday(lab)}
    page = max(sorted(candidates), key=lambda one: candidates[one])
    wrong = needed_alone(reading, page, deleted)
    lab.must(wrong, 'the page is needed by nobody: the drill is none')
    files = sorted({file for id in wrong for title, file in reading.owners.get(id, ()) if 'tuesday' in title})
    size = sum(reading.sizes[id] for id in wrong)
    say(f"  But a disk hiccups, and one page of {len(reading.pages[page])} references of Tuesday's is lost.")
    say(f'  Now the difference is {len(right) + len(wrong)} chunks. {len(wrong)} of them ({size} bytes) are')
    say(f'  needed: in home@tuesday {len(files)} files would be gone, {files[0]} to {files[-1]}.')
    say('  The job ran again a week later, marked the blocks that were both unused and used,')
    say('  people looked at the marks and missed them, and it deleted.')
    return page


def needed_alone(reading: Reading, page: bytes, deleted: set[bytes]) -> set[bytes]:
    """Return what of a deleted tree only this page of Tuesday's tree keeps."""
    rest: set[bytes] = set()
    for title, leaves in reading.leaves.items():
        if title != 'request monday':
            rest = rest.union(*(reading.pages[leaf] for leaf in leaves if leaf != page))
    return (reading.pages[page] & deleted) - rest


async def lose(lab: Lab, page: bytes | None) -> None:
    """Recount 1 loses the page (None: every page), and its totals do not tell."""
    await lab.with_fault(
        'recount', faults.loses_pages(None if page is None else frozenset([page])), *totals_off(page)
    )


def totals_off(page: bytes | None) -> tuple[Fault, ...]:
    """Return the fault that takes the totals away; who loses every page has taken them along."""
    return () if page is None else (faults.no_totals,)


async def totals_stop_it(lab: Lab, page: bytes) -> None:
    """First: the page is lost between the disk and recount 1."""
    lab.say('1. Recount 1 reads the tree without that page.')
    await lab.with_fault('recount', faults.loses_pages(frozenset([page])))
    with lab.stopped_by('totals'):
        await lab.collect()
    nothing_moved(lab)
    lab.say('  Every parent says how much is below its children. The run ends; nothing is condemned.')


async def condemn_wrongly(lab: Lab, page: bytes) -> int:
    """Let a wrong batch rest in quarantine; return how many chunks in it are needed."""
    await lose(lab, page)
    await lab.collect()
    reading = lab.read()
    wrong = reading.elsewhere
    lab.must(wrong, 'nothing that is needed was condemned: the drill is none')
    lab.must(not lab.differences(reading, indexed=False), 'a file is not what was written')
    lab.mend()
    return len(wrong)


async def reader_stops_it(lab: Lab, page: bytes) -> None:
    """Second: no totals. What is condemned is read by somebody."""
    lab.say('2. The same, and nobody compares totals any more.')
    wrong = await condemn_wrongly(lab, page)
    lab.say(
        f'  {lab.count("quarantine")} chunks are in quarantine, {wrong} of them needed. No byte has gone.'
    )
    found = await lab.read_snapshot('tuesday')
    lab.must(found == lab.snapshots['tuesday'], 'the reader did not get what was written')
    lab.must(lab.latched(), 'a condemned chunk was read, and the latch did not fall')
    lab.note('read alarm', str(lab.latched()))
    await all_is_back(lab, f'A user reads home@tuesday and gets all {len(found)} files; the latch falls.')


async def canary_stops_it(lab: Lab) -> None:
    """Third: it is not one page that is lost, but every one."""
    lab.say('3. The hiccup is worse: no page is seen, of anything. The totals are right, nobody is alive.')
    await lose(lab, None)
    with lab.stopped_by('canary control', latch=True):
        await lab.collect()
    await all_is_back(lab, 'Planted chunks are alive by design. Who does not see them sees nothing.')


async def later_run_stops_it(lab: Lab, page: bytes) -> None:
    """Fourth: the next run, whose disk is well again, notices, as that of 2011 did."""
    lab.say('4. One page again, no totals, and nobody reads. Half an hour later the next run is a good one.')
    await condemn_wrongly(lab, page)
    await lab.write('letter-000', lab.noise(LETTER_BYTES))
    await lab.engine.commit()
    lab.world.advance(HALF_AN_HOUR)
    with lab.stopped_by('later recount', latch=True):
        await lab.collect()
    await all_is_back(lab, 'This is the mark that people missed in 2011. Here it is not for people to see.')


async def recount_2_stops_it(lab: Lab, page: bytes) -> None:
    """Fifth: there is no good run, and nobody reads, until the grace is over."""
    lab.say('5. One page, no totals, no reader, no good run: eight days pass, and it is to be freed.')
    await condemn_wrongly(lab, page)
    await lose(lab, page)
    lab.world.advance(8 * DAY)
    with lab.stopped_by('recount 2', latch=True):
        await lab.collect()
    lab.must(not lab.count('freed'), 'something was freed')
    await all_is_back(lab, 'The second count is another program, from the other end: who mentions it?')


async def all_is_back(lab: Lab, moral: str) -> None:
    """After an alarm everything is where it was; then a person lets the collector go on."""
    await lab.answer()
    lab.must(not lab.count('quarantine'), 'the alarm did not bring everything back')
    with lab.stopped_by('latch'):
        await lab.collect()
    files = await lab.check()
    lab.say(f'  {moral}')
    lab.say(f'  Everything is back: {files} files read from the disk, every byte as written.')
    lab.mend()
    await lab.acknowledge()


def sees_nothing(found: Mentions) -> Mentions:
    """Return what a blind recount 2 would say."""
    return replace(found, live=(), live_count=0, leftovers=())


async def proof_stops_it(outer: Lab) -> None:
    """Sixth, on a store of its own, which is left to people: recount 2 is blind as well."""
    outer.say('6. All of that, and the second count is blind, too.')
    lab = Lab(outer.path.parent / 'sixth', outer.say)
    await lab.make()
    try:
        await lab.week(LETTERS, LETTER_BYTES, BOOKS)
        await lose(lab, max(sorted(only_of_tuesday(lab)), key=lambda page: len(lab.read().pages[page])))
        lab.answers['mentions'] = sees_nothing
        await lab.collect()
        resting = lab.count('quarantine')
        lab.world.advance(8 * DAY)
        with lab.stopped_by('proof', latch=True):
            await lab.collect()
        lab.world.advance(8 * DAY)
        with lab.stopped_by('latch'):
            await lab.collect()
        freed = lab.count('freed')
        lab.must(freed * 10 < resting, f'{freed} of {resting} chunks were freed')
        files = await lab.check(indexed=False)
        lab.say(f'  {freed} of {resting} condemned chunks went first, alone, and then every reference was')
        lab.say(f'  looked for. The pack of that one stands, too: {files} files, every byte as written.')
    finally:
        outer.seen += lab.seen
        lab.mend()
        await lab.close()


DRILLS = (
    Drill(
        'ebs-2011',
        (
            'A clean-up job lost some references of some snapshots, its later run flagged that, people',
            'missed the flags, and live blocks were freed: a block-storage service in August 2011.',
        ),
        'recount 1 loses a page of references of one snapshot; then the guards are taken away one by one',
        ('totals', 'read alarm', 'canary control', 'later recount', 'recount 2', 'proof', 'latch'),
        accident,
    ),
)
