"""Tool: races: drills in which somebody does something while a batch is on its way. Event loop only."""

from __future__ import annotations

from contextlib import nullcontext

from snapfs.collect.configuration import change
from snapfs.collect.plan import Plan
from snapfs.service import collecting
from snapfs.volume.engine import Engine
from tools.drill.drill import Drill
from tools.drill.lab import Lab, replaced
from tools.drill.world import DAY


async def dedup_hit(lab: Lab) -> None:
    """Before every step of two batches a user writes again what they are about to delete."""
    await lab.week(letters=120, size=600)
    condemned = [lab.requests['monday'][f'letter-{n:03}'] for n in range(80, 120)]
    steps: list[str] = []

    async def write_again(step: str) -> None:
        lab.world.on_step = None
        number = len(steps)
        await lab.write(f'again-{number:03}', condemned[number % len(condemned)])
        await lab.engine.commit()
        steps.append(step)
        lab.world.on_step = write_again

    lab.world.on_step = write_again
    await lab.collect()
    excluded = sum(path.stat().st_size // 32 for path in lab.path.glob('batches/*/excluded'))
    lab.must(excluded, 'no chunk was put between a horizon and its quarantine')
    lab.note('put record', f'{excluded} condemned chunks were put since the horizon, and stayed')
    text = 'SELECT count(*) FROM quarantine q JOIN chunk c ON c.id = q.id'
    fresh = lab.engine.store.catalog.query(text)[0][0]
    lab.must(fresh, 'no chunk was put while it was in quarantine')
    lab.note('blind writers', f'{fresh} chunks in quarantine were put again: fresh copies, at other places')
    lab.world.advance(8 * DAY)
    await lab.collect()
    lab.world.advance(8 * DAY)
    await lab.collect()
    lab.must(not lab.latched(), f'a false alarm: {lab.latched()}')
    lab.must(lab.batches('FREED'), 'no batch was freed')
    lab.say(f'  {len(steps)} steps, of these different: {", ".join(dict.fromkeys(steps))}')


async def two_collectors(lab: Lab) -> None:
    """A second collector comes to the store; then the lock is broken, and both run."""
    await lab.week()
    store = lab.engine.store
    change(store.catalog, store.audit, 'limit-share', '100%', 'ann')  # nothing waits for a person here
    with lab.stopped_by('lock'):
        await Engine.open(lab.path, type(lab.engine.store.disk)(), lab.world)
    first = lab.collecting

    async def begin_beside(step: str) -> None:
        if step == 'slice' and lab.batches('PLANNED'):
            lab.world.on_step = None
            second = lab.new_collecting()
            with lab.stopped_by('look lock'):
                await second.collect()
            # That lock broken as well: one that takes nothing for half done.
            with (
                replaced(collecting, 'without_verifiers', lambda *arguments: nullcontext()),
                replaced(second.collector, 'recover', list),
                lab.stopped_by('one moves'),
            ):
                await second.collect()

    lab.world.on_step = begin_beside
    await first.collect()
    for row in lab.batches('QUARANTINED'):
        await lab.world.run_in_thread(first.collector.restore, row.number, 'the drill begins again')
    await first.engine_changed()

    async def recover_beside(step: str) -> None:
        if step == 'slice' and lab.batches('PLANNED'):
            lab.world.on_step = None
            await lab.new_collecting().begin()  # as after a crash: what is half decided goes back

    lab.world.on_step = recover_beside
    with lab.stopped_by('fence'):
        await first.collect()
    lab.must(not lab.count('quarantine') and not lab.count('freed'), 'the first one went on')
    await lab.reopen()


async def other_plan(lab: Lab) -> None:
    """A plan above the limits is approved; what runs is another one."""
    for n in range(10):
        await lab.write(f'letter-{n:03}', lab.noise(20_000))
    await lab.snapshot('monday')
    for n in range(2, 10):
        await lab.remove(f'letter-{n:03}')
    number = await lab.delete('monday')
    await lab.engine.commit()
    approved = (await waits(lab)).digest
    lab.note('limits', f'the plan {approved.hex()[:16]} waits for a person')
    await lab.collecting.approve(approved, 'bob')
    await lab.engine.snapshot_undelete(number)
    lab.snapshots['monday'] = lab.requests.pop('monday')
    await lab.write('letter-002', lab.noise(20_000))
    await lab.delete('monday')
    await lab.engine.commit()
    other = await waits(lab)
    lab.must(other.digest != approved, 'the other plan has the same digest')
    with lab.stopped_by('plan digest'):
        await lab.collecting.approve(approved, 'bob')
    # Bob looks at this one, too, and then somebody changes what it condemns.
    await lab.collecting.approve(other.digest, 'bob')
    path = lab.path / 'batches' / str(other.batch) / 'condemned'
    was = path.read_bytes()
    (needed,) = lab.engine.store.catalog.query('SELECT root FROM volume')[0]
    path.write_bytes(b''.join(sorted([needed, *[was[n : n + 32] for n in range(32, len(was), 32)]])))
    with lab.stopped_by('plan digest'):
        await lab.collect()
    lab.must(all(row.grace_class != 'kept' for row in lab.batches()), 'a batch was made')
    path.write_bytes(was)
    await lab.reopen()


async def waits(lab: Lab) -> Plan:
    """Collect; return the plan for snapshots, which must wait."""
    await lab.collect()
    kept = [row.number for row in lab.batches() if row.grace_class == 'kept']
    lab.must(not kept, 'a plan that nobody has approved went through')
    waiting = lab.collecting.waiting.get('kept')
    lab.must(waiting, 'no plan waits')
    assert waiting is not None
    return waiting.plan


DRILLS = (
    Drill(
        'dedup-hit',
        (
            'While the collector works a user writes the same content again, and shares what is condemned.',
            'Docker registry (3045): pushes took layers that "already exist" while they were being swept.',
        ),
        'before every step of two batches a user writes a file that they are about to delete',
        ('put record', 'blind writers'),
        dedup_hit,
    ),
    Drill(
        'two-collectors',
        (
            'Two of them run at once, and each undoes what the other one relies on.',
            'borg (4923, 3590): removing a stale lock was not atomic; a script broke locks in a loop.',
        ),
        'a second owner opens the store; then, the lock broken, it begins and restores beside the first',
        ('lock', 'look lock', 'one moves', 'fence'),
        two_collectors,
    ),
    Drill(
        'other-plan',
        (
            'People approved one list, and another one was carried out.',
            'The block store of 2011: the marks were there, people looked, and the deletion ran.',
        ),
        'the requests change after the approval; then somebody edits the list of an approved plan',
        ('limits', 'plan digest'),
        other_plan,
    ),
)
