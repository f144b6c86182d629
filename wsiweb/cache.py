"""Byte-budgeted LRU caches over cachetools, with single flight. Knows no DICOM and makes no threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")


class AbandonedError(Exception):
    """Who was to produce a value has been stopped: whoever still waits for it claims it anew."""


class ByteCache(Generic[Key, Value]):
    """A thread-safe LRU cache with a budget in bytes. Values larger than the budget are not kept."""

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._lock = threading.Lock()
        self._size_of = size_of
        self._cache: LRUCache[Key, Value] = LRUCache(budget_bytes, getsizeof=size_of)

    def get(self, key: Key) -> Value | None:
        """Return the value, and note its use."""
        with self._lock:
            return self._cache.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, at the cost of the least recently used ones."""
        with self._lock:
            if self._size_of(value) <= self._cache.maxsize:
                self._cache[key] = value

    def discard(self, key: Key) -> None:
        """Forget a value."""
        with self._lock:
            self._cache.pop(key, None)


@dataclass(frozen=True, slots=True)
class Claim(Generic[Key, Value]):
    """What became of a wish for several keys."""

    hits: dict[Key, Value]
    """Values that were there."""
    ours: list[Key]
    """Keys that the claimer must now produce, with ``resolve`` or ``fail``, for itself and all who wait."""


class SingleFlightCache(Generic[Key, Value]):
    """A ``ByteCache`` in which a missing value is produced once, however many threads want it.

    Nobody blocks here: who claims is told of each value through a listener, from whatever thread produced it.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._values: ByteCache[Key, Value] = ByteCache(budget_bytes, size_of)
        self._lock = threading.Lock()
        self._listeners: dict[Key, list[Callable[[Key, Value | None, BaseException | None], None]]] = {}

    def claim(
        self, keys: Iterable[Key], listener: Callable[[Key, Value | None, BaseException | None], None]
    ) -> Claim[Key, Value]:
        """Ask for values; ``listener(key, value, error)`` is called later for each that is not a hit."""
        hits: dict[Key, Value] = {}
        ours: list[Key] = []
        with self._lock:
            for key in keys:
                value = self._values.get(key)
                if value is not None:
                    hits[key] = value
                    continue
                waiting = self._listeners.get(key)
                if waiting is None:
                    self._listeners[key] = [listener]
                    ours.append(key)
                else:
                    waiting.append(listener)
        return Claim(hits, ours)

    def resolve(self, key: Key, value: Value, *, keep: bool) -> None:
        """Deliver a value to all who wait for it, and keep it if so asked."""
        with self._lock:
            if keep:
                self._values.put(key, value)
            listeners = self._listeners.pop(key, [])
        for listener in listeners:
            listener(key, value, None)

    def fail(self, key: Key, error: BaseException) -> None:
        """Tell all who wait that there will be no value."""
        with self._lock:
            listeners = self._listeners.pop(key, [])
        for listener in listeners:
            listener(key, None, error)
