"""L7 scrub: the command `snapfs scrub`. Main thread."""

from __future__ import annotations

import re
from typing import Any

import click

from snapfs.cli import output
from snapfs.cli.recover import say_put_back
from snapfs.errors import Invalid

MIB = 1 << 20
EXIT_DAMAGED = 4


@click.command('scrub', epilog='Example: snapfs scrub --part 1/30 --rate 50')
@click.option('--part', default='1/1', metavar='K/N', help='Verify the K-th of N equal parts only.')
@click.option(
    '--rate', default=0, metavar='MB/S', type=click.IntRange(0, 1 << 20), help='Read no faster than this.'
)
@click.option('--again', is_flag=True, help='Also what was verified within the last 12 hours.')
@click.option('--status', is_flag=True, help='Only say how much was verified, and since when.')
@output.store_options
def scrub_command(part: str, rate: int, again: bool, status: bool) -> int:
    """Read and verify every stored byte, mounted or not, in a process that stands back behind all others.

    One that was interrupted goes on where it stopped. Nodes that are lost come back from their second copies
    (STORE/mirror). What is lost beyond that is told by `snapfs damage`. After either the collector stops
    until somebody has looked. The exit code is 0 when all is whole (by now), 4 otherwise. A daemon does the
    same by itself: see `snapfs config` for scrub and scrub-rate.
    """
    if status:
        output.show(output.call('scrub.status'), _render_status)
        return 0
    match = re.fullmatch(r'([0-9]{1,4})/([0-9]{1,4})', part)
    if match is None:
        raise Invalid(f'{part!r} is no part; write K/N, for example 1/30')
    found = output.call_watched(
        'scrub.run', part=int(match[1]), parts=int(match[2]), rate=rate * 1_000_000, again=again
    )
    output.show(found, _render)
    return EXIT_DAMAGED if found['bad'] or found['catalog'] else 0


def _render(found: Any) -> None:
    if found['catalog']:
        output.say(f'DAMAGED: the catalog: {found["catalog"]}. The collector has stopped. Next: snapfs fsck.')
    if found['skipped'] and not found['slots']:
        due = output.moment(found['due_ns'])
        output.say('Nothing was read: all of it was verified within the last 12 hours.')
        output.say(f'It is due again from {due} on; to read it now: snapfs scrub --again')
        return
    output.say(f'verified: {found["chunks"]} chunks, {output.size(found["bytes"])}; damaged: {found["bad"]}')
    if found['skipped']:
        share = 100 * found['skipped'] // (found['skipped'] + found['slots'])
        output.say(f'{share} % were verified within the last 12 hours and not read again (--again reads all)')
    if found['whole_again']:
        count = found['whole_again']
        what = '1 chunk that was lost is' if count == 1 else f'{count} chunks that were lost are'
        output.say(f'{what} whole again')
    if any(found['put_back'].values()):
        say_put_back(found['put_back'])
        output.say('The disk has lost something: look at it. Whether the collector stopped: snapfs status.')
    if found['bad']:
        words = output.store_words()
        output.say(
            f'The collector has stopped. Which files: snapfs damage {words}. '
            f'Next: snapfs recover VOLUME@SNAPSHOT {words}'
        )


def _render_status(found: Any) -> None:
    since = output.moment(found['verified_ns'])
    output.say(f'verified: {found["verified_percent"]} % of the store, the oldest part at {since}')
    output.say(f'known to be lost: {found["lost_chunks"]} chunks')
    if found['stopped']:
        output.say(f'the collector stands still: {found["stopped"]}')
