"""The files of the demo slide: DICOM Part 10, with frames written one by one as they come.

Header and frames only; what they say and show is the business of others.
"""

from __future__ import annotations

from io import BufferedWriter, BytesIO
from typing import TYPE_CHECKING, Self

import numpy as np

from wsiweb.demo.header import header
from wsiweb.files import Written, writable

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

    from wsiweb.demo.header import Picture, Uids

BASIC_TABLE_LIMIT_BYTES = 2**32 - 1
"""Offsets in a Basic Offset Table have 32 bits (PS3.5 A.4)."""
PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


class EncapsulatedFile:
    """The file of a compressed picture, to be used in a ``with`` block.

    The header is written twice: what only the last frame settles, offsets and compression ratio, takes the same room
    from the beginning. Leaving the block completes the file, unless an error ends it.

    Parameters
    ----------
    path
        Of the file.
    picture
        What the file holds.
    uids
        Of the slide.
    """

    def __init__(self, path: Path, picture: Picture, uids: Uids) -> None:
        self._picture = picture
        self._header = header(picture, uids)
        self._extended = picture.frames * picture.frame_bytes > BASIC_TABLE_LIMIT_BYTES
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._file = BufferedWriter(Written(path, path))
        self._write_header()
        self._frames_start = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if error is None:
                self._file.write(DELIMITER)
                self._file.seek(0)
                self._write_header()

    def write(self, frame: bytes) -> None:
        """Append the code stream of the next frame."""
        frame += b"\0" * (len(frame) % 2)
        self._offsets.append(self._file.tell() - self._frames_start)
        self._lengths.append(len(frame))
        self._file.write(ITEM + len(frame).to_bytes(4, "little") + frame)

    def _write_header(self) -> None:
        """Write everything before the first frame, as far as it is known by now."""
        frames, dataset = self._picture.frames, self._header
        ratio = frames * self._picture.frame_bytes / sum(self._lengths) if self._lengths else 1
        dataset.LossyImageCompressionRatio = f"{ratio:.10f}"[:10]
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
        offsets, lengths = table = np.zeros((2, frames), np.uint64)
        table[:, : len(self._offsets)] = self._offsets, self._lengths
        if self._extended:
            dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets.tobytes(), lengths.tobytes()
        basic = b"" if self._extended else offsets.astype("<u4").tobytes()
        self._file.write(_part_10(dataset, self._picture.transfer_syntax))
        self._file.write(PIXEL_DATA + ITEM + len(basic).to_bytes(4, "little") + basic)


def write_native(path: Path, picture: Picture, uids: Uids, pixels: bytes) -> None:
    """Write a picture as it is, uncompressed."""
    dataset = header(picture, uids)
    dataset.add_new("PixelData", "OB", pixels + b"\0" * (len(pixels) % 2))
    with writable(path):
        path.write_bytes(_part_10(dataset, picture.transfer_syntax))


def _part_10(dataset: Dataset, transfer_syntax: str) -> bytes:
    """Return a dataset as the contents of a file, preamble and file meta information included."""
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415  (pydicom loads slowly)
    from pydicom.uid import UID  # noqa: PLC0415

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
