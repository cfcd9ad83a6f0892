"""The demonstration behind `make demo`: the main job on a real store and a real mount, command by command.

Prints each command as a person would type it, runs just that, and prints what it really said. The mount stays
for the reader to explore; `python -m tools.demo --stop` ends it and removes the store.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent
SNAPFS = BIN / 'snapfs'
LINES_SHOWN = 12


class Failed(Exception):
    """A command did not do what the demonstration says."""


def place() -> Path:
    """Return the directory of the demonstration; one for each user."""
    return Path(tempfile.gettempdir()) / f'snapfs-demo-{os.getuid()}'


def say(text: str) -> None:
    """Print a line that is no command."""
    print(f'\n\x1b[1m# {text}\x1b[0m' if sys.stdout.isatty() else f'\n# {text}', flush=True)


def run(command: str, *, fails: bool = False, quiet: bool = False, lines: int = LINES_SHOWN) -> str:
    """Print a command, run it in the demonstration's directory, print its output and return it."""
    print(f'$ {command}', flush=True)
    environment = {**os.environ, 'PATH': f'{BIN}:{os.environ.get("PATH", "")}', 'LC_ALL': 'C.UTF-8'}
    done = subprocess.run(
        ['/bin/sh', '-c', command],
        cwd=place(),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        check=False,
    )
    said = done.stdout.splitlines()
    if not quiet:
        for line in said[:lines]:
            print(f'  {line}')
        if len(said) > lines:
            print(f'  … and {len(said) - lines} lines more')
    if (done.returncode != 0) != fails:
        raise Failed(f'`{command}` ended with {done.returncode}: {done.stdout.strip()}')
    return done.stdout


def source_trees() -> tuple[Path, Path]:
    """Return two real trees that every machine with this program has: Python's own library, and the packages
    that are installed with the program. Together they are thousands of files.
    """
    paths = sysconfig.get_paths()
    return Path(paths['stdlib']), Path(paths['purelib'])


def prepare() -> Path:
    """Make an empty directory of our own; an earlier demonstration is ended first."""
    stop()
    root = place()
    root.mkdir(mode=0o700)
    (root / 'mnt').mkdir()
    return root


def stop() -> None:
    """Unmount and remove what an earlier demonstration left; say nothing when there is nothing."""
    root = place()
    if not os.path.lexists(root):
        return
    found = os.lstat(root)
    if root.is_symlink() or found.st_uid != os.getuid():
        raise Failed(f'{root} is not ours; remove it and try again')
    if os.path.ismount(root / 'mnt') or is_dead(root / 'mnt'):
        subprocess.run([SNAPFS, 'umount', str(root / 'mnt')], check=True)
    shutil.rmtree(root)


def is_dead(mountpoint: Path) -> bool:
    """Say whether this is the mountpoint of a daemon that was killed: nobody can even look at it."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def demonstrate() -> None:
    """The whole story."""
    root = prepare()
    library, packages = source_trees()
    say(f'In {root}: a store, and a mount of it. A volume is a directory at the top.')
    run('snapfs init store')
    run('snapfs mount store mnt')
    run('mkdir mnt/home')

    say('Copy real trees in: thousands of files.')
    run(f'rsync -a --exclude site-packages {library}/ mnt/home/lib')
    run(f'rsync -a {packages}/ mnt/home/packages')
    run('find mnt/home -type f | wc -l')
    run('du -sh --apparent-size mnt/home')
    run('head -c 100000000 /dev/urandom > mnt/home/recording')
    run('du -sh store    # deduplicated and compressed')

    say('A snapshot is a directory too.')
    run('mkdir mnt/home/.snapshots/monday')
    run('snapfs snapshot list --store store')

    say('Work goes on: something changes, something is deleted.')
    run('echo "print(42)" > mnt/home/lib/this.py')
    run('rm -r mnt/home/lib/json mnt/home/lib/email mnt/home/recording')
    run('ls mnt/home/lib/json', fails=True)

    say('Walk into the past with plain commands, from wherever you stand.')
    run('ls mnt/home/.snapshots/monday/lib/json')
    run('head -3 mnt/home/lib/.snapshots/monday/this.py')
    run('diff -rq --no-dereference mnt/home/.snapshots/monday/lib mnt/home/lib', fails=True)
    run('rm mnt/home/.snapshots/monday/lib/this.py', fails=True)

    say('Get a deleted directory back, and see that it is what it was.')
    run('cp -a mnt/home/.snapshots/monday/lib/json mnt/home/lib/')
    run('diff -r mnt/home/.snapshots/monday/lib/json mnt/home/lib/json && echo the same')

    say('Deleting a snapshot only makes a request. Nothing is freed by it.')
    run('rmdir mnt/home/.snapshots/monday')
    run('ls mnt/home/.snapshots')
    request = run('ls mnt/.snapfs/trash').split()[0]
    run(f'cat mnt/.snapfs/trash/{request}/request')

    say('Changed your mind? Take it back.')
    run(f'mv mnt/.snapfs/trash/{request} mnt/home/.snapshots/monday')
    run('ls mnt/home/.snapshots/monday/lib/email | head -3')
    run('head -3 mnt/.snapfs/health')
    collect(root)

    say(f'The mount is still there to explore:  cd {root}/mnt/home')
    print('  One command ends it:  make demo-stop')


def collect(root: Path) -> None:
    """The deletion, from `rmdir` to the bytes that come back."""
    say('Delete it after all. The collector counts first: this is its plan, and who keeps the rest.')
    run('rmdir mnt/home/.snapshots/monday')
    run('snapfs collect --store store --dry-run')

    say('So much of a store at once would wait for a person. In this small one that limit may be higher.')
    run('snapfs config --store store limit-share 60%')

    say('What nothing needs goes into quarantine for 7 days. All that time it can be taken back.')
    run('snapfs collect --store store')
    batch, digest = held_batch(root)
    run(f'cat mnt/.snapfs/quarantine/{batch}')
    run('du -sh store/packs')

    say(
        'Who cannot wait approves exactly this plan. The second recount, by other code, is made all the same.'
    )
    run(f'snapfs collect approve --store store {digest}')
    run('snapfs collect --store store')
    run('du -sh store/packs')

    say('What was done, by whom, after which checks; and the certificate, replayed without the daemon.')
    run(f'snapfs audit --store store --batch {batch}')
    run('snapfs-certificate store')

    say('Why so careful: the accident of August 2011, replayed on a scratch store, and what stops it.')
    run('snapfs drill ebs-2011', lines=60)


def held_batch(root: Path) -> tuple[int, str]:
    """Return number and digest of the batch with the deleted snapshot."""
    answer = subprocess.run(
        [SNAPFS, 'status', '--store', str(root / 'store'), '--json'], check=True, stdout=subprocess.PIPE
    )
    batches = json.loads(answer.stdout)['collector']['batches']
    held = [one for one in batches if one['class'] == 'kept' and one['state'] == 'QUARANTINED']
    if len(held) != 1:
        raise Failed(f'{len(held)} batches with the snapshot are in quarantine, one was expected')
    return held[0]['batch'], held[0]['digest']


def main() -> int:
    """Run the demonstration, or end it."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--stop', action='store_true', help='unmount, and remove the store')
    arguments = parser.parse_args()
    try:
        if arguments.stop:
            stop()
        else:
            demonstrate()
    except (Failed, subprocess.CalledProcessError) as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
