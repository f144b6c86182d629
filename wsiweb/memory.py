"""``ArrayPool``: arrays whose memory is used again, once nobody holds them.

A system hands out new memory page by page, at a fault for each 4 kB; a decoded tile has 48 pages, and their faults cost
a good part of what decoding it does. Slabs of several huge pages, as the first ones are, cost a fault for each 2 MB,
and memory that comes back costs none.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Pixels = npt.NDArray[Any]
    Empty = Callable[[tuple[int, ...], npt.DTypeLike], Pixels]
    """Makes arrays as ``numpy.empty`` does."""

SLAB_BYTES = 8 << 20
"""From 4 MiB on, numpy asks for huge pages."""
SMALL_SLAB_BYTES = 3 << 20
"""Below that."""
HUGE_PAGE_BYTES, PAGE_BYTES = 2 << 20, 4 << 10
HUGE_PAGES_BYTES = 128 << 20
"""Of slabs, from which on those of smaller arrays have small pages. A virtual machine that has lent free memory to its
host waits for each huge page of it for milliseconds, longer than for its small ones; what it has used lately comes many
times sooner in huge ones."""
ROW_OFFSET_BYTES = 8
"""By which arrays of bytes that share a slab lie off a multiple of 32: rows that begin at one are written past the
caches by libjpeg-turbo, and decoded tiles are copied from there at once. Others are aligned, for the sake of sums."""
SMALLEST_BYTES = 32 << 10
"""Of an array from here; smaller ones come from memory that the process uses again anyway."""
IDLE_BYTES = 8 * SLAB_BYTES
"""Of slabs without any array that are kept."""
LARGEST_BYTES = IDLE_BYTES
"""Of an array from here; what is larger would not be kept."""
_STEPS = 8
"""Sizes between two powers of two, to which arrays are rounded up so that they can take each other's place."""


class _Slab:
    """Memory for several arrays of about one size, or for a large one."""

    __slots__ = ("bytes", "free", "kind", "places", "size")

    def __init__(self, kind: tuple[int, int], *, huge: bool) -> None:
        self.kind = kind
        """Size of an array in bytes, and by how many it is off the beginning of a page."""
        self.size, offset = kind
        self.places = max(((SLAB_BYTES if huge else SMALL_SLAB_BYTES) - offset) // self.size, 1)
        self.bytes = self.size * self.places
        memory = _pages(self.bytes, offset, HUGE_PAGE_BYTES if huge else PAGE_BYTES)
        starts = reversed(range(0, self.bytes, self.size))
        self.free = [memory[start : start + self.size] for start in starts]


def _pages(size: int, offset: int, page_bytes: int) -> memoryview:
    """Return new memory, from so far behind the beginning of a page: before the first huge one, it comes by 4 kB."""
    room = np.empty(size + page_bytes + offset, np.uint8)
    start = -room.ctypes.data % page_bytes + offset
    return room[start : start + size].data


class _Loan(weakref.ref["Pixels"]):
    """Notices when an array, and all views of it, are gone, and tells whose memory it was.

    Nothing of it refers to the pool or to itself: counting references frees a pool that is let go, slabs and all.
    """

    __slots__ = ("memory", "slab")
    __hash__ = object.__hash__  # a reference's would be the array's
    __eq__ = object.__eq__

    memory: memoryview
    slab: _Slab


class ArrayPool:
    """Makes arrays. Safe to share between threads; arrays outlive it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner = 0  # the thread that has the lock
        self._slabs: defaultdict[tuple[int, int], list[_Slab]] = defaultdict(list)  # those with free places
        self._idle: OrderedDict[_Slab, None] = OrderedDict()  # those without any array, first come first to go
        self._idle_bytes = 0
        self._most_idle_bytes = IDLE_BYTES
        self._all_bytes = 0  # of slabs that have not been let go
        self._lent: set[_Loan] = set()
        self._returned: deque[_Loan] = deque()
        self._take_back = _noting(self._returned, weakref.ref(self))

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pixels:
        """Return a C-contiguous array with undefined content, as ``numpy.empty`` does."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        needed = count * kind.itemsize
        if not SMALLEST_BYTES <= needed <= LARGEST_BYTES:
            return np.empty(shape, kind)
        step = (1 << (needed - 1).bit_length()) // (2 * _STEPS)
        size = -(-needed // step) * step
        slab_kind = size, ROW_OFFSET_BYTES if kind.itemsize == 1 and 2 * size < SLAB_BYTES else 0
        with self._lock:
            self._owner = threading.get_ident()
            self._collect()
            slabs = self._slabs[slab_kind]
            while slabs and not slabs[-1].free:  # as a Ctrl-C may leave it
                slabs.pop()
            if not slabs:
                huge = self._all_bytes < HUGE_PAGES_BYTES or size > SMALL_SLAB_BYTES
                slabs.append(_Slab(slab_kind, huge=huge))
                self._all_bytes += slabs[-1].bytes
            slab = slabs[-1]
            self._wake(slab)
            memory = slab.free.pop()
            if not slab.free:
                slabs.pop()
            self._owner = 0
        # Views of views refer to the array that has no array below it: it must be one of this memory alone.
        whole = np.frombuffer(memory, kind, count)
        loan = _Loan(whole, self._take_back)
        loan.memory, loan.slab = memory, slab
        self._lent.add(loan)
        return whole.reshape(shape)

    def alone(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pixels:
        """Return an array as ``empty`` does, which may be kept for long: a small one does not hold a slab of many."""
        small = math.prod(shape) * np.dtype(dtype).itemsize < SLAB_BYTES
        return np.empty(shape, dtype) if small else self.empty(shape, dtype)

    def close(self) -> None:
        """Keep no slab any more that is without arrays."""
        self._most_idle_bytes = 0
        self.collect()

    @property
    def idle_bytes(self) -> int:
        """Of the slabs that are without arrays."""
        return self._idle_bytes

    def collect(self, *, most_idle_bytes: int | None = None) -> None:
        """Take back what was let go, unless somebody is about to: this thread, perhaps, for arrays go anywhere.

        Of slabs without arrays no more than ``most_idle_bytes`` are kept, this time; None takes what is usual.
        """
        if self._owner == threading.get_ident():
            return
        try:
            if self._lock.acquire(blocking=False):
                self._owner = threading.get_ident()
                self._collect(most_idle_bytes)
                self._owner = 0
        finally:
            try:  # noqa: SIM105  (at once, whatever a Ctrl-C has cut short)
                self._lock.release()
            except RuntimeError:  # another thread has it
                pass

    def _collect(self, most_idle_bytes: int | None = None) -> None:
        """Take back what was let go; to be called under the lock."""
        most_idle_bytes = self._most_idle_bytes if most_idle_bytes is None else most_idle_bytes
        while self._returned:
            loan = self._returned.popleft()
            self._lent.discard(loan)
            slab = loan.slab
            if not slab.free:
                self._slabs[slab.kind].append(slab)
            slab.free.append(loan.memory)
            if len(slab.free) == slab.places:
                self._idle[slab] = None
                self._idle_bytes += slab.bytes
        while self._idle_bytes > most_idle_bytes:
            slab = next(iter(self._idle))
            self._wake(slab)
            self._slabs[slab.kind].remove(slab)
            self._all_bytes -= slab.bytes

    def _wake(self, slab: _Slab) -> None:
        """Note that a slab is not idle any more, if it was."""
        if slab in self._idle:
            del self._idle[slab]
            self._idle_bytes -= slab.bytes


def _noting(returned: deque[_Loan], pool: weakref.ref[ArrayPool]) -> Callable[[_Loan], None]:
    """Return what is called when an array is gone.

    That may be anywhere, even while this thread holds the lock: then it is only noted. It does not hold the pool, which
    holds it.
    """

    def take_back(loan: _Loan) -> None:
        returned.append(loan)
        alive = pool()
        if alive is not None:
            alive.collect()

    return take_back
