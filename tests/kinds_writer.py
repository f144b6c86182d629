"""Writes slides one instance at a time, for kinds that ``make_slide`` does not know.

What is written goes along with its truth: the arrays that a reader has to return, made without the library.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, HTJ2KLossless, generate_uid
from synthetic import (
    SyntheticSlide,
    TruthLevel,
    _describe_planes,
    _image_dataset,
    _store,
    _tiles,
    background,
    encode,
    pattern,
)

from wsiweb import Slide

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from conftest import Opener
    from synthetic import Array, Content, PlaneKey

SIZE = (150, 110)
TILE = (64, 48)
"""A 3 by 3 grid over ``SIZE``, cropped at the right and at the bottom."""
KEY: PlaneKey = ("1", 0.0)

YOUNG = tuple(UID(f"1.2.840.10008.1.2.4.{number}") for number in (110, 111, 112))
"""JPEG XL: transfer syntaxes that pydicom does not know yet."""

Place = tuple[int, int]
"""Top left corner (x, y), 0-based, in pixels of the level."""


def new_slide(folder: Path) -> SyntheticSlide:
    """Return an empty slide to add levels to."""
    folder.mkdir(parents=True, exist_ok=True)
    return SyntheticSlide(folder, generate_uid(), generate_uid())


def blank(
    slide: SyntheticSlide,
    size: tuple[int, int] = SIZE,
    *,
    tile_size: tuple[int, int] = TILE,
    content: Content = "rgb",
    keys: Sequence[PlaneKey] = (KEY,),
    mpp: tuple[float, float] | None = (0.5, 0.5),
    flavor: str = "VOLUME",
) -> Dataset:
    """Return the dataset of a TILED_FULL image, without pixels."""
    ds = _image_dataset(
        slide, ["ORIGINAL", "PRIMARY", flavor, "NONE"], tile_size, content, ExplicitVRLittleEndian, 1, None
    )
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = size
    # A decimal string has 16 characters at most.
    _describe_planes(ds, list(keys), None if mpp is None else (round(mpp[0], 7), round(mpp[1], 7)))
    ds.DimensionOrganizationType = "TILED_FULL"
    return ds


def store(
    slide: SyntheticSlide,
    ds: Dataset,
    frames: Sequence[bytes],
    *,
    syntax: UID = ExplicitVRLittleEndian,
    name: str = "image",
    offsets: str = "basic",
) -> str:
    """Write an instance; files are read in the order of their names. Returns the SOP Instance UID."""
    ds = copy.deepcopy(ds)
    if "NumberOfFrames" in ds:
        ds.NumberOfFrames = len(frames)
    known = syntax if syntax not in YOUNG else HTJ2KLossless
    _store(slide.folder, name, ds, list(frames), known, offsets, None)
    if syntax != known:
        file = next(slide.folder.glob(f"{name}-{ds.SOPInstanceUID[-6:]}.dcm"))
        file.write_bytes(file.read_bytes().replace(known.encode(), syntax.encode(), 1))
    return str(ds.SOPInstanceUID)


def frames_of(image: Array, tile_size: tuple[int, int] = TILE, syntax: UID = ExplicitVRLittleEndian) -> list[bytes]:
    """Return the frames of an image in raster order."""
    return [encode(tile, syntax) for _, _, tile in _tiles(image, tile_size)]


def images_for(
    keys: Iterable[PlaneKey], size: tuple[int, int] = SIZE, content: Content = "mono8", salt: int = 0
) -> dict[PlaneKey, Array]:
    """Return one image for each optical path and focal plane, no two alike."""
    return {key: pattern(content, *size, salt=salt + n) for n, key in enumerate(keys)}


def add_level(
    slide: SyntheticSlide,
    ds: Dataset,
    images: dict[PlaneKey, Array],
    *,
    name: str = "level",
    mpp: tuple[float, float] = (0.5, 0.5),
) -> str:
    """Write one TILED_FULL instance (columns, rows, focal planes, optical paths) and note its truth."""
    tile_size = ds.Columns, ds.Rows
    uid = store(slide, ds, [frame for image in images.values() for frame in frames_of(image, tile_size)], name=name)
    note_level(slide, ds, images, [uid], mpp=mpp)
    return uid


def note_level(
    slide: SyntheticSlide,
    ds: Dataset,
    images: dict[PlaneKey, Array],
    uids: list[str],
    *,
    mpp: tuple[float, float] = (0.5, 0.5),
) -> None:
    """Note what the next level of a slide shows."""
    slide.levels.append(TruthLevel(dict(images), (ds.Columns, ds.Rows), mpp, uids, frozenset()))


def place_frames(ds: Dataset, places: Sequence[tuple[Place, PlaneKey | None]], *, declared: bool = True) -> None:
    """Give each frame a position, and an optical path and focal plane where there is a key."""
    if declared:
        ds.DimensionOrganizationType = "TILED_SPARSE"
    else:
        del ds.DimensionOrganizationType
    ds.PerFrameFunctionalGroupsSequence = []
    for place, key in places:
        groups = Dataset()
        groups.PlanePositionSlideSequence = [position_item(place, None if key is None else key[1])]
        if key is not None:
            path = Dataset()
            path.OpticalPathIdentifier = key[0]
            groups.OpticalPathIdentificationSequence = [path]
        ds.PerFrameFunctionalGroupsSequence.append(groups)


def position_item(place: Place, z_um: float | None) -> Dataset:
    """Return an item of PlanePositionSlideSequence."""
    item = Dataset()
    item.ColumnPositionInTotalImagePixelMatrix, item.RowPositionInTotalImagePixelMatrix = place[0] + 1, place[1] + 1
    item.XOffsetInSlideCoordinateSystem = item.YOffsetInSlideCoordinateSystem = "20.0"
    if z_um is not None:
        item.ZOffsetInSlideCoordinateSystem = z_um
    return item


def paint(canvas: Array, place: Place, tile: Array) -> None:
    """Draw a tile over a level, cropped to it."""
    x, y = place
    target = canvas[y : y + tile.shape[0], x : x + tile.shape[1]]
    target[:] = tile[: target.shape[0], : target.shape[1]]


def empty_canvas(size: tuple[int, int] = SIZE, content: Content = "rgb") -> Array:
    """Return a level of which nothing was scanned."""
    image = pattern(content, *size, salt=0)
    return np.full_like(image, background(image))


def assert_reads(slide: Slide, truth: SyntheticSlide, tolerance: int = 0) -> None:
    """Compare every level, optical path and focal plane: all of it, and a part that reaches over the edge."""
    assert [level.size for level in slide.levels] == [level.size for level in truth.levels]
    for index, level in enumerate(truth.levels):
        assert slide.levels[index].tile_size == level.tile_size
        for path, plane in level.pixels:
            assert_image(slide, index, level.pixels[path, plane], tolerance, optical_path=path, focal_plane=plane)


def assert_image(slide: Slide, level: int, expected: Array, tolerance: int = 0, **channel: Any) -> None:
    """Compare a level with its truth: all of it, a part within, a part that reaches over the edge."""
    h, w = expected.shape[:2]
    whole = slide.read_region(level, 0, 0, w, h, **channel)
    assert_same(whole, expected, tolerance)
    x, y = w // 3, h // 3
    within = slide.read_region(level, x, y, w - x, h - y, **channel)
    assert_same(within, expected[y:, x:], tolerance)
    corner = slide.read_region(level, w - 1, h - 1, 8, 8, **channel)
    assert_same(corner[:1, :1], expected[-1:, -1:], tolerance)


def assert_same(actual: Array, expected: Array, tolerance: int = 0) -> None:
    """Compare arrays; their dtype and shape exactly, their values within the tolerance."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if tolerance == 0:
        np.testing.assert_array_equal(actual, expected)
    else:
        assert np.abs(actual.astype(int) - expected.astype(int)).max() <= tolerance


def open_series(opener: Opener, slide: SyntheticSlide, series_uids: Sequence[str], **kwargs: Any) -> Slide:
    """Open several series of a study as one slide, from the opener's kind of source."""
    from dicomweb_server import DICOMwebServer  # noqa: PLC0415

    place: str | Path = slide.folder
    if opener.source == "web":
        opener.servers.append(opener._stack.enter_context(DICOMwebServer(slide.folder)))
        place = opener.servers[-1].url
    opened = Slide.open(place, study_uid=slide.study_uid, series_uid=tuple(series_uids), **kwargs)
    return opener._stack.enter_context(opened)
