"""What else a series holds, and frames that do not fit: regions of interest, segmentations, hostile sizes."""

from __future__ import annotations

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
    new_slide,
    paint,
    place_frames,
    store,
)
from pydicom.uid import SegmentationStorage
from synthetic import make_slide, pattern

from wsiweb import MetadataError, MetadataWarning

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array


def tile_image(salt: int) -> Array:
    return pattern("rgb", *TILE, salt=salt)


@pytest.mark.parametrize("organization", ["TILED_FULL", None])
@pytest.mark.parametrize("count", [8, 10])
def test_frames_that_do_not_fit_the_matrix(
    tmp_path: Path, open_slide: Opener, organization: str | None, count: int
) -> None:
    slide = new_slide(tmp_path)
    ds = blank(slide)
    if organization is None:
        del ds.DimensionOrganizationType
    frames = (frames_of(pattern("rgb", *SIZE, salt=0)) * 2)[:count]
    uid = store(slide, ds, frames)
    with pytest.raises(MetadataError, match=f"(?s)(?=.*{uid})(?=.*\\b{count}\\b)"):
        open_slide(slide)


def test_a_sparse_level_without_positions_names_the_attribute(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.DimensionOrganizationType = "TILED_SPARSE"
    uid = store(slide, ds, frames_of(pattern("rgb", *SIZE, salt=0)))
    with pytest.raises(MetadataError, match=f"(?s)(?=.*{uid})(?=.*PerFrameFunctionalGroupsSequence)"):
        open_slide(slide)


def test_fewer_groups_than_frames(tmp_path: Path, open_slide: Opener) -> None:
    slide = new_slide(tmp_path)
    good, bad = blank(slide, (75, 55), mpp=(1.0, 1.0)), blank(slide)
    add_level(slide, good, {KEY: pattern("rgb", 75, 55, salt=0)})
    place_frames(bad, [((0, 0), KEY)] * 8)
    uid = store(slide, bad, frames_of(pattern("rgb", *SIZE, salt=0)))
    with pytest.warns(MetadataWarning, match=uid):
        opened = open_slide(slide)
    assert_reads(opened, slide)


@pytest.mark.parametrize("with_matrix", [True, False])
def test_other_instances_of_the_series_do_not_disturb(tmp_path: Path, open_slide: Opener, with_matrix: bool) -> None:
    """A region localizer, a segmentation that looks like a level, a label and a thumbnail of a level's size."""
    slide = make_slide(tmp_path, sizes=((300, 220), (150, 110)), associated=("label", "thumbnail"))
    for flavor in ("REGIONLOCALIZER", "LOCALIZER"):
        ds = blank(slide, (600, 440), flavor=flavor)
        if not with_matrix:
            del ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows
        store(slide, ds, [bytes(TILE[0] * TILE[1] * 3)], name="a-map")
    segmentation = blank(slide, (900, 660), content="mono8")
    segmentation.SOPClassUID, segmentation.Modality = SegmentationStorage, "SEG"
    segmentation.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    count = -(-900 // TILE[0]) * -(-660 // TILE[1])
    store(slide, segmentation, [bytes(TILE[0] * TILE[1])] * count, name="a-segmentation")
    thumbnail = blank(slide, (75, 55), flavor="THUMBNAIL")
    store(slide, thumbnail, frames_of(pattern("rgb", 75, 55, salt=9)), name="z-thumbnail")
    opened = open_slide(slide)
    assert_reads(opened, slide)
    assert set(opened.associated_images) == {"label", "thumbnail"}


@pytest.mark.parametrize(
    "value", [["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"], ["ORIGINAL", "PRIMARY", "VOLUME"], None]
)
def test_image_type_of_a_base(tmp_path: Path, open_slide: Opener, value: list[str] | None) -> None:
    """Its third value decides, the fourth is not reliable; without any, tiles against matrix do."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.ImageType = value
    if value is None:
        del ds.ImageType
    add_level(slide, ds, {KEY: pattern("rgb", *SIZE, salt=6)})
    assert_reads(open_slide(slide), slide)


def test_an_associated_image_in_tiles(tmp_path: Path, open_slide: Opener) -> None:
    """The standard wants a single frame; more than one is stitched."""
    slide = make_slide(tmp_path, sizes=((150, 110),))
    overview = pattern("rgb", 200, 100, salt=8)
    store(slide, blank(slide, (200, 100), flavor="OVERVIEW", mpp=None), frames_of(overview))
    opened = open_slide(slide)
    np.testing.assert_array_equal(opened.associated_images["overview"], overview)


def test_hostile_sizes_cost_nothing(tmp_path: Path, open_slide: Opener) -> None:
    """The largest matrix that DICOM can state: opening and reading its one frame take neither memory nor time."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    ds.TotalPixelMatrixColumns = ds.TotalPixelMatrixRows = 2**31 - 1
    x, y = 2**31 - 200, 2**31 - 100
    place_frames(ds, [((x, y), KEY)])
    tile = tile_image(0)
    store(slide, ds, [tile.tobytes()])
    opened = open_slide(slide)
    np.testing.assert_array_equal(opened.read_region(0, x, y, *TILE), tile)
    assert (opened.read_region(0, 5, 5, 30, 20) == 255).all()


def test_one_frame_of_a_sparse_level_off_the_matrix(tmp_path: Path, open_slide: Opener) -> None:
    """It shows nowhere, and does not keep the others from showing."""
    slide = new_slide(tmp_path)
    ds = blank(slide)
    places = [(0, 0), (64, 48), (6400, 4800)]
    place_frames(ds, [(place, KEY) for place in places])
    store(slide, ds, [tile_image(5 * n).tobytes() for n in range(3)])
    canvas = empty_canvas()
    for n, place in enumerate(places[:2]):
        paint(canvas, place, tile_image(5 * n))
    assert_image(open_slide(slide), 0, canvas)
