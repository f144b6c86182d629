"""Colour management: ``icc="srgb"`` against Pillow's ImageCms on what is read without it; files and HTTP."""

from __future__ import annotations

import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kinds_writer import (
    KEY,
    SIZE,
    add_level,
    assert_reads,
    assert_same,
    blank,
    images_for,
    new_slide,
    open_series,
)
from PIL import Image, ImageCms
from pydicom.uid import generate_uid
from synthetic import SyntheticSlide, pattern, srgb_profile

from wsiweb import WsiWebError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array

SIZES = (SIZE, (75, 55))


def profiles() -> tuple[bytes, bytes, bytes]:
    """Return three profiles of RGB: red and blue swapped, green and blue swapped, sRGB."""
    plain = srgb_profile()
    green = plain.replace(b"gXYZ", b"tmp!", 1).replace(b"bXYZ", b"gXYZ", 1).replace(b"tmp!", b"bXYZ", 1)
    return srgb_profile(swapped=True), green, plain


def colour_slide(folder: Path, stored: Sequence[bytes | None]) -> SyntheticSlide:
    """Write a colour slide with an optical path for each profile."""
    slide = new_slide(folder)
    keys = [(f"path-{n}", 0.0) for n in range(len(stored))]
    for n, size in enumerate(SIZES):
        ds = blank(slide, size, keys=keys, mpp=(0.5 * (n + 1), 0.5 * (n + 1)))
        for item, profile in zip(ds.OpticalPathSequence, stored, strict=True):
            if profile is not None:
                item.ICCProfile = profile
        add_level(slide, ds, images_for(keys, size, "rgb", salt=10 * n))
    return slide


def by_pillow(image: Array, profile: bytes) -> Array:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(Image.fromarray(image), source, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return np.asarray(converted)


def test_each_optical_path_has_its_profile(tmp_path: Path, open_slide: Opener) -> None:
    slide = colour_slide(tmp_path, profiles())
    opened = open_slide(slide)
    for (path, _), profile in zip(slide.levels[0].pixels, profiles(), strict=True):
        for level, size in enumerate(SIZES):
            plain = opened.read_region(level, -5, 3, *size, optical_path=path)
            managed = opened.read_region(level, -5, 3, *size, optical_path=path, icc="srgb")
            assert_same(managed, by_pillow(plain, profile))
            assert managed.flags.c_contiguous
            assert managed.flags.writeable
    differing = by_pillow(slide.levels[0].pixels["path-0", 0.0], profiles()[0])
    assert np.abs(differing.astype(int) - slide.levels[0].pixels["path-0", 0.0]).max() > 20


def test_each_level_has_its_profile(tmp_path: Path, open_slide: Opener) -> None:
    """The profile is the instance's; one without takes that of the finest level that has one."""
    slide, sizes = new_slide(tmp_path), (SIZE, (75, 55), (38, 28))
    swapped, green, _ = profiles()
    for n, (size, profile) in enumerate(zip(sizes, (None, swapped, green), strict=True)):
        mpp = 0.5 * SIZE[0] / size[0], 0.5 * SIZE[1] / size[1]
        ds = blank(slide, size, mpp=mpp)
        if profile is not None:
            ds.OpticalPathSequence[0].ICCProfile = profile
        add_level(slide, ds, images_for([KEY], size, "rgb", salt=10 * n), mpp=mpp)
    opened = open_slide(slide)
    assert opened.icc_profile == swapped
    for level, (size, profile) in enumerate(zip(sizes, (swapped, swapped, green), strict=True)):
        plain = opened.read_region(level, 0, 0, *size)
        assert_same(opened.read_region(level, 0, 0, *size, icc="srgb"), by_pillow(plain, profile))
        opened.export_png(tmp_path / "level.png", level)
        with Image.open(tmp_path / "level.png") as image:
            assert image.info["icc_profile"] == profile
    raw = opened.read_region_mpp(2.5, 0, 0, 20, 20)
    assert_same(opened.read_region_mpp(2.5, 0, 0, 20, 20, icc="srgb"), by_pillow(raw, green))


def test_the_default_path(tmp_path: Path, open_slide: Opener) -> None:
    opened = open_slide(colour_slide(tmp_path, profiles()))
    assert opened.icc_profile == profiles()[0]
    plain = opened.read_region(0, 0, 0, *SIZE)
    assert_same(opened.read_region(0, 0, 0, *SIZE, icc="srgb"), by_pillow(plain, profiles()[0]))


def test_what_is_cached_stays_raw(tmp_path: Path, open_slide: Opener) -> None:
    slide = colour_slide(tmp_path, profiles())
    opened = open_slide(slide)
    opened.read_region(0, 0, 0, *SIZE, icc="srgb")
    assert_reads(opened, slide)


def test_regions_and_other_resolutions(tmp_path: Path, open_slide: Opener) -> None:
    opened = open_slide(colour_slide(tmp_path, profiles()))
    swapped, green, _ = profiles()
    regions = [(0, 0, 40, 30), (100, 60, 80, 80), (-5, -5, 20, 20)]
    plain = list(opened.read_regions(0, regions))
    for managed, raw in zip(opened.read_regions(0, regions, icc="srgb"), plain, strict=True):
        assert_same(managed, by_pillow(raw, swapped))
    raw = opened.read_region_mpp(0.8, 3, 4, 50, 40, optical_path="path-1")
    managed = opened.read_region_mpp(0.8, 3, 4, 50, 40, optical_path="path-1", icc="srgb")
    assert_same(managed, by_pillow(raw, green))


def test_threads(tmp_path: Path, open_slide: Opener) -> None:
    opened = open_slide(colour_slide(tmp_path, profiles()))
    plain = opened.read_region(0, 0, 0, *SIZE)
    expected = [by_pillow(opened.read_region(0, 0, 0, *SIZE, optical_path=f"path-{n}"), profiles()[n]) for n in (0, 1)]

    def read(number: int) -> Array:
        return np.asarray(opened.read_region(0, 0, 0, *SIZE, optical_path=f"path-{number}", icc="srgb"))

    with ThreadPoolExecutor(8) as pool:
        for number, image in zip(itertools.cycle((0, 1)), pool.map(read, [0, 1] * 20), strict=False):
            np.testing.assert_array_equal(image, expected[number])
    np.testing.assert_array_equal(opened.read_region(0, 0, 0, *SIZE), plain)


def test_the_profile_is_asked_for_when_needed_and_once(tmp_path: Path, open_web: Opener) -> None:
    opened = open_web(colour_slide(tmp_path, profiles()))
    opened.read_region(0, 0, 0, *SIZE)
    (server,) = open_web.servers
    assert server.count("bulk") == 0
    for _ in range(3):
        opened.read_region(0, 0, 0, *SIZE, icc="srgb")
    assert opened.icc_profile == profiles()[0]
    assert server.count("bulk") == 1


def test_padding_is_no_part_of_the_profile(tmp_path: Path, open_slide: Opener) -> None:
    profile = profiles()[0]
    opened = open_slide(colour_slide(tmp_path, [profile + b"\0\0\0"]))
    assert opened.icc_profile == profile


def test_without_a_profile(tmp_path: Path, open_slide: Opener) -> None:
    """There is nothing to apply: the pixels are taken for sRGB."""
    opened = open_slide(colour_slide(tmp_path, [None]))
    assert opened.icc_profile is None
    assert_same(opened.read_region(0, 0, 0, *SIZE, icc="srgb"), opened.read_region(0, 0, 0, *SIZE))


def test_a_path_without_a_profile_beside_one_with(tmp_path: Path, open_slide: Opener) -> None:
    swapped = profiles()[0]
    slide = colour_slide(tmp_path, [None, swapped])
    opened = open_slide(slide)
    first, second = slide.levels[0].pixels.values()
    assert_same(opened.read_region(0, 0, 0, *SIZE, icc="srgb"), first)
    managed = opened.read_region(0, 0, 0, *SIZE, optical_path="path-1", icc="srgb")
    assert_same(managed, by_pillow(second, swapped))


@pytest.mark.parametrize("kind", ["garbage", "cut", "LAB", "device link"])
def test_a_profile_that_cannot_be_applied(tmp_path: Path, open_slide: Opener, kind: str) -> None:
    """The raw pixels and the raw profile are there all the same."""
    plain = srgb_profile()
    stored = {
        "garbage": bytes(range(256)) * 3,
        "cut": plain[:200],
        "LAB": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", 5000)).tobytes(),
        "device link": plain[:12] + b"link" + plain[16:],
    }[kind]
    slide = colour_slide(tmp_path, [stored])
    opened = open_slide(slide)
    assert_reads(opened, slide)
    assert opened.icc_profile is not None
    assert stored.startswith(opened.icc_profile)
    with pytest.raises(WsiWebError, match=r"(?i)profile"):
        opened.read_region(0, 0, 0, 5, 5, icc="srgb")


@pytest.mark.parametrize("path", [None, "all"])
def test_monochrome_with_a_profile(tmp_path: Path, open_slide: Opener, path: str | None) -> None:
    """A profile on MONOCHROME2 exists in the field; of one channel it can say nothing."""
    slide = new_slide(tmp_path)
    ds = blank(slide, content="mono16")
    ds.OpticalPathSequence[0].ICCProfile = srgb_profile()
    add_level(slide, ds, images_for([KEY], SIZE, "mono16"))
    opened = open_slide(slide)
    plain = opened.read_region(0, 0, 0, *SIZE, optical_path=path)
    assert_same(opened.read_region(0, 0, 0, *SIZE, optical_path=path, icc="srgb"), plain)


def test_each_series_of_a_slide_has_its_profile(tmp_path: Path, open_slide: Opener) -> None:
    """Whose optical paths have the same identifier, and are given different names."""
    slide, stored = new_slide(tmp_path), profiles()[:2]
    series, images = [slide.series_uid, generate_uid()], []
    for n, (uid, profile) in enumerate(zip(series, stored, strict=True)):
        slide.series_uid = uid
        ds = blank(slide)
        ds.OpticalPathSequence[0].ICCProfile = profile
        images.append(pattern("rgb", *SIZE, salt=30 * n))
        add_level(slide, ds, {KEY: images[-1]}, name=f"{n}")
    opened = open_series(open_slide, slide, series)
    assert opened.icc_profile == stored[0]
    for path, image, profile in zip(opened.optical_paths, images, stored, strict=True):
        managed = opened.read_region(0, 0, 0, *SIZE, optical_path=path, icc="srgb")
        assert_same(managed, by_pillow(image, profile))


def test_a_closed_slide_asks_for_no_profile(tmp_path: Path, open_web: Opener) -> None:
    opened = open_web(colour_slide(tmp_path, profiles()[:1]))
    opened.close()
    before = open_web.requests()
    with pytest.raises(WsiWebError, match="closed"):
        _ = opened.icc_profile
    assert open_web.requests() == before


def test_only_srgb(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    add_level(slide, blank(slide), {KEY: pattern("rgb", *SIZE, salt=1)})
    with pytest.raises(ValueError, match="icc"):
        open_slide(slide).read_region(0, 0, 0, 5, 5, icc="adobe")
