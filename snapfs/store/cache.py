"""L2 cache: two small bounded caches, least recently used out first. Any thread; nothing blocks."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

K = TypeVar('K')
V = TypeVar('V')


class CountCache(Generic[K, V]):
    """Up to `entries_max` values."""

    def __init__(self, entries_max: int) -> None:
        self._entries: dict[K, V] = {}
        self._max = entries_max
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value, now the most recently used, or None."""
        with self._lock:
            value = self._entries.pop(key, None)
            if value is not None:
                self._entries[key] = value
            return value

    def put(self, key: K, value: V) -> None:
        """Keep a value; the least recently used one goes when there are too many."""
        with self._lock:
            entries = self._entries
            entries.pop(key, None)
            entries[key] = value
            if len(entries) > self._max:
                del entries[next(iter(entries))]

    def remove(self, key: K) -> None:
        """Forget a value, if it is there."""
        with self._lock:
            self._entries.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """Return what is kept now; nothing becomes more recently used."""
        with self._lock:
            return list(self._entries.items())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()


class ByteCache:
    """Byte strings of up to `bytes_max` bytes together."""

    def __init__(self, bytes_max: int) -> None:
        self._entries: dict[bytes, bytes] = {}
        self._max = bytes_max
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: bytes) -> bytes | None:
        """Return the value, now the most recently used, or None."""
        with self._lock:
            value = self._entries.pop(key, None)
            if value is not None:
                self._entries[key] = value
            return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value; least recently used ones go until all fit."""
        with self._lock:
            entries = self._entries
            old = entries.pop(key, None)
            self.bytes += len(value) - (len(old) if old is not None else 0)
            entries[key] = value
            while self.bytes > self._max:
                self.bytes -= len(entries.pop(next(iter(entries))))

    def remove(self, key: bytes) -> None:
        """Forget a value, if it is there."""
        with self._lock:
            self.bytes -= len(self._entries.pop(key, b''))
