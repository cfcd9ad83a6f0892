"""Tool fuzz, mutate: damage that knows the shape of what it damages. Pure; all chance comes from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from snapfs.errors import Corrupt
from snapfs.format.stream import pack_stream, unpack_stream

PATCHES = (
    b'\xff' * 4, b'\xff' * 8, b'\0' * 4, b'\0' * 8, b'\x7f\xff\xff\xff', b'\x80' + bytes(7),
    b'\xdd\xff\xff\xff\xff', b'\xdc\xff\xff', b'\xcf' + b'\xff' * 8, b'\xd3\x80' + bytes(7),
    b'\xc6\xff\xff\xff\xff', b'\xc0', b'\xc3', b'\x90', b'\xc4\0', b'\n',
    b'[' * 200, b'{"x":', b'1e999', b'\\ud800', b'\xc2\xb2',
)  # fmt: skip
NUMBERS = (
    0, 1, 2, 3, 16, 63, 64, 127, 128, 255, 256, 4095, 65535, 65536, 131071, 131072, 131073,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 60) - 1, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, -1, -2, -(1 << 31), -(1 << 63),
)  # fmt: skip
TEXTS = ('', 'x', '..', '/', '\0', '\n', 'x' * 300, '\ud800', '\u00b2', 'None', '-1', '00', 'zz')
DEPTH = 1500  # of nesting: beyond what Python takes


def mutate_bytes(data: bytes, chance: Random) -> bytes:
    """Change, repeat, leave out or put in some bytes, a few times."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(out) + 1)
        way = chance.randrange(7)
        if way == 0 and at < len(out):
            out[at] = chance.randrange(256)
        elif way == 1 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif way == 2:
            patch = chance.choice(PATCHES)
            out[at : at + chance.choice((0, len(patch)))] = patch
        elif way == 3:
            del out[at : at + chance.randrange(1, 20)]
        elif way == 4:
            out[at:at] = out[at : at + chance.randrange(1, 40)]
        elif way == 5 and chance.randrange(4) == 0:
            del out[at:]
        elif out:
            start = chance.randrange(len(out))
            out[at:at] = out[start : start + chance.randrange(1, 40)]
    return bytes(out)


def _odd(chance: Random, old: Any) -> Any:
    """Return what should not stand where `old` does: a neighbour of it, or of another type."""
    way = chance.randrange(8)
    if isinstance(old, int) and way < 3:
        return old + chance.choice((-1, 1, 1 << 31, -(1 << 31)))
    if isinstance(old, str) and way < 3:
        at = chance.randrange(len(old) + 1)
        return old[:at] + chance.choice(TEXTS) + old[at + chance.randrange(3) :]
    if isinstance(old, bytes) and way < 4:
        return mutate_bytes(old, chance)
    if way < 5:
        return chance.choice(NUMBERS)
    return chance.choice(
        (None, True, False, 1.5, b'', b'x' * 32, [], ['x'], {}, '', 'x', [[[]]], float('inf'))
    )


def _change(value: Any, chance: Random, odd: Callable[[Random, Any], Any]) -> Any:
    """Return a value with one thing in it changed."""
    if isinstance(value, list | tuple) and value and chance.randrange(5):
        parts = list(value)
        at, way = chance.randrange(len(parts)), chance.randrange(10)
        if way == 0:
            del parts[at]
        elif way == 1:
            parts.insert(at, parts[chance.randrange(len(parts))])
        elif way == 2:
            other = chance.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at] = _change(parts[at], chance, odd)
        return parts
    if isinstance(value, dict) and value and chance.randrange(8):
        named, way = dict(value), chance.randrange(12)
        key = chance.choice(sorted(named))
        if way == 0:
            del named[key]
        elif way == 1:
            named[chance.choice(TEXTS)] = named[key]
        else:
            named[key] = _change(named[key], chance, odd)
        return named
    return odd(chance, value)


def _odd_json(chance: Random, old: Any) -> Any:
    new = _odd(chance, old)
    return new.hex() if isinstance(new, bytes) else new


def mutate_json(data: bytes, chance: Random) -> bytes:
    """Change values of a JSON text; now and then its bytes. Compact, keys in the order they had."""
    if chance.randrange(6) == 0:
        return mutate_bytes(data, chance)
    if chance.randrange(100) == 0:
        return b'[' * DEPTH
    try:
        value = json.loads(data)
        for _ in range(chance.randrange(1, 4)):
            value = _change(value, chance, _odd_json)
        return json.dumps(value, separators=(',', ':')).encode()
    except (ValueError, RecursionError):
        return mutate_bytes(data, chance)


def mutate_json_lines(data: bytes, chance: Random) -> bytes:
    """Change one line of several; now and then their order or number."""
    lines = data.split(b'\n')
    at, way = chance.randrange(len(lines)), chance.randrange(8)
    if way == 0:
        return mutate_bytes(data, chance)
    if way == 1:
        lines.insert(at, chance.choice(lines))
    elif way == 2:
        del lines[at]
    else:
        lines[at] = mutate_json(lines[at], chance)
    return b'\n'.join(lines)


def _plain(value: Any) -> Any:
    """Return what msgpack can hold: numbers of 64 bits."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return value & 0xFF
    return value


def mutate_stream(body: bytes, chance: Random) -> bytes:
    """Change elements of a stream (snapfs/format/stream.py); now and then its bytes."""
    if chance.randrange(6) == 0:
        return mutate_bytes(body, chance)
    try:
        elements: Any = unpack_stream(body, None, 'fuzz')
        for _ in range(chance.randrange(1, 4)):
            elements = _change(elements, chance, _odd)
        return pack_stream(_plain(elements))
    except (Corrupt, ValueError, TypeError):
        return mutate_bytes(body, chance)


def mutate_text(words: tuple[str, ...]) -> Callable[[bytes, Random], bytes]:
    """Return a mutation that knows some words of a language."""

    def mutate(data: bytes, chance: Random) -> bytes:
        if chance.randrange(3) == 0:
            return mutate_bytes(data, chance)
        at = chance.randrange(len(data) + 1)
        word = chance.choice(words) if chance.randrange(4) else chance.choice(TEXTS)
        if chance.randrange(50) == 0:
            word = chance.choice('019') * 5000
        return data[:at] + word.encode('utf-8', 'surrogatepass') + data[at + chance.randrange(4) :]

    return mutate
