"""L6 collect commands: what can be asked of the collector: run, plan, approve, settings, audit, and so on.

Entered into the table of commands.py when this is imported. Async functions, one event loop; what reads
much runs in a thread, what walks trees in a worker."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING, Any

from snapfs import limits
from snapfs.collect import configuration
from snapfs.collect.overview import of_batch, on_the_way
from snapfs.collect.states import batch as batch_of
from snapfs.errors import Invalid, SnapfsError
from snapfs.service import shapes, space
from snapfs.service.commands import JSON, Call, command, find_snapshot

if TYPE_CHECKING:
    from snapfs.collect.collector import Chosen
    from snapfs.store.audit import AuditLine
    from snapfs.volume.view import View

CHUNK_ID = re.compile(r'[0-9a-fA-F]{64}')


# --- collecting ------------------------------------------------------------------------------------------
@command('collect.run')
async def collect_run(call: Call) -> JSON:
    """Do everything that is due. Waits for what moves already."""
    from snapfs.collect.states import BatchRow

    collecting = call.collecting
    reports = [one for one in (await collecting.join(), await collecting.collect()) if one is not None]
    quarantined = {row.number for report in reports for row in report['quarantined']}
    waits = [one for one in reports[-1]['waiting'] if not isinstance(one, BatchRow)]
    return {
        'freed': [shapes.batch(row) for report in reports for row in report['freed']],
        'quarantined': [await _resting(call, number) for number in sorted(quarantined)],
        'waiting': [shapes.waiting(one) for one in waits],
        'packs': _swept([report['swept'] for report in reports if report['swept'] is not None]),
        'lasting': call.service is not None,  # else plans that wait have ended with this process
    }


def _swept(swept: list[Any]) -> JSON:
    return {
        'gone': sum(one.packs for one in swept),
        'bytes': sum(one.bytes for one in swept),
        'moved_chunks': sum(one.moved for one in swept),
        'kept': list(swept[-1].kept) if swept else [],
    }


async def _resting(call: Call, number: int) -> JSON:
    catalog = call.engine.store.catalog
    found = await call.collecting.world.run_in_thread(of_batch, catalog, number)
    return shapes.batch(batch_of(catalog, number)) if found is None else shapes.resting(found)


@command('collect.progress')
async def collect_progress(call: Call) -> JSON:
    """Say what moves now. Never waits."""
    return {'moving': space.moving(call.collecting), 'stopped': call.collecting.collector.incidents.latched()}


@command('collect.plan')
async def collect_plan(call: Call) -> JSON:
    """Say what a run would do now. Changes nothing."""
    collecting, collector = call.collecting, call.collecting.collector
    thread = collecting.world.run_in_thread
    plans = []
    for chosen in await thread(collector.choose, collecting.pinned()):
        waiting = collecting.waiting.get(chosen.grace_class)
        plans.append(await _dry(call, chosen) if waiting is None else shapes.waiting(waiting))
    due = {row.number for row in await thread(collector.due)}
    rest = [shapes.resting(one) for one in await thread(on_the_way, call.engine.store.catalog)]
    return {
        'stopped': collector.incidents.latched(),
        'plans': plans,
        'due': [one for one in rest if one['batch'] in due or one['state'] == 'CONFIRMED'],
        'resting': [one for one in rest if one['batch'] not in due and one['state'] != 'CONFIRMED'],
    }


async def _dry(call: Call, chosen: Chosen) -> JSON:
    """Return what would become of these requests, and why it would have to wait."""
    collecting, collector = call.collecting, call.collecting.collector
    thread = collecting.world.run_in_thread
    specs = []

    def make() -> Any:
        specs.append(collector.freeze(chosen, mode='what-if'))
        return specs[0]

    found = await collecting.look('what-if', make)
    plan = await thread(collector.draft, chosen, specs[0], found)
    reasons = await thread(collector.reasons, plan)
    return {**shapes.plan(plan), 'kept': shapes.kept(found), 'digest': None, 'reasons': reasons}


@command('collect.approve')
async def collect_approve(call: Call, digest: str) -> JSON:
    """Let exactly this plan exceed its limits, or its batch be freed before its grace is over."""
    from snapfs.collect.approvals import parse_digest

    peer = call.peer
    # In requests made through the mount a person is a number: the daemon asks nobody for names there.
    aliases = frozenset({peer.name, str(peer.uid), f'uid {peer.uid}'})
    return await call.collecting.approve(parse_digest(digest), peer.name, aliases)


@command('collect.leaks')
async def collect_leaks(call: Call, request: bool = False) -> JSON:
    """Count what crashes have left and nobody reaches; `request`: ask for it to be freed."""
    from snapfs.collect.leaks import request_leaks, rowless

    collecting, store = call.collecting, call.engine.store
    thread = collecting.world.run_in_thread
    specs = []

    def make() -> Any:
        specs.append(collecting.collector.what_if([], 'leaks'))
        return specs[0]

    found = await collecting.look('leaks', make)
    told = {**shapes.figures(found), 'rowless': await thread(rowless, store), 'request': None}
    if request and found.condemned:
        files, who = collecting.collector.batches.files, call.peer.name
        told['request'] = await thread(request_leaks, store, files, specs[0], found, who)
        await call.engine.reload_requests()
    return told


@command('quarantine.list')
async def quarantine_list(call: Call) -> JSON:
    rest = await call.collecting.world.run_in_thread(on_the_way, call.engine.store.catalog)
    return [shapes.resting(one) for one in rest]


# --- space -----------------------------------------------------------------------------------------------
@command('space')
async def space_exact(call: Call) -> JSON:
    return await space.exact(call.collecting)


@command('snapshot.space')
async def snapshot_space(call: Call, snapshots: list[str]) -> JSON:
    """Say what deleting these snapshots, all together, would free: exactly."""
    if not snapshots:
        raise Invalid('name the snapshots')
    rows = {row.number: row for _, row in (find_snapshot(call.engine, text) for text in snapshots)}
    found = await space.freed_by(call.collecting, list(rows.values()))
    return {'snapshots': snapshots, **shapes.figures(found), 'kept': shapes.kept(found)}


# --- why -------------------------------------------------------------------------------------------------
@command('why')
async def why(call: Call, target: str | None = None, node: int | None = None) -> JSON:
    """Say who keeps a chunk, or the chunks of a file, alive. `target`: a chunk's id, or VOLUME[@NAME]:/path;
    `node`: the inode number that the mount shows."""
    from snapfs.collect.why_values import WhySpec
    from snapfs.collect.worker import to_json

    if (target is None) == (node is None):
        raise Invalid('name one file or chunk')
    store = call.engine.store
    path, uuid = store.path, store.superblock.uuid
    if target is not None and CHUNK_ID.fullmatch(target):
        spec = WhySpec(path, uuid, ids=(bytes.fromhex(target),))
    else:
        root, ino = await _file(call, target, node)
        spec = WhySpec(path, uuid, root=root, ino=ino)
    found = await call.collecting.look('why', lambda: spec)
    names = ('kind', 'number', 'name', 'batch', 'chunks', 'bytes', 'files')
    return {
        'epoch': found.epoch,
        'chunks': found.chunks,
        'whole': found.whole,
        'where': [dict(zip(('table', 'chunks', 'bytes'), to_json(one), strict=True)) for one in found.where],
        'keepers': [dict(zip(names, to_json(one), strict=True)) for one in found.keepers],
    }


async def _file(call: Call, target: str | None, node: int | None) -> tuple[tuple[str, int], int]:
    """Return the root (kind, number) that a file is in, and its inode number there."""
    if node is not None:
        return await _by_node(call, node)
    assert target is not None
    tree, sign, path = target.partition(':')
    if not sign or not path.startswith('/'):
        raise Invalid(f'{target!r} is no file in a mount, no VOLUME[@NAME]:/path and no id of a chunk')
    engine = call.engine
    view: View | None
    if '@' in tree:
        _, row = find_snapshot(engine, tree)
        root, view = ('snapshot', row.number), engine.snapshot_view(row.number)
    else:
        head = engine.head(tree)
        if head is None:
            raise Invalid(f'there is no volume {tree!r}')
        root, view = ('volume', head.row.volume), head
    assert view is not None
    inode = await view.inode(limits.INO_ROOT)
    for part in filter(None, path.split('/')):
        found = (
            await view.lookup(inode, part.encode('utf-8', 'surrogateescape'))
            if inode.is_directory()
            else None
        )
        if found is None:
            raise Invalid(f'there is no {path} in {tree}')
        inode = found
    return root, _not_directory(inode, target).ino


async def _by_node(call: Call, node: int) -> tuple[tuple[str, int], int]:
    from snapfs.mount.nodeids import ROOT_NODE, NodeKind, decode_node

    engine = call.engine
    try:
        kind, number, ino = decode_node(node)
    except ValueError:
        raise Invalid('that is no file of this mount') from None
    root = None
    view: View | None = None
    if kind is NodeKind.LIVE and node != ROOT_NODE:
        view = engine.head_by_number(number)
        root = None if view is None else ('volume', engine.heads()[view.name].row.volume)
    elif kind is NodeKind.SNAPSHOT:
        view = engine.snapshot_view(number)
        request = next((one.number for one in engine.request_list() if one.view == number), None)
        root = ('snapshot', number) if request is None else ('request', request)
    if root is None or view is None:
        raise Invalid('that is no file of a volume or snapshot')
    return root, _not_directory(await view.inode(ino), 'that').ino


def _not_directory(inode: Any, what: str) -> Any:
    if stat.S_ISDIR(inode.mode):
        raise Invalid(f'{what} is a directory: name a file in it')
    return inode


# --- incidents -------------------------------------------------------------------------------------------
@command('incident.list')
async def incident_list(call: Call, all: bool = False) -> JSON:
    return [shapes.incident(row) for row in call.collecting.collector.incidents.listed(in_force=not all)]


@command('incident.show')
async def incident_show(call: Call, number: int) -> JSON:
    incidents, thread = call.collecting.collector.incidents, call.collecting.world.run_in_thread
    found = await thread(incidents.show, number)
    evidence = {}
    for name in found.files:
        data = await thread(incidents.evidence, number, name)
        evidence[name] = data[: limits.EVIDENCE_SHOWN_BYTES_MAX].decode('utf-8', 'replace')
    return {**shapes.incident(found.row), 'directory': str(found.directory), 'evidence': evidence}


@command('incident.ack')
async def incident_ack(call: Call, number: int, note: str = '') -> JSON:
    collecting = call.collecting
    acknowledge = collecting.collector.incidents.acknowledge
    row = await collecting.world.run_in_thread(acknowledge, number, call.peer.name, note)
    return {**shapes.incident(row), 'left': [one.number for one in collecting.collector.incidents.listed()]}


# --- settings --------------------------------------------------------------------------------------------
@command('config.list')
async def config_list(call: Call) -> JSON:
    return [
        {
            'name': setting.name, 'value': value, 'set': changed, 'kind': setting.kind, 'help': setting.help,
            'default': configuration.format_value(setting.name, setting.default),
        }
        for setting, value, changed in configuration.listed(call.engine.store.catalog)
    ]  # fmt: skip


@command('config.get')
async def config_get(call: Call, name: str) -> JSON:
    return {'name': name, 'value': configuration.get(call.engine.store.catalog, name)}


@command('config.set')
async def config_set(call: Call, name: str, value: str) -> JSON:
    return await _change(call, name, value)


@command('config.reset')
async def config_reset(call: Call, name: str) -> JSON:
    return await _change(call, name, None)


async def _change(call: Call, name: str, text: str | None) -> JSON:
    store = call.engine.store
    thread = call.collecting.world.run_in_thread
    value = await thread(configuration.change, store.catalog, store.audit, name, text, call.peer.name)
    return {'name': name, 'value': value}


# --- audit -----------------------------------------------------------------------------------------------
@command('audit.list')
async def audit_list(call: Call, last: int = 50, batch: int | None = None) -> JSON:
    """Return lines of the audit log, oldest first: the last ones, or the last ones about one batch."""
    if not 0 < last <= limits.AUDIT_LINES_SHOWN_MAX:
        raise Invalid(f'from 1 to {limits.AUDIT_LINES_SHOWN_MAX} lines can be shown, not {last}')
    if batch is not None:
        batch_of(call.engine.store.catalog, batch)
    lines = await call.collecting.world.run_in_thread(_lines, call, last, batch)
    return [{'line': one.sequence, 'time_ns': one.time_ns, **one.event} for one in lines]


def _lines(call: Call, last: int, batch: int | None) -> list[AuditLine]:
    from collections import deque

    audit = call.engine.store.audit
    if batch is None:
        return audit.tail(last)
    return list(deque((one for one in audit.lines() if one.event.get('batch') == batch), last))


@command('audit.verify')
async def audit_verify(call: Call) -> JSON:
    """Verify the chain against the head that the catalog keeps. Corrupt when either was altered."""
    store, thread = call.engine.store, call.collecting.world.run_in_thread
    head = await thread(store.catalog.audit_head)
    place = await thread(store.audit.verify_against, head)
    broken = None
    try:
        await thread(store.audit.verify)
    except SnapfsError as error:  # it was begun again once: the chain since is whole
        broken = error.line()
    return {
        'lines': place.lines,
        'hash': place.hash,
        'catalog_line': None if head is None else head.end.lines,
        'since_line': 1 if head is None else head.base.lines + 1,
        'broken': broken,
    }
