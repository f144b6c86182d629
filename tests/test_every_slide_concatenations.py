"""Concatenations: one image in several instances (PS3.3 C.7.6.16.2.2.4), from files and over HTTP."""

from __future__ import annotations

import copy
import itertools
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kinds_writer import (
    KEY,
    SIZE,
    TILE,
    add_level,
    assert_image,
    assert_reads,
    blank,
    empty_canvas,
    frames_of,
    images_for,
    new_slide,
    note_level,
    paint,
    place_frames,
    store,
)
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, generate_uid
from synthetic import decode_independently, encode, make_slide, pattern

from wsiweb import MetadataError, MetadataWarning, ReadOptions, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Opener
    from pydicom import Dataset
    from synthetic import Array, SyntheticSlide

IMAGE = pattern("rgb", *SIZE, salt=2)
"""Of 9 frames."""


def store_parts(
    slide: SyntheticSlide,
    ds: Dataset,
    frames: Sequence[bytes],
    counts: Sequence[int],
    *,
    present: Sequence[int] | None = None,
    shift: int = 0,
    bare: bool = False,
) -> dict[int, str]:
    """Split frames into parts and store those ``present``, in that order of file names.

    ``shift`` is added to the offset of every part but the first; ``bare`` leaves out everything that numbers and
    counts the parts but their offsets, as recorded lists do. Returns the SOP Instance UID of each part.
    """
    concatenation = generate_uid()
    starts = [0, *itertools.accumulate(counts)]
    groups = list(ds.get("PerFrameFunctionalGroupsSequence", []))
    uids: dict[int, str] = {}
    for place, part in enumerate(range(len(counts)) if present is None else present):
        member = copy.deepcopy(ds)
        member.SOPInstanceUID = uids[part] = generate_uid()
        member.ConcatenationUID, member.SOPInstanceUIDOfConcatenationSource = concatenation, ds.SOPInstanceUID
        member.ConcatenationFrameOffsetNumber = starts[part] + (shift if part else 0)
        if not bare:
            member.InConcatenationNumber, member.InConcatenationTotalNumber = part + 1, len(counts)
        if groups:
            member.PerFrameFunctionalGroupsSequence = groups[starts[part] : starts[part + 1]]
        store(slide, member, frames[starts[part] : starts[part + 1]], name=f"part-{place}")
    return uids


@pytest.mark.parametrize("counts", [(9,), (1, 8), (4, 4, 1), (2, 3, 3, 1), (1, 1, 5, 1, 1)])
@pytest.mark.parametrize("bare", [True, False])
def test_parts_in_any_order(tmp_path: Path, open_slide: Opener, counts: tuple[int, ...], bare: bool) -> None:
    """The offset decides, neither the order of files nor a number."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    order = random.Random(len(counts)).sample(range(len(counts)), len(counts))
    uids = store_parts(slide, ds, frames_of(IMAGE), counts, present=order, bare=bare)
    note_level(slide, ds, {KEY: IMAGE}, list(uids.values()))
    assert_reads(open_slide(slide), slide)


def test_planes_and_paths_run_across_the_parts(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    keys = [(path, plane) for path in ("R", "G") for plane in (0.0, 2.0, 4.0)]
    images = images_for(keys)
    ds = blank(slide, content="mono8", keys=keys)
    frames = [frame for image in images.values() for frame in frames_of(image)]
    uids = store_parts(slide, ds, frames, (7, 11, 20, 16), present=(2, 0, 3, 1))
    note_level(slide, ds, images, list(uids.values()))
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("declared", [True, False])
def test_sparse_parts(tmp_path: Path, open_slide: Opener, declared: bool) -> None:
    """Frame numbers run on: a frame of a later part is drawn over one of an earlier part."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    places = [(0, 0), (40, 20), (80, 40), (20, 30), (60, 10), (86, 62)]
    place_frames(ds, [(place, KEY) for place in places], declared=declared)
    tiles = [pattern("rgb", *TILE, salt=9 * n) for n in range(len(places))]
    canvas = empty_canvas()
    for place, tile in zip(places, tiles, strict=True):
        paint(canvas, place, tile)
    uids = store_parts(slide, ds, [tile.tobytes() for tile in tiles], (2, 3, 1), present=(1, 2, 0))
    note_level(slide, ds, {KEY: canvas}, list(uids.values()))
    assert_reads(open_slide(slide), slide)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_part_is_missed_only_where_its_frames_are_needed(
    tmp_path: Path, open_slide: Opener, lost: int
) -> None:
    """One row of tiles in each of three parts."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    present = [part for part in (2, 1, 0) if part != lost]
    store_parts(slide, ds, frames_of(IMAGE), (3, 3, 3), present=present)
    opened = open_slide(slide)
    assert opened.size == SIZE
    for row in range(3):
        top, bottom = row * TILE[1], min(row * TILE[1] + TILE[1], SIZE[1])
        if row == lost:
            requests = open_slide.requests()
            with pytest.raises(WsiWebError, match=rf"(?s)(?i)(?=.*concatenation)(?=.*\b{3 * row + 2}\b)"):
                opened.read_region(0, TILE[0], top, TILE[0], 10)
            assert open_slide.requests() == requests
        else:
            np.testing.assert_array_equal(opened.read_region(0, 0, top, SIZE[0], bottom - top), IMAGE[top:bottom])


def test_patches_of_a_missing_part_are_skipped_and_no_others(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    store_parts(slide, blank(slide), frames_of(IMAGE), (3, 3, 3), present=(0, 2))
    patches = open_slide(slide, options=ReadOptions(readahead_bytes=1)).patches(6)
    top, bottom = TILE[1], 2 * TILE[1]
    whole = patches.index[(patches.y + 6 <= top) | (patches.y >= bottom)].tolist()
    assert 0 < len(whole) < len(patches)
    batches = patches.batches(7, on_error="skip")
    assert [index for batch in batches for index in batch.index.tolist()] == whole
    assert [skipped.index for skipped in batches.skipped] == sorted(set(range(len(patches))) - set(whole))
    images = patches.batches(7)._images
    images.start()
    assert len(images._stream._jobs) < len(patches) / 4  # the budget is one patch
    images.close()
    iterator = iter(patches)
    first_lost = batches.skipped[0].index
    assert [next(iterator).index for _ in range(first_lost)] == list(range(first_lost))
    with pytest.raises(MetadataError, match="concatenation"):
        next(iterator)


def test_a_part_is_missing_at_one_level_of_many(tmp_path: Path, open_slide: Opener) -> None:
    slide = make_slide(tmp_path, sizes=((75, 55), (37, 27)), mpp=1.0)
    store_parts(slide, blank(slide), frames_of(IMAGE), (4, 5), present=(0,))
    opened = open_slide(slide)
    assert [level.size for level in opened.levels] == [SIZE, (75, 55), (37, 27)]
    for index in (0, 1):
        assert_image(opened, index + 1, slide.levels[index].pixels[KEY])
    np.testing.assert_array_equal(opened.read_region(0, 0, 0, *TILE), IMAGE[: TILE[1], : TILE[0]])


def test_a_channel_in_a_missing_part(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    keys = [("a", 0.0), ("b", 0.0)]
    images = images_for(keys)
    ds = blank(slide, content="mono8", keys=keys)
    store_parts(slide, ds, [f for image in images.values() for f in frames_of(image)], (9, 9), present=(1,))
    opened = open_slide(slide)
    assert opened.optical_paths == ("a", "b")
    assert_image(opened, 0, images[keys[1]], optical_path="b")
    for path in ("a", "all", None):
        with pytest.raises(WsiWebError):
            opened.read_region(0, 0, 0, 10, 10, optical_path=path)


@pytest.mark.parametrize("present", [None, (1,)])
def test_a_lone_sparse_part(tmp_path: Path, open_slide: Opener, present: tuple[int, ...] | None) -> None:
    """A part that has positions stands for itself; what the others held cannot be told from holes."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    place_frames(ds, [((0, 0), KEY), ((64, 48), KEY)])
    tiles = [pattern("rgb", *TILE, salt=n) for n in (1, 2)]
    store_parts(slide, ds, [tile.tobytes() for tile in tiles], (1, 1), present=present)
    np.testing.assert_array_equal(open_slide(slide).read_region(0, 64, 48, *TILE), tiles[1])


def test_a_lone_part_without_a_total_is_a_whole_image(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.ConcatenationUID, ds.InConcatenationNumber, ds.ConcatenationFrameOffsetNumber = generate_uid(), 1, 0
    add_level(slide, ds, {KEY: IMAGE})
    assert_reads(open_slide(slide), slide)


def test_an_offset_outside_of_a_concatenation_means_nothing(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.ConcatenationFrameOffsetNumber = 12
    add_level(slide, ds, {KEY: IMAGE})
    assert_reads(open_slide(slide), slide)


def test_a_label_with_the_attributes_of_a_part(tmp_path: Path, open_slide: Opener) -> None:
    """Recorded: part 5 with offset 12."""
    slide = make_slide(tmp_path, sizes=(SIZE,))
    label = blank(slide, (60, 40), flavor="LABEL", mpp=None)
    label.ConcatenationUID, label.InConcatenationNumber, label.ConcatenationFrameOffsetNumber = generate_uid(), 5, 12
    image = pattern("rgb", 60, 40, salt=7)
    store(slide, label, frames_of(image))
    opened = open_slide(slide)
    assert_reads(opened, slide)
    np.testing.assert_array_equal(opened.associated_images["label"], image)


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("alone", [True, False])
def test_offsets_that_contradict_the_frames(tmp_path: Path, open_slide: Opener, shift: int, alone: bool) -> None:
    """They overlap, or leave a gap of one so that the last frame lies outside: both instances are named."""
    slide = new_slide(tmp_path)
    if not alone:
        add_level(slide, blank(slide, (75, 55), mpp=(1.0, 1.0)), {KEY: pattern("rgb", 75, 55, salt=1)})
    uids = store_parts(slide, blank(slide), frames_of(IMAGE), (5, 4), shift=shift)
    both = f"(?s)(?=.*{uids[0]})(?=.*{uids[1]})"
    if alone:
        with pytest.raises(MetadataError, match=both):
            open_slide(slide)
        return
    with pytest.warns(MetadataWarning, match=both):
        opened = open_slide(slide)
    assert_reads(opened, slide)


def test_parts_of_different_matrices(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    uids, concatenation = [], generate_uid()
    for offset, size in ((0, SIZE), (5, (160, 110))):
        ds = blank(slide, size)
        ds.ConcatenationUID, ds.ConcatenationFrameOffsetNumber = concatenation, offset
        uids.append(store(slide, ds, frames_of(IMAGE)[:4]))
    with pytest.raises(MetadataError, match=f"(?s)(?=.*{uids[0]})(?=.*{uids[1]})"):
        open_slide(slide)


def test_parts_with_different_transfer_syntaxes(tmp_path: Path, open_slide: Opener) -> None:
    """Every instance is decoded by its own."""
    slide = new_slide(tmp_path)
    concatenation, syntaxes = generate_uid(), (JPEG2000Lossless, JPEGBaseline8Bit, None)
    canvas: Array = np.zeros_like(IMAGE)
    raw = frames_of(IMAGE)
    for part, syntax in enumerate(syntaxes):
        ds = blank(slide)
        ds.ConcatenationUID, ds.ConcatenationFrameOffsetNumber = concatenation, 3 * part
        frames = raw[3 * part : 3 * part + 3]
        tiles = [np.frombuffer(frame, np.uint8).reshape(TILE[1], TILE[0], 3) for frame in frames]
        if syntax is not None:
            frames = [encode(tile, syntax) for tile in tiles]
            tiles = [decode_independently(data, t, syntax) for data, t in zip(frames, tiles, strict=True)]
        for column, tile in enumerate(tiles):
            paint(canvas, (column * TILE[0], part * TILE[1]), tile)
        if syntax is None:
            store(slide, ds, frames, name=f"{2 - part}")
        else:
            store(slide, ds, frames, syntax=syntax, name=f"{2 - part}")
    assert_image(open_slide(slide), 0, canvas)
