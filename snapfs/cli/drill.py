"""L7 drill: plays the accidents that deletion is guarded against, on a scratch store. Main thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.errors import Invalid

if TYPE_CHECKING:
    from tools.drill.drill import Drill
    from tools.drill.run import Outcome

EXIT_FAILED = 1


@click.command('drill', epilog='Example: snapfs drill ebs-2011')
@click.argument('name', required=False)
@click.option('--list', 'only_list', is_flag=True, help='List the drills with their stories; play none.')
@click.option('--all', 'play_all', is_flag=True, help='Play all drills, as without a NAME.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
def drill_command(name: str | None, only_list: bool, play_all: bool, as_json: bool) -> int:
    """Replay an accident on a scratch store, and say which guard stopped it.

    No store of yours is touched. In the end every file of everything that stands is read from the scratch
    store's bytes and compared. The exit code is 0 when each drill ended as it must, 1 otherwise.
    """
    from tools.drill.drills import drills, named

    if (name is not None and (only_list or play_all)) or (only_list and play_all):
        raise Invalid('give one of NAME, --list and --all')
    chosen = list(drills().values()) if name is None else [named(name)]
    if only_list:
        _list(chosen, as_json)
        return 0
    outcomes = list(_play(chosen, told=name is not None, quiet=as_json))
    if as_json:
        output.print_json([_plain(outcome) for outcome in outcomes])
    return 0 if all(outcome.passed for outcome in outcomes) else EXIT_FAILED


def _list(chosen: list[Drill], as_json: bool) -> None:
    if as_json:
        values = [asdict(drill) for drill in chosen]
        for value in values:
            del value['play']
        output.print_json(values)
        return
    for drill in chosen:
        output.say(drill.name)
        for line in (*drill.story, f'Drill: {drill.fault}.', f'Guards: {", ".join(drill.guards)}.'):
            output.say(f'    {line}')


def _play(chosen: list[Drill], *, told: bool, quiet: bool) -> Iterable[Outcome]:
    """Play each; `told`: with its story, and each step as it happens."""
    from tools.drill.run import play

    for drill in chosen:
        if told and not quiet:
            for line in (*drill.story, f'Drill: {drill.fault}.', ''):
                output.say(line)
        outcome = play(drill, output.say) if told and not quiet else play(drill)
        if not quiet:
            _say_outcome(outcome)
        yield outcome


def _say_outcome(outcome: Outcome) -> None:
    guards = ', '.join(dict(outcome.seen)) or 'nothing'
    if outcome.passed:
        output.say(
            f'{outcome.name}: ok: stopped by {guards}; {outcome.files} files read from the disk, '
            'every byte as written'
        )
    else:
        output.say(f'{outcome.name}: FAILED: {outcome.failure} (stopped by {guards})')


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        'name': outcome.name,
        'passed': outcome.passed,
        'failure': outcome.failure or None,
        'files': outcome.files,
        'guards': [{'guard': guard, 'said': said} for guard, said in outcome.seen],
    }
