"""Batches: every frame in one request, requests spread over the connections, none too long."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb.batch import MAX_LIST_CHARACTERS, SMALL_READ_FRAMES, Batch, batch_frames

keys = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), unique=True, max_size=400)


def sizes(batches: list[Batch]) -> list[int]:
    return [len(batch.frame_indices) for batch in batches]


@given(keys, st.integers(1, 32), st.integers(1, 100))
@settings(max_examples=150, deadline=None)
def test_every_frame_is_in_one_batch(wanted: list[tuple[int, int]], connections: int, cap: int) -> None:
    batches = batch_frames(wanted, requests=connections, max_frames=cap)
    asked = [(batch.instance_index, frame_index) for batch in batches for frame_index in batch.frame_indices]
    assert sorted(asked) == sorted(wanted)
    assert all(list(batch.frame_indices) == sorted(batch.frame_indices) for batch in batches)
    most = min(cap, max(math.ceil(len(wanted) / connections), SMALL_READ_FRAMES))
    for batch in batches:
        assert 1 <= len(batch.frame_indices) <= most
        assert len(",".join(str(frame_index + 1) for frame_index in batch.frame_indices)) <= MAX_LIST_CHARACTERS


@pytest.mark.parametrize(("frames", "connections", "expected"), [
    (0, 8, []),
    (1, 8, [1]),
    (4, 8, [4]),  # a second request would cost more than it saves
    (5, 8, [1] * 5),
    (16, 8, [2] * 8),
    (17, 8, [3] * 5 + [2]),
    (100, 1, [64, 36]),
    (1000, 2, [64] * 15 + [40]),
])  # fmt: skip
def test_frames_are_spread_over_the_connections(frames: int, connections: int, expected: list[int]) -> None:
    wanted = [(0, 3 * n) for n in reversed(range(frames))]
    assert sizes(batch_frames(wanted, requests=connections, max_frames=64)) == expected


def test_the_users_cap_is_hard() -> None:
    wanted = [(0, n) for n in range(4)]
    assert sizes(batch_frames(wanted, requests=8, max_frames=3)) == [3, 1]
    assert sizes(batch_frames(wanted, requests=8, max_frames=1)) == [1] * 4


def test_instances_do_not_share_a_request() -> None:
    batches = batch_frames([(2, 0), (1, 7), (1, 3)], requests=1, max_frames=64)
    assert batches == [Batch(2, (0,)), Batch(1, (3, 7))]


def test_what_is_wanted_first_is_asked_for_first() -> None:
    """Two patches far from each other, and one of two channels."""
    wanted = [(0, 900), (0, 901), (0, 10), (0, 11), (1, 50), (0, 5), (1, 51)]
    batches = batch_frames(wanted, requests=1, max_frames=2)
    assert batches == [Batch(0, (900, 901)), Batch(0, (10, 11)), Batch(1, (50, 51)), Batch(0, (5,))]


def test_a_long_list_is_cut_where_a_url_ends() -> None:
    """400 numbers of seven digits make 3,200 characters; the first batch takes what 2,000 hold, and no fewer."""
    wanted = [(0, 2_000_000 + n) for n in range(400)]
    batches = batch_frames(wanted, requests=1, max_frames=400)
    assert sizes(batches) == [250, 150]
