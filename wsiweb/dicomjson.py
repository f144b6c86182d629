"""Read values from the DICOM JSON model (PS3.18 F) as real servers send it.

Servers send numbers as strings and strings as numbers, several values as one string with backslashes,
NUL and space padding, a bare value instead of a list, and numbers as base64. All of that is read here;
no pydicom objects are made, because one for each frame costs seconds.
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from typing import Any

from wsiweb.errors import MetadataError
from wsiweb.jsontext import UnreadItems

TAGS = {
    "TransferSyntaxUID": "00020010",
    "ImageType": "00080008",
    "SOPClassUID": "00080016",
    "SOPInstanceUID": "00080018",
    "PyramidUID": "00080019",
    "AcquisitionDateTime": "0008002A",
    "StudyDate": "00080020",
    "AccessionNumber": "00080050",
    "Modality": "00080060",
    "Manufacturer": "00080070",
    "CodeMeaning": "00080104",
    "StudyDescription": "00081030",
    "SeriesDescription": "0008103E",
    "ManufacturerModelName": "00081090",
    "AvailableTransferSyntaxUID": "00083002",
    "PatientID": "00100020",
    "DeviceSerialNumber": "00181000",
    "SoftwareVersions": "00181020",
    "SpacingBetweenSlices": "00180088",
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "FrameOfReferenceUID": "00200052",
    "NumberOfSeriesRelatedInstances": "00201209",
    "ConcatenationUID": "00209161",
    "DimensionOrganizationType": "00209311",
    "ConcatenationFrameOffsetNumber": "00209228",
    "SamplesPerPixel": "00280002",
    "PhotometricInterpretation": "00280004",
    "PlanarConfiguration": "00280006",
    "NumberOfFrames": "00280008",
    "Rows": "00280010",
    "Columns": "00280011",
    "PixelSpacing": "00280030",
    "BitsAllocated": "00280100",
    "BitsStored": "00280101",
    "HighBit": "00280102",
    "PixelRepresentation": "00280103",
    "RedPaletteColorLookupTableDescriptor": "00281101",
    "GreenPaletteColorLookupTableDescriptor": "00281102",
    "BluePaletteColorLookupTableDescriptor": "00281103",
    "RedPaletteColorLookupTableData": "00281201",
    "GreenPaletteColorLookupTableData": "00281202",
    "BluePaletteColorLookupTableData": "00281203",
    "SegmentedRedPaletteColorLookupTableData": "00281221",
    "SegmentedGreenPaletteColorLookupTableData": "00281222",
    "SegmentedBluePaletteColorLookupTableData": "00281223",
    "ICCProfile": "00282000",
    "LossyImageCompression": "00282110",
    "PixelMeasuresSequence": "00289110",
    "ContainerIdentifier": "00400512",
    "SpecimenDescriptionSequence": "00400560",
    "SpecimenIdentifier": "00400551",
    "SpecimenPreparationSequence": "00400610",
    "SpecimenPreparationStepContentItemSequence": "00400612",
    "PrimaryAnatomicStructureSequence": "00082228",
    "XOffsetInSlideCoordinateSystem": "0040072A",
    "YOffsetInSlideCoordinateSystem": "0040073A",
    "ZOffsetInSlideCoordinateSystem": "0040074A",
    "ConceptNameCodeSequence": "0040A043",
    "ConceptCodeSequence": "0040A168",
    "CodeValue": "00080100",
    "CodingSchemeDesignator": "00080102",
    "TextValue": "0040A160",
    "ImagedVolumeWidth": "00480001",
    "ImagedVolumeHeight": "00480002",
    "TotalPixelMatrixColumns": "00480006",
    "TotalPixelMatrixRows": "00480007",
    "TotalPixelMatrixOriginSequence": "00480008",
    "ExtendedDepthOfField": "00480012",
    "RecommendedAbsentPixelCIELabValue": "00480015",
    "OpticalPathSequence": "00480105",
    "OpticalPathIdentifier": "00480106",
    "ObjectiveLensPower": "00480112",
    "OpticalPathIdentificationSequence": "00480207",
    "PlanePositionSlideSequence": "0048021A",
    "ColumnPositionInTotalImagePixelMatrix": "0048021E",
    "RowPositionInTotalImagePixelMatrix": "0048021F",
    "NumberOfOpticalPaths": "00480302",
    "TotalPixelMatrixFocalPlanes": "00480303",
    "SharedFunctionalGroupsSequence": "52009229",
    "PerFrameFunctionalGroupsSequence": "52009230",
}
"""Every attribute that the library reads, by keyword."""

_BINARY_FORMATS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_PADDING = " \0\t\r\n"
_EXACT = 2**53
"""Integers up to here are the same as floating point numbers."""
_UNSPLIT_VRS = frozenset({"LT", "ST", "UT", "UR", "PN"})  # a backslash is no separator there (PS3.5 6.2)


@dataclass(frozen=True, slots=True)
class BinaryValue:
    """A binary value, inline or elsewhere."""

    inline: bytes | None
    """The bytes, where the metadata carried them."""
    uri: str | None
    """BulkDataURI, where they did not."""


class Attributes:
    """Typed access to one JSON dataset, forgiving about the forms in which servers send values."""

    __slots__ = ("_elements",)

    def __init__(self, elements: dict[str, Any]) -> None:
        self._elements = elements

    def _element(self, keyword: str) -> dict[str, Any]:
        tag = TAGS[keyword]
        element = self._elements.get(tag) or self._elements.get(tag.lower())
        return element if isinstance(element, dict) else {}

    def _plain(self, keyword: str) -> Any:
        """Return the value of an element that has one value and no other form, as most have; None of all others."""
        element = self._elements.get(TAGS[keyword])
        if type(element) is dict and "InlineBinary" not in element:
            value = element.get("Value")
            if type(value) is list and len(value) == 1:
                return value[0]
        return None

    def _values(self, keyword: str) -> list[Any]:
        element = self._element(keyword)
        if not element:
            return []
        value = element.get("Value")
        vr, inline = element.get("vr"), element.get("InlineBinary")
        if not isinstance(vr, str):
            vr = "UN"
        if inline is not None and vr in _BINARY_FORMATS:
            data = _decode_base64(inline, keyword)
            code = _BINARY_FORMATS[vr]
            count = len(data) // struct.calcsize(code)
            return list(struct.unpack_from(f"<{count}{code}", data))
        if value is None:
            return []
        values = value if isinstance(value, list) else [value]
        if vr not in _UNSPLIT_VRS and any(isinstance(item, str) and "\\" in item for item in values):
            values = [part for item in values for part in (item.split("\\") if isinstance(item, str) else [item])]
        return values

    def strings(self, keyword: str) -> tuple[str, ...]:
        """Return all values that say something as text without padding; empty where absent."""
        return tuple(text for text in self.texts(keyword) if text)

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return all values as text without padding, each in its place; empty where absent."""
        return tuple("" if value is None else _text(value) for value in self._values(keyword))

    def string(self, keyword: str) -> str | None:
        """Return the first value as text without padding, or None."""
        plain = self._plain(keyword)
        if type(plain) is str and "\\" not in plain:
            return plain.strip(_PADDING) or None
        values = self.strings(keyword)
        return values[0] if values else None

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Return all values as numbers.

        Raises
        ------
        MetadataError
            A value is no finite number.
        """
        numbers = []
        for value in self._values(keyword):
            if value is None or (isinstance(value, str) and not value.strip(" \0")):
                continue
            try:
                number = float(value.strip(" \0") if isinstance(value, str) else value)
            except (TypeError, ValueError, OverflowError):
                raise MetadataError(f"{keyword} is {_shown(value)}, which is no number.") from None
            if not -1e300 < number < 1e300:
                raise MetadataError(f"{keyword} is {_shown(value)}, which is no finite number.")
            numbers.append(number)
        return tuple(numbers)

    def optional_numbers(self, keyword: str) -> tuple[float, ...]:
        """Return all values as numbers, of what a slide can be read without; empty where absent or malformed."""
        try:
            return self.numbers(keyword)
        except MetadataError:
            return ()

    def optional_number(self, keyword: str) -> float | None:
        """Return the first value as a number, of what a slide can be read without; None where absent or malformed."""
        return next(iter(self.optional_numbers(keyword)), None)

    def number(self, keyword: str) -> float | None:
        """Return the first value as a number, or None."""
        plain = self._plain(keyword)
        if type(plain) in (int, float) and -_EXACT <= plain <= _EXACT:
            return float(plain)
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def integer(self, keyword: str) -> int | None:
        """Return the first value as an integer, or None."""
        plain = self._plain(keyword)
        if type(plain) is int and -_EXACT <= plain <= _EXACT:
            return plain
        number = self.number(keyword)
        if number is not None and number != int(number):
            raise MetadataError(f"{keyword} is {number}, which is no integer.")
        return None if number is None else int(number)

    def required_integer(self, keyword: str, *, low: int = 1, high: int = 2**31 - 1) -> int:
        """Return the first value as an integer within ``low`` to ``high``.

        Raises
        ------
        MetadataError
            It is absent or out of range.
        """
        value = self.integer(keyword)
        if value is None:
            raise MetadataError(f"{keyword} is missing.")
        if not low <= value <= high:
            raise MetadataError(f"{keyword} is {value}, outside of {low} to {high}.")
        return value

    def sequence(self, keyword: str) -> list[Attributes]:
        """Return the items of a sequence; empty where absent."""
        return [Attributes(item) for item in self.raw_items(keyword)]

    def first_item(self, keyword: str) -> Attributes:
        """Return the first item of a sequence, or one without attributes."""
        unread = self.unread_items(keyword)
        items = self.raw_items(keyword) if unread is None else _items([unread.first()])
        return Attributes(items[0] if items else {})

    def raw_items(self, keyword: str) -> list[dict[str, Any]]:
        """Return the items of a sequence as they are, for the walk over many frames."""
        value = self._element(keyword).get("Value")
        return _items(value.read() if isinstance(value, UnreadItems) else value)

    def unread_items(self, keyword: str) -> UnreadItems | None:
        """Return the items of a sequence where they are still text."""
        value = self._element(keyword).get("Value")
        return value if isinstance(value, UnreadItems) else None

    def binary(self, keyword: str) -> BinaryValue | None:
        """Return a binary value, inline or by reference, or None."""
        element = self._element(keyword)
        inline, uri = element.get("InlineBinary"), element.get("BulkDataURI")
        if isinstance(uri, dict):  # seen in metadata of the Imaging Data Commons: the element within itself
            uri = uri.get("BulkDataURI")
        if inline is not None or ("InlineBinary" in element and uri is None):
            return BinaryValue(_decode_base64(inline, keyword), None)
        return BinaryValue(None, uri) if isinstance(uri, str) and uri else None


def _items(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return []
    return [item if isinstance(item, dict) else {} for item in value]


def _shown(value: Any) -> str:
    """Show a value in a message; an integer of ten thousand digits cannot even be printed."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return "a very long number"


def _text(value: Any) -> str:
    if isinstance(value, dict):  # PN (PS3.18 F.2.2)
        value = value.get("Alphabetic") or value.get("Ideographic") or value.get("Phonetic") or ""
    return str(value).strip(_PADDING)


def _decode_base64(text: Any, keyword: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, TypeError, ValueError):
        raise MetadataError(f"{keyword} is no valid base64.") from None
