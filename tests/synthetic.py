"""Tiny DICOM slides of which every pixel is known without the library under test.

Pixels encode their own position, so a tile that lands anywhere else, or a level, channel or focal plane that
is mistaken for another, shows. What is stored beyond the right and bottom edge of a level is poison.
The truth about lossy slides is what Pillow makes of each frame.
"""

from __future__ import annotations

import copy
import io
import random
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from pydicom import DataElement, Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

Array = npt.NDArray[Any]
PlaneKey = tuple[str, float]
"""Optical path identifier, z offset in micrometres."""

Content = Literal["rgb", "mono8", "mono16"]
Tiling = Literal["full", "sparse", "positions", "raster"]
"""TILED_FULL; TILED_SPARSE, shuffled; no DimensionOrganizationType but positions, shuffled; neither."""

POISON = 77


@dataclass(frozen=True, slots=True)
class TruthLevel:
    """What one level of a slide holds."""

    pixels: dict[PlaneKey, Array]
    tile_size: tuple[int, int]
    mpp: tuple[float, float]
    instance_uids: list[str]
    missing: frozenset[tuple[int, int]]
    """Tiles, as (column, row), that no frame covers."""

    @property
    def size(self) -> tuple[int, int]:
        height, width = next(iter(self.pixels.values())).shape[:2]
        return width, height


@dataclass(slots=True)
class SyntheticSlide:
    """A slide on disk, and the truth about it."""

    folder: Path
    study_uid: str
    series_uid: str
    levels: list[TruthLevel] = field(default_factory=list)
    associated: dict[str, Array] = field(default_factory=dict)
    icc_profile: bytes | None = None

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.dcm"))

    @property
    def default_key(self) -> PlaneKey:
        """First optical path; the plane nearest the middle, the lower at a tie (api.md)."""
        keys = list(self.levels[0].pixels)
        planes = sorted({plane for _, plane in keys})
        middle = (planes[0] + planes[-1]) / 2
        return keys[0][0], min(planes, key=lambda plane: (abs(plane - middle), plane))

    def truth(self, level: int, x: int, y: int, w: int, h: int, key: PlaneKey | None = None) -> Array:
        """Return the pixels of a rectangle, filled with white (colour) or 0 (monochrome) outside."""
        pixels = self.levels[level].pixels[key or self.default_key]
        out: Array = np.full((h, w, *pixels.shape[2:]), background(pixels), pixels.dtype)
        left, top = max(x, 0), max(y, 0)
        part = pixels[top : max(y + h, 0), left : max(x + w, 0)]
        out[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]] = part
        return out

    def tiles(self, level: int, x: int, y: int, w: int, h: int) -> set[tuple[int, int]]:
        """Return the tiles, as (column, row), that a rectangle touches and that exist."""
        truth = self.levels[level]
        (tile_w, tile_h), (width, height) = truth.tile_size, truth.size
        columns = range(max(x, 0) // tile_w, -(-min(x + w, width) // tile_w))
        rows = range(max(y, 0) // tile_h, -(-min(y + h, height) // tile_h))
        return {(column, row) for row in rows for column in columns} - truth.missing


def background(pixels: Array) -> int:
    """Return what stands where nothing was scanned: white in colour, 0 in monochrome."""
    return 255 if pixels.ndim == 3 else 0


def pattern(content: Content, w: int, h: int, salt: int) -> Array:
    """Return an image whose pixels tell where they are; ``salt`` tells level, channel and plane apart."""
    y, x = np.mgrid[:h, :w]
    if content == "mono16":
        return np.asarray((x + y * w + 4099 * salt) % 65536, np.uint16)
    if content == "mono8":
        return np.asarray((3 * x + 7 * y + x * y // 64 + 29 * salt) % 256, np.uint8)
    blocks = 7 * (x // 16) + 13 * (y // 16) + 41 * salt
    return np.asarray(np.stack([x + 3 * salt, y + 5 * salt, blocks], axis=-1) % 256, np.uint8)


def encode(tile: Array, syntax: UID) -> bytes:
    if syntax == JPEGBaseline8Bit:
        return bytes(imagecodecs.jpeg8_encode(tile, level=92, subsampling="422"))
    if syntax == JPEG2000Lossless:
        return bytes(imagecodecs.jpeg2k_encode(tile, level=0, reversible=True, codecformat="j2k", mct=False))
    return tile.astype(tile.dtype.newbyteorder("<")).tobytes()


def decode_independently(data: bytes, tile: Array, syntax: UID) -> Array:
    """Return what a frame shows: the tile itself where lossless, else Pillow's opinion."""
    if syntax != JPEGBaseline8Bit:
        return tile
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if tile.ndim == 3 else "L"))


def srgb_profile(*, swapped: bool = False) -> bytes:
    """Return sRGB's ICC profile; ``swapped`` exchanges its red and blue primaries."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data[:24] + struct.pack(">6H", 2024, 1, 2, 3, 4, 5) + data[36:]  # the second of its making, whenever
    if swapped:
        data = data.replace(b"rXYZ", b"tmp!", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmp!", b"bXYZ", 1)
    return data


def make_slide(
    folder: Path,
    *,
    content: Content = "rgb",
    sizes: Sequence[tuple[int, int]] = ((700, 530), (350, 265), (175, 132)),
    tile_size: tuple[int, int] = (64, 48),
    syntax: UID = ExplicitVRLittleEndian,
    tiling: Tiling = "full",
    missing: Mapping[int, set[tuple[int, int]]] | None = None,
    optical_paths: Sequence[str] = ("1",),
    focal_planes: Sequence[float] = (0.0,),
    spread: bool = False,
    associated: Sequence[Literal["label", "overview", "thumbnail"]] = (),
    icc_profile: bytes | None = None,
    mpp: float | None = 0.5,
    offsets: Literal["basic", "extended", "none"] = "basic",
    corrupt: Mapping[tuple[int, int], bytes] | None = None,
    change: Callable[[Dataset], None] | None = None,
) -> SyntheticSlide:
    """Write a slide and return the truth about it.

    ``missing`` maps a level to tiles (column, row) without frames, ``corrupt`` a (level, frame number) to the
    bytes to store instead; ``spread`` gives each optical path and focal plane an instance of its own;
    ``change`` has the last word on each dataset before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slide = SyntheticSlide(folder, generate_uid(), generate_uid(), icc_profile=icc_profile)
    keys = [(path, plane) for path in optical_paths for plane in focal_planes]
    for index, (width, height) in enumerate(sizes):
        level_mpp = (0.0, 0.0) if mpp is None else (mpp * sizes[0][0] / width, mpp * sizes[0][1] / height)
        holes = frozenset((missing or {}).get(index, ()))
        level = TruthLevel({}, tile_size, level_mpp, [], holes)
        slide.levels.append(level)
        for group in [[key] for key in keys] if spread else [keys]:
            frames: list[bytes] = []
            places: list[tuple[PlaneKey, int, int]] = []
            for key in group:
                image = pattern(content, width, height, salt=11 * index + keys.index(key))
                level.pixels[key] = np.full_like(image, background(image))
                for x, y, tile in _tiles(image, tile_size):
                    if (x // tile_size[0], y // tile_size[1]) in holes:
                        continue
                    frames.append(encode(tile, syntax))
                    places.append((key, x, y))
                    target = level.pixels[key][y : y + tile_size[1], x : x + tile_size[0]]
                    shown = decode_independently(frames[-1], tile, syntax)
                    target[:] = shown[: target.shape[0], : target.shape[1]]
            if tiling in ("sparse", "positions"):
                order = random.Random(index).sample(range(len(frames)), len(frames))
                frames, places = [frames[i] for i in order], [places[i] for i in order]
            frames = [(corrupt or {}).get((index, n), data) for n, data in enumerate(frames, start=1)]
            flavour = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if index == 0 else "RESAMPLED"]
            dataset = _image_dataset(slide, flavour, tile_size, content, syntax, len(frames), icc_profile)
            dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = width, height
            _describe_planes(dataset, group, level_mpp if mpp else None)
            _describe_tiling(dataset, tiling, places)
            _store(slide.folder, f"level-{index}", dataset, frames, syntax, offsets, change)
            level.instance_uids.append(str(dataset.SOPInstanceUID))
    for kind, size in zip(associated, ((90, 60), (120, 50), (70, 53)), strict=False):
        image = pattern("rgb", *size, salt=100 + size[0])
        flavour = ["ORIGINAL", "PRIMARY", kind.upper(), "NONE"]
        dataset = _image_dataset(slide, flavour, size, "rgb", ExplicitVRLittleEndian, 1, None)
        dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = size
        _store(slide.folder, kind, dataset, [image.tobytes()], ExplicitVRLittleEndian, "none", change)
        slide.associated[kind] = image
    return slide


def _tiles(image: Array, tile_size: tuple[int, int]) -> Iterator[tuple[int, int, Array]]:
    tile_w, tile_h = tile_size
    for y in range(0, image.shape[0], tile_h):
        for x in range(0, image.shape[1], tile_w):
            part = image[y : y + tile_h, x : x + tile_w]
            tile = np.full((tile_h, tile_w, *image.shape[2:]), POISON, image.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield x, y, tile


def _image_dataset(
    slide: SyntheticSlide,
    image_type: list[str],
    tile_size: tuple[int, int],
    content: Content,
    syntax: UID,
    frames: int,
    icc_profile: bytes | None,
) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = slide.study_uid, slide.series_uid
    ds.FrameOfReferenceUID, ds.Modality, ds.ImageType = slide.study_uid, "SM", image_type
    ds.PatientID, ds.PatientName, ds.StudyID, ds.SeriesNumber = "P-1", "Test^Slide", "1", 1
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.InstanceNumber = "20240102", "030405", "", 1
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "Acme", "Scan-o-mat", "1.2"
    ds.ContainerIdentifier, ds.DeviceSerialNumber = "C-1", "42"
    ds.Columns, ds.Rows = tile_size
    ds.NumberOfFrames = frames
    colour = content == "rgb"
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = (
        "MONOCHROME2" if not colour else "YBR_FULL_422" if syntax == JPEGBaseline8Bit else "RGB"
    )
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 16 if content == "mono16" else 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.ObjectiveLensPower = 20
    if icc_profile:
        path.ICCProfile = icc_profile
    ds.OpticalPathSequence = [path]
    ds.NumberOfOpticalPaths = 1
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    return ds


def _describe_planes(ds: Dataset, group: list[PlaneKey], mpp: tuple[float, float] | None) -> None:
    """Write the optical paths, focal planes and pixel measures."""
    template = ds.OpticalPathSequence[0]
    ds.OpticalPathSequence = []
    for identifier in dict.fromkeys(path for path, _ in group):
        item = copy.deepcopy(template)
        item.OpticalPathIdentifier = identifier
        ds.OpticalPathSequence.append(item)
    ds.NumberOfOpticalPaths = len(ds.OpticalPathSequence)
    planes = list(dict.fromkeys(plane for _, plane in group))
    ds.TotalPixelMatrixFocalPlanes = len(planes)
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20.0", "40.0"
    origin.ZOffsetInSlideCoordinateSystem = planes[0]
    ds.TotalPixelMatrixOriginSequence = [origin]
    measures.SliceThickness = 0.001
    if len(planes) > 1:
        measures.SpacingBetweenSlices = (planes[1] - planes[0]) / 1000
    if mpp:
        ds.ImagedVolumeWidth = ds.TotalPixelMatrixColumns * mpp[0] / 1000
        ds.ImagedVolumeHeight = ds.TotalPixelMatrixRows * mpp[1] / 1000
        measures.PixelSpacing = [f"{mpp[1] / 1000:.12g}", f"{mpp[0] / 1000:.12g}"]
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]


def _describe_tiling(ds: Dataset, tiling: Tiling, places: list[tuple[PlaneKey, int, int]]) -> None:
    if tiling in ("full", "sparse"):
        ds.DimensionOrganizationType = f"TILED_{tiling.upper()}"
    if tiling in ("sparse", "positions"):
        ds.PerFrameFunctionalGroupsSequence = [_frame_groups(*place) for place in places]


def _frame_groups(key: PlaneKey, x: int, y: int) -> Dataset:
    position, path, groups = Dataset(), Dataset(), Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = x + 1  # 1-based (PS3.3 C.8.12.6.1)
    position.RowPositionInTotalImagePixelMatrix = y + 1
    position.XOffsetInSlideCoordinateSystem, position.YOffsetInSlideCoordinateSystem = "20.0", "40.0"
    position.ZOffsetInSlideCoordinateSystem = key[1]
    path.OpticalPathIdentifier = key[0]
    groups.PlanePositionSlideSequence = [position]
    groups.OpticalPathIdentificationSequence = [path]
    return groups


def _store(
    folder: Path,
    name: str,
    ds: Dataset,
    frames: list[bytes],
    syntax: UID,
    offsets: str,
    change: Callable[[Dataset], None] | None,
) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    encapsulated = syntax.is_encapsulated
    if not encapsulated:
        data = b"".join(frames)
        data += b"\0" * (len(data) % 2)
    elif offsets == "extended":
        data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        data = encapsulate(frames, has_bot=offsets == "basic")
    element = DataElement("PixelData", "OB" if encapsulated or ds.BitsAllocated == 8 else "OW", data)
    element.is_undefined_length = encapsulated
    ds["PixelData"] = element
    if change:
        change(ds)
    ds.save_as(folder / f"{name}-{ds.SOPInstanceUID[-6:]}.dcm", enforce_file_format=True)
