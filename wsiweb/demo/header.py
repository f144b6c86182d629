"""What the demo slide says about itself: the attributes of the VL Whole Slide Microscopy Image IOD (PS3.3 A.32.8).

Names and codes only; ``slide`` writes the files and ``tissue`` paints the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from wsiweb.metadata import VL_WHOLE_SLIDE_MICROSCOPY
from wsiweb.transfer_syntaxes import EXPLICIT_LITTLE_ENDIAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom import Dataset

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"

VERSION = "1"
"""Of the demo slide; a new one whenever the picture or the attributes change, since caches go by it."""
DATE, TIME = "20260102", "120000"
"""Fixed, since the same arguments give the same bytes."""

FILE_PREFIX = "wsiweb-demo-"
GLASS_MM = (76.0, 26.0)
"""Width and height of a microscope slide as images show it: label at the left, Y falling to the right."""
TISSUE_CENTRE_MM = (48.0, 13.0)
"""Where the tissue lies on the glass, from its left and its top."""
SECTION_THICKNESS_MM = 0.004


@dataclass(frozen=True, slots=True)
class Uids:
    """The identifiers of one demo slide, the same whenever the same slide is made."""

    identity: tuple[str, ...]
    """What makes the slide this one: version, dimensions, seed, quality."""

    def __getitem__(self, role: str) -> str:
        """Return the UID for a role, such as ``series`` or ``level-0``."""
        from pydicom.uid import generate_uid  # noqa: PLC0415  (pydicom loads slowly)

        return str(generate_uid(entropy_srcs=["wsiweb demo slide", *self.identity, role]))


@dataclass(frozen=True, slots=True)
class Picture:
    """One instance of the slide: what it shows, and where on the glass."""

    name: str
    """Role of its UID and end of its file name."""
    number: int
    """InstanceNumber."""
    flavour: str
    """ImageType 3: VOLUME, LABEL, OVERVIEW or THUMBNAIL (PS3.3 C.8.12.4.1.1)."""
    size: tuple[int, int]
    """Width and height of the total pixel matrix."""
    tile_size: tuple[int, int]
    """Columns and rows of a frame."""
    mpp: tuple[float, float]
    """Micrometres a pixel in x and y."""
    corner_mm: tuple[float, float]
    """Top left corner of the picture, from the left and the top of the glass."""
    derived: bool = False
    """Whether it was resampled from level 0."""
    compressed: bool = True
    """JPEG baseline, or native."""

    @property
    def file_name(self) -> str:
        """Name of its file; the prefix tells what may be replaced."""
        return f"{FILE_PREFIX}{self.name}.dcm"

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of tiles."""
        return -(-self.size[0] // self.tile_size[0]), -(-self.size[1] // self.tile_size[1])

    @property
    def frames(self) -> int:
        """Number of frames of the TILED_FULL grid."""
        return self.grid[0] * self.grid[1]

    @property
    def frame_bytes(self) -> int:
        """Size of a decoded frame."""
        return self.tile_size[0] * self.tile_size[1] * 3

    @property
    def transfer_syntax(self) -> str:
        """Transfer Syntax UID of its file."""
        return JPEG_BASELINE if self.compressed else EXPLICIT_LITTLE_ENDIAN


@cache
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, padded to an even length.

    LittleCMS stamps the time of creation into bytes 24 to 35; the slide's own date goes there instead.
    """
    from PIL import ImageCms  # noqa: PLC0415  (only the demo needs it here)

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    stamp = (int(DATE[:4]), int(DATE[4:6]), int(DATE[6:]), int(TIME[:2]), int(TIME[2:4]), int(TIME[4:]))
    profile[24:36] = b"".join(number.to_bytes(2, "big") for number in stamp)
    profile[84:100] = bytes(16)  # the profile ID, an MD5 of what has just changed; zero means not calculated
    return bytes(profile + bytes(len(profile) % 2))


def header(picture: Picture, uids: Uids) -> Dataset:
    """Return everything about an instance but its pixel data and what compression did to it."""
    spacing_mm = [f"{value / 1000:.10g}" for value in reversed(picture.mpp)]
    x_mm, y_mm = GLASS_MM[1] - picture.corner_mm[1], GLASS_MM[0] - picture.corner_mm[0]
    image_type = [
        "DERIVED" if picture.derived else "ORIGINAL",
        "PRIMARY",
        picture.flavour,
        "RESAMPLED" if picture.derived else "NONE",
    ]
    shows_label = "YES" if picture.flavour in ("LABEL", "OVERVIEW") else "NO"
    shared: dict[str, Any] = {
        "PixelMeasuresSequence": [{"PixelSpacing": spacing_mm, "SliceThickness": SECTION_THICKNESS_MM}],
        "WholeSlideMicroscopyImageFrameTypeSequence": [{"FrameType": image_type}],
        "OpticalPathIdentificationSequence": [{"OpticalPathIdentifier": "1"}],
    }
    attributes: dict[str, Any] = {
        **_common(uids),
        "SOPInstanceUID": uids[picture.name],
        "InstanceNumber": picture.number,
        "ImageType": image_type,
        # Image pixels
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "YBR_FULL_422" if picture.compressed else "RGB",
        "PlanarConfiguration": 0,
        "Columns": picture.tile_size[0],
        "Rows": picture.tile_size[1],
        "NumberOfFrames": picture.frames,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "BurnedInAnnotation": shows_label,
        "SpecimenLabelInImage": shows_label,
        "LossyImageCompression": "01" if picture.compressed else "00",
        # Where it lies on the glass (PS3.3 C.8.12.2.1.1 and C.8.12.14)
        "TotalPixelMatrixColumns": picture.size[0],
        "TotalPixelMatrixRows": picture.size[1],
        "TotalPixelMatrixFocalPlanes": 1,
        "TotalPixelMatrixOriginSequence": [
            {
                "XOffsetInSlideCoordinateSystem": f"{x_mm:.10g}",
                "YOffsetInSlideCoordinateSystem": f"{y_mm:.10g}",
                "ZOffsetInSlideCoordinateSystem": 0.0,
            }
        ],
        "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
        "ImagedVolumeWidth": picture.size[0] * picture.mpp[0] / 1000,
        "ImagedVolumeHeight": picture.size[1] * picture.mpp[1] / 1000,
        "ImagedVolumeDepth": SECTION_THICKNESS_MM * 1000,
        "SharedFunctionalGroupsSequence": [shared],
        "DimensionOrganizationSequence": [{"DimensionOrganizationUID": uids["dimensions"]}],
    }
    if picture.flavour == "VOLUME":  # the others are single frames, tiled in no way (PS3.3 C.7.6.17.3)
        attributes["DimensionOrganizationType"] = "TILED_FULL"
    if picture.flavour in ("VOLUME", "THUMBNAIL"):
        attributes |= {"PyramidUID": uids["pyramid"], "PyramidLabel": "Synthetic tissue"}
    if picture.flavour == "LABEL":
        attributes |= {"LabelText": "wsiweb demo", "BarcodeValue": ""}
    if picture.derived:
        source = {
            "ReferencedSOPClassUID": VL_WHOLE_SLIDE_MICROSCOPY,
            "ReferencedSOPInstanceUID": uids["level-0"],
        }
        purpose = _code("121322", "DCM", "Source image for image processing operation")
        shared["DerivationImageSequence"] = [
            {
                "DerivationDescription": "Area mean",
                "DerivationCodeSequence": [_code("113085", "DCM", "Spatial resampling")],
                "SourceImageSequence": [{**source, "PurposeOfReferenceCodeSequence": [purpose]}],
            }
        ]
        attributes["ReferencedSeriesSequence"] = [
            {"SeriesInstanceUID": uids["series"], "ReferencedInstanceSequence": [source]}
        ]
    return _dataset(attributes)


def _common(uids: Uids) -> dict[str, Any]:
    """Return what all instances share: patient, study, series, equipment, specimen, optics."""
    return {
        "SOPClassUID": VL_WHOLE_SLIDE_MICROSCOPY,
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": "Demo^Slide",
        "PatientID": "WSIWEB-DEMO",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": uids["study"],
        "StudyID": "1",
        "StudyDate": DATE,
        "StudyTime": TIME,
        "StudyDescription": "Synthetic slide, painted by wsiweb",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Modality": "SM",
        "SeriesInstanceUID": uids["series"],
        "SeriesNumber": 1,
        "SeriesDate": DATE,
        "SeriesTime": TIME,
        "SeriesDescription": "Synthetic tissue, H&E colours",
        "FrameOfReferenceUID": uids["frame of reference"],
        "PositionReferenceIndicator": "SLIDE_CORNER",
        "Manufacturer": "wsiweb",
        "ManufacturerModelName": "Demo slide",
        "DeviceSerialNumber": "0",
        "SoftwareVersions": VERSION,
        "ContentDate": DATE,
        "ContentTime": TIME,
        "AcquisitionDateTime": DATE + TIME,
        "AcquisitionContextSequence": [],
        "VolumetricProperties": "VOLUME",
        "FocusMethod": "AUTO",
        "ExtendedDepthOfField": "NO",
        "RecommendedAbsentPixelCIELabValue": [65535, 32896, 32896],  # white
        "ContainerIdentifier": "WSIWEB-DEMO-1",
        "IssuerOfTheContainerIdentifierSequence": [],
        "ContainerTypeCodeSequence": [_code("433466003", "SCT", "Microscope slide")],
        "SpecimenDescriptionSequence": [
            {
                "SpecimenIdentifier": "WSIWEB-DEMO-1-A",
                "SpecimenUID": uids["specimen"],
                "IssuerOfTheSpecimenIdentifierSequence": [],
                "SpecimenShortDescription": "Synthetic glandular tissue",
                "SpecimenPreparationSequence": [{"SpecimenPreparationStepContentItemSequence": _staining()}],
            }
        ],
        "NumberOfOpticalPaths": 1,
        "OpticalPathSequence": [
            {
                "OpticalPathIdentifier": "1",
                "OpticalPathDescription": "Brightfield",
                "IlluminationTypeCodeSequence": [_code("111744", "DCM", "Brightfield illumination")],
                "IlluminationColorCodeSequence": [_code("414298005", "SCT", "Full Spectrum")],
                "ICCProfile": srgb_profile(),
                "ColorSpace": "SRGB",
                "ObjectiveLensPower": 40,
                "ObjectiveLensNumericalAperture": "0.75",
            }
        ],
    }


def _staining() -> list[dict[str, Any]]:
    """Return the content items of TID 8001 and 8003 that say: stained with haematoxylin and eosin."""

    def item(name: dict[str, str], value: dict[str, str]) -> dict[str, Any]:
        return {"ValueType": "CODE", "ConceptNameCodeSequence": [name], "ConceptCodeSequence": [value]}

    substance = _code("424361007", "SCT", "Using substance")
    return [
        {
            "ValueType": "TEXT",
            "ConceptNameCodeSequence": [_code("121041", "DCM", "Specimen Identifier")],
            "TextValue": "WSIWEB-DEMO-1-A",
        },
        item(_code("111701", "DCM", "Processing type"), _code("127790008", "SCT", "Staining")),
        item(substance, _code("12710003", "SCT", "hematoxylin stain")),
        item(substance, _code("36879007", "SCT", "water soluble eosin stain")),
    ]


def _code(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def _dataset(attributes: Mapping[str, Any]) -> Dataset:
    """Return nested dicts as a dataset: lists of dicts become sequences."""
    from pydicom import Dataset  # noqa: PLC0415  (pydicom loads slowly)

    dataset = Dataset()
    for keyword, value in attributes.items():
        is_sequence = isinstance(value, list) and keyword.endswith("Sequence")
        setattr(dataset, keyword, [_dataset(item) for item in value] if is_sequence else value)
    return dataset
