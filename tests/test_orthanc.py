"""A real server: slides uploaded to Orthanc with STOW-RS and read back, pixel by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import oracle
import pydicom
import pytest

from wsiweb import Slide, SlideNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import SlideMaker
    from orthanc import Orthanc

pytestmark = pytest.mark.orthanc

REAL = [
    "cmu-1-small-region",
    "cmu-1-small-region-rgb",
    "camelyon-jpeg",
    "camelyon-jpeg-bare",
    "camelyon-jpeg2000",
    "bone-raw",
    "bone-jpeg2000",
    "bone-jpeg",
    "tcga-cr-7395-jp2k",
    "hamamatsu-dapi",
    "highdicom-rgb",
    "highdicom-jpegls",
    "highdicom-jpegls-no-offsets",
    "highdicom-mono16",
    "highdicom-mono16-reversed",
    "highdicom-control",
    "highdicom-dots",
    "highdicom-numbers",
]


@pytest.fixture(autouse=True)
def _clean(orthanc: Orthanc) -> Iterator[None]:
    yield
    orthanc.empty()


def open_stored(orthanc: Orthanc, folder: Path) -> Slide:
    """Upload a folder and open its series."""
    files = sorted(folder.glob("*.dcm"))
    orthanc.store(files)
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    return Slide.open(f"{orthanc.url}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}")


def assert_levels(slide: Slide, levels: list[oracle.Array]) -> None:
    """Compare every level whole, at random places, over an edge and beyond it."""
    assert [level.shape for level in slide.levels] == [level.shape for level in levels]
    rng = np.random.default_rng(1)
    for index, expected in enumerate(levels):
        h, w = expected.shape[:2]
        np.testing.assert_array_equal(slide.read_region(index, 0, 0, w, h), expected)
        for _ in range(8):
            x, y = int(rng.integers(0, w)), int(rng.integers(0, h))
            box_w, box_h = int(rng.integers(1, 600)), int(rng.integers(1, 600))
            inside = expected[y : y + box_h, x : x + box_w]
            region = slide.read_region(index, x, y, box_w, box_h)
            np.testing.assert_array_equal(region[: inside.shape[0], : inside.shape[1]], inside)
            fill = 255 if expected.ndim == 3 else 0
            assert (region[inside.shape[0] :] == fill).all()
            assert (region[:, inside.shape[1] :] == fill).all()


@pytest.mark.slides
@pytest.mark.parametrize("name", REAL)
def test_real_slides(orthanc: Orthanc, slides: Path, name: str) -> None:
    with open_stored(orthanc, slides / name) as slide:
        assert slide.stats.requests == 1
        assert_levels(slide, oracle.stitch_levels(slides / name))
        assert slide.stats.retries == 0


@pytest.mark.slides
def test_labels_overviews_and_profile(orthanc: Orthanc, slides: Path) -> None:
    with open_stored(orthanc, slides / "cmu-1-small-region") as slide:
        assert {name: image.shape for name, image in slide.associated_images.items()} == {
            "label": (463, 387, 3),
            "overview": (431, 1280, 3),
            "thumbnail": (768, 574, 3),
        }
        assert slide.icc_profile is not None
        assert len(slide.icc_profile) == 588
        assert max(slide.thumbnail(500).shape[:2]) == 500


@pytest.mark.parametrize(
    "kind", ["rgb", "implicit", "jpeg", "jpeg2000-mono16", "mono16", "sparse-holes", "undeclared-positions"]
)
def test_synthetic_slides(orthanc: Orthanc, synthetic: SlideMaker, kind: str) -> None:
    truth = synthetic(kind)
    with open_stored(orthanc, truth.folder) as slide:
        assert slide.stats.requests == 1
        assert_levels(slide, [level.pixels[truth.default_key] for level in truth.levels])


def test_opening_by_series_uid(orthanc: Orthanc, synthetic: SlideMaker) -> None:
    truth = synthetic("jpeg")
    orthanc.store(truth.files)
    with Slide.open(orthanc.url, series_uid=truth.series_uid) as slide:
        assert slide.study_uid == truth.study_uid
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 99, 99), truth.truth(0, 0, 0, 99, 99))


def test_unknown_series(orthanc: Orthanc) -> None:
    with pytest.raises(SlideNotFoundError):
        Slide.open(f"{orthanc.url}/studies/1.2/series/3.4")
    with pytest.raises(SlideNotFoundError):
        Slide.open(orthanc.url, series_uid="1.2.3")
