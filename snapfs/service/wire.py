"""L6 wire: one request, one answer, each a line of JSON. Pure; used by the daemon's socket and by its client.

Request: {"command": name, "arguments": {...}, "device": "0:57" or null}. The device is what the client took
the mount for; a daemon of another mount refuses. Answer: {"result": value} or {"error": {"kind", "message",
"advice", "errno"}}. Names that are not UTF-8 travel as lone surrogates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from snapfs import errors, limits

KINDS: dict[str, type[errors.SnapfsError]] = {
    kind.__name__: kind
    for kind in (errors.Invalid, errors.Held, errors.Unavailable, errors.Corrupt, errors.Latched)
}
Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants: a name in the table of commands, and its arguments by name."""

    command: str
    arguments: Arguments
    device: str | None = None


def encode_request(request: Request) -> bytes:
    """Return the line of a request. Invalid when it is longer than a daemon would read."""
    fields = {'command': request.command, 'arguments': request.arguments, 'device': request.device}
    line = json.dumps(fields).encode() + b'\n'
    if len(line) > limits.CONTROL_REQUEST_BYTES_MAX:
        raise errors.Invalid(
            f'the command is too long: {len(line)} bytes of {limits.CONTROL_REQUEST_BYTES_MAX}'
        )
    return line


def decode_request(line: bytes) -> Request:
    """Read a line from a client, which may be anything. Invalid says what is wrong with it."""
    fields = _object(line, errors.Invalid, 'request')
    command, arguments, device = fields.get('command'), fields.get('arguments', {}), fields.get('device')
    if not isinstance(command, str):
        raise errors.Invalid('the request names no command')
    if not isinstance(arguments, dict):
        raise errors.Invalid('the arguments of the request are no object')
    if device is not None and not isinstance(device, str):
        raise errors.Invalid('the device of the request is no text')
    return Request(command, arguments, device)


def encode_result(value: object) -> bytes:
    """Return the line that answers with a value."""
    return json.dumps({'result': value}).encode() + b'\n'


def encode_error(error: errors.SnapfsError) -> bytes:
    """Return the line that answers with one of the six errors."""
    fields = {
        'kind': type(error).__name__,
        'message': str(error),
        'advice': error.advice,
        'errno': error.errno,
    }
    return json.dumps({'error': fields}).encode() + b'\n'


def decode_answer(line: bytes) -> object:
    """Return the value of an answer, or raise the error that it carries."""
    fields = _object(line, errors.Unavailable, 'answer of the daemon')
    if 'result' in fields:
        return fields['result']
    error = fields.get('error')
    if not isinstance(error, dict):
        raise errors.Unavailable('the answer of the daemon cannot be understood')
    message, advice = str(error.get('message') or 'the daemon does not say why'), str(error.get('advice', ''))
    kind, number = error.get('kind'), error.get('errno')
    if kind == 'Refused' and type(number) is int:
        raise errors.Refused(number, message, advice=advice)
    raise KINDS.get(str(kind), errors.Unavailable)(message, advice=advice)


def _object(line: bytes, kind: type[errors.SnapfsError], what: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise kind(f'the {what} is not JSON') from None
    if not isinstance(fields, dict):
        raise kind(f'the {what} is no JSON object')
    return fields
