"""DICOM Part 10 files (PS3.10): headers by pydicom, pixel data by positional reads of our own."""

from __future__ import annotations

import contextlib
import logging
import warnings
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsiweb.errors import MetadataError, SourceError, UnsupportedError
from wsiweb.sources.pixeldata import EncapsulatedFrames, NativeFrames, RandomAccessFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom import Dataset

    from wsiweb.sources.base import JsonDataset

logger = logging.getLogger("wsiweb")

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
MAX_INFLATED_BYTES = 4 << 30
_PER_FRAME = 0x52009230
_PIXEL_DATA = 0x7FE00010
_EXTENDED_OFFSETS = 0x7FE00001
_PIXEL_GROUP = 0x7FE0
_FRAME_MACROS = (0x0048021A, 0x00480207, 0x00289110)
"""Plane Position (Slide), Optical Path Identification, Pixel Measures: what is read of each frame."""


class NotDicomError(MetadataError):
    """The file is no DICOM file at all."""


class Part10File:
    """One DICOM file. Opening reads the header; frames are read when asked for, from any thread.

    Parameters
    ----------
    path
        The file, with or without the 128 bytes of preamble.

    Raises
    ------
    NotDicomError
        It is no DICOM file.
    MetadataError
        Its header cannot be read.
    SourceError
        The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = RandomAccessFile(path)
        try:
            self._check_magic()
            self._dataset: Dataset | None
            self._dataset, self._pixel_offset = self._read_header()
            dataset = self._dataset
            self.transfer_syntax_uid = str(dataset.file_meta.get("TransferSyntaxUID", IMPLICIT_LITTLE_ENDIAN))
            self.instance_uid = str(dataset.get("SOPInstanceUID", ""))
            self.number_of_frames = int(dataset.get("NumberOfFrames", 1) or 1)
            self._frame_bytes = _frame_bytes(dataset)
            self._has_extended_offsets = _EXTENDED_OFFSETS in dataset
        except BaseException:
            self._file.close()
            raise
        self._frames: NativeFrames | EncapsulatedFrames | None = None
        self._inflated: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Small, whatever the number of frames: what is left out is read again where it is needed.
        return {**self.__dict__, "_dataset": None, "_inflated": None, "_frames": None}

    def _check_magic(self) -> None:
        head = self._file.read(132, 0)
        # Without a preamble a file begins with an element of a low group (PS3.10 7.1 wants one; not all have it).
        bare = len(head) > 8 and head[0] in (2, 8) and head[1] == 0 and head[3] == 0
        if head[128:] != b"DICM" and not bare:
            raise NotDicomError(f"{self.path} is no DICOM file: it has no DICM prefix.")

    def _read_header(self) -> tuple[Dataset, int]:
        """Return the dataset without pixel data, and the offset at which they begin."""
        from pydicom import dcmread  # noqa: PLC0415

        with _pydicom_errors(self.path), self.path.open("rb") as stream:
            self._check_inflation(stream.read(8192))
            stream.seek(0)
            dataset = dcmread(stream, stop_before_pixels=True, force=True)
            offset = stream.tell()
            if not hasattr(dataset, "file_meta"):
                dataset.ensure_file_meta()
        if "SOPInstanceUID" not in dataset:
            raise MetadataError(f"{self.path} has no SOPInstanceUID; its header is cut short or is no DICOM.")
        return dataset, offset

    def _check_inflation(self, head: bytes) -> None:
        """Refuse a deflated dataset that would fill the memory, before anybody inflates it."""
        if DEFLATED.encode() not in head:
            return
        meta_bytes = 144 + int.from_bytes(head[140:144], "little")
        inflater, total, offset = zlib.decompressobj(-zlib.MAX_WBITS), 0, meta_bytes
        while (data := self._file.read(1 << 20, offset)) and total <= MAX_INFLATED_BYTES:
            offset += len(data)
            while data and total <= MAX_INFLATED_BYTES:
                total += len(inflater.decompress(data, 1 << 22))
                data = inflater.unconsumed_tail
        if total > MAX_INFLATED_BYTES:
            raise MetadataError(f"{self.path} inflates to more than {MAX_INFLATED_BYTES:,} bytes; it is not read.")

    def json_dataset(self) -> JsonDataset:
        """Return the header in the DICOM JSON model (PS3.18 F), without pixel data.

        Of the per-frame functional groups only what places a frame is kept. An element that pydicom cannot convert is
        left out with a warning in the log.
        """
        dataset = self._dataset
        if dataset is None:
            dataset, _ = self._read_header()
        found: JsonDataset = {"00020010": {"vr": "UI", "Value": [self.transfer_syntax_uid]}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, on values that break a rule that reading does not need
            for tag in list(dataset.keys()):
                if tag.group == _PIXEL_GROUP:
                    continue
                try:
                    if tag == _PER_FRAME:
                        found[f"{tag:08X}"] = {"vr": "SQ", "Value": _frame_groups(dataset[tag].value)}
                    else:
                        found[f"{tag:08X}"] = dataset[tag].to_json_dict(None, 0)
                except Exception as error:  # noqa: BLE001  (pydicom raises many kinds for malformed values)
                    logger.warning("%s: element %s is left out: %s", self.path, tag, error)
        self._dataset = None  # it has served
        return found

    def read_frame(self, frame_index: int) -> bytes:
        """Return the code stream of a frame (0-based), or its raw pixels as stored.

        Raises
        ------
        SourceError
            The frame is not there, or cut short.
        MetadataError
            The frames cannot be told apart.
        UnsupportedError
            The pixels are floating point numbers.
        """
        number = frame_index + 1
        if not 0 <= frame_index < self.number_of_frames:
            raise SourceError(
                f"{self.path} has frames 1 to {self.number_of_frames}, not {number}.", frame_numbers=(number,)
            )
        if self.transfer_syntax_uid == DEFLATED:
            data = self._read_inflated(frame_index)
            whole = len(data) == self._frame_bytes
        else:
            frames = self._frames
            if frames is None:
                frames = self._frames = self._find_frames()
            data = frames.read(self._file, frame_index)
            whole = frames.whole(data)
        if not whole:
            raise SourceError(
                f"{self.path} is cut short: frame {number} is not whole ({len(data)} bytes of it are there). Copy or "
                f"download the file again.",
                frame_numbers=(number,),
            )
        return data

    def _read_inflated(self, frame_index: int) -> bytes:
        inflated = self._inflated
        if inflated is None:
            from pydicom import dcmread  # noqa: PLC0415

            with _pydicom_errors(self.path):
                inflated = self._inflated = bytes(dcmread(self.path).PixelData)
        start = frame_index * self._frame_bytes
        return inflated[start : start + self._frame_bytes]

    def _find_frames(self) -> NativeFrames | EncapsulatedFrames:
        """Read the head of the PixelData element."""
        head = self._file.read(12, self._pixel_offset)
        big_endian = self.transfer_syntax_uid == "1.2.840.10008.1.2.2"
        order: Literal["big", "little"] = "big" if big_endian else "little"
        tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
        if len(head) < 12 or tag != _PIXEL_DATA:
            if tag in (0x7FE00008, 0x7FE00009):
                raise UnsupportedError(f"{self.path} holds floating point pixels, which are not read.")
            raise SourceError(f"{self.path} has no pixel data; it is cut short, or a header alone.")
        implicit = self.transfer_syntax_uid == IMPLICIT_LITTLE_ENDIAN
        length = int.from_bytes(head[4:8] if implicit else head[8:12], order)
        start = self._pixel_offset + (8 if implicit else 12)
        if length == 0xFFFFFFFF:
            offsets = _extended_offsets(self._dataset or self._read_header()[0]) if self._has_extended_offsets else None
            return EncapsulatedFrames(self._file, start, self.number_of_frames, offsets)
        return NativeFrames(start, self._frame_bytes, length)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._file.close()


def _frame_bytes(dataset: Dataset) -> int:
    values = (dataset.get(name, 1) or 1 for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
    rows, columns, samples, bits = (int(value) for value in values)
    if samples == 3 and dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2  # two chroma samples for each two pixels (PS3.3 C.7.6.3.1.2)
    return -(-rows * columns * samples * bits // 8)


def _extended_offsets(dataset: Dataset) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    element = dataset.get(_EXTENDED_OFFSETS)
    value = getattr(element, "value", None)
    if not isinstance(value, bytes) or not value or len(value) % 8:
        return None
    return np.frombuffer(value, "<u8").astype(np.int64)


def _frame_groups(items: Any) -> list[dict[str, Any]]:
    """Convert what places each frame; pydicom's own conversion of everything takes ten times as long."""
    groups = []
    for item in items:
        group = {}
        for macro in _FRAME_MACROS:
            if macro in item:
                inner = item[macro].value[0]
                group[f"{macro:08X}"] = {"vr": "SQ", "Value": [_plain_elements(inner)]}
        groups.append(group)
    return groups


def _plain_elements(item: Dataset) -> dict[str, Any]:
    elements = {}
    for tag in list(item.keys()):
        element = item[tag]
        if element.VR != "SQ":
            value = element.value
            values = list(value) if isinstance(value, (list, tuple)) or element.VM > 1 else [value]
            plain = [v if type(v) in (int, float, str) else float(v) if element.VR == "DS" else str(v) for v in values]
            elements[f"{tag:08X}"] = {"vr": element.VR, "Value": plain}
    return elements


@contextlib.contextmanager
def _pydicom_errors(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises on a malformed file into an error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MetadataError, SourceError, MemoryError):
        raise
    except Exception as error:
        raise MetadataError(f"The header of {path} cannot be read: {error}.") from error
