"""L1 annotations: whether a value that came out of JSON is of the types that its class states. Pure; any
thread.

JSON holds whatever somebody wrote. Where a digest is right, what it vouches for is still only text: a number
may stand where a name must. A reader that builds a frozen value checks it once, here, and nobody after it has
to ask. Types are exact: true is no number."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any


def fits(value: Any, kind: Any) -> bool:
    """Return whether `value` is exactly what `kind` says: int, str, bytes, bool, float, None, X | Y, tuple[…]
    of these, dataclasses and named tuples, to the last part."""
    return _check_of(kind)(value)


@cache
def _check_of(kind: Any) -> Callable[[Any], bool]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        ways = [_check_of(one) for one in arguments]
        return lambda value: any(way(value) for way in ways)
    if origin is tuple and arguments[-1] is Ellipsis:
        each = _check_of(arguments[0])
        return lambda value: type(value) is tuple and all(map(each, value))
    if origin is tuple:
        parts = [_check_of(one) for one in arguments]
        return lambda value: type(value) is tuple and _all(parts, value)
    if kind is None or kind is types.NoneType:
        return lambda value: value is None
    # Without the names of the class itself: a field called `bytes` would hide its siblings' type.
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind, localns={})
        names = [field.name for field in fields(kind)]
        checks = [_check_of(hints[name]) for name in names]
        return lambda value: type(value) is kind and _all(checks, [getattr(value, name) for name in names])
    if isinstance(kind, type) and issubclass(kind, tuple):
        checks = [_check_of(one) for one in typing.get_type_hints(kind, localns={}).values()]
        return lambda value: type(value) is kind and _all(checks, value)
    return lambda value: type(value) is kind


def _all(checks: list[Callable[[Any], bool]], values: Any) -> bool:
    return len(checks) == len(values) and all(
        check(value) for check, value in zip(checks, values, strict=True)
    )
