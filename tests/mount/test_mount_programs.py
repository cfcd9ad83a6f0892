"""Real programs do their work on a mount, and find what they left there."""

import contextlib
import os
import random
import sqlite3
from pathlib import Path

import pytest

from tests.support.mounted import require_programs, run, shell
from tests.support.sample import SPARSE_BYTES, describe, differences, make_sample

REPOSITORY_FILES = 120


@pytest.fixture(scope='module')
def sample(tmp_path_factory) -> Path:
    """One tree with everything, on the machine's own disk. Nobody changes it."""
    top = tmp_path_factory.mktemp('sample') / 'tree'
    top.mkdir()
    make_sample(top)
    return top


def assert_same(one: Path, other: Path) -> None:
    found = differences(one, other)
    assert not found, '\n'.join(found[:10])


TAR = ['tar', '--format=posix', '--numeric-owner', '--xattrs', '--xattrs-include=*', '--sparse']


def test_tar_brings_everything_there_and_back(home: Path, sample: Path, tmp_path: Path):
    run(*TAR, '-C', sample, '-cf', tmp_path / 'in.tar', '.')
    (home / 'tree').mkdir()
    run(*TAR, '-C', home / 'tree', '-xpf', tmp_path / 'in.tar')
    assert_same(sample, home / 'tree')
    assert os.stat(home / 'tree/odd/sparse').st_blocks * 512 < SPARSE_BYTES // 100
    run(*TAR, '-C', home / 'tree', '-cf', home / 'out.tar', '.')
    run(*TAR, '-C', home / 'tree', '--compare', '-f', home / 'out.tar')
    (tmp_path / 'back').mkdir()
    run(*TAR, '-C', tmp_path / 'back', '-xpf', home / 'out.tar')
    assert_same(sample, tmp_path / 'back')


def test_cp_copies_everything(home: Path, sample: Path):
    run('cp', '-a', sample, home / 'tree')
    assert_same(sample, home / 'tree')
    run('cp', '-a', home / 'tree', home / 'again')
    assert_same(sample, home / 'again')
    assert os.stat(home / 'again/odd/sparse').st_blocks * 512 < SPARSE_BYTES


def test_rsync_transfers_everything_once(home: Path, sample: Path):
    rsync = ['rsync', '-aHAXS', '--itemize-changes', f'{sample}/', f'{home}/tree/']
    assert len(run(*rsync).splitlines()) >= len(describe(sample))
    assert_same(sample, home / 'tree')
    assert run(*rsync) == ''
    assert run(*rsync, '--checksum') == ''
    run('rsync', '-aHAX', '--delete', f'{home}/', f'{home}/tree/', '--exclude=tree', '--itemize-changes')
    assert os.listdir(home / 'tree') == []


def test_git_works_in_a_clone(home: Path, tmp_path: Path):
    origin = tmp_path / 'origin'
    me = '-c user.name=somebody -c user.email=somebody@example.org -c init.defaultBranch=main'
    origin.mkdir()
    for number in range(REPOSITORY_FILES):
        (origin / f'{number % 5}').mkdir(exist_ok=True)
        (origin / f'{number % 5}/{number}.txt').write_text(f'{number}\n' * number)
    shell(f'git {me} init -q; git add .; git {me} commit -qm first', origin)
    run('git', 'clone', '-q', '--no-hardlinks', origin, home / 'clone')
    clone = home / 'clone'
    assert run('git', 'status', '--porcelain', cwd=clone) == ''
    script = f"""
        for number in 1 2 3; do
            echo changed $number >> 0/0.txt; git rm -q $number/$number.txt; echo new > new-$number
            git add .; git {me} commit -qm "change $number"
        done
        git {me} checkout -q -b other HEAD~2; echo other > other.txt; git add .; git {me} commit -qm other
        git {me} merge -q --no-edit main; git gc -q --prune=now; git fsck --strict --full; git log --oneline
    """
    assert 'change 3' in shell(script, clone)
    assert run('git', 'status', '--porcelain', cwd=clone) == ''
    assert len(list((clone / '.git/objects/pack').glob('*.pack'))) == 1


@pytest.mark.parametrize('journal', ['wal', 'delete', 'truncate', 'persist'])
def test_sqlite_keeps_its_integrity(home: Path, journal: str):
    path = home / 'database'
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as one,
        contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other,
    ):
        assert one.execute(f'PRAGMA journal_mode={journal}').fetchone() == (journal,)
        one.execute('CREATE TABLE numbers (number INTEGER PRIMARY KEY, content BLOB)')
        chance = random.Random(3)
        for turn in range(8):
            one.execute('BEGIN IMMEDIATE')
            rows = [(turn * 100 + row, chance.randbytes(chance.randrange(900))) for row in range(100)]
            one.executemany('INSERT INTO numbers VALUES (?, ?)', rows)
            with pytest.raises(sqlite3.OperationalError, match='locked'):
                other.execute('BEGIN IMMEDIATE')
            one.execute('ROLLBACK' if turn % 4 == 3 else 'COMMIT')
        one.execute('DELETE FROM numbers WHERE number % 3 = 0')
        assert other.execute('SELECT count(*) FROM numbers').fetchone() == (400,)
        one.execute('VACUUM')
    assert run('sqlite3', path, 'PRAGMA integrity_check').strip() == 'ok'
    assert run('sqlite3', path, 'SELECT count(*) FROM numbers').strip() == '400'


def test_a_compiler_builds_a_program(home: Path):
    parts = range(6)
    for part in parts:
        (home / f'part{part}.c').write_text(f'#include "all.h"\nint part{part}(void) {{ return {part}; }}\n')
    declared = '\n'.join(f'int part{part}(void);' for part in parts)
    (home / 'all.h').write_text(f'#include <stdio.h>\n{declared}\n')
    total = ' + '.join(f'part{part}()' for part in parts)
    (home / 'main.c').write_text(
        f'#include "all.h"\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    objects = ' '.join(f'part{part}.o' for part in parts)
    (home / 'Makefile').write_text(
        f'all: main\nlib.a: {objects}\n\tar rc $@ $^\nmain: main.o lib.a\n*.o: all.h\n'
    )
    assert 'gcc' in run('make', '-j2', 'CC=gcc', cwd=home)
    assert run(home / 'main', cwd=home) == '15\n'
    assert 'gcc' not in run('make', '-j2', 'CC=gcc', cwd=home)
    (home / 'part3.c').write_text('int part3(void) { return 100; }\n')
    built = run('make', '-j2', 'CC=gcc', cwd=home)
    assert '-o part3.o' in built
    assert '-o part2.o' not in built
    assert run(home / 'main', cwd=home) == '112\n'


@pytest.mark.parametrize(
    'words',
    [
        ('--rw=randwrite', '--bs=4k', '--size=8m', '--fdatasync=64'),
        ('--rw=randrw', '--bssplit=512/20:4k/40:33k/20:128k/20', '--size=8m', '--numjobs=2', '--fsync=50'),
        ('--rw=randwrite', '--bs=4k', '--size=4m', '--ioengine=mmap', '--fsync=100'),
        ('--rw=write', '--bs=1m', '--size=48m', '--end_fsync=1'),
    ],
    ids=['random', 'mixed', 'mapped', 'sequential'],
)
def test_fio_reads_what_it_wrote(home: Path, words: tuple[str, ...]):
    require_programs(['fio'])
    job = ['--name=job', f'--directory={home}', '--verify=crc32c', '--verify_fatal=1', '--randseed=7']
    run('fio', *job, '--minimal', '--fallocate=none', *words)
