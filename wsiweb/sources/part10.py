"""DICOM Part 10 files (PS3.10): headers by pydicom, per-frame groups and pixel data by walks and reads of our own."""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import warnings
import zlib
from dataclasses import replace
from functools import cache, partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import MetadataError, SourceError, UnsupportedError
from wsiweb.locks import module_lock
from wsiweb.sources.elements import PER_FRAME_GROUPS, PIXEL_DATA, UNDEFINED_LENGTH, Tail, meta_end, read_tail
from wsiweb.sources.pixeldata import (
    EncapsulatedFrames,
    MemoryFile,
    NativeFrames,
    RandomAccessFile,
    SystemFailureError,
    finding,
    native_size,
    unreadable,
)
from wsiweb.transfer_syntaxes import DEFLATED, EXPLICIT_BIG_ENDIAN, IMPLICIT_LITTLE_ENDIAN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydicom import DataElement, Dataset

    from wsiweb.sources.base import JsonDataset

logger = logging.getLogger("wsiweb")

MAX_INFLATED_BYTES = 4 << 30
_META_BYTES = 65_536
"""Within which the File Meta Information is looked for."""
_WORDS = {"OW": "u2", "OL": "u4", "OF": "u4", "OD": "u8", "OV": "u8"}
"""Of what the values of a VR are made that are handled as bytes (PS3.5 6.2)."""
_DIRECTORY = b"\2\0\2\0UI\x14\x001.2.840.10008.1.3.10"
"""MediaStorageSOPClassUID of a DICOMDIR."""
_quiet_lock = module_lock()


class NotDicomError(MetadataError):
    """The file is no DICOM file at all, or a directory of others."""


class Part10File:
    """One DICOM file. Opening reads the header; frames are read when asked for, from any thread.

    From the first frame on the file is held open.

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
        The file cannot be opened; ``SystemFailureError`` where that is not the file's fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # for processes, and times, of another working directory
        self._file: RandomAccessFile | MemoryFile = RandomAccessFile(self.path)
        self._frames: NativeFrames | EncapsulatedFrames | None = None
        try:
            self._check_magic()
            self._dataset: Dataset | None
            self._dataset, self._tail = self._read_header()
            dataset = self._dataset
            with self._named_errors():
                self.instance_uid = str(dataset.get("SOPInstanceUID", ""))
                self.number_of_frames = int(dataset.get("NumberOfFrames", 1) or 1)
                self._frame_sizes = _frame_sizes(dataset)
                self._bits_allocated = int(dataset.get("BitsAllocated", 8) or 8)
        finally:  # a slide of many files may be opened, and few of them read
            self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        # Small, whatever the number of frames: what is left out is read again where it is needed.
        file = None if isinstance(self._file, MemoryFile) else self._file
        return {**self.__dict__, "_dataset": None, "_frames": None, "_file": file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file: RandomAccessFile | None = state["_file"]
        self.__dict__.update(state)
        if file is None:  # what was inflated does not travel
            self._file = RandomAccessFile(self.path)
            self._tail = replace(self._read_header()[1], frame_groups=None)

    def _check_magic(self) -> None:
        head = self._file.read(512, 0)
        # Without a preamble a file begins with an element of a low group (PS3.10 7.1 wants one; not all have it).
        bare = len(head) > 8 and head[0] in (2, 8) and head[1] == 0 and head[3] == 0
        if head[128:132] != b"DICM" and not bare:
            raise NotDicomError(f"{self.path} is no DICOM file: it has no DICM prefix.")
        if _DIRECTORY in head:
            raise NotDicomError(f"{self.path} is a directory of other files, and no image: open those, or its folder.")

    def _read_header(self) -> tuple[Dataset, Tail]:
        """Return the dataset up to the per-frame groups, and what stands after it."""
        from pydicom.filereader import read_dataset, read_partial  # noqa: PLC0415

        dataset: Dataset
        with self._named_errors(), self.path.open("rb") as stream:
            if (inflated := self._inflated()) is not None:
                self.transfer_syntax_uid = DEFLATED
                self._file.close()
                self._file = MemoryFile(self.path, inflated)
                memory = io.BytesIO(inflated)
                end = _HeaderEnd(memory, len(inflated))
                dataset = read_dataset(memory, is_implicit_VR=False, is_little_endian=True, stop_when=end.reached)
                end.check()
                decode = _text_decoder(dataset)
                tail = read_tail(inflated, memory.tell(), implicit=False, big_endian=False, decode=decode)
            else:
                end = _HeaderEnd(stream, self._file.size)
                whole = read_partial(stream, stop_when=end.reached, force=True)
                end.check()
                self.transfer_syntax_uid = str(whole.file_meta.get("TransferSyntaxUID", IMPLICIT_LITTLE_ENDIAN))
                implicit, _ = whole.original_encoding
                big_endian = self.transfer_syntax_uid == EXPLICIT_BIG_ENDIAN
                decode = _text_decoder(whole)
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    tail = read_tail(data, stream.tell(), implicit=bool(implicit), big_endian=big_endian, decode=decode)
                dataset = whole
            if tail.pixel_tag is None and tail.pixel_start != end.size:
                raise MetadataError("its last data element is cut short")
        if "SOPInstanceUID" not in dataset:
            raise MetadataError(f"{self.path} has no SOPInstanceUID; its header is cut short, or is no DICOM.")
        return dataset, tail

    def _inflated(self) -> bytes | None:
        """Return a deflated dataset, inflated, or None; refuses one that would fill the memory.

        pydicom would inflate it too, without a bound.
        """
        if isinstance(self._file, MemoryFile):
            return self._file.data
        head = self._file.read(_META_BYTES, 0)
        start = 132 if head[128:132] == b"DICM" else 0
        offset = meta_end(head, start)
        if DEFLATED.encode() not in head[start:offset]:
            return None
        inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
        while data := self._file.read(1 << 20, offset):
            offset += len(data)
            while data and not inflater.eof:
                inflated += inflater.decompress(data, 1 << 22)
                data = inflater.unconsumed_tail
                if len(inflated) > MAX_INFLATED_BYTES:
                    raise MetadataError(f"it inflates to more than {MAX_INFLATED_BYTES:,} bytes")
        return bytes(inflated)

    def json_dataset(self) -> JsonDataset:
        """Return the header in the DICOM JSON model (PS3.18 F), without pixel data.

        Of the per-frame functional groups only what places a frame is kept. An element that pydicom cannot convert is
        left out with a warning in the log.
        """
        with _quietly():
            dataset, tail = self._dataset, self._tail
            if dataset is None:
                dataset, tail = self._read_header()
            found: JsonDataset = {"00020010": {"vr": "UI", "Value": [self.transfer_syntax_uid]}}
            found.update(self._to_json(dataset))
            self._dataset = None  # it has served
            self._tail = replace(tail, frame_groups=None)
        if tail.frame_groups is not None:
            found[f"{PER_FRAME_GROUPS:08X}"] = {"vr": "SQ", "Value": tail.frame_groups}
        return found

    def _to_json(self, dataset: Dataset) -> JsonDataset:
        found: JsonDataset = {}
        for tag in list(dataset.keys()):
            try:
                element = dataset[tag]
                if element.VR == "SQ":
                    found[f"{tag:08X}"] = {"vr": "SQ", "Value": [self._to_json(item) for item in element.value]}
                else:
                    found[f"{tag:08X}"] = self._little_endian(element).to_json_dict(None, 0)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  (pydicom raises many kinds for malformed values)
                logger.warning("%s: element %s is left out: %s", self.path, tag, error)
        return found

    def _little_endian(self, element: DataElement) -> DataElement:
        """Swap the bytes of what pydicom leaves as stored; JSON knows but one order (PS3.18 F.2.7)."""
        from pydicom import DataElement  # noqa: PLC0415

        word = _WORDS.get(element.VR)
        if word is None or self.transfer_syntax_uid != EXPLICIT_BIG_ENDIAN or not element.value:
            return element
        return DataElement(element.tag, element.VR, np.frombuffer(element.value, word).byteswap().tobytes())

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
        frames = self._frames
        if frames is None:
            with finding:
                frames = self._frames = self._frames or self._find_frames(number)
        data = frames.read(self._file, frame_index)
        if not frames.whole(data):
            raise SourceError(
                f"{self.path} is cut short: frame {number} is not whole ({len(data)} bytes of it are there). Copy or "
                f"download the file again.",
                frame_numbers=(number,),
            )
        return data

    def _find_frames(self, number: int) -> NativeFrames | EncapsulatedFrames:
        tail = self._tail
        if tail.pixel_tag is None:
            raise SourceError(
                f"{self.path} has no pixel data; it is cut short, or a header alone.", frame_numbers=(number,)
            )
        if tail.pixel_tag != PIXEL_DATA:
            raise UnsupportedError(f"{self.path} holds floating point pixels, which are not read.")
        if tail.pixel_length != UNDEFINED_LENGTH:
            swapped = tail.pixel_big_endian_words and self._bits_allocated <= 8
            size = native_size(self.path, tail.pixel_length, self.number_of_frames, self._frame_sizes)
            return NativeFrames(tail.pixel_start, size, tail.pixel_length, swapped=swapped)
        offsets = None
        if tail.extended_offsets is not None:
            start, length = tail.extended_offsets
            table = self._file.read(length, start)
            offsets = np.frombuffer(table[: len(table) // 8 * 8], "<u8").astype(np.int64)
        return EncapsulatedFrames(self._file, tail.pixel_start, self.number_of_frames, offsets)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn whatever a malformed file raises, in pydicom too, into an error of ours that names the file."""
        try:
            with _quietly():
                yield
        except (SourceError, MemoryError):
            raise
        except Exception as error:
            failure = unreadable(self.path, "read", error) if isinstance(error, OSError) else None
            if isinstance(failure, SystemFailureError):
                raise failure from error
            raise MetadataError(f"The header of {self.path} cannot be read: {error}.") from error

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._file.close()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence pydicom's warnings, on values that break a rule that reading does not need.

    One thread at a time: warning filters belong to the process, and two threads would restore each other's.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _HeaderEnd:
    """Stops pydicom at the per-frame groups or pixel data, and at values that the file is too short for."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self.size = size
        self._stopped = False
        self._value_end: int | None = None

    def reached(self, tag: int, _vr: str | None, length: int) -> bool:
        """Whether this element is none of the header's; pydicom asks with the stream at its value."""
        self._stopped = tag >= PER_FRAME_GROUPS
        self._value_end = None if length == UNDEFINED_LENGTH else self._stream.tell() + length
        if not self._stopped and (self._value_end or 0) > self.size:
            raise MetadataError(f"element {tag:08X} is cut short")
        return self._stopped

    def check(self) -> None:
        """Refuse a header that ends within an element's first bytes."""
        if not self._stopped and self._value_end is not None and self._stream.tell() != self._value_end:
            raise MetadataError("its last data element is cut short")


def _text_decoder(dataset: Dataset) -> Callable[[bytes], str]:
    """Return what decodes text in the dataset's character set, each of the few texts that all frames share once."""
    from pydicom.charset import convert_encodings, decode_bytes  # noqa: PLC0415
    from pydicom.valuerep import TEXT_VR_DELIMS  # noqa: PLC0415

    encodings = convert_encodings(dataset.get("SpecificCharacterSet"))
    return cache(partial(decode_bytes, encodings=encodings, delimiters=TEXT_VR_DELIMS))


def _frame_sizes(dataset: Dataset) -> tuple[int, ...]:
    """Return the bytes that a native frame may have; what is declared comes first."""
    values = (dataset.get(name, 1) or 1 for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
    rows, columns, samples, bits = (int(value) for value in values)
    size = -(-rows * columns * samples * bits // 8)
    if samples == 3 and dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        return size // 3 * 2, size  # two chroma samples for two pixels (PS3.3 C.7.6.3.1.2); all, from who decompressed
    return (size,)
