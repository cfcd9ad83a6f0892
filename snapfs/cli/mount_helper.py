"""L7 mount helper: mount.snapfs and mount.fuse.snapfs, as mount(8) calls them. Main thread.

mount(8) calls: mount.TYPE SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTION,…] [-t TYPE], and wants the
exit codes of mount(8): 0 done, 1 wrong call, 32 the mount failed. Silent when all is well, else one line.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace

from snapfs.cli.main import complain
from snapfs.errors import Invalid, SnapfsError

EXIT_USAGE, EXIT_FAILED = 1, 32
WITH_VALUE = 'oNt'
WITHOUT_VALUE = 'sfnvirw'


@dataclass(frozen=True, slots=True)
class HelperCall:
    """What mount(8) said: `options` are the texts of every -o, in order."""

    source: str
    mountpoint: str
    options: tuple[str, ...]
    fake: bool
    sloppy: bool


def parse_call(words: list[str]) -> HelperCall:
    """Read the words after the program's name. Invalid says what is wrong."""
    places: list[str] = []
    options: list[str] = []
    switches: set[str] = set()
    waiting = iter(words)
    for word in waiting:
        if not word.startswith('-') or word == '-':
            places.append(word)
            continue
        for index, letter in enumerate(word[1:], start=1):
            if letter in WITH_VALUE:
                value = word[index + 1 :] or next(waiting, None)
                if value is None:
                    raise Invalid(f'-{letter} needs a value')
                if letter == 'o':
                    options.append(value)
                break
            if letter not in WITHOUT_VALUE:
                raise Invalid(f'unknown option -{letter}')
            switches.add(letter)
    if len(places) != 2:
        raise Invalid('call: mount.fuse.snapfs SOURCE MOUNTPOINT [-sfnv] [-o OPTION,…]')
    options += [{'r': 'ro', 'w': 'rw'}[letter] for letter in ('r', 'w') if letter in switches]
    return HelperCall(places[0], places[1], tuple(options), 'f' in switches, 's' in switches)


def main(words: list[str] | None = None) -> int:
    """Run the helper and return its exit code."""
    program = 'mount.fuse.snapfs'
    try:
        return _mount(parse_call(sys.argv[1:] if words is None else words))
    except Invalid as error:
        return complain(error.line(), EXIT_USAGE, program)
    except SnapfsError as error:
        return complain(error.line(), EXIT_FAILED, program)
    except OSError as error:
        where = f'{error.filename}: ' if error.filename else ''
        return complain(f'{where}{error.strerror or error}', EXIT_FAILED, program)
    except KeyboardInterrupt:
        return EXIT_FAILED


def _mount(call: HelperCall) -> int:
    from snapfs.service import client, mounting
    from snapfs.service.options import parse_options

    options = parse_options(call.options, sloppy=call.sloppy)
    if os.geteuid() == 0:
        # mount(8) keeps to itself what it takes for a default, such as suid and dev, and says the opposites
        # (for users it says nosuid,nodev). So what root does not say here is suid, dev, as with mount.fuse3.
        options = replace(
            options,
            nosuid=options.nosuid and 'nosuid' in options.given,
            nodev=options.nodev and 'nodev' in options.given,
        )
    if options.remount:
        if not call.fake:
            mounting.remount(call.mountpoint, options, complete=True)
        return 0
    options = replace(options, fsname=options.fsname or call.source)  # the source is shown as it was given
    request = mounting.plan_mount(call.source, call.mountpoint, options)
    if options.nofail and not client.is_store(request.store):
        return 0  # mount(8): say nothing of a device that does not exist
    if call.fake:
        return 0
    return EXIT_FAILED if mounting.mount(request) else 0


if __name__ == '__main__':
    sys.exit(main())
