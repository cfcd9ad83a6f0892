"""A machine whose power is cut again and again: mount, work, cut, look, go on."""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.power.disk import LoopDisk
from tests.power.work import Clock, Done, Worker, explain, freeze, note, promised
from tests.support.fsck import damages
from tests.support.model import Node
from tests.support.mounted import SNAPFS, run

WORKERS = ['one', 'two', 'three']
CALLS_MAX = 160
WAIT_SECONDS = 30.0
SNAPSHOTS_MAX = 4
# What the log of a daemon whose disk died may not hold.
BUG = re.compile(r'Traceback|AssertionError|bug:')


class PowerLost(AssertionError):
    """Something promised is not there, or something else is wrong after a cut."""


class Machine:
    """One store on one disk. `seed` decides what is done and at which call the power goes."""

    def __init__(self, place: Path, kind: str, seed: int) -> None:
        self.place, self.seed = place, seed
        self.chance = random.Random(f'{kind} {seed}')
        self.disk = LoopDisk(place, kind)
        self.store, self.path = self.disk.path / 'store', place / 'mnt'
        self.path.mkdir()
        self.counts = dict.fromkeys(('cuts', 'calls', 'fsyncs', 'kept', 'lost', 'snapshots', 'freed'), 0)
        self.roots = {name: Node(0o40755, nlink=2) for name in WORKERS}
        self.snapshots: dict[str, Any] = {}
        self.note = f'{kind}, seed {seed}'
        self._pid = 0
        self._log = place / 'daemon.log'
        run(SNAPFS, 'init', self.store)
        self.mount()
        (self.path / 'home').mkdir()
        for name in WORKERS:
            (self.path / 'home' / name).mkdir()
            (self.path / 'home' / name).chmod(0o755)
        self._snapfs('config', 'limit-share', '100%')

    # --- the daemon --------------------------------------------------------------------------------------
    def _snapfs(self, *words: str) -> str:
        return run(SNAPFS, *words, '--store', self.store)

    def mount(self) -> None:
        """Mount the store, which recovers by itself."""
        self._log.write_bytes(b'')
        run(SNAPFS, 'mount', '--log', self._log, self.store, self.path)
        self._pid = json.loads(self._snapfs('status', '--json'))['daemon']['pid']

    def _kill(self) -> None:
        if self._pid:
            try:
                handle, self._pid = os.pidfd_open(self._pid), 0
            except ProcessLookupError:
                log = self._log.read_text(errors='replace')[-3000:]
                raise PowerLost(f'{self.note}: the daemon has ended by itself: {log}') from None
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                if not select.select([handle], [], [], WAIT_SECONDS)[0]:
                    raise PowerLost(f'{self.note}: a killed daemon does not end')
            finally:
                os.close(handle)

    def end(self) -> None:
        """Nothing of this machine is left running or mounted."""
        if self._pid and os.path.exists(f'/proc/{self._pid}'):
            os.kill(self._pid, signal.SIGKILL)
        for words in (['fusermount3', '-u', '-z', '-q'], ['umount', '-l', '-q']):
            subprocess.run([*words, str(self.path)], capture_output=True, timeout=20, check=False)
        self.disk.end()

    # --- one cut -----------------------------------------------------------------------------------------
    def cycle(self) -> None:
        """Work, cut the power, look, and be ready to go on."""
        number = self.counts['cuts']
        note = f'{self.note}, cut {number}'
        clock = Clock(self.chance.randrange(1, CALLS_MAX), self.disk.cut)
        top = self.path / 'home'
        workers = [Worker(top, name, f'{self.note} {number} {name}', self.roots[name]) for name in WORKERS]
        people: list[Done] = []
        tasks = [threading.Thread(target=one.run, args=(clock,), daemon=True) for one in workers]
        tasks.append(threading.Thread(target=self._people, args=(clock, people), daemon=True))
        for task in tasks:
            task.start()
        for task in tasks:
            task.join(WAIT_SECONDS)
        stuck = any(task.is_alive() for task in tasks)
        self._kill()  # a call that hangs ends now
        run('umount', '-l', self.path)
        for task in tasks:
            task.join(WAIT_SECONDS)
        odd = [repr(one.odd) for one in workers if one.odd is not None]
        if stuck or odd:
            raise PowerLost(f'{note}: {"a call hung; " if stuck else ""}{odd}')
        bugs = [line for line in self._log.read_text(errors='replace').splitlines() if BUG.search(line)]
        if bugs:
            raise PowerLost(f'{note}: the daemon of a dead disk: {bugs[:3]}')
        self.disk.umount()
        self.disk.mount()
        self._check(note, workers, people)
        self.counts['cuts'] += 1

    def _people(self, clock: Clock, people: list[Done]) -> None:
        """Take and delete snapshots, and let the collector work, between the calls of the workers."""
        chance = random.Random(f'{self.note} {self.counts["cuts"]} people')
        shelf = self.path / 'home' / '.snapshots'
        known = sorted(self.snapshots)
        try:
            while not clock.off:
                way = chance.choice(['take', 'take', 'delete', 'collect'])
                if way == 'collect':
                    self._collect()
                    continue
                if way == 'take':
                    name = f's{self.counts["cuts"]:04}-{len(people):02}'
                elif len(known) > SNAPSHOTS_MAX:
                    name = known.pop(0)
                else:
                    continue
                done = Done((way, name), clock.begin())
                people.append(done)
                (os.mkdir if way == 'take' else os.rmdir)(shelf / name)
                done.ended = clock.end()
                if way == 'take':
                    known.append(name)
        except OSError:
            pass  # the power; if not, what is missing will be seen

    def _collect(self) -> None:
        """Let the collector go a step, and free what rests. It may refuse, and its disk may die."""
        for words in (['collect', '--json'], ['collect', 'approve', 'DIGEST']):
            if words[-1] == 'DIGEST':
                resting = self._resting()
                if not resting:
                    return
                words[-1] = resting
            self._quietly(*words)

    def _quietly(self, *words: str) -> str:
        done = subprocess.run(
            [str(SNAPFS), *words, '--store', str(self.store)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        return done.stdout if done.returncode == 0 else ''

    def _resting(self) -> str:
        try:
            status = json.loads(self._quietly('collect', '--json') or '{}')
        except ValueError:
            return ''
        found = re.findall(r'"digest": "([0-9a-f]{64})"', json.dumps(status))
        return str(found[0]) if found else ''

    # --- what must be true -------------------------------------------------------------------------------
    def _check(self, note: str, workers: list[Worker], people: list[Done]) -> None:
        found = damages(self.store)
        if found:
            raise PowerLost(f'{note}: fsck of what the cut left: {found[:3]}')
        self.mount()
        health = json.loads(self._snapfs('status', '--json'))['health']
        if health != 'ok':
            raise PowerLost(f'{note}: health {health}')
        top = self.path / 'home'
        low = promised(workers, people)
        now = {name: freeze(top / name) for name in WORKERS}
        wrong = explain(workers, now, low, sys.maxsize)
        if wrong:
            raise PowerLost(f'{note}: {wrong}')
        self._check_snapshots(note, workers, people)
        for worker in workers:
            states = worker.states()
            kept = max(number for number, state in enumerate(states) if state == now[worker.name])
            self.counts['kept'] += kept
            self.counts['lost'] += len(worker.done) - kept
            self.counts['calls'] += len(worker.done)
            acknowledged = [one for one in worker.done if one.call[0] == 'fsync' and one.ended is not None]
            self.counts['fsyncs'] += len(acknowledged)
            self.roots[worker.name] = _rebuild(worker, kept)

    def _check_snapshots(self, note: str, workers: list[Worker], people: list[Done]) -> None:
        shelf = self.path / 'home' / '.snapshots'
        there = set(os.listdir(shelf))
        must, may = set(self.snapshots), set(self.snapshots)
        born = {}
        for one in people:
            way, name = one.call
            if way == 'take':
                born[name] = one
                may.add(name)
                if one.ended is not None:
                    must.add(name)
            else:
                must.discard(name)
                if one.ended is not None:
                    may.discard(name)
        if not must <= there <= may:
            raise PowerLost(f'{note}: snapshots {sorted(there)}; missing {sorted(must - there)}')
        fresh = {}
        for name in there:
            tree = {worker: freeze(shelf / name / worker) for worker in WORKERS}
            if name in self.snapshots:
                wrong = None if tree == self.snapshots[name] else 'it is not what it was (P6)'
            else:
                one = born[name]
                wrong = explain(workers, tree, one.begun, sys.maxsize if one.ended is None else one.ended)
            if wrong:
                raise PowerLost(f'{note}: snapshot {name}: {wrong}')
            fresh[name] = tree
        self.counts['snapshots'] += len(born)
        self.counts['freed'] = (self.store / 'audit.log').read_bytes().count(b'"pack-gone"')
        self.snapshots = fresh


def _rebuild(worker: Worker, calls: int) -> Node:
    """Return the model after so many calls."""
    for done in worker.done[:calls]:
        note(worker.start, done.call)
    return worker.start
