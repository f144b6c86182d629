"""Colour arithmetic against littleCMS, Pillow and the definitions written out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from wsiweb.colour import cielab_to_srgb, paint, ybr_full_to_rgb

WHITE_D50 = np.array([0.9642, 1.0, 0.8249])
WHITE_D65 = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
PRIMARIES = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
"""Of sRGB, (x, y) of red, green, blue."""
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def encoded(lightness: float, a: float, b: float) -> tuple[int, int, int]:
    """Encode a CIELab colour as DICOM does (PS3.3 C.10.7.1.1)."""
    return round(lightness * 65_535 / 100), round((a + 128) * 65_535 / 255), round((b + 128) * 65_535 / 255)


def from_definitions(lightness: float, a: float, b: float) -> npt.NDArray[np.float64]:
    """Convert by CIE 15 (Lab), Bradford's adaptation and IEC 61966-2-1 (sRGB); not clipped, not rounded."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = WHITE_D50 * np.where(f**3 > 216 / 24389, f**3, (116 * f - 16) * 27 / 24389)
    cones = BRADFORD @ xyz * (BRADFORD @ WHITE_D65) / (BRADFORD @ WHITE_D50)
    x, y = PRIMARIES.T
    columns = np.array([x / y, np.ones(3), (1 - x - y) / y])
    to_xyz = columns * np.linalg.solve(columns, WHITE_D65)
    linear = np.linalg.solve(to_xyz, np.linalg.solve(BRADFORD, cones))
    curved = 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055
    return np.asarray(255 * np.where(linear <= 0.0031308, 12.92 * linear, curved))


@pytest.mark.parametrize(("value", "expected"), [
    ((65_535, 32_896, 32_896), (255, 255, 255)),
    ((0, 32_896, 32_896), (0, 0, 0)),
    (encoded(53.585, 0, 0), (128, 128, 128)),
    (encoded(54.29, 80.81, 69.89), (255, 0, 0)),
    (encoded(87.82, -79.27, 80.99), (0, 255, 0)),
    (encoded(29.57, 68.30, -112.03), (0, 0, 255)),
])  # fmt: skip
def test_colours_that_everybody_knows(value: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    """Grays, and the primaries of sRGB in CIELab of D50."""
    assert cielab_to_srgb(value) == pytest.approx(expected, abs=1)


def test_grays_are_gray() -> None:
    for lightness in range(0, 65_536, 257):
        red, green, blue = cielab_to_srgb((lightness, 32_896, 32_896))
        assert max(red, green, blue) - min(red, green, blue) <= 1


@given(st.tuples(*[st.integers(0, 65_535)] * 3))
@settings(max_examples=300, deadline=None)
def test_definitions(value: tuple[int, int, int]) -> None:
    """All encoded values, also those beyond what sRGB can show."""
    lightness, a, b = value[0] / 655.35, value[1] * 255 / 65_535 - 128, value[2] * 255 / 65_535 - 128
    expected = np.clip(from_definitions(lightness, a, b), 0, 255)
    result = cielab_to_srgb(value)
    assert all(type(component) is int for component in result)
    np.testing.assert_allclose(result, expected, atol=1)


def test_littlecms() -> None:
    """Colours well within sRGB: littleCMS is given 8 bits a component, and interpolates."""
    lab_values = [
        (lightness, a, b)
        for lightness, a, b in itertools.product(range(20, 256, 47), range(-60, 61, 20), range(-60, 61, 20))
        if from_definitions(lightness / 2.55, a, b).min() > 40 and from_definitions(lightness / 2.55, a, b).max() < 252
    ]
    assert len(lab_values) > 30
    pixels = np.array([[(lightness, a % 256, b % 256) for lightness, a, b in lab_values]], np.uint8)
    image = Image.frombytes("LAB", (pixels.shape[1], 1), pixels.tobytes())
    transform: Any = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )  # fmt: skip
    expected = np.asarray(ImageCms.applyTransform(image, transform))[0]
    result = [cielab_to_srgb((lightness * 257, (a + 128) * 257, (b + 128) * 257)) for lightness, a, b in lab_values]
    difference = np.abs(np.array(result) - expected)
    assert difference.mean() < 1
    assert difference.max() <= 12


def test_ybr_full_is_pillows_ycbcr() -> None:
    """All corners and a grid between them (PS3.3 C.7.6.3.1.2)."""
    steps = np.array([0, 1, 17, 64, 100, 127, 128, 129, 180, 230, 254, 255], np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
    expected = np.asarray(Image.fromarray(grid, "YCbCr").convert("RGB"))
    result = ybr_full_to_rgb(grid)
    assert (result.dtype, result.shape) == (np.dtype(np.uint8), grid.shape)
    np.testing.assert_allclose(result.astype(int), expected, atol=1)


def test_gray_ybr_is_exact() -> None:
    gray = np.arange(256, dtype=np.uint8)
    ybr = np.stack([gray, np.full_like(gray, 128), np.full_like(gray, 128)], axis=-1)[None]
    np.testing.assert_array_equal(ybr_full_to_rgb(ybr), np.repeat(gray[None, :, None], 3, axis=2))


@pytest.mark.parametrize(("shape", "dtype", "colour"), [
    ((3, 4, 3), "u1", (250, 3, 77)),
    ((3, 4), "u1", (9,)),
    ((3, 4), "u2", (60_000,)),
    ((3, 4, 2), "u2", (5, 700)),
])  # fmt: skip
def test_painting(shape: tuple[int, ...], dtype: str, colour: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    paint(array, colour)
    assert {tuple(np.atleast_1d(pixel).tolist()) for row in array for pixel in row} == {colour}
