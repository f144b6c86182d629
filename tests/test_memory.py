"""Arrays whose memory is used again: never while anybody holds them, or a view of them."""

from __future__ import annotations

import gc
import math
import random
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.memory import (
    HUGE_PAGE_BYTES,
    HUGE_PAGES_BYTES,
    IDLE_BYTES,
    LARGEST_BYTES,
    ROW_OFFSET_BYTES,
    SLAB_BYTES,
    SMALLEST_BYTES,
    ArrayPool,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = npt.NDArray[Any]


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (256, 256, 3), (300, 517), (1023, 1365, 3), (3000, 3000, 3)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f8"])
def test_arrays_are_as_numpys(shape: tuple[int, ...], dtype: str) -> None:
    array = ArrayPool().empty(shape, dtype)
    expected = np.empty(shape, dtype)
    assert (array.shape, array.dtype, array.strides) == (expected.shape, expected.dtype, expected.strides)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    array[...] = 1
    assert (array == 1).all()


@pytest.mark.parametrize("shape", [(240, 240, 3), (256, 256, 3), (256, 256), (512, 512, 3), (1024, 1024, 3)])
def test_no_row_of_a_tile_begins_where_libjpeg_would_bypass_the_caches(shape: tuple[int, ...]) -> None:
    pool = ArrayPool()
    arrays = [pool.empty(shape, np.uint8) for _ in range((HUGE_PAGES_BYTES + 2 * SLAB_BYTES) // math.prod(shape))]
    assert all(address(row) % 32 for array in arrays for row in array)


@pytest.mark.parametrize("size", [SMALLEST_BYTES, 196_608, 1 << 20, SLAB_BYTES, 5 * SLAB_BYTES, 50_000_000])
def test_slabs_fill_whole_huge_pages(size: int) -> None:
    """Or touching the first and the last bytes of one would cost a huge page each that holds nothing else."""
    pool = ArrayPool()
    arrays = [pool.empty((size,), np.uint8) for _ in range(max((SLAB_BYTES - ROW_OFFSET_BYTES) // size, 1))]
    first, last = min(map(address, arrays)), max(map(address, arrays)) + size - 1
    assert last // HUGE_PAGE_BYTES - first // HUGE_PAGE_BYTES < -(-len(arrays) * size // HUGE_PAGE_BYTES)


def test_a_view_holds_the_memory() -> None:
    pool = ArrayPool()
    array = pool.empty((256, 256, 3), np.uint8)
    array[...] = 7
    views = [array[10:20, 5:, 1], array.data[3:], array.reshape(-1)[::2].view(np.int8)]
    del array
    while views:
        others = [pool.empty((256, 256, 3), np.uint8) for _ in range(100)]
        for other in others:
            other[...] = 9
        assert all((np.asarray(view) == 7).all() for view in views)
        del others
        views.pop()


def test_arrays_outlive_their_pool() -> None:
    pool = ArrayPool()
    array = pool.empty((256, 256, 3), np.uint8)
    array[...] = 7
    del pool
    gc.collect()
    others = [np.full((256, 256, 3), 9, np.uint8) for _ in range(50)]
    assert (array == 7).all()
    assert len(others) == 50


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_pool_leaves_nothing_to_the_garbage_collector() -> None:
    """Which counts objects and not bytes: closed slides would pile up."""
    pool = ArrayPool()
    arrays = [pool.empty((256, 256, 3), np.uint8) for _ in range(100)]
    idle = pool.empty((5000, 1000), np.uint8)
    slabs = [weakref.ref(loan.memory.obj) for loan in pool._lent]
    del idle, arrays[10:50]
    pool._owner = threading.get_ident()  # as while this thread has the lock: what is let go is noted only
    del arrays[30:]
    assert pool._returned
    kept = arrays[3]
    kept[...] = 7
    del pool, arrays
    assert all(np.shares_memory(slab(), kept) for slab in slabs if slab() is not None)
    assert (kept == 7).all()
    del kept
    assert not any(slab() is not None for slab in slabs)


def test_a_closed_pool_keeps_nothing_idle() -> None:
    pool = ArrayPool()
    arrays = [pool.empty((256, 256, 3), np.uint8) for _ in range(100)]
    del arrays[20:]
    pool.close()
    held = {loan.slab for loan in pool._lent}
    assert pool._all_bytes == sum(slab.bytes for slab in held)
    arrays.clear()
    assert pool._all_bytes == 0
    assert pool.empty((256, 256, 3), np.uint8).shape == (256, 256, 3)


@pytest.mark.parametrize("shape", [(256, 256, 3), (1100, 1000, 3), (4096, 4096, 3)])
def test_memory_serves_again_and_again(shape: tuple[int, ...]) -> None:
    pool = ArrayPool()
    places = {address(pool.empty(shape, np.uint8)) for _ in range(5)}
    assert len(places) == 1


@given(st.lists(st.tuples(st.integers(SMALLEST_BYTES, SLAB_BYTES), st.integers(0, 6)), max_size=60))
@settings(max_examples=40, deadline=None)
def test_no_two_arrays_share_memory(steps: list[tuple[int, int]]) -> None:
    """Arrays of all sizes are taken and let go in any order; each keeps what was written into it."""
    pool = ArrayPool()
    held: list[tuple[Array, int]] = []
    for number, (size, drop) in enumerate(steps):
        array = pool.empty((size,), np.uint8)
        array[...] = number % 251
        held.append((array, number % 251))
        if drop < len(held):
            held.pop(drop)
        assert all(kept[0] == kept[-1] == kept[len(kept) // 2] == value for kept, value in held)


def test_memory_is_given_back() -> None:
    """What was let go is kept up to a bound, of whatever sizes it was."""
    pool = ArrayPool()
    for size in [*range(SMALLEST_BYTES, SLAB_BYTES, 150_000), *range(SLAB_BYTES, LARGEST_BYTES, 5 << 20)]:
        arrays = [pool.empty((size,), np.uint8) for _ in range(max(3 * SLAB_BYTES // size, 2))]
        del arrays
    slabs = {slab for found in pool._slabs.values() for slab in found}
    assert sum(slab.bytes for slab in slabs) == pool._all_bytes <= IDLE_BYTES + SLAB_BYTES


def test_huge_pages_have_a_bound() -> None:
    """Of a pass that holds much; large arrays, which fill them, have them all the same."""
    pool = ArrayPool()
    many = HUGE_PAGES_BYTES // 196_608
    arrays = [pool.empty((196_608,), np.uint8) for _ in range(2 * many)]
    slabs = {place.slab for place in pool._lent}
    assert {slab.bytes > 4 << 20 for slab in slabs} == {True, False}
    assert sum(slab.bytes for slab in slabs if slab.bytes > 4 << 20) <= HUGE_PAGES_BYTES + SLAB_BYTES
    large = pool.empty((5 << 20,), np.uint8)
    assert address(large) % HUGE_PAGE_BYTES == 0
    del slabs
    arrays.clear()
    assert pool._all_bytes <= IDLE_BYTES + (5 << 20)
    fresh = [pool.empty((400_000,), np.uint8) for _ in range(5)]
    assert {place.slab.bytes > 4 << 20 for place in pool._lent} == {True}
    assert len(fresh) == 5


def test_large_arrays_are_given_back_at_once() -> None:
    pool = ArrayPool()
    arrays = [pool.empty((4000, 4000, 3), np.uint8) for _ in range(10)]
    assert len(pool._lent) == 10
    arrays.clear()
    assert not pool._lent
    assert sum(map(len, pool._slabs.values())) == 1


def test_many_threads() -> None:
    pool = ArrayPool()
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        held: list[Array] = []
        for _ in range(400):
            array = pool.empty((chance.choice([40_000, 50_000, 196_608]),), np.uint8)
            array[...] = seed
            held.append(array)
            if len(held) > 10:
                gone = held.pop(chance.randrange(len(held)))
                if not (gone == seed).all():
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
