"""Local files: frames found through every kind of offset table, and without one; headers of every encoding."""

from __future__ import annotations

import copy
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, fragment_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    generate_uid,
)

from wsiweb.errors import MetadataError, SourceError, UnsupportedError
from wsiweb.sources.part10 import NotDicomError, Part10File

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.uid import UID

RNG = np.random.default_rng(3)
FRAMES = [b"\xff\xd8\xff" + RNG.bytes(int(size)) + b"\xff\xd9" for size in RNG.integers(40, 400, 7)]
"""Stand-ins for JPEG code streams; some of odd length."""
ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


def header(syntax: UID, frames: int = len(FRAMES)) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    ds.SOPInstanceUID = generate_uid()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated = 4, 6, 3, 8
    ds.NumberOfFrames = frames
    return ds


def save(ds: Dataset, path: Path, data: bytes, *, encapsulated: bool = True) -> Path:
    element = DataElement("PixelData", "OB", data)
    element.is_undefined_length = encapsulated
    ds["PixelData"] = element
    ds.save_as(path, enforce_file_format=True)
    return path


def padded(frame: bytes) -> bytes:
    return frame + b"\0" * (len(frame) % 2)


def fragments_of(frames: list[bytes], each: int) -> bytes:
    """Every frame in ``each`` fragments, after an empty offset table."""
    fragments = (bytes(fragment) for frame in frames for fragment in fragment_frame(frame, each))
    return ITEM + b"\0\0\0\0" + b"".join(ITEM + struct.pack("<I", len(part)) + part for part in fragments)


def table(offsets: list[int]) -> bytes:
    return ITEM + struct.pack(f"<I{len(offsets)}I", 4 * len(offsets), *offsets)


@pytest.mark.parametrize("kind", ["basic", "empty", "extended", "fragments", "fragments-with-table", "wrong-table"])
def test_frames_are_found(tmp_path: Path, kind: str) -> None:
    ds = header(JPEGBaseline8Bit)
    match kind:
        case "basic" | "empty":
            data = encapsulate(FRAMES, has_bot=kind == "basic")
        case "extended":
            data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(FRAMES)
        case "fragments":
            data = fragments_of(FRAMES, 3)
        case "fragments-with-table":
            data = encapsulate(FRAMES, fragments_per_frame=2, has_bot=True)
        case _:
            data = table([8 * n for n in range(len(FRAMES))]) + encapsulate(FRAMES, has_bot=False)[8:]
    file = Part10File(save(ds, tmp_path / "file.dcm", data))
    order = RNG.permutation(len(FRAMES)).tolist()
    assert {n: file.read_frame(n) for n in order} == {n: padded(FRAMES[n]) for n in order}
    file.close()


def test_one_frame_is_all_fragments(tmp_path: Path) -> None:
    ds = header(JPEG2000Lossless, frames=1)
    parts = [bytes(part) for part in fragment_frame(RNG.bytes(1001), 4)]
    data = ITEM + b"\0\0\0\0" + b"".join(ITEM + struct.pack("<I", len(part)) + part for part in parts)
    file = Part10File(save(ds, tmp_path / "file.dcm", data))
    assert file.read_frame(0) == b"".join(parts)


def test_fragments_that_cannot_be_told_apart(tmp_path: Path) -> None:
    ds = header(JPEGBaseline8Bit, frames=2)
    data = fragments_of([b"\x01" * 100, b"\x02" * 100, b"\x03" * 100], 1)
    file = Part10File(save(ds, tmp_path / "file.dcm", data))
    with pytest.raises(MetadataError, match="fragments"):
        file.read_frame(0)


@pytest.mark.parametrize("kind", ["basic", "extended", "none"])
def test_beyond_4_gib(tmp_path: Path, kind: str) -> None:
    """A sparse file: nothing but what is read takes room on the disk."""
    far = (1 << 32) + 12_346
    frame = padded(FRAMES[0])
    path = tmp_path / "far.dcm"
    ds = header(JPEGBaseline8Bit, frames=3)
    offsets = [0, 3_000_000_000, far]
    if kind == "extended":
        ds.ExtendedOffsetTable = struct.pack("<3Q", *offsets)
        ds.ExtendedOffsetTableLengths = struct.pack("<3Q", *(1000, 1000, len(frame)))
    save(ds, path, table([]))
    with path.open("r+b") as stream:
        stream.seek(-16, 2)
        stream.write(table([offset & 0xFFFFFFFF for offset in offsets] if kind == "basic" else []))
        first = stream.tell()
        for position, offset in enumerate(offsets):
            stream.seek(first + offset)
            end = offsets[position + 1] if position < 2 else offset + 8 + len(frame)
            stream.write(ITEM + struct.pack("<I", end - offset - 8) + frame)
        stream.seek(first + offsets[2] + 8 + len(frame))
        stream.write(SEQUENCE_END)
    file = Part10File(path)
    assert file.read_frame(2) == frame


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("undefined", [False, True], ids=["lengths", "delimiters"])
def test_sparse_headers_of_every_encoding(tmp_path: Path, syntax: UID, undefined: bool) -> None:
    ds = header(syntax, frames=3)
    raw = RNG.bytes(3 * 4 * 6 * 3)
    groups = []
    for n in range(3):
        position = Dataset()
        position.ColumnPositionInTotalImagePixelMatrix = 6 * n + 1
        position.RowPositionInTotalImagePixelMatrix = 70_000 + n
        position.ZOffsetInSlideCoordinateSystem = f"{n}.5"
        other = Dataset()
        other.DimensionIndexValues = [n, n]
        path = Dataset()
        path.OpticalPathIdentifier = f"path {n}"
        item = Dataset()
        item.FrameContentSequence = [other]
        item.PlanePositionSlideSequence = [position]
        item.OpticalPathIdentificationSequence = [path]
        groups.append(item)
    ds.PerFrameFunctionalGroupsSequence = groups
    if undefined:
        for element in (ds["PerFrameFunctionalGroupsSequence"], groups[0]["PlanePositionSlideSequence"]):
            element.is_undefined_length = True
        groups[1].is_undefined_length_sequence_item = True
    ds.add_new(0x52009231, "OB", b"\1\2")  # something unknown before the pixel data
    file = Part10File(save(ds, tmp_path / "file.dcm", raw, encapsulated=False))
    found = file.json_dataset()["52009230"]["Value"]
    positions = [item["0048021A"]["Value"][0] for item in found]
    assert [p["0048021E"]["Value"] for p in positions] == [[1], [7], [13]]
    assert [p["0048021F"]["Value"] for p in positions] == [[70_000], [70_001], [70_002]]
    assert [p["0040074A"]["Value"] for p in positions] == [[0.5], [1.5], [2.5]]
    assert [item["00480207"]["Value"][0]["00480106"]["Value"] for item in found] == [[f"path {n}"] for n in range(3)]
    assert [file.read_frame(n) for n in range(3)] == [raw[n * 72 : (n + 1) * 72] for n in range(3)]


def test_json_equals_pydicoms(tmp_path: Path) -> None:
    ds = header(ExplicitVRLittleEndian)
    ds.PatientName = "Doe^Jane"
    ds.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    inner = Dataset()
    inner.PixelSpacing = ["0.0005", "0.00025"]
    ds.SharedFunctionalGroupsSequence = Sequence([inner])
    path = save(ds, tmp_path / "file.dcm", b"\0" * (72 * len(FRAMES)), encapsulated=False)
    expected = dcmread(path, stop_before_pixels=True).to_json_dict()
    assert Part10File(path).json_dataset() == {**expected, "00020010": {"vr": "UI", "Value": [ExplicitVRLittleEndian]}}


def test_without_preamble(tmp_path: Path) -> None:
    ds = header(ImplicitVRLittleEndian, frames=1)
    whole = save(ds, tmp_path / "whole.dcm", b"\7" * 72, encapsulated=False)
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(whole.read_bytes()[132 + 12 + dcmread(whole).file_meta.FileMetaInformationGroupLength :])
    file = Part10File(bare)
    assert (file.instance_uid, file.read_frame(0)) == (ds.SOPInstanceUID, b"\7" * 72)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is a text\n" * 50, b"\0" * 5000], ids=["empty", "text", "zeros"]
)
def test_no_dicom(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotDicomError, match="file"):
        Part10File(path)


def read_all(path: Path, into: list[bytes]) -> None:
    file = Part10File(path)
    into.extend(file.read_frame(n) for n in range(len(FRAMES)))


def test_cut_files_name_themselves(tmp_path: Path) -> None:
    """Cut anywhere: the header is refused, or frames before the cut are right and those after it raise."""
    whole = save(header(JPEGBaseline8Bit), tmp_path / "whole.dcm", encapsulate(FRAMES, has_bot=True)).read_bytes()
    for cut in range(140, len(whole) - 9, 61):
        path = tmp_path / f"cut-{cut}.dcm"
        path.write_bytes(whole[:cut])
        got: list[bytes] = []
        with pytest.raises((MetadataError, SourceError), match=path.name):
            read_all(path, got)
        assert got == [padded(frame) for frame in FRAMES[: len(got)]]


def test_native_data_cut_short(tmp_path: Path) -> None:
    path = save(header(ExplicitVRLittleEndian, 3), tmp_path / "file.dcm", b"\5" * 216, encapsulated=False)
    path.write_bytes(path.read_bytes()[:-60])
    file = Part10File(path)
    assert file.read_frame(1) == b"\5" * 72
    with pytest.raises(SourceError, match="cut short") as caught:
        file.read_frame(2)
    assert caught.value.frame_numbers == (3,)


@pytest.mark.parametrize("frame_index", [-1, len(FRAMES)])
def test_frames_that_are_not_there(tmp_path: Path, frame_index: int) -> None:
    file = Part10File(save(header(JPEGBaseline8Bit), tmp_path / "file.dcm", encapsulate(FRAMES)))
    with pytest.raises(SourceError):
        file.read_frame(frame_index)


def test_floating_point_pixels(tmp_path: Path) -> None:
    ds = header(ExplicitVRLittleEndian, 1)
    ds.add_new("FloatPixelData", "OF", b"\0" * 96)
    ds.save_as(tmp_path / "file.dcm", enforce_file_format=True)
    with pytest.raises(UnsupportedError):
        Part10File(tmp_path / "file.dcm").read_frame(0)


def test_inflation_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiweb.sources.part10.MAX_INFLATED_BYTES", 1 << 24)
    path = save(header(DeflatedExplicitVRLittleEndian, 1), tmp_path / "f.dcm", b"\0" * 72, encapsulated=False)
    start = 144 + dcmread(path).file_meta.FileMetaInformationGroupLength
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(path.read_bytes()[:start] + deflater.compress(b"\0" * (1 << 26)) + deflater.flush())
    with pytest.raises(MetadataError, match="inflates"):
        Part10File(path)


def test_threads_copies_and_pickles_read_the_same(tmp_path: Path) -> None:
    file = Part10File(save(header(JPEGBaseline8Bit), tmp_path / "file.dcm", encapsulate(FRAMES)))
    with ThreadPoolExecutor(8) as pool:
        wanted = [n % len(FRAMES) for n in range(400)]
        assert list(pool.map(file.read_frame, wanted)) == [padded(FRAMES[n]) for n in wanted]
    for other in (pickle.loads(pickle.dumps(file)), copy.copy(file)):
        assert other.read_frame(3) == padded(FRAMES[3])
        assert other.json_dataset()["00280008"]["Value"] == [len(FRAMES)]
