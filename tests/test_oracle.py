"""Real slides from their folders, against a naive reader, and against wsidicom and OpenSlide."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import oracle
import pytest
from test_orthanc import REAL, assert_levels

from wsiweb import Slide, SlideNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slides

JPEG_ROUNDING = 2
"""Decoders of the same JPEG may differ this much where they are exact about it."""


@pytest.mark.parametrize("name", REAL)
def test_naive_reader(slides: Path, name: str) -> None:
    with Slide.open(slides / name) as slide:
        assert_levels(slide, oracle.stitch_levels(slides / name))


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")  # a UID of 66 characters
@pytest.mark.parametrize("name", REAL)
def test_wsidicom(slides: Path, name: str) -> None:
    wsidicom: Any = pytest.importorskip("wsidicom")
    with Slide.open(slides / name) as slide, wsidicom.WsiDicom.open(slides / name) as other:
        levels = other.pyramids[0]
        assert [(level.size.width, level.size.height) for level in levels] == [level.size for level in slide.levels]
        right = 1 if name == "cmu-1-small-region-rgb" else len(levels)  # wsidicom trusts the declared RGB
        for level, theirs in list(zip(slide.levels, levels, strict=True))[:right]:
            w, h = min(level.width, 500), min(level.height, 400)
            x, y = (level.width - w) // 2, (level.height - h) // 2
            image = other.read_region((x, y), theirs.level, (w, h))
            expected = np.asarray(image if level.dtype == np.uint16 or len(level.shape) == 2 else image.convert("RGB"))
            difference = np.abs(slide.read_region(level.index, x, y, w, h).astype(int) - expected)
            assert difference.max() <= JPEG_ROUNDING


@pytest.mark.parametrize(
    "name", ["cmu-1-small-region", "cmu-1-small-region-rgb", "camelyon-jpeg2000", "tcga-cr-7395-jp2k"]
)
def test_openslide(slides: Path, name: str, tmp_path: Path) -> None:
    openslide: Any = pytest.importorskip("openslide")
    shutil.copytree(slides / name, tmp_path / name)
    volume = next((tmp_path / name).glob("level-0*"))
    with Slide.open(slides / name) as slide, openslide.OpenSlide(volume) as other:
        assert list(other.level_dimensions) == [level.size for level in slide.levels]
        expected = np.asarray(other.read_region((300, 200), 0, (500, 400)))[..., :3]
        difference = np.abs(slide.read_region(0, 300, 200, 500, 400).astype(int) - expected)
        assert difference.max() <= JPEG_ROUNDING


@pytest.mark.parametrize("name", ["highdicom-derived", "label-only"])
def test_what_is_no_slide(slides: Path, name: str) -> None:
    with pytest.raises(SlideNotFoundError):
        Slide.open(slides / name)


def test_frames_stand_in_order(slides: Path) -> None:
    """Every pixel of these is the index of its frame, counted from either end."""
    order = np.arange(25).reshape(5, 5).repeat(10, axis=0).repeat(10, axis=1)
    for name, expected in (("highdicom-mono16", order), ("highdicom-mono16-reversed", 24 - order)):
        with Slide.open(slides / name) as slide:
            np.testing.assert_array_equal(slide.read_region(0, 0, 0, 50, 50), expected)


def test_colour_follows_the_code_stream(slides: Path) -> None:
    """All levels declare RGB; level 0 is, the others hold YCbCr: their means must agree all the same."""
    with Slide.open(slides / "cmu-1-small-region-rgb") as slide:
        means = [slide.read_region(n, 0, 0, *level.size).mean((0, 1)) for n, level in enumerate(slide.levels)]
    for mean in means[1:]:
        np.testing.assert_allclose(mean, means[0], atol=3)
