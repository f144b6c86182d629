"""Reading plans of patches: batches, errors, and loops that are left."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from faults import Fault, Request
from pydicom.encaps import encapsulate, generate_frames

from wsiweb import DecodeError, ReadOptions, RegionError, Slide, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Opener, SlideMaker

    from wsiweb.patches import PatchPlan


@pytest.fixture
def slide(open_slide: Opener, synthetic: SlideMaker) -> Slide:
    """700 x 530, 350 x 265 and 175 x 132 pixels."""
    return open_slide(synthetic("rgb"))


def test_no_patches_are_read_whatever_their_size(slide: Slide, tmp_path: Path) -> None:
    """Of 30 GB each: no array is made for them, and none is too large."""
    none = slide.patches(100_000)
    assert (len(none), list(none), list(none.batches(4))) == (0, [], [])
    assert none.read([]).images.shape == (0, 100_000, 100_000, 3)
    rows = none.map(lambda batch: np.zeros((len(batch), 2)), tmp_path / "rows.npy")
    assert len(rows) == 0
    with pytest.raises(RegionError, match="max_region_bytes"):
        list(slide.patches(100_000, edge="pad"))


@pytest.mark.parametrize("n", [1, 4, 7, 100])
def test_batches_are_what_regions_are(slide: Slide, n: int) -> None:
    patches = slide.patches(90, edge="pad").shuffle(5)
    place = 0
    for batch in patches.batches(n):
        for row in range(len(batch)):
            truth = slide.read_region(0, int(batch.x[row]), int(batch.y[row]), 90, 90)
            np.testing.assert_array_equal(batch.images[row], truth)
            assert batch.index[row] == patches.index[place]
            place += 1
    assert place == len(patches)


def test_any_rows_are_read_together(open_web: Opener, synthetic: SlideMaker) -> None:
    slide = open_web(synthetic("rgb"))
    patches = slide.patches(64)
    batch = patches.read([5, 50, -1, 5])
    assert batch.index.tolist() == [5, 50, len(patches) - 1, 5]
    np.testing.assert_array_equal(batch.images[0], batch.images[3])
    np.testing.assert_array_equal(batch.images[1], slide.read_region(0, int(patches.x[50]), int(patches.y[50]), 64, 64))
    assert len(patches.read([])) == 0


def test_bad_frames_are_raised_or_skipped_and_listed(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    truth = synthetic("jpeg-mono8", sizes=((400, 300),), tile_size=(50, 50))
    file = next(iter(truth.folder.glob("*.dcm")))
    dataset = pydicom.dcmread(file)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=48))
    frames[10] = frames[10][:40]  # column 2, row 1
    dataset.PixelData = encapsulate(frames)
    dataset.save_as(tmp_path / "broken.dcm")
    slide = open_slide(replace(truth, folder=tmp_path))
    patches = slide.patches(100)  # 4 x 3, of four frames each: patch 1 shows the frame
    with pytest.raises(DecodeError):
        list(patches.batches(3))
    for n in (1, 2, 5, 12):
        batches = patches.batches(n, on_error="skip")
        found = [
            (int(index), image.copy())
            for batch in batches
            if len(batch) or pytest.fail("an empty batch")
            for index, image in zip(batch.index, batch.images, strict=True)
        ]
        assert [index for index, _ in found] == [index for index in range(12) if index != 1]
        for index, image in found:
            np.testing.assert_array_equal(image, truth.truth(0, int(patches.x[index]), int(patches.y[index]), 100, 100))
        assert [(skipped.index, type(skipped.error)) for skipped in batches.skipped] == [(1, DecodeError)]
    iterator = iter(patches)
    assert next(iterator).index == 0  # what comes before it is there
    with pytest.raises(DecodeError):
        next(iterator)


@pytest.mark.parametrize("status", [404, 500])
def test_frames_are_not_blamed_for_those_that_they_travel_with(
    open_web: Opener, synthetic: SlideMaker, hurried: None, status: int
) -> None:
    """A service that cannot give one frame of a list refuses the list."""
    truth = synthetic("rgb", sizes=((1008, 720),), tile_size=(56, 24))  # 18 x 30 frames
    slide = open_web(truth)
    bad = {50, 51, 170}

    def hook(request: Request) -> Fault | None:
        return Fault(status=status) if bad.intersection(request.frame_numbers) else None

    open_web.servers[0].fault = hook
    patches = slide.patches(64)
    whole = [
        index
        for index, (x, y) in enumerate(zip(patches.x.tolist(), patches.y.tolist(), strict=True))
        if not {18 * row + column + 1 for column, row in truth.tiles(0, x, y, 64, 64)} & bad
    ]
    found: dict[int, Any] = {}
    batches = patches.batches(16, on_error="skip")
    for batch in batches:
        found.update(zip(batch.index.tolist(), batch.images, strict=True))
    assert list(found) == whole
    assert {skipped.index for skipped in batches.skipped} == set(range(len(patches))) - set(whole)
    for index, image in found.items():
        np.testing.assert_array_equal(image, truth.truth(0, int(patches.x[index]), int(patches.y[index]), 64, 64))
    iterator = iter(patches)
    first_bad = next(index for index in range(len(patches)) if index not in found)
    assert [next(iterator).index for _ in range(first_bad)] == list(range(first_bad))
    with pytest.raises(SourceError, match="Frame 5"):
        next(iterator)


@pytest.mark.parametrize("readahead_bytes", [1, 1 << 28])
def test_a_bad_frame_in_one_band_of_a_patch(
    open_web: Opener, synthetic: SlideMaker, monkeypatch: pytest.MonkeyPatch, readahead_bytes: int
) -> None:
    """A patch that is resampled in bands is skipped whole, and those behind it are what they would be."""
    monkeypatch.setattr("wsiweb.regions._BAND_BYTES", 20_000)
    layout = {"sizes": ((1000, 1000),), "tile_size": (50, 50), "mpp": 1.0}
    whole = open_web(synthetic("jpeg-mono8", **layout))
    damaged = synthetic("jpeg-mono8", **layout, corrupt={(0, 25): b"nothing"})
    broken = open_web(damaged, options=ReadOptions(readahead_bytes=readahead_bytes))
    patches = broken.patches(100, mpp=2.0)  # of 200 x 200 pixels: the second shows the frame, in some of its bands
    batches = patches.batches(4, on_error="skip")
    found: dict[int, Any] = {}
    for batch in batches:
        found.update(zip(batch.index.tolist(), batch.images, strict=True))
    assert [skipped.index for skipped in batches.skipped] == [1]
    assert list(found) == [index for index in range(25) if index != 1]
    for index, image in found.items():
        x, y = int(patches.x[index]), int(patches.y[index])
        np.testing.assert_array_equal(image, whole.read_region_mpp(2.0, x, y, 100, 100))
    with pytest.raises(DecodeError):
        broken.read_region_mpp(2.0, 100, 0, 100, 100)


def leave_batches(patches: PatchPlan, _: Path) -> None:
    for _batch in patches.batches(2):
        break


def leave_batches_with_skips(patches: PatchPlan, _: Path) -> None:
    for _batch in patches.batches(2, on_error="skip"):
        break


def leave_patches(patches: PatchPlan, _: Path) -> None:
    for _patch in patches:
        break


def leave_map(patches: PatchPlan, folder: Path) -> None:
    def fails(_: Any) -> Any:
        raise KeyError

    with contextlib.suppress(KeyError):
        patches.map(fails, folder / "out.npy", batch_size=2)


@pytest.mark.parametrize("leave", [leave_batches, leave_batches_with_skips, leave_patches, leave_map])
def test_leaving_a_loop_stops_the_work(
    open_web: Opener, synthetic: SlideMaker, tmp_path: Path, leave: Callable[[PatchPlan, Path], None]
) -> None:
    """At once, and not when the garbage is collected."""
    truth = synthetic("jpeg-mono8", sizes=((1000, 1000),), tile_size=(50, 50))
    slide = open_web(truth, options=ReadOptions(readahead_bytes=100_000, frames_per_request=2))
    gc.disable()
    try:
        leave(slide.patches(50), tmp_path)
        assert not slide._reader._active
    finally:
        gc.enable()


def test_leaving_a_loop_that_skipped_stops_the_work(open_web: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("jpeg-mono8", sizes=((1000, 1000),), tile_size=(50, 50), corrupt={(0, 1): b"nothing"})
    slide = open_web(truth, options=ReadOptions(readahead_bytes=100_000, frames_per_request=2))
    gc.disable()
    try:
        for batch in slide.patches(50).batches(2, on_error="skip"):
            assert batch.index.tolist() == [1]
            break
        assert not slide._reader._active
    finally:
        gc.enable()


def test_breaking_out_stops_the_work(open_web: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb", sizes=((3000, 3000),), tile_size=(50, 50))
    slide = open_web(truth, options=ReadOptions(readahead_bytes=100_000))
    batches = slide.patches(50).batches(2)
    next(batches)
    batches.close()
    frames = slide.stats.frames
    assert frames < 3600 / 4
    with pytest.raises(StopIteration):
        next(batches)
