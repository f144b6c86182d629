"""What was never scanned: RecommendedAbsentPixelCIELabValue, else white or 0; from files and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kinds_writer import KEY, SIZE, TILE, add_level, assert_image, blank, images_for, new_slide, place_frames, store
from PIL import Image, ImageCms
from synthetic import pattern

from wsiweb.resample import resample_array

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array, SyntheticSlide

    from wsiweb import Slide

LAB = {
    "white": (255, 128, 128),
    "black": (0, 128, 128),
    "light grey": (240, 128, 128),
    "pinkish": (210, 145, 118),
    "greenish": (120, 100, 150),
}
"""CIELab (D50) in 8 bits a component, within sRGB."""


def to_srgb(lab: tuple[int, int, int]) -> Array:
    """Convert by LittleCMS."""
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB", 5000),
        ImageCms.createProfile("sRGB"),
        "LAB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    pixel = ImageCms.applyTransform(Image.new("LAB", (1, 1), lab), transform)
    assert pixel is not None
    colour: Array = np.asarray(pixel)[0, 0]
    return colour


def holey_slide(folder: Path, lab: tuple[int, int, int] | None) -> SyntheticSlide:
    """Write a slide with one frame in the middle of nine places."""
    slide = new_slide(folder)
    ds = blank(slide)
    if lab is not None:  # PS3.3 C.10.7.1.1: 8 bits times 257
        ds.RecommendedAbsentPixelCIELabValue = [component * 257 for component in lab]
    place_frames(ds, [((64, 48), KEY)])
    store(slide, ds, [pattern("rgb", *TILE, salt=1).tobytes()])
    return slide


def background_pixels(opened: Slide) -> list[Array]:
    """Read holes, what is outside, and both at another resolution."""
    around = opened.read_region(0, -10, -10, SIZE[0] + 20, SIZE[1] + 20)
    np.testing.assert_array_equal(around[58:106, 74:138], pattern("rgb", *TILE, salt=1))
    around[58:106, 74:138] = around[0, 0]
    small = opened.read_region_mpp(1.25, -4, -4, 12, 12)
    return [around, opened.read_region(0, 5, 5, 20, 20), small]


@pytest.mark.parametrize("name", LAB)
def test_recommended_value(tmp_path: Path, open_slide: Opener, name: str) -> None:
    expected = to_srgb(LAB[name]).astype(int)
    opened = open_slide(holey_slide(tmp_path, LAB[name]))
    for pixels in background_pixels(opened):
        assert np.abs(pixels - expected).max() <= 2
        assert (pixels == pixels[0, 0]).all()


@pytest.mark.parametrize(("name", "value"), [("white", 255), ("black", 0)])
def test_white_and_black_are_exact(tmp_path: Path, open_slide: Opener, name: str, value: int) -> None:
    """They are known without LittleCMS, which misses white by one."""
    assert np.abs(to_srgb(LAB[name]).astype(int) - value).max() <= 1
    for pixels in background_pixels(open_slide(holey_slide(tmp_path, LAB[name]))):
        assert (pixels == value).all()


def test_white_where_nothing_is_recommended(tmp_path: Path, open_slide: Opener) -> None:
    for pixels in background_pixels(open_slide(holey_slide(tmp_path, None))):
        assert (pixels == 255).all()


@pytest.mark.parametrize("values", [[], [65535], [65535, 32896]])
def test_a_value_that_is_none(tmp_path: Path, open_slide: Opener, values: list[int]) -> None:
    """Empty or incomplete: as if it were absent."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.RecommendedAbsentPixelCIELabValue = values
    add_level(slide, ds, {KEY: pattern("rgb", *SIZE, salt=1)})
    assert (open_slide(slide).read_region(0, 145, 0, 20, 20)[:, 5:] == 255).all()


def test_out_of_gamut_values_are_clipped(tmp_path: Path, open_slide: Opener) -> None:
    opened = open_slide(holey_slide(tmp_path, (200, 255, 0)))
    pixels = opened.read_region(0, 0, 0, 10, 10)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[0, 0]).all()


@pytest.mark.parametrize("content", ["mono8", "mono16"])
@pytest.mark.parametrize("inverted", [True, False])
def test_monochrome(tmp_path: Path, open_slide: Opener, content: str, inverted: bool) -> None:
    """0, of inverted pixels too: there, as everywhere, that is dark."""
    slide = new_slide(tmp_path)
    ds = blank(slide, content="mono8" if content == "mono8" else "mono16")
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    place_frames(ds, [((64, 48), KEY)])
    bits = 8 if content == "mono8" else 16
    image = images_for([KEY], TILE, "mono8" if bits == 8 else "mono16", salt=3)[KEY]
    store(slide, ds, [image.astype(f"<u{bits // 8}").tobytes()])
    canvas = np.zeros(SIZE[::-1], image.dtype)
    canvas[48:96, 64:128] = (1 << bits) - 1 - image.astype(int) if inverted else image
    opened = open_slide(slide)
    assert_image(opened, 0, canvas)
    assert not opened.read_region(0, 150 - 1, 110 - 1, 9, 9)[1:, 1:].any()


def test_a_value_that_only_level_0_states(tmp_path: Path, open_slide: Opener) -> None:
    """A slide has one background."""
    slide = new_slide(tmp_path)
    for n, (size, values) in enumerate(((SIZE, [65535 * 3 // 4, 32896, 32896]), ((75, 55), None))):
        ds = blank(slide, size, mpp=(0.5 * (n + 1), 0.5 * (n + 1)))
        ds.RecommendedAbsentPixelCIELabValue = values
        add_level(slide, ds, {KEY: pattern("rgb", *size, salt=n)})
    opened = open_slide(slide)
    edges = [opened.read_region(n, level.width - 1, 0, 3, 1)[0, 2] for n, level in enumerate(opened.levels)]
    np.testing.assert_array_equal(edges[0], edges[1])
    assert 150 < edges[0][0] < 255


def test_background_is_not_resampled(tmp_path: Path, open_slide: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large level with one frame only the rows around it are work."""
    slide, size, tile = new_slide(tmp_path), (40_000, 30_000), (64, 48)
    ds = blank(slide, size, tile_size=tile, mpp=(0.5, 0.5))
    place_frames(ds, [((20_000, 12_000), KEY)])
    store(slide, ds, [bytes(tile[0] * tile[1] * 3)])
    rows = []

    def counted(pixels: Array, **options: Any) -> None:
        rows.append(len(pixels))
        resample_array(pixels, **options)

    monkeypatch.setattr("wsiweb.resolution.resample_array", counted)
    image = open_slide(slide).thumbnail(400)  # a hundredth
    assert image.shape == (300, 400, 3)
    black = 64 * 48 / 100**2
    assert image[120, 200].tolist() == [round(255 * (1 - black))] * 3
    image[120, 200] = 255
    assert (image == 255).all()
    assert sum(rows) < 3_000
