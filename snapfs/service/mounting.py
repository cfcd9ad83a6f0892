"""L6 mounting: what `snapfs mount` and the mount helper do, from the words of a person to a mount.
Blocking."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
from pathlib import Path

from snapfs.errors import Invalid, Unavailable
from snapfs.service import background, client, mounts, runtime, system, wire
from snapfs.service.compose import MountRequest, Parts, RealParts
from snapfs.service.options import MountOptions

DEFAULT_LOG = 'daemon.log'


def split_source(text: str) -> tuple[Path, str | None]:
    """Read STORE or STORE:VOLUME. A colon belongs to the store's name if a store has that whole name."""
    whole = Path(os.path.abspath(text))
    store, colon, volume = text.rpartition(':')
    if not colon or not store or not volume or '/' in volume or client.is_store(whole):
        return whole, None
    return Path(os.path.abspath(store)), volume


def plan_mount(source: str, mountpoint: str, options: MountOptions) -> MountRequest:
    """Work out what is to be mounted. `source` is STORE[:VOLUME], or any token when -o source= names the
    store."""
    for what, path in (('the source', source), ('the mountpoint', mountpoint)):
        if not path:
            raise Invalid(f'{what} is empty; name a path')  # it would mean the directory one stands in
    store, volume = split_source(options.source if options.source is not None else source)
    if options.volume is not None:
        if volume not in (None, options.volume):
            raise Invalid(f'two volumes are named: {volume} and {options.volume}')
        volume = options.volume
    log = Path(os.path.abspath(options.log)) if options.log else None
    if log is None and not options.foreground:
        log = Path(os.path.realpath(store)) / DEFAULT_LOG
    named = str(store) if volume is None else f'{store}:{volume}'
    return MountRequest(
        store=Path(os.path.realpath(store)),
        volume=volume,
        mountpoint=str(mounts.absolute(mountpoint)),
        fsname=options.fsname or (named if options.source is None else source),
        options=options,
        log=log,
    )


def mount(request: MountRequest, parts: Parts | None = None) -> int:
    """Mount. In the background: returns 0 when mounted. In the foreground: returns the daemon's exit code."""
    from snapfs.service import process

    client.check_store(request.store)
    check_request(request)
    process.check_interpreter()
    process.check_chunker()
    client.refuse_second_daemon(request.store)

    def target(report: background.Report) -> None:
        run_daemon(request, parts or RealParts(), report)

    if request.options.foreground:
        _log_to(request)
        return _foreground(target, request)
    background.launch(target, request.log)
    return 0


def check_request(request: MountRequest) -> None:
    """Invalid when a mount cannot work whatever the daemon does. Called before anything is started."""
    mountpoint, store = request.mountpoint, str(request.store)
    if mounts.is_below(store, mountpoint) or mounts.is_below(mountpoint, store):
        raise Invalid(
            f'{mountpoint} and the store {store} lie in each other; the mount would hide its own store'
        )
    top = mounts.mount_at(mountpoint, mounts.read_mounts())
    try:
        directory = stat.S_ISDIR(os.stat(mountpoint).st_mode)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise Invalid(f'{mountpoint} cannot be a mountpoint: {error.strerror}') from None
        directory = True
    if top is not None and _is_dead(mountpoint):
        raise Invalid(
            f'{mountpoint} is the dead mountpoint of a daemon that ended',
            advice=f'End it first: snapfs umount {mountpoint}',
        )
    if top is not None and top.is_snapfs:
        raise Invalid(f'{mountpoint} is a mounted snapfs already')
    if not directory:
        raise Invalid(f'{mountpoint} is not a directory')
    from snapfs.store import readonly
    from snapfs.store.durable import Disk

    if Disk().is_read_only(request.store):
        raise Unavailable(
            f'{store} cannot be mounted: {readonly.REASON}, and a daemon has its log and its socket there',
            advice=readonly.ADVICE,
        )


def _is_dead(mountpoint: str) -> bool:
    """Say whether nobody serves a mount. Attributes may be remembered by the kernel; this is always asked."""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def run_daemon(request: MountRequest, parts: Parts, report: background.Report) -> None:
    """Be the daemon of one mount until its end."""
    import trio

    from snapfs.service import control, daemon, process
    from snapfs.service.notify import notify

    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not request.options.foreground:
        _log_to(request)
    process.tune()

    def ready(hello: control.Hello) -> None:
        report(background.answer(hello))
        notify('READY=1', f'MAINPID={os.getpid()}', f'STATUS=mounted at {hello.mountpoint}')

    trio.run(daemon.Daemon(request, parts, ready).run)


def remount(mountpoint: str, options: MountOptions, *, complete: bool = False) -> None:
    """Change the options of a standing mount: ro, rw, and the other flags. What cannot change is refused.

    `complete`: `options` are all that shall hold, as mount(8) gives them; else the rest stays as it stands.
    """
    place = str(mounts.absolute(mountpoint))
    mount = mounts.mount_at(place, mounts.read_mounts())
    if mount is None or not mount.is_snapfs:
        raise Invalid(f'{place} is not a mounted snapfs')
    _refuse_changes(mount, options)
    standing = set(mount.options) | set(mount.super_options)
    merged: dict[str, bool] = {}
    for field in system.FLAGS:
        said = complete or field in options.given
        merged[field] = bool(getattr(options, field)) if said else field in standing
    system.remount(place, MountOptions(**merged))  # type: ignore[arg-type]


def _refuse_changes(mount: mounts.Mount, options: MountOptions) -> None:
    """mount(8) repeats the line of fstab at a remount; what it repeats is fine, what would be new is not."""
    entry = runtime.find_entry(mount)
    fixed = options.given & {'uid', 'gid', 'log', 'fsname', 'foreground'}
    if entry is not None:
        if options.source is not None:
            store, volume = split_source(options.source)
            if os.path.realpath(store) != entry.store or volume not in (None, entry.volume):
                raise Invalid('a remount cannot change the source; unmount it and mount it again')
        if options.volume not in (None, entry.volume):
            raise Invalid('a remount cannot change the volume; unmount it and mount it again')
        fixed -= {'uid', 'gid', 'log', 'fsname'}
    if options.allow_other and 'allow_other' not in mount.super_options:
        fixed |= {'allow_other'}
    if fixed:
        names = ', '.join(sorted(fixed))
        raise Invalid(f'a remount cannot change {names}; unmount it and mount it again')


def _foreground(target: background.Target, request: MountRequest) -> int:
    said: list[bytes] = []
    code = background.guarded(target, said.append)
    if code and request.log is not None:
        wire.decode_answer(said[-1])  # raises it, for the one line on standard error
    return code


def _log_to(request: MountRequest) -> None:
    from snapfs.service import logs

    if request.log is None:
        logs.log_to_stderr()
    else:
        if request.log == request.store / DEFAULT_LOG and request.log.is_symlink():
            from snapfs.store.missing import LINKED

            raise Invalid(
                f'{request.log} {LINKED}',
                advice='Remove it; or name what it leads to: -o log=FILE.',
            )
        logs.log_to_file(request.log)
    logging.getLogger('trio').setLevel(logging.WARNING)
