"""Tool: crashes: drills in which the process is killed, between any two steps of a batch. Event loop only,
but for `victim`, which is the whole of another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from snapfs.errors import Latched
from tools.drill.drill import Drill
from tools.drill.lab import Lab, small_store
from tools.drill.world import DAY, DrillWorld, KillDisk, Killed

STRIDE = 1  # every step; tests that run often take fewer
KILLS_9 = 5
SECONDS_MAX = 60


async def one_batch(lab: Lab) -> None:
    """Bring what is asked for into quarantine, and what is due to its end."""
    await lab.collect_approved()
    lab.world.advance(8 * DAY)
    await lab.collect_approved()


async def restore_all(lab: Lab) -> None:
    """Bring what is asked for into quarantine, and all of it back, as an alarm does."""
    await lab.collect_approved()
    await lab.world.run_in_thread(lab.collecting.collector.restore_all, 'the drill')
    await lab.collecting.engine_changed()


async def something_to_delete(lab: Lab, count: int) -> None:
    """Take and delete a snapshot that alone keeps two files."""
    name = f'night-{count:03}'
    for n in range(2):
        await lab.write(f'letter-{n:03}', lab.noise(3000))
    await lab.snapshot(name)
    for n in range(2):
        await lab.write(f'letter-{n:03}', lab.noise(3000))
    await lab.delete(name)
    await lab.engine.commit()


async def killed_at_every_step(lab: Lab) -> None:
    """Kill the process before every write, sync, new or removed name, and after every transaction."""
    await lab.week(letters=12, size=2000, books=10)
    lives = (
        (one_batch, 'from the request to the sweep', 'FREED'),
        (restore_all, 'from the request and back', 'RESTORED'),
    )
    for life, what, end in lives:
        kills = 0
        while await dies_at(lab, 1 + kills * STRIDE, life):
            kills += 1
            left = [row.state for row in lab.batches('PLANNED')]
            lab.must(not left, f'after kill {kills} a batch is PLANNED')
            await lab.check()
            lab.must(not lab.latched(), f'a false alarm after kill {kills}: {lab.latched()}')
        lab.must(lab.batches()[-1].state == end, f'nothing is {end} in the end')
        lab.must(kills * STRIDE > 50, f'only {kills} kills')
        each = 'each step' if STRIDE == 1 else f'each {STRIDE}th step'
        lab.note('recovery', f'{kills} kills, one at {each} {what}: all files as written after each')
        await lab.collect_all()
        await lab.check()


async def dies_at(lab: Lab, step: int, life: Callable[[Lab], Awaitable[None]]) -> bool:
    """Live until this step and die there, then open the store again; False when life ended before."""
    disk = KillDisk()
    await lab.close()
    await lab.open(disk)
    await something_to_delete(lab, step)
    disk.steps, disk.kill_at = 0, step
    try:
        await life(lab)
    except (Killed, Latched):
        lab.must(disk.dead, 'the store has latched')
        lab.drop()
        await lab.open()
        return True
    disk.kill_at = None
    return False


async def really_killed(lab: Lab) -> None:
    """Another process, and SIGKILL: the kernel takes everything from it in the middle of a batch."""
    await lab.week(letters=12, size=2000, books=10)
    kills = 0
    for part in range(KILLS_9):
        await something_to_delete(lab, part)
        await lab.close()
        code = await trio.to_thread.run_sync(run_victim, lab.path, 10 + 30 * part)
        lab.must(code in (0, -9), f'the other process ended with {code}')
        kills += code == -9
        # Its clock is its own; this one must not lie behind what the store has seen.
        lab.world.advance(30 * DAY)
        await lab.open()
        await lab.check()
        lab.must(not lab.latched(), f'a false alarm: {lab.latched()}')
    lab.must(kills > 2, f'only {kills} of {KILLS_9} were killed')
    lab.note('recovery', f'{kills} processes killed with SIGKILL: all files as written after each')


def run_victim(store: Path, kill_at: int) -> int:
    """Run a process that collects and is killed at a step; return how it ended (-9: killed)."""
    command = [sys.executable, '-m', 'tools.drill.crashes', str(store), str(kill_at)]
    where = Path(__file__).parent.parent.parent
    return subprocess.run(command, cwd=where, timeout=SECONDS_MAX, check=False).returncode


async def victim(store: Path, kill_at: int) -> None:
    """Collect on this store and be killed before step `kill_at`."""
    lab = Lab(store)
    lab.world = DrillWorld(seed=kill_at)  # packs need names that no other process has given
    disk = KillDisk(really=True)
    lab.world.advance(60 * DAY)
    await lab.open(disk)
    disk.steps, disk.kill_at = 0, kill_at
    await one_batch(lab)
    await lab.close()


DRILLS = (
    Drill(
        'kill',
        (
            'The process dies in the middle: between the list and its rows, the rows and the files.',
            'S3QL (329): an aborted fsck corrupted its metadata. OpenZFS (16713): a block freed twice.',
        ),
        'the process dies at every step of a batch, forwards and back, and the store is opened again',
        ('recovery',),
        killed_at_every_step,
    ),
    Drill(
        'kill-9',
        (
            'The same with a process of its own and a real SIGKILL, as the kernel does it when memory ends.',
            'Ceph RGW (16732): an operation done twice queued parts that were alive for deletion.',
        ),
        f'{KILLS_9} processes collect on one store, and are killed on their way',
        ('recovery',),
        really_killed,
    ),
)

if __name__ == '__main__':
    with small_store():
        trio.run(victim, Path(sys.argv[1]), int(sys.argv[2]))
