"""Malformed instances: one costs itself and a warning, never the slide; from files and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from kinds_writer import KEY, TILE, add_level, assert_reads, blank, frames_of, new_slide, place_frames, store
from pydicom.uid import SegmentationStorage
from synthetic import SyntheticSlide, make_slide, pattern

from wsiweb import MetadataError, MetadataWarning, SlideNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Opener
    from pydicom import Dataset

SIZES = ((320, 224), (160, 112), (80, 56))


def without(*keywords: str) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return change


def with_value(**attributes: object) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)

    return change


def no_measures(ds: Dataset) -> None:
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence


def unplaced(ds: Dataset) -> None:
    ds.DimensionOrganizationType = "TILED_SPARSE"


def half_placed(ds: Dataset) -> None:
    place_frames(ds, [((0, 0), KEY)] * ds.NumberOfFrames)
    del ds.PerFrameFunctionalGroupsSequence[1].PlanePositionSlideSequence


def stitchable(size: tuple[int, int]) -> list[bytes]:
    return frames_of(pattern("rgb", *size, salt=9))


MALFORMED: dict[str, Callable[[Dataset], None]] = {
    "no Rows": without("Rows"),
    "no Columns": without("Columns"),
    "Rows of 0": with_value(Rows=0),
    "no TotalPixelMatrixColumns": without("TotalPixelMatrixColumns"),
    "a matrix of 0": with_value(TotalPixelMatrixColumns=0, TotalPixelMatrixRows=0),
    "a matrix that needs more frames": with_value(TotalPixelMatrixRows=2000),
    "a matrix that needs fewer frames": with_value(TotalPixelMatrixColumns=20, TotalPixelMatrixRows=20),
    "more planes than frames": with_value(TotalPixelMatrixFocalPlanes=3),
    "sparse without positions": unplaced,
    "sparse, one position is missing": half_placed,
    "palette without tables": with_value(PhotometricInterpretation="PALETTE COLOR", SamplesPerPixel=1),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_malformed_level(tmp_path: Path, open_slide: Opener, name: str, level: int) -> None:
    slide = new_slide(tmp_path)
    uid = ""
    for n, size in enumerate(SIZES):
        mpp = (0.5 * 2**n, 0.5 * 2**n)
        ds = blank(slide, size, mpp=mpp)
        frames = stitchable(size)
        ds.NumberOfFrames = len(frames)
        if n == level:
            MALFORMED[name](ds)
            uid = store(slide, ds, frames, name=f"{n}")
        else:
            add_level(slide, ds, {KEY: pattern("rgb", *size, salt=n)}, name=f"{n}", mpp=mpp)
    with pytest.warns(MetadataWarning, match=uid) as caught:
        opened = open_slide(slide)
    assert len(caught) == 1
    assert_reads(opened, slide)
    assert [round(each.downsample, 6) for each in opened.levels] == [1.0, 4.0 if level == 1 else 2.0]


@pytest.mark.parametrize("name", MALFORMED)
def test_nothing_but_malformed_levels(tmp_path: Path, open_slide: Opener, name: str) -> None:
    """The error names the instance, and something that is wrong with it."""
    slide = new_slide(tmp_path)
    ds = blank(slide, SIZES[0])
    frames = stitchable(SIZES[0])
    ds.NumberOfFrames = len(frames)
    MALFORMED[name](ds)
    uid = store(slide, ds, frames)
    with pytest.raises(MetadataError, match=uid):
        open_slide(slide)


@pytest.mark.parametrize("flavor", ["LABEL", "OVERVIEW", "THUMBNAIL"])
@pytest.mark.parametrize(
    "change",
    [
        without("Rows"),
        with_value(Columns=0),
        with_value(TotalPixelMatrixColumns=0),
        with_value(PhotometricInterpretation="PALETTE COLOR", SamplesPerPixel=1),
    ],
    ids=["no Rows", "no width", "no matrix", "no palette"],
)
def test_a_malformed_auxiliary_instance(
    tmp_path: Path, open_slide: Opener, flavor: str, change: Callable[[Dataset], None]
) -> None:
    slide = make_slide(tmp_path, sizes=SIZES[1:])
    ds = blank(slide, (60, 40), flavor=flavor, mpp=None)
    change(ds)
    uid = store(slide, ds, [bytes(TILE[0] * TILE[1] * 3)], name="aaa")
    with pytest.warns(MetadataWarning, match=uid):
        opened = open_slide(slide)
    assert_reads(opened, slide)
    assert opened.thumbnail(50).shape[1] == 50
    assert flavor.lower() not in opened.associated_images


@pytest.mark.parametrize(
    "change",
    [
        no_measures,
        without("OpticalPathSequence"),
        without("TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
        without("TotalPixelMatrixOriginSequence"),
        without("SharedFunctionalGroupsSequence"),
        without("NumberOfFrames"),
        without("DimensionOrganizationType"),
        without("ImageOrientationSlide"),
        without("FrameOfReferenceUID"),
        with_value(DimensionOrganizationType="TILED_SPARSE"),
        with_value(NumberOfOpticalPaths=3),
        with_value(TotalPixelMatrixFocalPlanes=5),
    ],
)
@pytest.mark.parametrize("flavor", ["LABEL", "THUMBNAIL"])
def test_an_auxiliary_instance_that_says_little(
    tmp_path: Path, open_slide: Opener, flavor: str, change: Callable[[Dataset], None]
) -> None:
    """An associated image is one frame, or tiles of one picture: it needs no more than its size."""
    slide = make_slide(tmp_path, sizes=SIZES[1:])
    image = pattern("rgb", 64, 48, salt=9)
    ds = blank(slide, (64, 48), flavor=flavor, mpp=None)
    change(ds)
    store(slide, ds, [image.tobytes()], name="aaa")
    opened = open_slide(slide)
    assert_reads(opened, slide)
    np.testing.assert_array_equal(opened.associated_images[flavor.lower()], image)


@pytest.mark.parametrize("size", [(60, 40), (64, 200)])
def test_an_associated_image_that_does_not_fit_its_frames(
    tmp_path: Path, open_slide: Opener, size: tuple[int, int]
) -> None:
    """It opens; if the image cannot be had, asking for it says so, and only that."""
    slide = make_slide(tmp_path, sizes=SIZES[1:])
    ds = blank(slide, size, flavor="LABEL", mpp=None)
    store(slide, ds, [bytes(TILE[0] * TILE[1] * 3)] * 2, name="aaa")
    try:
        opened = open_slide(slide)
    except MetadataWarning:
        with pytest.warns(MetadataWarning):
            opened = open_slide(slide)
    assert_reads(opened, slide)


@pytest.mark.parametrize("what", ["label", "segmentation", "localizer"])
def test_a_series_without_a_slide_says_what_is_there(tmp_path: Path, open_slide: Opener, what: str) -> None:
    slide = SyntheticSlide(tmp_path, "1.2.3", "1.2.3.4")
    ds = blank(slide, (64, 48), flavor={"label": "LABEL", "localizer": "REGIONLOCALIZER"}.get(what, "VOLUME"))
    if what == "segmentation":
        ds.SOPClassUID, ds.Modality = SegmentationStorage, "SEG"
    store(slide, ds, [bytes(64 * 48 * 3)])
    with pytest.raises(SlideNotFoundError, match={"segmentation": "SEG"}.get(what, "(?i)" + what)):
        open_slide(slide)
