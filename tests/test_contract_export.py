"""Exporting a region to PNG: pixels, profile, density, progress; all of the file or none."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit
from synthetic import make_slide, srgb_profile

from wsiweb import DecodeError, ReadOptions, RegionError, WsiWebError, export

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from conftest import Opener, SlideMaker


@pytest.mark.parametrize("name", ["no-such-folder/a.png", "file/a.png", "folder", "long" * 70 + ".png", "null\0.png"])
def test_where_no_file_can_be_written(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path, name: str) -> None:
    """The error names what was asked for, and no file beside it; nothing is left there."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    slide = open_slide(synthetic("rgb"))
    with pytest.raises(WsiWebError) as caught:
        slide.export_png(tmp_path / name, 0, 0, 0, 50, 50)
    assert str(tmp_path / name).replace("\0", r"\x00") in str(caught.value)
    assert ".part" not in str(caught.value)
    if name != "folder":
        with pytest.raises(WsiWebError, match="cannot be written"):
            slide.patches(50).map(lambda batch: batch.x, tmp_path / name.replace("png", "npy"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_picture_that_no_png_can_hold(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    """It is refused at once: its bands, of which there are billions, are not listed."""
    with pytest.raises(RegionError):
        open_slide(synthetic("rgb")).export_png(tmp_path / "out.png", 0, 0, 0, 10**4, 10**13)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(
    open_slide: Opener, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    """It is said of the file that was asked for; whatever of the user's fails meanwhile fails as it does."""
    noise = np.random.default_rng(1).integers(0, 256, (400, 500, 3), np.uint8)
    slide = open_slide(make_slide(tmp_path / "slide", content="mono16", sizes=((500, 400),)))
    out = tmp_path / "out"
    out.mkdir()

    def told(done: int, total: int) -> None:
        raise BrokenPipeError("mine")

    with full_disk(2_000):
        with pytest.raises(WsiWebError) as caught:
            slide.export_png(out / "a.png")
        with pytest.raises(WsiWebError) as also:
            export.write_png(out / "a.png", noise, mpp=None)
    assert str(caught.value) == str(also.value)
    assert str(also.value) == (
        f"{out / 'a.png'} cannot be written: File too large. Make room, or write to another place."
    )
    with pytest.raises(BrokenPipeError, match="mine"):
        slide.export_png(out / "a.png", progress=told)
    assert not list(out.iterdir())


def test_names_may_be_as_long_as_the_system_allows(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    slide, name = open_slide(synthetic("rgb")), "long" * 62
    slide.export_png(tmp_path / f"{name}.png", 0, 0, 0, 50, 50)
    slide.patches(50).save(tmp_path / f"{name}.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.npz", f"{name}.png"]


@pytest.mark.parametrize("kind", ["rgb", "jpeg", "mono8", "mono16", "sparse-holes"])
@pytest.mark.parametrize("box", [(0, 0, 700, 530), (33, 44, 111, 222), (650, 500, 100, 90), (-20, -10, 99, 77)])
def test_the_picture_is_the_region(
    open_slide: Opener, synthetic: SlideMaker, tmp_path: Path, kind: str, box: tuple[int, int, int, int]
) -> None:
    truth = synthetic(kind)
    x, y, w, h = box
    open_slide(truth).export_png(tmp_path / "out.png", 0, x, y, w, h)
    with Image.open(tmp_path / "out.png") as image:
        image.verify()
    with Image.open(tmp_path / "out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), truth.truth(0, *box))
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_the_default_is_the_rest_of_the_level(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    truth = synthetic("rgb")
    slide = open_slide(truth)
    slide.export_png(str(tmp_path / "whole.png"))
    slide.export_png(tmp_path / "rest.png", level=1, x=100, y=65)
    for name, level, box in (("whole", 0, (0, 0, 700, 530)), ("rest", 1, (100, 65, 250, 200))):
        with Image.open(tmp_path / f"{name}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), truth.truth(level, *box))


@pytest.mark.parametrize("place", [(800, 0), (0, 530), (700, 800)])
def test_a_corner_beyond_the_level_is_said_to_lie_outside(
    open_slide: Opener, synthetic: SlideMaker, tmp_path: Path, place: tuple[int, int]
) -> None:
    """And not that its width was negative, which nobody gave."""
    x, y = place
    with pytest.raises(RegionError, match=rf"700 x 530 pixels; the region \({x}, {y}, \d+, \d+\) lies outside"):
        open_slide(synthetic("rgb")).export_png(tmp_path / "a.png", 0, x, y)


@pytest.mark.parametrize("level", [0, 1])
def test_profile_and_density_are_embedded(open_slide: Opener, tmp_path: Path, level: int) -> None:
    """0.5 micrometres a pixel at level 0 are 2,000,000 pixels a metre, 50,800 an inch."""
    profile = srgb_profile(swapped=True)
    truth = make_slide(tmp_path / "slide", icc_profile=profile)
    open_slide(truth).export_png(tmp_path / "out.png", level, 0, 0, 50, 40)
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["icc_profile"].rstrip(b"\0") == profile.rstrip(b"\0")
        assert image.info["dpi"] == pytest.approx((50_800 / 2**level,) * 2, rel=1e-3)
        np.testing.assert_array_equal(np.asarray(image), truth.truth(level, 0, 0, 50, 40))


@pytest.mark.parametrize("mpp", [None, 2e6])
def test_without_profile_and_resolution(
    open_slide: Opener, synthetic: SlideMaker, tmp_path: Path, mpp: float | None
) -> None:
    """A PNG states a pixel a metre at least, or no density."""
    open_slide(synthetic("rgb", mpp=None), mpp=mpp).export_png(tmp_path / "out.png", 0, 0, 0, 50, 40)
    with Image.open(tmp_path / "out.png") as image:
        assert "icc_profile" not in image.info
        assert "dpi" not in image.info


def test_progress_ends_at_the_total(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    open_slide(synthetic("rgb")).export_png(tmp_path / "out.png", progress=lambda done, all_: told.append((done, all_)))
    totals = {total for _, total in told}
    done = [step for step, _ in told]
    assert len(totals) == 1
    assert done == sorted(done)
    assert done[-1] == totals.pop()


def test_max_region_bytes_does_not_bind_exports(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    truth = synthetic("rgb")
    options = ReadOptions(max_region_bytes=100, readahead_bytes=50_000, tile_cache_bytes=20_000)
    open_slide(truth, options=options).export_png(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), truth.truth(0, 0, 0, 700, 530))


def test_each_frame_is_fetched_once(open_web: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    slide = open_web(synthetic("jpeg"), options=ReadOptions(readahead_bytes=100_000))
    slide.export_png(tmp_path / "out.png")
    asked = open_web.servers[0].frames_asked()
    assert len(asked) == 132
    assert set(asked.values()) == {1}


def test_each_frame_is_fetched_once_for_bands_shorter_than_its_tiles(
    open_web: Opener, synthetic: SlideMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a level are of which a row of tiles is too large for memory."""
    monkeypatch.setattr(export, "AHEAD_BYTES", 50_000)
    monkeypatch.setattr(export, "BAND_BYTES", 20_000)
    truth = synthetic("jpeg")
    open_web(truth).export_png(tmp_path / "out.png")
    asked = open_web.servers[0].frames_asked()
    assert len(asked) == 132
    assert set(asked.values()) == {1}
    with Image.open(tmp_path / "out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), truth.truth(0, 0, 0, 700, 530))


def test_what_cannot_be_exported_costs_no_request(open_web: Opener, tmp_path: Path) -> None:
    """Not even that for the profile, which the metadata only refer to."""
    slide = open_web(make_slide(tmp_path / "slide", icc_profile=srgb_profile()))
    before = open_web.requests()
    with pytest.raises(RegionError):
        slide.export_png(tmp_path / "out.png", 0, -50, -50, 10, 10)
    with pytest.raises(RegionError):
        slide.export_png(tmp_path / "out.png", compression=10)
    assert open_web.requests() == before


def test_compression_changes_the_size_only(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    """The default is at most 1.25 times as large as zlib's level 6 (here: Pillow's)."""
    truth = synthetic("jpeg")
    open_slide(truth).export_png(tmp_path / "out.png")
    buffer = io.BytesIO()
    Image.fromarray(truth.truth(0, 0, 0, 700, 530)).save(buffer, "PNG", compress_level=6)
    assert (tmp_path / "out.png").stat().st_size <= 1.25 * len(buffer.getvalue())


def test_a_failed_export_leaves_nothing(open_slide: Opener, tmp_path: Path) -> None:
    garbage = {(0, 100): b"garbage!" * 20}
    truth = make_slide(tmp_path / "slide", syntax=JPEGBaseline8Bit, corrupt=garbage)
    slide = open_slide(truth, options=ReadOptions(max_attempts=1))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(DecodeError):
        slide.export_png(target / "out.png")
    assert list(target.iterdir()) == []
    (target / "out.png").write_bytes(b"older picture")
    with pytest.raises(DecodeError):
        slide.export_png(target / "out.png")
    assert [file.read_bytes() for file in target.iterdir()] == [b"older picture"]


def test_a_failing_callback_leaves_nothing(open_slide: Opener, synthetic: SlideMaker, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_slide(synthetic("rgb")).export_png(tmp_path / "out.png", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kwargs", [{"level": 3}, {"level": -1}, {"x": 700}, {"w": 0}, {"y": -5, "h": 5}, {"x": 10, "w": -3}]
)
def test_impossible_exports_are_refused(
    open_slide: Opener, synthetic: SlideMaker, tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    slide = open_slide(synthetic("rgb"))
    before = open_slide.requests()
    with pytest.raises(RegionError):
        slide.export_png(tmp_path / "out.png", **kwargs)
    assert open_slide.requests() == before
    assert list(tmp_path.iterdir()) == []
