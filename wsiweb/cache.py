"""Byte-budgeted LRU caches over cachetools, with single flight. Knows no DICOM and makes no threads."""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")
Key_contra = TypeVar("Key_contra", contravariant=True)
Value_contra = TypeVar("Value_contra", contravariant=True)


_DROPPED_KEYS = 8192
"""How many of the values that were dropped last are remembered by their keys."""
_GROWTH = 4
"""How many like it are given more room for one that was dropped too early."""


class AbandonedError(Exception):
    """Who was to produce a value has been stopped: whoever still waits for it claims it anew."""


class ByteCache(Generic[Key, Value]):
    """A thread-safe LRU cache with a budget in bytes. Values larger than the budget are not kept."""

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._lock = threading.RLock()  # a signal handler may close the slide
        self._size_of = size_of
        self._cache: LRUCache[Key, Value] = LRUCache(budget_bytes, getsizeof=size_of)

    def get(self, key: Key) -> Value | None:
        """Return the value, and note its use."""
        with self._lock:
            return self._cache.get(key)

    def put(self, values: Iterable[tuple[Key, Value]]) -> None:
        """Keep values, at the cost of the least recently used ones."""
        with self._lock:
            for key, value in values:
                if self._size_of(value) <= self._cache.maxsize:
                    self._cache[key] = value

    def discard(self, key: Key) -> None:
        """Forget a value."""
        with self._lock:
            self._cache.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._cache.clear()

    @property
    def n_bytes(self) -> int:
        """Of what is kept."""
        return int(self._cache.currsize)


class Keep(enum.Enum):
    """What becomes of a value once those who wait for it have it."""

    ON_TRIAL = enum.auto()
    """It stays for a while, and for good if it is asked for again."""
    YES = enum.auto()


class TrialCache(Generic[Key, Value]):
    """A byte-budgeted LRU cache in which a long pass over much does not drive out what is used again and again.

    What is put on trial has a part of the budget for itself; a second use takes it out of there. Where values turn out
    to have been dropped too early, their part grows, up to all there is. After the 2Q and ARC caches (Johnson and
    Shasha, VLDB 1994; Megiddo and Modha, FAST 2003), whose lists share one budget. To be used under a lock.

    The part is small because memory that was just let go is the cheapest there is to fill anew.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._budget_bytes = budget_bytes
        self._lent_bytes = 0
        self._lending = threading.RLock()  # a board may be collected, and closed, anywhere
        self._trial_bytes = budget_bytes // 32
        self._size_of = size_of
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._on_trial: OrderedDict[Key, Value] = OrderedDict()
        self._kept_bytes = self._on_trial_bytes = 0
        self._dropped: OrderedDict[Key, None] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return the value, and note its use."""
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        elif (value := self._on_trial.pop(key, None)) is not None:
            size = self._size_of(value)
            self._on_trial_bytes -= size
            self._kept[key] = value
            self._kept_bytes += size
        return value

    def put(self, key: Key, value: Value, keep: Keep) -> None:
        """Keep a value, at the cost of the least recently used ones; not if it is larger than the whole budget."""
        size = self._size_of(value)
        budget_bytes = self._budget_bytes - self._lent_bytes
        if size <= budget_bytes:
            if key in self._dropped:
                del self._dropped[key]
                self._trial_bytes = min(self._trial_bytes + _GROWTH * size, budget_bytes)
                keep = Keep.YES
            keep = Keep.YES if key in self._kept else keep
            self._admit(key, value, size, keep)
        while self._kept_bytes + self._on_trial_bytes > budget_bytes:
            if self._on_trial and (keep is Keep.YES or not self._kept):
                self._drop()
            else:
                _, least = self._kept.popitem(last=False)
                self._kept_bytes -= self._size_of(least)

    def _admit(self, key: Key, value: Value, size: int, keep: Keep) -> None:
        if key in self._kept or key in self._on_trial:
            self.get(key)  # which takes it out of its trial
            self._kept_bytes += size - self._size_of(self._kept[key])
            self._kept[key] = value
        elif keep is Keep.YES:
            self._kept[key] = value
            self._kept_bytes += size
        else:
            self._on_trial[key] = value
            self._on_trial_bytes += size
            while self._on_trial_bytes > self._trial_bytes and len(self._on_trial) > 1:
                self._drop()

    def lend(self, n_bytes: int) -> bool:
        """Do without a part of the budget, from the next value on; False where too little is left.

        What is kept loses no more than half of the budget, and what is on trial nothing.

        Needs no lock, and must be called without that of its owner: with the lock of a board, which may be wanted by a
        thread that holds the owner's, and was made to close a stream there by the garbage collector.
        """
        with self._lending:
            reserved = self._trial_bytes + min(self._kept_bytes, self._budget_bytes // 2)
            if self._lent_bytes + n_bytes > self._budget_bytes - reserved:
                return False
            self._lent_bytes += n_bytes
            return True

    def give_back(self, n_bytes: int) -> None:
        """Have again what was lent; as ``lend``."""
        with self._lending:
            self._lent_bytes -= n_bytes

    @property
    def n_bytes(self) -> int:
        """Of all values."""
        return self._kept_bytes + self._on_trial_bytes

    def clear(self) -> None:
        """Let go of all values."""
        self._kept.clear()
        self._on_trial.clear()
        self._kept_bytes = self._on_trial_bytes = 0

    def _drop(self) -> None:
        """Drop what is on trial for longest, and remember its key."""
        key, value = self._on_trial.popitem(last=False)
        self._on_trial_bytes -= self._size_of(value)
        self._dropped[key] = None
        if len(self._dropped) > _DROPPED_KEYS:
            self._dropped.popitem(last=False)


class Waiter(Protocol[Key_contra, Value_contra]):
    """Who waits for values; told from whatever thread produced them."""

    def take(self, values: Sequence[tuple[Key_contra, Value_contra]], /) -> None:
        """Take what has come."""
        ...

    def fail(self, key: Key_contra, error: BaseException, /) -> None:
        """Hear that a value will not come."""
        ...


@dataclass(frozen=True, slots=True)
class Claim(Generic[Key, Value]):
    """What became of a wish for several keys."""

    hits: dict[Key, Value]
    """Values that were there."""
    ours: list[Key]
    """Keys that the claimer must now produce, with ``resolve`` or ``fail``, for itself and all who wait."""


class SingleFlightCache(Generic[Key, Value]):
    """A ``TrialCache`` in which a missing value is produced once, however many threads want it.

    Nobody blocks here: who claims is told of each value later.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._values: TrialCache[Key, Value] = TrialCache(budget_bytes, size_of)
        self._lock = threading.RLock()  # a stream may be collected, and closed, anywhere
        self._waiting: dict[Key, list[Waiter[Key, Value]]] = {}
        self.lend, self.give_back = self._values.lend, self._values.give_back  # without the lock

    def claim(self, keys: Iterable[Key], waiter: Waiter[Key, Value]) -> Claim[Key, Value]:
        """Ask for values; the waiter is told of each that is not a hit."""
        hits: dict[Key, Value] = {}
        ours: list[Key] = []
        with self._lock:
            for key in keys:
                value = self._values.get(key)
                if value is not None:
                    hits[key] = value
                    continue
                others = self._waiting.get(key)
                if others is not None:
                    others.append(waiter)
                if key not in self._waiting:  # nor any more: who was to produce it may just have been collected here
                    self._waiting[key] = [waiter]
                    ours.append(key)
        return Claim(hits, ours)

    def resolve(self, values: Sequence[tuple[Key, Value]], keep: Keep) -> None:
        """Deliver values to all who wait for them, and keep them if so asked."""
        told: defaultdict[Waiter[Key, Value], list[tuple[Key, Value]]] = defaultdict(list)
        with self._lock:
            for key, value in values:
                self._values.put(key, value, keep)
                for waiter in self._waiting.pop(key, ()):
                    told[waiter].append((key, value))
        for waiter, found in told.items():
            waiter.take(found)

    def forsake(self, keys: Iterable[Key], claimer: Waiter[Key, Value]) -> None:
        """Give up those of the keys that this claimer was to produce: whoever waits for them claims them anew."""
        for key in keys:
            with self._lock:
                waiters = self._waiting.get(key, [])
                if not waiters or waiters[0] is not claimer:
                    continue
                del self._waiting[key]
            for waiter in waiters:
                waiter.fail(key, AbandonedError())

    def fail(self, key: Key, error: BaseException) -> None:
        """Tell all who wait that there will be no value."""
        with self._lock:
            waiters = self._waiting.pop(key, [])
        for waiter in waiters:
            waiter.fail(key, error)

    @property
    def n_bytes(self) -> int:
        """Of what is kept."""
        return self._values.n_bytes

    def clear(self) -> None:
        """Let go of what is kept; what is waited for will still come."""
        with self._lock:
            self._values.clear()
