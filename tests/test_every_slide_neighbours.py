"""What else a series holds, and frames that do not fit: regions of interest, segmentations, hostile sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from kinds_writer import (
    KEY,
    SIZE,
    TILE,
    add_level,
    assert_image,
    assert_reads,
    assert_same,
    blank,
    empty_canvas,
    frames_of,
    new_slide,
    paint,
    place_frames,
    store,
)
from pydicom.uid import (
    ComprehensiveSRStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    SegmentationStorage,
    generate_uid,
)
from synthetic import make_slide, pattern

from wsiweb import MetadataError, MetadataWarning, RegionError, Slide, SlideNotFoundError

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


def test_other_images_of_a_folder_are_no_second_slide(tmp_path: Path) -> None:
    """A parametric map, or an enhanced CT, has VOLUME in its ImageType, too."""
    slide = make_slide(tmp_path, sizes=((300, 220),))
    other = blank(new_slide(tmp_path), (64, 48), tile_size=(64, 48))
    other.SOPClassUID, other.Modality, other.SeriesInstanceUID = EnhancedCTImageStorage, "CT", generate_uid()
    store(slide, other, [bytes(64 * 48 * 3)], name="ct")
    with Slide.open(tmp_path) as opened:
        assert_reads(opened, slide)


def test_two_slides_of_a_folder_that_say_little_of_themselves(tmp_path: Path) -> None:
    for name in "ab":
        slide = new_slide(tmp_path / name)
        ds = blank(slide)
        del ds.ImageType
        add_level(slide, ds, {KEY: pattern("rgb", *SIZE, salt=0)})
    with pytest.raises(SlideNotFoundError, match=r"2 series of images.*series_uid="):
        Slide.open(tmp_path)


def test_reports_of_the_series_cost_no_request(tmp_path: Path, open_slide: Opener) -> None:
    slide = make_slide(tmp_path, sizes=((300, 220),))
    for n in range(3):
        report = blank(slide)
        for keyword in [element.keyword for element in report if element.keyword]:
            if keyword not in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                delattr(report, keyword)
        report.SOPClassUID, report.Modality = ComprehensiveSRStorage, "SR"
        report.SOPInstanceUID = generate_uid()
        report.file_meta = pydicom.dataset.FileMetaDataset()
        report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        report.save_as(tmp_path / f"report-{n}.dcm", enforce_file_format=True)
    opened = open_slide(slide)
    assert open_slide.requests() <= 1
    assert_reads(opened, slide)


def test_a_label_is_bound_as_regions_are(tmp_path: Path, open_slide: Opener) -> None:
    """It claims to be larger than all memory, of which it has one tile."""
    slide = make_slide(tmp_path, sizes=((300, 220),))
    ds = blank(slide, (60_000, 60_000), flavor="LABEL")
    place_frames(ds, [((0, 0), KEY), ((64, 0), KEY)])
    store(slide, ds, [bytes(TILE[0] * TILE[1] * 3)] * 2)
    opened = open_slide(slide)
    with pytest.raises(RegionError, match="max_region_bytes"):
        opened.associated_images["label"]


@pytest.mark.parametrize("what", ["matrix", "frames"])
def test_a_thumbnail_that_contradicts_itself(tmp_path: Path, open_slide: Opener, what: str) -> None:
    """It claims the matrix of level 0, or frames that it has not: then it is one frame, or a level will do."""
    slide = make_slide(tmp_path, sizes=((300, 220), (75, 55)))
    ds = blank(slide, (60, 44), tile_size=(60, 44), flavor="THUMBNAIL")
    if what == "matrix":
        ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = 300, 220
    picture = pattern("rgb", 60, 44, salt=9)
    store(slide, ds, [picture.tobytes()] * (3 if what == "frames" else 1))
    opened = open_slide(slide)
    assert opened.thumbnail(50).shape == (37, 50, 3)
    assert len(opened.patches(50, mask="otsu")) >= 0
    if what == "matrix":
        assert_same(opened.associated_images["thumbnail"], picture)
