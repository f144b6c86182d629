"""Part 10 files made by hand, and what pydicom says of them."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom import DataElement, Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    UID,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from wsiweb.sources.part10 import Part10File

if TYPE_CHECKING:
    from collections.abc import Sequence as Listed
    from pathlib import Path


ITEM, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
JPEG_HEAD, JPEG_TAIL = b"\xff\xd8\xff\xe0", b"\xff\xd9"
J2K_HEAD = b"\xff\x4f\xff\x51"


def header(frames: int, *, rows: int = 4, columns: int = 6) -> Dataset:
    """A minimal dataset of an image of 8-bit RGB frames."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientName, ds.PatientID, ds.Modality = "Test^Slide", "P-1", "SM"
    ds.Rows, ds.Columns, ds.NumberOfFrames = rows, columns, frames
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    return ds


def save(path: Path, ds: Dataset, syntax: UID, pixel_data: bytes | None, vr: str = "OB") -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    if pixel_data is not None:
        element = DataElement("PixelData", vr, pixel_data)
        element.is_undefined_length = syntax.is_encapsulated
        ds["PixelData"] = element
    ds.save_as(path, enforce_file_format=True)
    return path


def items(*fragments: bytes, table: bytes = b"") -> bytes:
    """Write encapsulated pixel data by hand."""
    padded = [fragment + b"\0" * (len(fragment) % 2) for fragment in (table, *fragments)]
    return b"".join(ITEM + struct.pack("<I", len(fragment)) + fragment for fragment in padded)


def streams(count: int, *, fragments: int = 1, head: bytes = JPEG_HEAD) -> list[list[bytes]]:
    """What looks like code streams, in fragments of even and different lengths."""
    rng = np.random.default_rng(count)
    found = []
    for index in range(count):
        body = head + rng.integers(0, 200, 100 + 7 * index, np.uint8).tobytes().replace(b"\0", b"\1") + JPEG_TAIL
        body += b"\0" * (len(body) % 2)
        cuts = [len(body) * part // fragments // 2 * 2 for part in range(fragments)] + [len(body)]
        found.append([body[low:high] for low, high in itertools.pairwise(cuts)])
    return found


def basic_table(frames: Listed[Listed[bytes]]) -> bytes:
    sizes = [sum(8 + len(fragment) for fragment in frame) for frame in frames]
    return struct.pack(f"<{len(frames)}I", *(sum(sizes[:index]) for index in range(len(frames))))


def read_all(path: Path) -> list[bytes]:
    file = Part10File(path)
    try:
        return [file.read_frame(index) for index in range(file.number_of_frames)]
    finally:
        file.close()


def pydicoms(path: Path) -> list[bytes]:
    ds = pydicom.dcmread(path)
    count = int(ds.NumberOfFrames)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        extended = None
        if "ExtendedOffsetTable" in ds:
            extended = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
        return list(generate_frames(ds.PixelData, number_of_frames=count, extended_offsets=extended))
    size = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    return [ds.PixelData[index * size : (index + 1) * size] for index in range(count)]
