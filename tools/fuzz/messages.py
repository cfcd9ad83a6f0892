"""Tool fuzz, messages: what processes say to each other, and what people and mount(8) type."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from snapfs import errors
from snapfs.cli import mount_helper, output
from snapfs.collect import approvals, configuration, worker
from snapfs.collect.recount_values import Recount
from snapfs.errors import Corrupt, Invalid, SnapfsError
from snapfs.format.annotations import fits
from snapfs.service import (
    collect_commands,
    commands,
    mounting,
    mounts,
    options,
    rescue_commands,
    runtime,
    wire,
)
from tools.fuzz import samples_text
from tools.fuzz.mutate import mutate_json, mutate_json_lines, mutate_text
from tools.fuzz.target import Target, must
from tools.fuzz.texts import scratch

NOW = datetime(2026, 11, 26, tzinfo=UTC)


# --- messages --------------------------------------------------------------------------------------------
def read_request(data: bytes) -> None:
    """A request that is taken encodes to one that reads the same, and its arguments are checked."""
    request = wire.decode_request(data)
    must(
        wire.decode_request(json.dumps(_fields(request)).encode()) == request or _odd(data),
        'request: another',
    )
    function = commands.COMMANDS.get(request.command)
    if function is not None:
        found = commands._checked(request.command, function, request.arguments)
        inspect.signature(function).bind(None, **found)


def _fields(request: wire.Request) -> dict[str, Any]:
    return {'command': request.command, 'arguments': request.arguments, 'device': request.device}


def _odd(data: bytes) -> bool:
    return b'NaN' in data  # not equal to itself


def read_answer(data: bytes) -> None:
    """An answer is a value or one of the errors, which can be told in a line."""
    try:
        wire.decode_answer(data)
    except SnapfsError as error:
        error.line()
        if isinstance(error, errors.Refused):
            must(type(error.errno) is int, 'answer: no errno')
        raise


def read_worker(data: bytes) -> None:
    """The lines of a worker, to the result."""
    lines = worker.Lines('recount')
    for line in data.split(b'\n'):
        lines.line(line)
    try:
        found = lines.result(0)
    except AssertionError as error:
        if str(error).startswith('a worker failed: '):
            raise Corrupt('the worker has a bug, and says so') from error  # that is documented
        raise
    must(fits(found, Recount), 'worker: a result of other types')


def read_entry(data: bytes) -> None:
    """An entry that is taken is text."""
    entry = runtime._read(scratch('0-1.json', data))
    must(entry is None or fits(entry, runtime.Entry), 'entry: fields of other types')


def read_mountinfo(data: bytes) -> None:
    """All mounts of it, with their owners."""
    found = mounts.parse_mountinfo(data)
    for one in found:
        must(one.owner is None or one.owner >= 0, 'mountinfo: a negative owner')
    mounts.enclosing_mount('/a/b', found)


# --- what people type ------------------------------------------------------------------------------------
def _text(data: bytes) -> str:
    return data.decode('utf-8', 'surrogateescape').replace('\0', '')


def read_options(data: bytes) -> None:
    """Options that are taken are of their types, and one value goes through libfuse and back."""
    text = _text(data)
    words = options.split_options(text)
    again = ','.join(map(_escaped, words))
    must(options.split_options(again) == words, 'options: words get lost')
    found = options.parse_options([text], sloppy=len(text) % 2 == 0)
    must(all(one is None or 0 <= one < 1 << 32 for one in (found.uid, found.gid)), 'options: no number')
    for one in options.fuse_arguments(found, found.fsname or 'x'):
        one.encode()


def _escaped(word: str) -> str:
    return options.escape(word).replace('"', '\\"')


def read_words(data: bytes) -> None:
    """The words of mount(8), one on each line."""
    call = mount_helper.parse_call(_text(data).split('\n'))
    must(all(isinstance(one, str) for one in call.options), 'call: no text')


def read_setting(data: bytes) -> None:
    """NAME=VALUE: what is taken is written as what reads the same."""
    name, _, text = _text(data).partition('=')
    value = configuration.parse(name, text)
    kind = configuration.SETTINGS[name].kind
    same = configuration.parse(name, configuration.format_value(name, value)) == value
    # Parts of a second are dropped: nobody can type them.
    must(same, f'setting: a {kind} reads as another one')


def read_spec(data: bytes) -> None:
    """VOLUME@NAME, STORE:VOLUME, a digest, a date: whichever it is."""
    text = _text(data)
    volume = None
    try:
        path, volume = mounting.split_source(text)
        must(path.is_absolute() and volume != '', 'source: no path')
    except OSError:
        pass  # a name that is too long: the command says so, with the name
    parsers: list[Callable[[], object]] = [
        lambda: commands.parse_snapshot(text),
        lambda: approvals.parse_digest(text),
        lambda: output.parse_until(text, NOW),
    ]
    taken = volume is not None
    for parse in parsers:
        try:
            parse()
            taken = True
        except Invalid:
            pass
    if not taken:
        raise Invalid(f'{text[:80]!r} is nothing')


WORDS_OPTIONS = (
    ',', '=', '"', '\\', '\\,', 'uid=', 'gid=', 'ro', 'source=', 'volume=', 'x-y', 'nofail', 'fsname=',
)  # fmt: skip
WORDS_SETTING = (*configuration.SETTINGS, '=', '%', 'd', '1h30m', 'GiB', 'on', '["/bin/x"]', '.5', 's')
WORDS_SPEC = ('@', ':', '/', '2030-01-31', 'T12:00', 'd', 'w', 'h', 'ab' * 32, '+14:00', 'Z', '9999')
WORDS_CALL = ('\n', '-', '-o', '-s', '-f', '-N', '-t', 'ro', '/mnt')
WORDS_MOUNTS = (' ', '-', '\n', '\\040', 'user_id=', ',', '\\777', 'fuse.snapfs')
INVALID: tuple[type[Exception], ...] = (Invalid,)
ANSWERS: tuple[type[Exception], ...] = (SnapfsError,)

TARGETS = [
    Target('request', read_request, samples_text.requests, mutate=mutate_json, errors=INVALID),
    Target('answer', read_answer, samples_text.answers, mutate=mutate_json, errors=ANSWERS),
    Target('worker', read_worker, samples_text.workers, mutate=mutate_json_lines, errors=ANSWERS),
    Target('entry', read_entry, samples_text.entries, mutate=mutate_json),
    Target('mountinfo', read_mountinfo, samples_text.mountinfos, mutate=mutate_text(WORDS_MOUNTS)),
    Target('options', read_options, samples_text.options, mutate=mutate_text(WORDS_OPTIONS), errors=INVALID),
    Target('call', read_words, samples_text.calls, mutate=mutate_text(WORDS_CALL), errors=INVALID),
    Target('setting', read_setting, samples_text.settings, mutate=mutate_text(WORDS_SETTING), errors=INVALID),
    Target('spec', read_spec, samples_text.specs, mutate=mutate_text(WORDS_SPEC), errors=INVALID),
]  # fmt: skip
assert collect_commands and rescue_commands, 'they enter their commands into the table'
