"""Caches: never above their budget, the least recently used goes first, and nothing is produced twice."""

from __future__ import annotations

import queue
import random
import threading
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsiweb.cache import AbandonedError, ByteCache, Keep, SingleFlightCache, TrialCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Result = TypeVar("Result")
Event = tuple[str, bytes | None, BaseException | None]
PATIENCE_SECONDS = 30
"""Only a deadlock takes so long."""

operations = st.lists(
    st.tuples(st.sampled_from(["get", "put", "put", "discard"]), st.integers(0, 9)), max_size=60
)  # fmt: skip


@given(operations, st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_a_byte_budgeted_lru(steps: list[tuple[str, int]], budget_bytes: int) -> None:
    """Key n has n + 1 bytes; compared with an ordered dict that is emptied from its old end."""
    cache: ByteCache[int, bytes] = ByteCache(budget_bytes, len)
    model: OrderedDict[int, bytes] = OrderedDict()
    for step, key in steps:
        if step == "discard":
            cache.discard(key)
            model.pop(key, None)
        elif step == "get":
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        else:
            cache.put([(key, bytes(key + 1))])
            if key < budget_bytes:
                model[key] = bytes(key + 1)
                model.move_to_end(key)
            while sum(map(len, model.values())) > budget_bytes:
                model.popitem(last=False)
    for key, value in model.items():
        assert cache.get(key) == value


def test_an_oversize_value_costs_no_other() -> None:
    cache: ByteCache[str, bytes] = ByteCache(10, len)
    cache.put([("small", bytes(10))])
    cache.put([("large", bytes(11))])
    assert cache.get("large") is None
    assert cache.get("small") == bytes(10)


def test_a_budget_of_nothing_keeps_nothing() -> None:
    cache: ByteCache[str, bytes] = ByteCache(0, len)
    cache.put([("a", b"x")])
    assert cache.get("a") is None


def test_forgetting_what_is_not_there() -> None:
    ByteCache[str, bytes](10, len).discard("a")


def trial_of(budget_bytes: int) -> TrialCache[int, bytes]:
    return TrialCache(budget_bytes, len)


@example([(Keep.ON_TRIAL, 0, 1), ("lend", 0, 1)], 1)
@given(
    st.lists(
        st.tuples(st.sampled_from(["get", "lend", "give back", *Keep]), st.integers(0, 12), st.integers(1, 9)),
        max_size=120,
    ),
    st.integers(0, 60),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_what_is_kept_and_on_trial_fits_into_the_budget(steps: list[tuple[str | Keep, int, int]], budget: int) -> None:
    cache = trial_of(budget)
    sizes: dict[int, int] = {}
    lent: list[int] = []
    for step, key, size in steps:
        if isinstance(step, Keep):
            cache.put(key, bytes(size), step)
            if size <= budget - sum(lent):
                sizes[key] = size
                assert key % 2 or cache.get(key) == bytes(size)  # which ends its trial
        elif step == "lend":
            if cache.lend(size):
                lent.append(size)
        elif step == "give back":
            if lent:
                cache.give_back(lent.pop())
        else:
            value = cache.get(key)
            assert value is None or len(value) == sizes[key]
    cache.put(13, b"1", Keep.YES)  # what was lent is made room for with the next value
    held = [value for key in range(14) if (value := cache.get(key)) is not None]
    assert sum(map(len, held)) + sum(lent) <= budget


def test_a_long_pass_leaves_what_was_kept() -> None:
    cache = trial_of(3200)
    for key in range(300):
        cache.put(key, bytes(10), Keep.YES)
    for key in range(1000, 2000):
        cache.put(key, bytes(10), Keep.ON_TRIAL)
    assert all(cache.get(key) for key in range(300))
    assert [key for key in range(1000, 2000) if cache.get(key)] == list(range(1990, 2000))


def test_it_lends_what_is_free_and_half_of_what_is_kept() -> None:
    cache: SingleFlightCache[str, bytes] = SingleFlightCache(3200, len)

    def borrow_all() -> int:
        lent = 0
        while cache.lend(10):
            lent += 10
        return lent

    assert borrow_all() == 3100  # trials have a part of their own
    cache.give_back(3100)
    keys = [str(key) for key in range(320)]
    cache.resolve([(key, bytes(10)) for key in keys], Keep.YES)
    assert borrow_all() == 1500
    cache.resolve([("new", bytes(10))], Keep.ON_TRIAL)
    kept = cache.claim(keys, Listener()).hits
    assert list(kept) == keys[-len(kept) :]
    assert 1590 <= 10 * len(kept) <= 1700
    cache.give_back(1500)
    cache.resolve([(str(key), bytes(10)) for key in range(2000, 2150)], Keep.YES)
    assert cache.claim(kept, Listener()).hits == kept


def test_nothing_is_left_once_it_is_cleared() -> None:
    cache = trial_of(800)
    for _ in range(2):
        cache.put(1, bytes(10), Keep.YES)
        cache.put(2, bytes(20), Keep.ON_TRIAL)
        assert cache.n_bytes == 30
        cache.clear()
        assert [cache.get(1), cache.get(2), cache.n_bytes] == [None, None, 0]


def test_a_second_use_ends_the_trial() -> None:
    cache = trial_of(800)
    cache.put(1, bytes(10), Keep.ON_TRIAL)
    assert cache.get(1)
    for key in range(1000, 2000):
        cache.put(key, bytes(10), Keep.ON_TRIAL)
    assert cache.get(1)


def test_what_comes_again_after_it_was_dropped_gets_room() -> None:
    """A pass in an order of its own, over what fits into the whole budget but not into the part for trials."""
    cache = trial_of(8000)
    rng = random.Random(3)
    produced = 0
    for _ in range(4000):
        key = rng.randrange(700)
        if cache.get(key) is None:
            produced += 1
            cache.put(key, bytes(10), Keep.ON_TRIAL)
    assert produced < 700 * 1.6


def together(work: Callable[[int], Result], count: int = 8) -> list[Result]:
    """Call ``work`` with 0, 1, ... in as many threads at the same moment."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Result:
        barrier.wait(PATIENCE_SECONDS)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_the_budget_holds_with_many_threads() -> None:
    cache: ByteCache[int, bytes] = ByteCache(200, len)

    def work(seed: int) -> None:
        for n in range(500):
            key = (seed * 31 + n * 7) % 40
            cache.put([(key, bytes(key + 1))])
            value = cache.get((key + n) % 40)
            assert value is None or len(value) == (key + n) % 40 + 1
            cache.discard((key * n) % 40)

    together(work)
    assert sum(len(value) for key in range(40) if (value := cache.get(key)) is not None) <= 200


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def take(self, values: Sequence[tuple[str, bytes]]) -> None:
        for key, value in values:
            self.events.put((key, value, None))

    def fail(self, key: str, error: BaseException) -> None:
        self.events.put((key, None, error))

    @property
    def told(self) -> list[Event]:
        return [self.events.get_nowait() for _ in range(self.events.qsize())]


def flights(budget_bytes: int = 100) -> SingleFlightCache[str, bytes]:
    return SingleFlightCache(budget_bytes, len)


def test_the_first_who_asks_produces() -> None:
    cache, first, second = flights(), Listener(), Listener()
    assert cache.claim(["a", "b"], first).ours == ["a", "b"]
    assert cache.claim(["b", "c"], second).ours == ["c"]
    cache.resolve([("b", b"B")], Keep.YES)
    assert first.told == second.told == [("b", b"B", None)]
    claim = cache.claim(["b", "a"], second)
    assert (claim.hits, claim.ours) == ({"b": b"B"}, [])  # a is still on its way
    cache.resolve([("a", b"A")], Keep.YES)
    assert (first.told, second.told) == ([("a", b"A", None)], [("a", b"A", None)])


def test_a_hit_tells_no_listener() -> None:
    cache, listener = flights(), Listener()
    cache.claim(["a"], Listener())
    cache.resolve([("a", b"A")], Keep.YES)
    assert cache.claim(["a"], listener).hits == {"a": b"A"}
    cache.resolve([("a", b"again")], Keep.YES)
    assert not listener.told


@pytest.mark.parametrize(("budget_bytes", "keep"), [
    (0, Keep.YES), (2, Keep.YES), (2, Keep.ON_TRIAL),
])  # fmt: skip
def test_what_is_not_kept_still_reaches_who_waits(budget_bytes: int, keep: Keep) -> None:
    cache, listener = flights(budget_bytes), Listener()
    cache.claim(["a"], listener)
    cache.resolve([("a", b"AAA")], keep)
    assert listener.told == [("a", b"AAA", None)]
    assert cache.claim(["a"], Listener()).ours == ["a"]


def test_values_that_come_together_are_told_together() -> None:
    cache, first, second = flights(), Listener(), Listener()
    cache.claim(["a", "b", "c"], first)
    cache.claim(["b"], second)
    cache.resolve([("a", b"A"), ("b", b"B"), ("d", b"D")], Keep.YES)
    assert first.told == [("a", b"A", None), ("b", b"B", None)]
    assert second.told == [("b", b"B", None)]
    assert cache.claim(["a", "b", "c", "d"], second).hits == {"a": b"A", "b": b"B", "d": b"D"}


@pytest.mark.parametrize("error", [ValueError("bad"), AbandonedError()])
def test_failure_reaches_all_who_wait_and_does_not_latch(error: Exception) -> None:
    cache, first, second = flights(), Listener(), Listener()
    cache.claim(["a"], first)
    cache.claim(["a"], second)
    cache.fail("a", error)
    assert first.told == second.told == [("a", None, error)]
    claim = cache.claim(["a"], second)
    assert (claim.hits, claim.ours) == ({}, ["a"])
    cache.resolve([("a", b"A")], Keep.YES)
    assert (first.told, second.told) == ([], [("a", b"A", None)])


def test_what_nobody_waits_for_may_fail_and_resolve() -> None:
    cache = flights()
    cache.fail("a", AbandonedError())
    cache.resolve([("a", b"A")], Keep.YES)
    assert cache.claim(["a"], Listener()).hits == {"a": b"A"}


def test_a_listener_may_ask_again() -> None:
    """As who is told that a tile was abandoned does; a lock held meanwhile would block for ever."""
    cache, second = flights(), Listener()
    reclaimed: list[str] = []

    class Again(Listener):
        def fail(self, key: str, error: BaseException) -> None:
            reclaimed.extend(cache.claim([key], second).ours)

    cache.claim(["a"], Again())
    thread = threading.Thread(target=cache.fail, args=("a", AbandonedError()), daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert reclaimed == ["a"]
    cache.resolve([("a", b"A")], Keep.YES)
    assert second.told == [("a", b"A", None)]


def test_a_claim_in_whose_midst_another_is_given_up() -> None:
    """By the garbage collector, in the same thread: a stream that is collected gives up what it was to produce."""
    cache, second = flights(), Listener()
    first = Listener()

    class Collects(dict[str, Any]):
        def get(self, *args: Any) -> Any:
            found = super().get(*args)
            if collected:
                collected.pop()
                cache.forsake(["a"], first)
            return found

    collected: list[None] = []
    cache._waiting = Collects()
    cache.claim(["a"], first)
    collected.append(None)
    assert cache.claim(["a"], second).ours == ["a"]
    cache.resolve([("a", b"A")], Keep.YES)
    assert second.told[-1] == ("a", b"A", None)


def test_eight_threads_produce_each_value_once() -> None:
    """Each key fails once, is claimed anew by one of those who were told, and then reaches everybody."""
    keys = [f"key {n}" for n in range(50)]
    cache = flights(10_000)
    produced: Counter[str] = Counter()
    lock = threading.Lock()

    def produce(key: str) -> None:
        with lock:
            produced[key] += 1
            first = produced[key] == 1
        if first:
            cache.fail(key, AbandonedError())
        else:
            cache.resolve([(key, key.encode())], Keep.YES)

    def work(number: int) -> dict[str, bytes]:
        listener = Listener()
        wanted = keys[number:] + keys[:number]
        claim = cache.claim(wanted, listener)
        values = dict(claim.hits)
        for key in claim.ours:
            produce(key)
        while len(values) < len(keys):
            key, value, error = listener.events.get(timeout=PATIENCE_SECONDS)
            if value is not None:
                values[key] = value
                continue
            assert isinstance(error, AbandonedError)
            again = cache.claim([key], listener)
            values.update(again.hits)
            for mine in again.ours:
                produce(mine)
        return values

    for values in together(work):
        assert values == {key: key.encode() for key in keys}
    assert set(produced.values()) == {2}
