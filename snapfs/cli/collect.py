"""L7 collect: the commands `snapfs collect …` and `snapfs quarantine`. Main thread."""

from __future__ import annotations

from typing import Any

import click

from snapfs.cli import output

NOTHING = 'Nothing is due.'
KEEPERS_SHOWN = 20


@click.group(
    'collect',
    invoke_without_command=True,
    epilog='Example: snapfs collect --dry-run && snapfs collect',
)
@click.option('--dry-run', is_flag=True, help='Say what would be done; condemn and free nothing.')
@output.store_options
def collect_command(dry_run: bool) -> None:
    """Free what was deleted: count, put into quarantine; when its grace is over count again, and free.

    Does now what the daemon does on a schedule. What the daemon does already is waited for, and shown.
    Nothing that a snapshot, a volume, a hold or an open file needs is ever freed; nothing can force that.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    if dry_run:
        output.show(output.call_watched('collect.plan'), _render_plan)
    else:
        output.show(output.call_watched('collect.run'), _render_run)


@collect_command.command(
    'approve',
    short_help='Allow exactly one plan.',
    epilog='Example: snapfs collect approve $(snapfs quarantine --json | jq -r .[0].digest)',
)
@click.argument('digest')
@output.store_options
def approve(digest: str) -> None:
    """Allow the plan with this DIGEST to exceed its limits, or its batch to be freed in its grace.

    It counts for exactly this plan and expires. Both recounts are made all the same.
    """
    output.show(output.call('collect.approve', digest=digest), _render_approval)


@collect_command.command('leaks', epilog='Example: snapfs collect leaks --request')
@click.option('--request', is_flag=True, help='Ask for them to be freed, by way of quarantine.')
@output.store_options
def leaks(request: bool) -> None:
    """Count what crashes have left in the store and nobody needs. It is kept until you ask for it to go."""
    output.show(output.call_watched('collect.leaks', request=request), _render_leaks)


@click.command('quarantine', epilog='Example: snapfs quarantine')
@output.store_options
def quarantine_command() -> None:
    """List the batches on their way: since when, how many bytes come back, and when at the earliest."""
    output.show(output.call('quarantine.list'), render_batches)


def counted(number: int, what: str) -> str:
    """Return a number with its noun."""
    return f'{number} {what}' if number == 1 else f'{number} {what}s'


def amount(value: Any) -> str:
    """Return chunks and bytes for people."""
    return f'{output.size(value["bytes"])} in {counted(value["chunks"], "chunk")}'


def span(ns: int) -> str:
    """Return a grace for people."""
    seconds = ns // output.NANOSECONDS
    for unit, count in (('day', 86_400), ('hour', 3600), ('minute', 60)):
        if seconds >= count:
            return counted(seconds // count, unit)
    return counted(seconds, 'second')


def render_batches(batches: Any) -> None:
    """Print the batches on their way."""
    rows = [
        (
            str(one['batch']),
            one['where'],
            output.size(one['bytes']),
            output.moment(one['quarantined_ns']),
            output.moment(one['earliest_ns']),
            ', '.join(request['what'] for request in one['requests'][:5])
            + (f' and {one["requests_count"] - 5} more' if one['requests_count'] > 5 else ''),
            one['digest'],
        )
        for one in batches
    ]
    columns = ('batch', 'state', 'bytes', 'since', 'freed at the earliest', 'what', 'digest')
    output.table(columns, rows, 'Nothing is in quarantine.')


# --- a run -----------------------------------------------------------------------------------------------
def _render_run(report: Any) -> None:
    done = False
    for one in report['freed']:
        done = True
        output.say(f'batch {one["batch"]}: freed {amount(one)}; see: snapfs audit --batch {one["batch"]}')
    for one in report['quarantined']:
        done = True
        when = output.moment(one.get('earliest_ns'))
        output.say(f'batch {one["batch"]}: {amount(one)} in quarantine, freed at the earliest {when}')
    packs = report['packs']
    if packs is not None and (packs['gone'] or packs['moved_chunks']):
        done = True
        moved = f', {counted(packs["moved_chunks"], "chunk")} rewritten' if packs['moved_chunks'] else ''
        output.say(f'{counted(packs["gone"], "pack")} removed, {output.size(packs["bytes"])} back{moved}')
    for name in [] if packs is None else packs['kept']:
        output.say(f'pack {name} had to stay: the log says why')
    for one in report['waiting']:
        done = True
        _say_waiting(one, report['lasting'])
    if not done:
        output.say(NOTHING)


def _say_waiting(one: Any, lasting: bool = True) -> None:
    requests = counted(len(one['requests']), 'request')
    output.say(f'a plan for {requests} waits, with {amount(one)}:')
    for reason in one['reasons']:
        output.say(f'  {output.printable(reason)}')
    second = ', by a second person' if one['second_person'] else ''
    if lasting:
        output.say(f'  look at it with snapfs collect --dry-run; allow it{second}: snapfs collect approve')
        output.say(f'    {one["digest"]}')
    else:
        output.say(f'  it can be allowed{second} only while the store is mounted: mount it and collect again')


def _render_approval(given: Any) -> None:
    what = {'limits': 'may exceed its limits', 'grace': 'may be freed before its grace is over'}
    output.say(f'batch {given["batch"]} {what[given["what"]]}, says {given["who"]}')


def _render_leaks(found: Any) -> None:
    if not found['chunks']:
        output.say('Nothing has leaked.')
    else:
        output.say(f'leaked: {amount(found)}')
    if found['rowless']:
        output.say(f'{counted(found["rowless"], "record")} in packs that the index does not know: these stay')
    if found['request'] is not None:
        output.say(
            f'request {found["request"]}: it goes the way of every deletion; see: snapfs collect --dry-run'
        )
    elif found['chunks']:
        output.say('they stay until you ask for them to go: snapfs collect leaks --request')


# --- a dry run -------------------------------------------------------------------------------------------
def _render_plan(found: Any) -> None:
    if found['stopped'] is not None:
        output.say(f'the collector stands still: {output.printable(found["stopped"])}')
    for one in found['due']:
        output.say(f'batch {one["batch"]} is due: {amount(one)} would be counted once more, then freed')
    for one in found['plans']:
        _say_plan(one)
    if found['resting']:
        output.say('in quarantine:')
        render_batches(found['resting'])
    if not (found['due'] or found['plans'] or found['resting']):
        output.say(NOTHING)


def _say_plan(one: Any) -> None:
    requests = counted(len(one['requests']), 'request')
    output.say(f'{requests}: {amount(one)} would come back, after {span(one["grace_ns"])} in quarantine')
    named = [
        (
            f'{asked["number"]}',
            f'{asked["kind"]} {asked["what"]}',
            asked['who'],
            output.size(asked['bytes'] or 0),
        )
        for asked in one['requests']
        if asked['kind'] in ('snapshot', 'volume', 'leaked')
    ]
    if named:
        output.table(('number', 'request', 'by', 'bytes'), named, '')
    others = len(one['requests']) - len(named)
    if others:
        output.say(f'and what {counted(others, "commit")} overwrote or removed')
    _say_kept(one['kept'])
    if one['digest'] is not None:
        _say_waiting(one)
    elif one['reasons']:
        output.say('it would wait for an approval:')
        for reason in one['reasons']:
            output.say(f'  {output.printable(reason)}')


def _say_kept(kept: Any) -> None:
    rows = [(one['name'], output.size(one['bytes']), _share(one)) for one in kept[:KEEPERS_SHOWN]]
    if rows:
        output.table(('what stays is kept by', 'bytes', 'chunks'), rows, '')
    if len(kept) > KEEPERS_SHOWN:
        output.say(f'and {len(kept) - KEEPERS_SHOWN} more; --json has all')


def _share(one: Any) -> str:
    shared = one.get('shared', 0)
    return f'{one["chunks"]}' + (f', and {shared} references in parts that it shares whole' if shared else '')


def render_space(found: Any) -> None:
    """Print what a set of snapshots would free."""
    names = ' '.join(found['snapshots'])
    output.say(f'{names}: {amount(found)} would come back')
    _say_kept(found['kept'])
