"""L4 configuration: what a person may set about deletion: names, limits, defaults. Any thread; the table is
the catalog's.

A plan freezes the values that it used, so a later change neither widens nor narrows it (Loki's accident:
an option changed, and what was pending was deleted under the new one). Nothing here switches a recount off.

Stored are texts in their one canonical form; a value that this program would not accept is Corrupt, for
falling back to a default could be a wider one.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from snapfs import limits
from snapfs.errors import Corrupt, Invalid, Refused
from snapfs.store.audit import AuditLog
from snapfs.store.catalog import Catalog

Value = int | bool | tuple[str, ...]

SECOND_NS = 1_000_000_000
PERCENT_PARTS = 100  # a share is counted in hundredths of a percent
_UNITS_NS = {
    's': SECOND_NS,
    'm': 60 * SECOND_NS,
    'h': 3600 * SECOND_NS,
    'd': 86_400 * SECOND_NS,
    'w': 604_800 * SECOND_NS,
}
_SIZES = {'': 1, 'B': 1, 'KiB': limits.KIB, 'MiB': limits.MIB, 'GiB': limits.GIB}
_DURATION = re.compile(r'(?:[0-9]{1,9}[smhdw])+')
_PERCENT = re.compile(r'([0-9]{1,3})(?:\.([0-9]{1,2}))?')
_SIZE = re.compile(r'([0-9]{1,15}) ?(|B|KiB|MiB|GiB)')


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set. `kind` is 'duration' (ns), 'share' (hundredths of a percent), 'size'
    (bytes), 'switch' (bool) or 'command' (argv); `default`, `low` and `high` are in that unit."""

    name: str
    kind: str
    default: Value
    low: int
    high: int
    help: str


_DAY = _UNITS_NS['d']
_HOUR = _UNITS_NS['h']
_MINUTE = _UNITS_NS['m']
_YEARS = 3650 * _DAY

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting('automatic', 'switch', True, 0, 1, 'collect by itself, on a schedule'),
        Setting('interval', 'duration', _HOUR, _MINUTE, 30 * _DAY, 'time between two looks for work'),
        Setting('grace-kept', 'duration', 7 * _DAY, _HOUR, _YEARS, 'how long snapshots and volumes rest'),
        Setting('grace-dropped', 'duration', _HOUR, 10 * _MINUTE, _YEARS, 'how long overwritten data rests'),
        Setting(
            'limit-share', 'share', 3000, 0, 10_000, 'snapshots and volumes over this share of the bytes wait'
        ),
        Setting('limit-dropped', 'share', 10_000, 0, 10_000, 'overwritten data over this share waits'),
        Setting(
            'limit-drop', 'share', 0, 0, 10_000, 'an unexplained loss of references over this share waits'
        ),
        Setting(
            'rate', 'size', 32 * limits.MIB, 0, 1 << 40, 'bytes of packs rewritten per second; 0 = no limit'
        ),
        Setting('repack-waste', 'share', 5000, 100, 10_000, 'a pack with more waste than this is rewritten'),
        Setting('second-person', 'switch', False, 0, 1, 'who approves a plan must not have asked for it'),
        Setting('approval', 'duration', 3 * _DAY, _HOUR, 90 * _DAY, 'how long an approval counts'),
        Setting('canary', 'switch', True, 0, 1, 'plant a canary in a store that has none'),
        Setting(
            'scrub', 'duration', 30 * _DAY, 0, _YEARS, 'every stored byte is verified in this time; 0s = off'
        ),
        Setting(
            'scrub-rate', 'size', 16 * limits.MIB, 0, 1 << 40, 'bytes read per second for that; 0 = no limit'
        ),
        Setting('hook', 'command', (), 0, 0, 'command run when the collector stops: a JSON list of strings'),
    )
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """All settings of a store at one moment. Times in ns, shares in hundredths of a percent, sizes in
    bytes."""

    automatic: bool
    interval_ns: int
    grace_kept_ns: int
    grace_dropped_ns: int
    limit_share: int
    limit_dropped: int
    limit_drop: int
    rate: int
    repack_waste: int
    second_person: bool
    approval_ns: int
    canary: bool
    scrub_ns: int
    scrub_rate: int
    hook: tuple[str, ...]

    def share_limit(self, grace_class: str) -> int:
        """Return over which share of the store's bytes a plan of this class waits."""
        return {'kept': self.limit_share, 'dropped': self.limit_dropped}[grace_class]

    def grace_ns(self, grace_class: str) -> int:
        """Return how long a batch of this class ('kept' or 'dropped') rests."""
        return {'kept': self.grace_kept_ns, 'dropped': self.grace_dropped_ns}[grace_class]


# --- text and values -------------------------------------------------------------------------------------
def _parse_duration(text: str) -> int | None:
    if not _DURATION.fullmatch(text):
        return None
    return sum(int(part[:-1]) * _UNITS_NS[part[-1]] for part in re.findall(r'\d+[smhdw]', text))


def format_duration(ns: int) -> str:
    """Return a duration in its canonical form: '7d', '1h30m'; parts of a second are dropped."""
    parts = []
    rest = ns // SECOND_NS
    for unit in 'dhms':
        count, rest = divmod(rest, _UNITS_NS[unit] // SECOND_NS)
        if count:
            parts.append(f'{count}{unit}')
    return ''.join(parts) or '0s'


def _parse_share(text: str) -> int | None:
    match = _PERCENT.fullmatch(text.removesuffix('%').rstrip())
    if match is None:
        return None
    return int(match[1]) * PERCENT_PARTS + int((match[2] or '0').ljust(2, '0'))


def format_share(share: int) -> str:
    """Return hundredths of a percent as text: 3000 is '30%'."""
    whole, part = divmod(share, PERCENT_PARTS)
    return f'{whole}.{part:02d}'.rstrip('0') + '%' if part else f'{whole}%'


def _parse_size(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _SIZES[match[2]] if match else None


def _format_size(size: int) -> str:
    for unit in ('GiB', 'MiB', 'KiB'):
        if size and size % _SIZES[unit] == 0:
            return f'{size // _SIZES[unit]}{unit}'
    return str(size)


def _parse_switch(text: str) -> bool | None:
    return {'on': True, 'yes': True, 'true': True, 'off': False, 'no': False, 'false': False}.get(
        text.lower()
    )


def _parse_command(text: str) -> tuple[str, ...] | None:
    if text in ('', 'none'):
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or len(value) > limits.HOOK_ARGUMENTS_MAX:
        return None
    # A name without a directory would be looked for in the PATH of whoever started the daemon.
    good = all(isinstance(part, str) and '\0' not in part and part.isprintable() for part in value)
    if not good or (value and not PurePosixPath(value[0]).is_absolute()):
        return None
    return tuple(value)


@dataclass(frozen=True, slots=True)
class _Kind:
    parse: Callable[[str], Value | None]
    format: Callable[..., str]
    shape: str


_KINDS: dict[str, _Kind] = {
    'duration': _Kind(_parse_duration, format_duration, "a duration like '7d' or '1h30m'"),
    'share': _Kind(_parse_share, format_share, "a percentage like '30%'"),
    'size': _Kind(_parse_size, _format_size, "a size like '32MiB'"),
    'switch': _Kind(_parse_switch, lambda value: 'on' if value else 'off', "'on' or 'off'"),
    'command': _Kind(
        _parse_command,
        lambda value: json.dumps(list(value)) if value else '',
        'a JSON list of strings, the program first and with its whole path, or nothing',
    ),
}


def parse(name: str, text: str) -> Value:
    """Return the value that `text` gives the setting `name`. Invalid, saying what would do, otherwise."""
    setting = _setting(name)
    kind = _KINDS[setting.kind]
    value = kind.parse(text.strip()) if len(text) <= limits.SETTING_CHARACTERS_MAX else None
    if value is None:
        raise Invalid(f'{name}: {text[:80]!r} is not {kind.shape}')
    if isinstance(value, int) and not setting.low <= value <= setting.high:
        low, high = kind.format(setting.low), kind.format(setting.high)
        raise Invalid(f'{name}: {text[:80]!r} is not between {low} and {high}')
    return value


def format_value(name: str, value: Value) -> str:
    """Return a value in its canonical form, which `parse` takes back."""
    return _KINDS[_setting(name).kind].format(value)


def _setting(name: str) -> Setting:
    setting = SETTINGS.get(name)
    if setting is None:
        raise Invalid(f'there is no setting {name[:80]!r}', advice=f'There are: {", ".join(SETTINGS)}.')
    return setting


# --- the table -------------------------------------------------------------------------------------------
def _stored(catalog: Catalog) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, text in catalog.query('SELECT key, value FROM config'):
        if type(key) is not str or type(text) is not str:
            raise Corrupt('catalog: table config: a setting that is no text')
        try:
            found[key] = parse(key, text)
        except Invalid as error:
            raise Corrupt(f'catalog: table config: {error}') from error
    return found


def load(catalog: Catalog) -> Configuration:
    """Return all settings as they are now. Corrupt when a stored value is not acceptable."""
    stored = _stored(catalog)
    values = [stored.get(name, setting.default) for name, setting in SETTINGS.items()]
    by_name = dict(zip(SETTINGS, values, strict=True))
    fields = {_FIELDS[name]: value for name, value in by_name.items()}
    return Configuration(**fields)  # type: ignore[arg-type]


_FIELDS = {
    name: name.replace('-', '_') + ('_ns' if setting.kind == 'duration' else '')
    for name, setting in SETTINGS.items()
}


def listed(catalog: Catalog) -> list[tuple[Setting, str, bool]]:
    """Return (setting, value as text, whether a person set it) of all, in the order of the table."""
    stored = _stored(catalog)
    return [
        (setting, format_value(name, stored.get(name, setting.default)), name in stored)
        for name, setting in SETTINGS.items()
    ]


def get(catalog: Catalog, name: str) -> str:
    """Return one setting as text. Invalid when there is none of that name."""
    setting = _setting(name)
    return format_value(name, _stored(catalog).get(name, setting.default))


def change(catalog: Catalog, audit: AuditLog, name: str, text: str | None, who: str) -> str:
    """Set `name` (None: back to its default); return the value as stored. Invalid changes nothing.

    The audit line comes first: what made a deletion possible must not have happened unseen.
    """
    setting = _setting(name)
    value = format_value(name, setting.default if text is None else parse(name, text))
    if not who:
        raise Refused(errno.EPERM, 'nobody in particular cannot change a setting')
    audit.append({'event': 'config', 'name': name, 'value': value, 'default': text is None, 'who': who})
    with catalog.transaction() as db:
        if text is None:
            db.execute('DELETE FROM config WHERE key = ?', (name,))
        else:
            db.execute('INSERT OR REPLACE INTO config VALUES (?, ?)', (name, value))
    return value
