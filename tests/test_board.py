"""Tiles are painted into all arrays that show them, also into those whose turn has not come, while there is room."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb import ReadOptions
from wsiweb.board import Board, Job
from wsiweb.cache import AbandonedError, SingleFlightCache
from wsiweb.memory import ArrayPool
from wsiweb.plan import ReadPlan

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt
    from conftest import Opener, SlideMaker
    from faults import Request

    from wsiweb.frames import FrameKey

    Pixels = npt.NDArray[Any]

TILE, ACROSS = 8, 5
MATRIX = np.random.default_rng(7).integers(0, 256, (TILE * ACROSS, TILE * ACROSS), np.uint8)
"""What all regions are cut from."""
PATIENCE_SECONDS = 30
"""Only a deadlock takes so long."""

corners = st.tuples(st.integers(0, TILE * ACROSS - 12), st.integers(0, TILE * ACROSS - 12))


class Room:
    """A lender who counts."""

    def __init__(self, n_bytes: int) -> None:
        self.free_bytes = n_bytes

    def lend(self, n_bytes: int) -> bool:
        if n_bytes > self.free_bytes:
            return False
        self.free_bytes -= n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        self.free_bytes += n_bytes


def tile_of(key: FrameKey) -> Pixels:
    row, column = divmod(key[1], ACROSS)
    return MATRIX[row * TILE : row * TILE + TILE, column * TILE : column * TILE + TILE]


def job_of(corner: tuple[int, int], side: int = 12) -> Job:
    x, y = corner
    columns, rows = range(x // TILE, (x + side - 1) // TILE + 1), range(y // TILE, (y + side - 1) // TILE + 1)
    keys = [(0, row * ACROSS + column) for row in rows for column in columns]
    plan = ReadPlan(
        shape=(side, side),
        dtype=np.dtype(np.uint8),
        background=(0,),
        keys=keys,
        boxes=[(column * TILE, row * TILE, TILE, TILE) for row in rows for column in columns],
        channel_of=None,
        origin=corner,
        inside=(x, y, x + side, y + side),
        level_size=MATRIX.shape,
        covered=True,
        ordered=False,
    )
    return Job(plan, plan.output_bytes)


def board_of(room: Room) -> Board:
    return Board(ArrayPool(), room, alone=False)


def bring(board: Board, keys: Iterable[FrameKey]) -> None:
    for key in keys:
        board.take([(key, tile_of(key))])


def assert_whole(board: Board, job: Job, corner: tuple[int, int]) -> None:
    x, y = corner
    assert job.done
    np.testing.assert_array_equal(board.array_of(job), MATRIX[y : y + 12, x : x + 12])


@given(st.lists(corners, min_size=1, max_size=12), st.integers(0, 1000), st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_comes_when(places: list[tuple[int, int]], room_bytes: int, data: st.DataObject) -> None:
    """Plans are foreseen, or not, and have their turn; tiles come, or fail and are asked for again, in any order."""
    room = Room(room_bytes)
    board = board_of(room)
    jobs = [job_of(place) for place in places]
    foreseen = turns = 0
    asked: list[FrameKey] = []
    while turns < len(jobs) or asked:
        steps = ["foresee"] * (foreseen < len(jobs)) + ["turn"] * (turns < len(jobs)) + ["come", "fail"] * bool(asked)
        step = data.draw(st.sampled_from(steps))
        if step == "foresee":
            board.foresee(jobs[foreseen])
            foreseen += 1
        elif step == "turn":
            new = board.enlist(jobs[turns])
            assert not set(new) & set(asked)
            asked += new
            turns += 1
            foreseen = max(foreseen, turns)
        else:
            key = asked.pop(data.draw(st.integers(0, len(asked) - 1)))
            if step == "come":
                bring(board, [key])
            else:
                board.fail(key, AbandonedError())
                if board.wanted_by(key):
                    asked.append(key)
        assert board.tiles_awaited == len(asked)
        assert room.free_bytes >= 0
    for job, place in zip(jobs, places, strict=True):
        assert_whole(board, job, place)
    assert room.free_bytes == room_bytes


def test_a_tile_that_came_early_is_not_asked_for_again() -> None:
    board = board_of(Room(144))
    first, far = job_of((0, 0)), job_of((4, 4))
    asked = board.enlist(first)
    assert board.foresee(far)
    bring(board, asked)
    assert_whole(board, first, (0, 0))
    assert not board.foresee(job_of((4, 4)))  # nothing of it is on its way any more
    assert board.enlist(far) == []
    assert_whole(board, far, (4, 4))


def test_without_room_it_is_asked_for_in_its_turn() -> None:
    board = board_of(Room(143))
    first, far = job_of((0, 0)), job_of((4, 4))
    asked = board.enlist(first)
    board.foresee(far)
    bring(board, asked)
    assert sorted(board.enlist(far)) == sorted(asked)
    bring(board, asked)
    assert_whole(board, far, (4, 4))


def test_the_failure_of_a_tile_is_not_that_of_plans_that_come_later() -> None:
    board = board_of(Room(1000))
    first, far = job_of((0, 0)), job_of((4, 4))
    asked = board.enlist(first)
    board.foresee(far)
    bring(board, asked[1:])
    board.fail(asked[0], ValueError("damaged"))
    assert isinstance(first.error, ValueError)
    assert far.error is None
    assert board.enlist(far) == asked[:1]
    bring(board, asked[:1])
    assert_whole(board, far, (4, 4))


def test_forgotten_plans_take_up_no_room() -> None:
    room = Room(1000)
    board = board_of(room)
    asked = board.enlist(job_of((0, 0)))
    board.foresee(job_of((4, 4)))
    bring(board, asked[:1])
    assert room.free_bytes < 1000
    board.close()
    bring(board, asked[1:])
    assert room.free_bytes == 1000


def test_nothing_is_borrowed_once_it_is_closed() -> None:
    """Even if that happens while tiles are taken."""

    class Closes(dict[Any, int]):
        def pop(self, *args: Any) -> int:
            board.close()
            return super().pop(*args)

    room = Room(1000)
    board = board_of(room)
    asked = board.enlist(job_of((0, 0)))
    first, second = job_of((4, 4)), job_of((2, 2))
    first.waiting = Closes(first.waiting)
    board.foresee(first)
    board.foresee(second)
    bring(board, asked[:1])
    assert room.free_bytes == 1000


def test_what_is_lent_while_it_is_closed_is_given_back() -> None:
    """The garbage collector closes it wherever it runs: in the lender, too."""

    class Collecting(Room):
        def lend(self, n_bytes: int) -> bool:
            lent = super().lend(n_bytes)
            board.close()
            return lent

    room = Collecting(1000)
    board = board_of(room)
    asked = board.enlist(job_of((0, 0)))
    board.foresee(job_of((4, 4)))
    bring(board, asked[:1])
    assert room.free_bytes == 1000


def test_what_was_begun_early_is_handed_out_where_it_is_wanted() -> None:
    """It takes up both until then."""
    room = Room(1000)
    board = board_of(room)
    asked = board.enlist(job_of((0, 0)))
    far = job_of((4, 4))
    board.foresee(far)
    bring(board, asked)
    far.out = out = np.zeros((12, 12), np.uint8)
    board.enlist(far)
    assert room.free_bytes == 1000 - 144
    assert board.hand_out(far) is out
    np.testing.assert_array_equal(out, MATRIX[4:16, 4:16])
    assert room.free_bytes == 1000


def test_a_dropped_plan_wants_nothing() -> None:
    room = Room(1000)
    board = board_of(room)
    first, second, far = job_of((0, 0)), job_of((4, 4)), job_of((2, 2))
    asked = board.enlist(first)
    assert board.enlist(second) == []
    board.foresee(far)
    bring(board, asked[:1])
    assert room.free_bytes == 1000 - 144
    board.drop(first)
    board.drop(far)
    assert room.free_bytes == 1000
    assert board.wanted_by(asked[1]) is second
    board.drop(second)
    assert board.wanted_by(asked[1]) is None
    assert board.enlist(job_of((0, 0))) == asked[:2]


def test_it_may_be_cleared_from_anywhere() -> None:
    """A stream that is garbage clears its board in whatever thread makes the next object, also one that is in here."""

    class Clears(tuple[int, int]):
        __slots__ = ()
        armed = False

        def __hash__(self) -> int:
            if Clears.armed:
                board.close()
                cache.fail((0, 0), AbandonedError())
            return super().__hash__()

    board = board_of(Room(1000))
    cache: SingleFlightCache[FrameKey, Pixels] = SingleFlightCache(1000, lambda tile: tile.nbytes)
    job = job_of((0, 0))
    job.waiting = {Clears(key): row for key, row in job.waiting.items()}
    Clears.armed = True
    try:
        thread = threading.Thread(target=lambda: (board.enlist(job), cache.claim(job.waiting, board)), daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    finally:
        Clears.armed = False


def wait_until_foreseen(slide: Any, count: int) -> None:
    """Let go once so many plans of the read under way are known."""
    (stream,) = (found for found in gc.get_objects() if type(found).__name__ == "Stream" and found._reader is slide)
    for _ in range(PATIENCE_SECONDS * 1000):
        if len(stream._foreseen) >= count:
            return
        stream._errand.cancellation.sleep(0.001)
    pytest.fail("plans are not foreseen")


@pytest.mark.parametrize("mpp", [None, 1.5])
def test_what_plans_far_apart_share_is_decoded_once(
    open_web: Opener, synthetic: SlideMaker, monkeypatch: pytest.MonkeyPatch, mpp: float | None
) -> None:
    """Of a shuffled grid, of which few arrays are held ahead, and few tiles kept."""
    for name in ("_FORESEEN_A_WAIT", "_BARREN_PLANS"):  # all are foreseen, before the first tile comes
        monkeypatch.setattr(f"wsiweb.stream.{name}", 10_000)
    truth = synthetic("rgb", sizes=((1000, 1000),), tile_size=(50, 50), mpp=1.0)
    options = ReadOptions(readahead_bytes=1, tile_cache_bytes=4_500_000)
    slide, other = open_web(truth, options=options), open_web(truth)
    patches = slide.patches(44, mpp=mpp).shuffle(3, locality=None)
    rest = [len(patches) - 1]

    def hook(_: Request) -> None:
        if rest:
            wait_until_foreseen(slide._reader, rest.pop())

    open_web.servers[0].fault = hook
    seen = 0
    for batch in patches.batches(10):
        for x, y, image in zip(batch.x.tolist(), batch.y.tolist(), batch.images, strict=True):
            seen += 1
            if mpp is None:
                np.testing.assert_array_equal(image, truth.truth(0, x, y, 44, 44))
            else:
                np.testing.assert_array_equal(image, other.read_region_mpp(mpp, x, y, 44, 44))
    assert seen == len(patches)
    assert slide.stats.decoded == slide.stats.frames == 400
