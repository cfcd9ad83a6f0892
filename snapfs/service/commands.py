"""L6 commands: one table of everything that can be asked of a store, by name. Async functions, one event
loop.

The daemon's socket and the command line without a daemon go through `dispatch`, so a command does the same in
both. Arguments come from outside: their names and types are checked against the function's own signature.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapfs.errors import Held, Invalid, Refused
from snapfs.service import shapes
from snapfs.service.sockets import Peer
from snapfs.service.wire import Arguments, Request
from snapfs.store.verified import Coverage

if TYPE_CHECKING:
    from snapfs.service.collecting import Collecting
    from snapfs.store.rows import RequestRow, SnapshotRow
    from snapfs.volume.engine import Engine
    from snapfs.volume.head import Head

JSON = Any
TYPES: dict[str, tuple[type, ...]] = {
    'str': (str,),
    'int': (int,),
    'bool': (bool,),
    'str | None': (str, type(None)),
    'int | None': (int, type(None)),
    'list[str]': (list,),
}


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks what of which engine. `service` is the daemon's own description, None when there is no
    daemon. `collector`: that of the engine."""

    engine: Engine
    peer: Peer
    service: dict[str, Any] | None
    collector: Collecting | None = None

    @property
    def collecting(self) -> Collecting:
        """The collector, which every real store has."""
        assert self.collector is not None, 'a store without a collector'
        return self.collector


Command = Callable[..., Awaitable[JSON]]
COMMANDS: dict[str, Command] = {}


def command(name: str) -> Callable[[Command], Command]:
    """Enter a function into the table."""

    def enter(function: Command) -> Command:
        assert name not in COMMANDS, f'two commands are called {name}'
        COMMANDS[name] = function
        return function

    return enter


async def dispatch(
    engine: Engine,
    request: Request,
    peer: Peer,
    service: dict[str, Any] | None,
    collector: Collecting | None = None,
) -> JSON:
    """Carry a request out. Invalid for an unknown command or wrong arguments; else what the command
    raises."""
    function = COMMANDS.get(request.command)
    if function is None:
        raise Invalid(f'unknown command {request.command!r}')
    arguments = _checked(request.command, function, request.arguments)
    return await function(Call(engine, peer, service, collector), **arguments)


def parse_snapshot(text: str) -> tuple[str, str]:
    """Split VOLUME@NAME at its first @. Invalid when either side is missing."""
    volume, sign, name = text.partition('@')
    if not sign or not volume or not name:
        raise Invalid(f'{text!r} is not a snapshot; write VOLUME@NAME')
    return volume, name


def _checked(name: str, function: Command, arguments: Arguments) -> dict[str, Any]:
    parameters = dict(list(inspect.signature(function).parameters.items())[1:])
    unknown = sorted(set(arguments) - set(parameters))
    if unknown:
        raise Invalid(f'{name} knows no argument {unknown[0]!r}')
    for key, parameter in parameters.items():
        if key not in arguments:
            if parameter.default is inspect.Parameter.empty:
                raise Invalid(f'{name} needs the argument {key!r}')
            continue
        kinds = TYPES[str(parameter.annotation)]
        value = arguments[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise Invalid(f'the argument {key!r} of {name} has the wrong type')
        if isinstance(value, list) and not all(isinstance(part, str) for part in value):
            raise Invalid(f'the argument {key!r} of {name} has the wrong type')
    return arguments


@command('status')
async def status(call: Call) -> JSON:
    told = {**call.engine.status(), 'daemon': call.service}
    return told if call.collector is None else {**told, 'collector': await _collector(call)}


async def _collector(call: Call) -> JSON:
    from snapfs.service.space import overview

    return await overview(call.collecting)


@command('volume.create')
async def volume_create(call: Call, name: str, mode: int = 0o755) -> JSON:
    if '@' in name or ':' in name:
        raise Invalid(f'{name!r} cannot name a volume: @ and : have a meaning on the command line')
    await call.engine.volume_create(name, call.peer.uid, call.peer.gid, mode)
    return _volume(call.engine, name)


@command('volume.list')
async def volume_list(call: Call) -> JSON:
    return [_volume(call.engine, name) for name in sorted(call.engine.heads())]


@command('volume.rename')
async def volume_rename(call: Call, old: str, new: str) -> JSON:
    if '@' in new or ':' in new:
        raise Invalid(f'{new!r} cannot name a volume: @ and : have a meaning on the command line')
    _head(call.engine, old)
    await call.engine.volume_rename(old, new)
    return _volume(call.engine, new)


@command('volume.delete')
async def volume_delete(call: Call, name: str) -> JSON:
    _head(call.engine, name)
    return _request(call.engine, await call.engine.volume_delete(name, call.peer.name))


@command('volume.clone')
async def volume_clone(call: Call, snapshot: str, name: str) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    await call.engine.volume_clone(volume, row.name, name)
    return _volume(call.engine, name)


@command('volume.rollback')
async def volume_rollback(call: Call, snapshot: str) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    safety = await call.engine.volume_rollback(volume, row.name, call.peer.name)
    return {'volume': volume, 'now': snapshot, 'safety': shapes.snapshot(volume, safety, [], _coverage(call))}


@command('snapshot.create')
async def snapshot_create(call: Call, snapshot: str) -> JSON:
    volume, name = parse_snapshot(snapshot)
    _head(call.engine, volume)
    row = await call.engine.snapshot_create(volume, name, call.peer.name)
    return shapes.snapshot(volume, row, [], _coverage(call))


@command('snapshot.list')
async def snapshot_list(call: Call, volume: str | None = None) -> JSON:
    if volume is not None:
        _head(call.engine, volume)
    listed, coverage = [], _coverage(call)
    for name in sorted(call.engine.heads()) if volume is None else [volume]:
        for row in call.engine.snapshot_list(name):
            listed.append(shapes.snapshot(name, row, call.engine.hold_list(name, row.name), coverage))
    return listed


@command('snapshot.show')
async def snapshot_show(call: Call, snapshot: str, space: bool = False) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    holds = call.engine.hold_list(volume, row.name)
    shown = shapes.snapshot(volume, row, holds, _coverage(call))
    if not space or call.collector is None:
        return shown
    from snapfs.service.space import alone

    return {**shown, 'space': await alone(call.collecting, row)}


@command('snapshot.rename')
async def snapshot_rename(call: Call, snapshot: str, name: str) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    await call.engine.snapshot_rename(volume, row.name, name)
    return await snapshot_show(call, f'{volume}@{name}')


@command('snapshot.delete')
async def snapshot_delete(call: Call, snapshot: str) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    return _request(call.engine, await call.engine.snapshot_delete(volume, row.name, call.peer.name))


@command('snapshot.delete-all')
async def snapshot_delete_all(call: Call, snapshots: list[str]) -> JSON:
    """Delete several. When one of them cannot be, none is."""
    engine = call.engine
    found = [find_snapshot(engine, text) for text in snapshots]
    twice = next((text for text in snapshots if snapshots.count(text) > 1), None)
    if twice is not None:
        raise Invalid(f'{twice!r} is named twice')
    now_ns = engine.world.time_ns()
    for volume, row in found:
        holds = [one for one in engine.hold_list(volume, row.name) if (one.until_ns or now_ns + 1) > now_ns]
        if holds:
            names = ', '.join(f'{one.name!r} of {one.who}' for one in holds)
            raise Held(f'snapshot {volume}@{row.name} is held: {names}', advice='Release the holds first.')
    who = call.peer.name
    return [_request(engine, await engine.snapshot_delete(volume, row.name, who)) for volume, row in found]


@command('snapshot.undelete')
async def snapshot_undelete(
    call: Call, request: str, name: str | None = None, volume: str | None = None
) -> JSON:
    found = _find_request(call.engine, request)
    if found['kind'] == 'volume':
        if volume is not None:
            raise Invalid('a volume goes back under a name of its own; say --name')
        await call.engine.volume_undelete(found['number'], name)
        return {**found, 'name': name or found['name'], 'volume': name or found['volume']}
    await call.engine.snapshot_undelete(found['number'], name, volume)
    return {**found, 'name': name or found['name'], 'volume': volume or found['volume']}


@command('request.list')
async def request_list(call: Call) -> JSON:
    return [_request(call.engine, row) for row in call.engine.request_list()]


@command('hold.add')
async def hold_add(call: Call, snapshot: str, hold: str, why: str, until_ns: int | None = None) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    await call.engine.hold_add(volume, row.name, hold, call.peer.name, why, until_ns)
    return next(one for one in await hold_list(call, snapshot) if one['name'] == hold)


@command('hold.release')
async def hold_release(call: Call, snapshot: str, hold: str) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    await call.engine.hold_release(volume, row.name, hold)
    return {'snapshot': snapshot, 'name': hold}


@command('hold.list')
async def hold_list(call: Call, snapshot: str) -> JSON:
    volume, row = find_snapshot(call.engine, snapshot)
    return [shapes.hold(snapshot, one) for one in call.engine.hold_list(volume, row.name)]


def _head(engine: Engine, name: str) -> Head:
    head = engine.head(name)
    if head is None:
        raise Refused(errno.ENOENT, f'there is no volume {name!r}')
    return head


def _volume(engine: Engine, name: str) -> JSON:
    return shapes.volume(_head(engine, name).row, len(engine.snapshot_list(name)))


def _coverage(call: Call) -> Coverage:
    return call.engine.coverage()


def find_snapshot(engine: Engine, text: str) -> tuple[str, SnapshotRow]:
    """Return the volume's name and the row of VOLUME@NAME. Refused(ENOENT), naming the request if it was
    deleted."""
    volume, name = parse_snapshot(text)
    try:
        return volume, engine.snapshot_find(volume, name)
    except Refused as error:
        rows = [_request(engine, row) for row in engine.request_list()]
        gone = [row for row in rows if row['what'] == text]
        if error.errno != errno.ENOENT or not gone:
            raise
        number = max(row['number'] for row in gone)
        raise Refused(
            errno.ENOENT,
            f'snapshot {text} was deleted already, by request {number}',
            advice=f'Take that back with: snapfs snapshot undelete {number}.',
        ) from None


def _request(engine: Engine, row: RequestRow) -> JSON:
    return shapes.request(row, {head.row.volume: name for name, head in engine.heads().items()})


def _find_request(engine: Engine, text: str) -> JSON:
    """Find a request by its number, or the latest one of what was called VOLUME@NAME or, whole, VOLUME."""
    rows = [_request(engine, row) for row in engine.request_list()]
    key = 'number' if text.isascii() and text.isdigit() else 'what'
    found = [row for row in rows if str(row[key]) == text and row['kind'] != 'dropped']
    if not found:
        raise Invalid(
            f'nothing that was deleted is {text!r}',
            advice='See: snapfs snapshot list --deleted; what was freed or taken back: snapfs audit',
        )
    return max(found, key=lambda row: row['number'])
