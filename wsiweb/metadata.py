"""From one DICOM JSON dataset to one ``Instance``, with the checks that reading relies on.

Knows a single instance only: how instances make levels and pyramids is in ``pyramid``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wsiweb import transfer_syntaxes
from wsiweb.dicomjson import Attributes, BinaryValue
from wsiweb.errors import MetadataError
from wsiweb.frame_positions import FramePositions, read_positions
from wsiweb.palette import Palette, read_palette
from wsiweb.sources.base import FrameBatch, InstanceAddress, JsonDataset

VL_WHOLE_SLIDE_MICROSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.6"
_COMPRESSED_PHOTOMETRIC = frozenset({"YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB"})
"""That are hardly ever found without compression."""
MAX_PLANES_OR_PATHS = 4096
_NEUTRAL = 32896
"""Encoded a* or b* of 0."""
FLAVORS = ("VOLUME", "LABEL", "OVERVIEW", "THUMBNAIL")
"""Values of ImageType 3 that are read (PS3.3 C.8.12.4.1.1); others, such as REGIONLOCALIZER, are not."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """What the metadata say of a frame's pixels (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    """PhotometricInterpretation. A hint only: where there is a code stream, that decides."""
    planar_configuration: int
    lossy: bool
    """Whether the pixels have been compressed lossily."""
    palette: Palette | None = None
    """Of PALETTE COLOR."""
    photometric_forced: bool = False
    """Whether the user has stated it: then it goes before the code stream."""
    shift: int = 0
    """Bits of a sample below those stored, where these are not the lowest: HighBit + 1 - BitsStored (PS3.5 8.1.1)."""

    @property
    def colour(self) -> bool:
        """Whether frames decode to RGB."""
        return self.samples_per_pixel > 1 or self.photometric == "PALETTE COLOR"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the decoded pixels: uint8, or uint16 for monochrome of more than 8 bits."""
        return np.dtype(np.uint8 if self.colour or self.bits_allocated <= 8 else np.uint16)


@dataclass(frozen=True, slots=True)
class OpticalPath:
    """One item of OpticalPathSequence (PS3.3 C.8.12.5)."""

    identifier: str
    icc_profile: BinaryValue | None


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One VL Whole Slide Microscopy instance."""

    address: InstanceAddress
    flavor: str
    """VOLUME, LABEL, OVERVIEW or THUMBNAIL."""
    transfer_syntax_uid: str | None
    """As stored, where the metadata tell."""
    pixels: PixelFormat
    matrix_width: int
    """TotalPixelMatrixColumns."""
    matrix_height: int
    """TotalPixelMatrixRows."""
    number_of_frames: int
    organization: str | None
    """DimensionOrganizationType."""
    optical_paths: tuple[OpticalPath, ...]
    """At least one."""
    number_of_focal_planes: int
    first_plane_um: float
    """z offset of the first focal plane of a TILED_FULL instance: x and y are in mm there, z in µm."""
    plane_spacing_um: float
    """Distance of its focal planes."""
    positions: FramePositions | None
    """Where the metadata give one to each frame."""
    mpp: tuple[float, float] | None
    """(x, y) in µm: from PixelSpacing, else from the imaged volume, else None."""
    mpp_source: str | None
    """Which of both."""
    concatenation_uid: str | None
    concatenation_offset: int
    """Frames of the concatenation that come before this instance."""
    pyramid_uid: str | None
    origin_mm: tuple[float, float] | None
    """(x, y) of the total pixel matrix in the slide coordinate system."""
    acquisition_datetime: str | None
    frame_of_reference_uid: str | None
    extended_depth_of_field: bool
    absent_pixel_cielab: tuple[int, int, int] | None

    def batch(self, frame_numbers: tuple[int, ...], *, fresh: bool = False) -> FrameBatch:
        """Return what asks for frames of this instance; see ``FrameBatch``."""
        return FrameBatch(
            self.address, frame_numbers, self.transfer_syntax_uid, frame_bytes=self.frame_bytes,
            compressed=self.stored_compressed, lossless=self.stored_without_loss, fresh=fresh,
        )  # fmt: skip

    @property
    def frame_bytes(self) -> int:
        """Size of a frame without compression."""
        pixels = self.pixels
        return pixels.rows * pixels.columns * pixels.samples_per_pixel * max(pixels.bits_allocated // 8, 1)

    @property
    def stored_compressed(self) -> bool:
        """Whether frames are known, or seem, to be stored compressed."""
        if self.transfer_syntax_uid is not None:
            return self.transfer_syntax_uid not in transfer_syntaxes.NATIVE
        return self.pixels.lossy or self.pixels.photometric in _COMPRESSED_PHOTOMETRIC

    @property
    def stored_without_loss(self) -> bool:
        """Whether frames are known to be stored, and to have always been, without loss."""
        uid = self.transfer_syntax_uid
        return uid is not None and not self.pixels.lossy and transfer_syntaxes.lossless(uid)

    @classmethod
    def from_json(cls, dataset: JsonDataset) -> Instance | None:
        """Return the instance, or None for a dataset that is no whole-slide image.

        Raises
        ------
        MetadataError
            An attribute that reading needs is missing or breaks its rule; names the instance.
        """
        attributes = Attributes(dataset)
        sop_class = attributes.string("SOPClassUID")
        if sop_class != VL_WHOLE_SLIDE_MICROSCOPY:
            return None
        uid = attributes.string("SOPInstanceUID") or "without SOPInstanceUID"
        try:
            flavor = flavor_of(attributes)
            return None if flavor is None else _instance(attributes, flavor)
        except MetadataError as error:
            raise MetadataError(f"Instance {uid}: {error}") from error


def _micrometres(x_mm: float, y_mm: float) -> tuple[float, float] | None:
    """Convert, without the noise of binary fractions; None for what no microscope can mean."""
    x_um, y_um = (float(f"{axis * 1000:.12g}") for axis in (x_mm, y_mm))
    return (x_um, y_um) if all(1e-6 <= axis <= 1e6 for axis in (x_um, y_um)) else None


def flavor_of(attributes: Attributes) -> str | None:
    """Return which of ``FLAVORS`` an image is (PS3.3 C.8.12.4.1.1); None for others.

    Raises
    ------
    MetadataError
        Nothing tells, or what would is malformed.
    """
    image_type = [text.upper() for text in attributes.texts("ImageType")]
    if len(image_type) > 2:
        return image_type[2] if image_type[2] in FLAVORS else None
    # Without the third value only a tiled image can be told from a label: it has more pixels than a frame.
    columns, width = attributes.integer("Columns"), attributes.integer("TotalPixelMatrixColumns")
    rows, height = attributes.integer("Rows"), attributes.integer("TotalPixelMatrixRows")
    tiled = (width or 0) > (columns or 0) > 0 or (height or 0) > (rows or 0) > 0
    if not tiled and (attributes.integer("NumberOfFrames") or 1) <= 1:
        raise MetadataError("its ImageType does not tell whether it is a level, a label or an overview.")
    return "VOLUME"


def is_level(attributes: Attributes) -> bool:
    """Whether it is an image of a slide's pyramid, as far as anything tells."""
    try:
        return attributes.string("SOPClassUID") == VL_WHOLE_SLIDE_MICROSCOPY and flavor_of(attributes) == "VOLUME"
    except MetadataError:  # it is reported later
        return False


def _instance(attributes: Attributes, flavor: str) -> Instance:
    pixels = _pixel_format(attributes)
    volume = flavor == "VOLUME"
    number_of_frames = attributes.integer("NumberOfFrames")
    if number_of_frames is None:
        number_of_frames = 1
    if number_of_frames < 1:
        raise MetadataError(f"NumberOfFrames is {number_of_frames}.")
    if not volume and attributes.integer("TotalPixelMatrixColumns") is None:
        width, height = pixels.columns, pixels.rows
    else:
        width = attributes.required_integer("TotalPixelMatrixColumns")
        height = attributes.required_integer("TotalPixelMatrixRows")
        if not volume and number_of_frames == 1:  # some copy the matrix of level 0
            width, height = min(width, pixels.columns), min(height, pixels.rows)
    organization = attributes.string("DimensionOrganizationType")
    shared = attributes.first_item("SharedFunctionalGroupsSequence")
    origin = attributes.first_item("TotalPixelMatrixOriginSequence")
    shared_plane = shared.first_item("PlanePositionSlideSequence")
    first_plane_um = _first_known(
        shared_plane.number("ZOffsetInSlideCoordinateSystem"), origin.number("ZOffsetInSlideCoordinateSystem")
    )
    measures = _pixel_measures(shared, attributes)
    mpp, mpp_source = _resolution(measures, attributes, width, height)
    uid = attributes.string("SOPInstanceUID")
    if uid is None:
        raise MetadataError("SOPInstanceUID is missing.")
    return Instance(
        address=InstanceAddress(
            attributes.string("StudyInstanceUID") or "", attributes.string("SeriesInstanceUID") or "", uid
        ),
        flavor=flavor,
        transfer_syntax_uid=_transfer_syntax(attributes),
        pixels=pixels,
        matrix_width=width,
        matrix_height=height,
        number_of_frames=number_of_frames,
        organization=organization,
        optical_paths=_optical_paths(attributes),
        number_of_focal_planes=_count(attributes, "TotalPixelMatrixFocalPlanes"),
        first_plane_um=first_plane_um,
        plane_spacing_um=_plane_spacing_um(shared, measures),
        # Those of a TILED_FULL instance say nothing new.
        positions=None if organization == "TILED_FULL" else read_positions(attributes, shared, number_of_frames),
        mpp=mpp,
        mpp_source=mpp_source,
        concatenation_uid=attributes.string("ConcatenationUID"),
        concatenation_offset=max(attributes.integer("ConcatenationFrameOffsetNumber") or 0, 0),
        pyramid_uid=attributes.string("PyramidUID"),
        origin_mm=_origin(origin),
        acquisition_datetime=attributes.string("AcquisitionDateTime"),
        frame_of_reference_uid=attributes.string("FrameOfReferenceUID"),
        extended_depth_of_field=attributes.string("ExtendedDepthOfField") == "YES",
        absent_pixel_cielab=_cielab(attributes.optional_numbers("RecommendedAbsentPixelCIELabValue")),
    )


def _first_known(*numbers: float | None) -> float:
    return next((number for number in numbers if number is not None), 0.0)


def _transfer_syntax(attributes: Attributes) -> str | None:
    """Return that of what is stored, where it is known: what else is available may be several."""
    available = attributes.strings("AvailableTransferSyntaxUID")
    return attributes.string("TransferSyntaxUID") or (available[0] if len(available) == 1 else None)


def _pixel_format(attributes: Attributes) -> PixelFormat:
    samples = attributes.integer("SamplesPerPixel")
    photometric = attributes.string("PhotometricInterpretation")
    if samples is None:
        samples = 1 if photometric is None or photometric.startswith(("MONO", "PALETTE")) else 3
    bits_allocated = attributes.integer("BitsAllocated") or 8
    bits_stored = max(min(attributes.integer("BitsStored") or bits_allocated, bits_allocated), 1)
    high_bit = attributes.optional_number("HighBit") or 0
    return PixelFormat(
        rows=attributes.required_integer("Rows", high=65535),
        columns=attributes.required_integer("Columns", high=65535),
        samples_per_pixel=samples,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        signed=attributes.integer("PixelRepresentation") == 1,
        photometric=photometric or ("MONOCHROME2" if samples == 1 else "RGB"),
        planar_configuration=attributes.integer("PlanarConfiguration") or 0,
        lossy=attributes.string("LossyImageCompression") == "01",
        palette=read_palette(attributes) if photometric == "PALETTE COLOR" else None,
        shift=max(int(high_bit) + 1 - bits_stored, 0) if high_bit < bits_allocated else 0,
    )


def _optical_paths(attributes: Attributes) -> tuple[OpticalPath, ...]:
    paths = tuple(
        OpticalPath(
            identifier=item.string("OpticalPathIdentifier") or str(position),
            icc_profile=item.binary("ICCProfile"),
        )
        for position, item in enumerate(attributes.sequence("OpticalPathSequence"), start=1)
    )
    if paths:
        return paths
    count = _count(attributes, "NumberOfOpticalPaths")
    return tuple(OpticalPath(str(position), None) for position in range(1, count + 1))


def _count(attributes: Attributes, keyword: str) -> int:
    """Return how many there are, 1 where unsaid; a hostile number would cost memory."""
    count = max(attributes.integer(keyword) or 1, 1)
    if count > MAX_PLANES_OR_PATHS:
        raise MetadataError(f"{keyword} is {count}; more than {MAX_PLANES_OR_PATHS} are not believed.")
    return count


def _plane_spacing_um(shared: Attributes, measures: Attributes) -> float:
    spacing_mm = shared.first_item("PixelMeasuresSequence").number("SpacingBetweenSlices")
    return (spacing_mm or measures.number("SpacingBetweenSlices") or 0.0) * 1000


def _pixel_measures(shared: Attributes, attributes: Attributes) -> Attributes:
    measures = shared.first_item("PixelMeasuresSequence")
    if measures.optional_numbers("PixelSpacing"):
        return measures
    return attributes.first_item("PerFrameFunctionalGroupsSequence").first_item("PixelMeasuresSequence")


def _resolution(
    measures: Attributes, attributes: Attributes, width: int, height: int
) -> tuple[tuple[float, float] | None, str | None]:
    """Return (x, y) in µm a pixel, and which attributes tell."""
    if (spacing_mm := _spacing(measures)) is not None:
        row_mm, column_mm = spacing_mm  # y first
        return _micrometres(column_mm, row_mm), "PixelSpacing"
    if (volume_mm := _volume(attributes)) is not None:
        return _micrometres(volume_mm[0] / width, volume_mm[1] / height), "ImagedVolumeWidth and -Height"
    return None, None


def _spacing(measures: Attributes) -> tuple[float, float] | None:
    numbers = measures.optional_numbers("PixelSpacing")
    return (numbers[0], numbers[1]) if len(numbers) == 2 and min(numbers) > 0 else None


def _cielab(values: tuple[float, ...]) -> tuple[int, int, int] | None:
    """Return an encoded CIELab value; None where it is none.

    Encoded, neutral a* and b* are 32896 (PS3.3 C.10.7.1.1). Slides of IDC say 65535, 0, 0 where they mean white: that
    would be cyan. No colour that can be shown has a* and b* of -128, so that 0, 0 is neutral too.
    """
    if len(values) != 3 or not all(0 <= value <= 65535 for value in values):
        return None
    lightness, a, b = (int(value) for value in values)
    return (lightness, a, b) if a or b else (lightness, _NEUTRAL, _NEUTRAL)


def _origin(origin: Attributes) -> tuple[float, float] | None:
    x, y = (origin.optional_number(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY")
    return None if x is None or y is None else (x, y)


def _volume(attributes: Attributes) -> tuple[float, float] | None:
    width, height = (attributes.optional_number(f"ImagedVolume{side}") for side in ("Width", "Height"))
    return (width, height) if width and height and width > 0 and height > 0 else None
