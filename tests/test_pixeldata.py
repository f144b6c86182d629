"""Frames of Part 10 files of every kind, against what pydicom finds."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from wsiweb import MetadataError, SourceError
from wsiweb.sources.part10 import Part10File

if TYPE_CHECKING:
    from pathlib import Path

from part10_files import (
    ITEM,
    J2K_HEAD,
    JPEG_HEAD,
    JPEG_TAIL,
    SEQUENCE_END,
    basic_table,
    header,
    items,
    pydicoms,
    read_all,
    save,
    streams,
)


class TestNativeFrames:
    @pytest.mark.parametrize(
        "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
    )
    def test_every_syntax(self, tmp_path: Path, syntax: UID) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, 5 * 72, np.uint8).tobytes()
        path = save(tmp_path / "a.dcm", header(5), syntax, pixels)
        file = Part10File(path)
        assert file.transfer_syntax_uid == syntax
        assert file.number_of_frames == 5
        assert file.instance_uid == pydicom.dcmread(path).SOPInstanceUID
        assert [file.read_frame(index) for index in range(5)] == [pixels[i * 72 : (i + 1) * 72] for i in range(5)]
        file.close()

    def test_16_bits_stay_as_stored(self, tmp_path: Path) -> None:
        ds = header(2)
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        pixels = np.arange(48, dtype=">u2").tobytes()
        path = save(tmp_path / "a.dcm", ds, ExplicitVRBigEndian, pixels, "OW")
        assert read_all(path) == [pixels[:48], pixels[48:]]

    def test_8_bits_in_words_that_are_big_endian(self, tmp_path: Path) -> None:
        """Each word holds two samples, swapped, and with an odd number of samples one of each of two frames."""
        ds = header(3)
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 3, 5
        pixels = np.random.default_rng(1).integers(0, 256, (3, 15), np.uint8)
        words = np.frombuffer(pixels.tobytes() + b"\0", "<u2")
        path = save(tmp_path / "a.dcm", ds, ExplicitVRBigEndian, words.astype(">u2").tobytes(), "OW")
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array.reshape(3, 15), pixels)
        assert read_all(path) == [frame.tobytes() for frame in pixels]
        path.write_bytes(path.read_bytes()[:-2])
        file = Part10File(path)
        assert file.read_frame(1) == pixels[1].tobytes()
        with pytest.raises(SourceError, match="cut short"):
            file.read_frame(2)
        file.close()

    def test_subsampled_chroma(self, tmp_path: Path) -> None:
        ds = header(3)
        ds.PhotometricInterpretation = "YBR_FULL_422"
        pixels = bytes(range(144))
        assert read_all(save(tmp_path / "a.dcm", ds, ExplicitVRLittleEndian, pixels)) == [
            pixels[:48],
            pixels[48:96],
            pixels[96:],
        ]

    @pytest.mark.parametrize("pad", [b"", b"\0"])
    def test_chroma_that_are_not_subsampled_whatever_is_declared(self, tmp_path: Path, pad: bytes) -> None:
        """Who decompresses a JPEG to RGB may leave the name of its colours; the length tells."""
        ds = header(3, rows=3, columns=6 if not pad else 5)
        ds.PhotometricInterpretation = "YBR_FULL_422"
        size = 9 * ds.Columns
        pixels = np.random.default_rng(1).integers(0, 256, 3 * size, np.uint8).tobytes()
        assert read_all(save(tmp_path / "a.dcm", ds, ExplicitVRLittleEndian, pixels + pad)) == [
            pixels[:size],
            pixels[size : 2 * size],
            pixels[2 * size :],
        ]

    @pytest.mark.parametrize("length", [146, 214, 218, 400])
    def test_chroma_that_may_be_anything(self, tmp_path: Path, length: int) -> None:
        ds = header(3)
        ds.PhotometricInterpretation = "YBR_FULL_422"
        file = Part10File(save(tmp_path / "odd.dcm", ds, ExplicitVRLittleEndian, bytes(length)))
        with pytest.raises(MetadataError, match=rf"odd\.dcm.*{length} bytes.*144 or 216"):
            file.read_frame(0)

    @pytest.mark.parametrize("samples", [2, 3])
    def test_chroma_of_a_file_that_is_cut(self, tmp_path: Path, samples: int) -> None:
        ds = header(3)
        ds.PhotometricInterpretation = "YBR_FULL_422"
        size = 24 * samples
        pixels = bytes(range(3 * size))
        path = save(tmp_path / "cut.dcm", ds, ExplicitVRLittleEndian, pixels)
        path.write_bytes(path.read_bytes()[:-20])
        file = Part10File(path)
        assert [file.read_frame(index) for index in range(2)] == [pixels[:size], pixels[size : 2 * size]]
        with pytest.raises(SourceError, match=r"cut\.dcm is cut short"):
            file.read_frame(2)

    def test_pixel_data_shorter_than_its_frames(self, tmp_path: Path) -> None:
        path = save(tmp_path / "short.dcm", header(5), ExplicitVRLittleEndian, bytes(range(250)))
        with path.open("ab") as stream:
            stream.write(bytes(1000))  # which are no pixels
        file = Part10File(path)
        assert file.read_frame(2) == bytes(range(144, 216))
        for index in (3, 4):
            with pytest.raises(SourceError, match=r"short\.dcm") as caught:
                file.read_frame(index)
            assert caught.value.frame_numbers == (index + 1,)

    def test_beyond_4_gib(self, tmp_path: Path) -> None:
        """The element is as long as 32 bits can say, so that its last frame ends beyond 4 GiB."""
        rows = columns = 1024
        size = rows * columns * 3
        count = ((1 << 32) - 2) // size
        end = (1 << 32) - 2  # what is left over is padding
        path = save(tmp_path / "big.dcm", header(count, rows=rows, columns=columns), ExplicitVRLittleEndian, b"")
        ds = pydicom.dcmread(path)
        ds.TextValue = "x" * (size + 2 - size % 2)  # moves the last frame over the border
        save(path, ds, ExplicitVRLittleEndian, b"")
        start = path.stat().st_size
        last = start + (count - 1) * size
        with path.open("r+b") as stream:  # a sparse file: it takes no space on the disk
            stream.seek(start - 4)
            stream.write(struct.pack("<I", end))
            stream.seek(last)
            stream.write(b"begin")
            stream.seek(last + size - 3)
            stream.write(b"end")
            stream.truncate(start + end)
        assert last + size > 1 << 32
        assert path.stat().st_blocks * 512 < 1 << 26
        file = Part10File(path)
        assert file.read_frame(count - 1) == b"begin" + bytes(size - 8) + b"end"
        file.close()


class TestEncapsulatedFrames:
    @given(
        lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=8),
        table=st.booleans(),
    )
    @settings(max_examples=60, deadline=None)
    def test_equals_pydicom(
        self, tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], table: bool
    ) -> None:
        frames = [[os.urandom(2 * length) for length in fragments] for fragments in lengths]
        if not table:  # then pydicom and we can tell frames apart only by their number
            frames = [[b"".join(frame)] for frame in frames]
        data = items(*(fragment for frame in frames for fragment in frame), table=basic_table(frames) if table else b"")
        path = save(tmp_path_factory.mktemp("p") / "a.dcm", header(len(frames)), JPEGBaseline8Bit, data)
        assert read_all(path) == pydicoms(path) == [b"".join(frame) for frame in frames]
        stored = pydicom.dcmread(path).PixelData
        file = Part10File(path)
        for index in reversed(range(len(frames))):
            assert file.read_frame(index) == get_frame(stored, index, number_of_frames=len(frames))
        file.close()

    @pytest.mark.parametrize("offsets", ["basic", "none", "extended"])
    def test_offset_tables(self, tmp_path: Path, offsets: str) -> None:
        frames = [fragment for frame in streams(20) for fragment in frame]
        ds = header(20)
        if offsets == "extended":
            data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        else:
            data = encapsulate(frames, has_bot=offsets == "basic")
        path = save(tmp_path / "a.dcm", ds, JPEGBaseline8Bit, data)
        assert read_all(path) == pydicoms(path) == frames

    def test_extended_table_over_fragments(self, tmp_path: Path) -> None:
        frames = streams(4, fragments=3)
        ds = header(4)
        offsets = np.frombuffer(basic_table(frames), "<u4").astype("<u8")
        ds.ExtendedOffsetTable = offsets.tobytes()
        ds.ExtendedOffsetTableLengths = np.array([sum(map(len, frame)) for frame in frames], "<u8").tobytes()
        path = save(tmp_path / "a.dcm", ds, JPEGBaseline8Bit, items(*(f for frame in frames for f in frame)))
        assert read_all(path) == [b"".join(frame) for frame in frames]

    @pytest.mark.parametrize("head", [JPEG_HEAD, J2K_HEAD])
    def test_fragments_without_a_table(self, tmp_path: Path, head: bytes) -> None:
        frames = streams(6, fragments=3, head=head)
        syntax = JPEGBaseline8Bit if head == JPEG_HEAD else JPEG2000
        path = save(tmp_path / "a.dcm", header(6), syntax, items(*(f for frame in frames for f in frame)))
        assert read_all(path) == [b"".join(frame) for frame in frames]

    @pytest.mark.parametrize("padding", [bytes(8), bytes(30), b"\xff\xff", b"  "])
    def test_padding_behind_fragmented_frames(self, tmp_path: Path, padding: bytes) -> None:
        frames = streams(6, fragments=3)
        for frame in frames:
            frame[-1] += padding
        path = save(tmp_path / "a.dcm", header(6), JPEGBaseline8Bit, items(*(f for frame in frames for f in frame)))
        assert read_all(path) == [b"".join(frame) for frame in frames]

    def test_all_fragments_are_the_only_frame(self, tmp_path: Path) -> None:
        fragments = [b"\1\2\3\4", b"\5\6", b"\7\7\7\7\7\7"]
        path = save(tmp_path / "a.dcm", header(1), JPEGBaseline8Bit, items(*fragments))
        assert read_all(path) == pydicoms(path) == [b"".join(fragments)]

    def test_a_fragment_that_looks_like_the_next_frame(self, tmp_path: Path) -> None:
        """A code stream goes on until its end marker, whatever its fragments begin with."""
        first = [JPEG_HEAD + b"\1" * 20, JPEG_HEAD + b"\2" * 20, b"\3" * 8 + JPEG_TAIL]
        second = [JPEG_HEAD + b"\4" * 10 + JPEG_TAIL]
        path = save(tmp_path / "a.dcm", header(2), JPEGBaseline8Bit, items(*first, *second))
        assert read_all(path) == [b"".join(first), b"".join(second)]

    def test_fragments_that_cannot_be_told_apart(self, tmp_path: Path) -> None:
        path = save(tmp_path / "odd.dcm", header(3), JPEGBaseline8Bit, items(*[b"\1\2\3\4"] * 5))
        with pytest.raises(MetadataError, match=r"odd\.dcm.*5 fragments"):
            Part10File(path).read_frame(0)

    @pytest.mark.parametrize(
        "lie", ["zeros", "shifted", "one early", "one late", "absolute", "too few", "random", "falling"]
    )
    def test_tables_that_lie(self, tmp_path: Path, lie: str) -> None:
        frames = streams(8)
        truth = list(struct.unpack("<8I", basic_table(frames)))
        wrong = {
            "zeros": [0] * 8,
            "shifted": [offset + 8 for offset in truth],
            "one early": [*truth[:4], truth[4] - 20, *truth[5:]],
            "one late": [*truth[:4], truth[4] + 20, *truth[5:]],
            "absolute": [offset + 1000 for offset in truth],
            "too few": truth[:5],
            "falling": [0, *(offset + 2 for offset in truth[:0:-1])],
            "random": [0, 2, 50, 100, 150, 200, 250, 300],
        }[lie]
        data = items(*(frame[0] for frame in frames), table=struct.pack(f"<{len(wrong)}I", *wrong))
        path = save(tmp_path / "a.dcm", header(8), JPEGBaseline8Bit, data)
        for index in range(8):  # whichever comes first
            assert Part10File(path).read_frame(index) == frames[index][0]
        assert read_all(path) == [frame[0] for frame in frames]

    @pytest.mark.parametrize("second", [1 << 46, 1 << 62, (1 << 63) - 1, (1 << 63) + 5])
    def test_tables_beyond_all_files(self, tmp_path: Path, second: int) -> None:
        """The frame is not there; it is not asked of the memory, either."""
        ds = header(3)
        ds.ExtendedOffsetTable = struct.pack("<3Q", 0, second, second + 8)
        ds.ExtendedOffsetTableLengths = struct.pack("<3Q", 8, 8, 8)
        frames = streams(3)
        path = save(tmp_path / "a.dcm", ds, JPEGBaseline8Bit, items(*(frame[0] for frame in frames)))
        for index in range(3):
            with contextlib.suppress(SourceError):
                assert Part10File(path).read_frame(index) == frames[index][0]

    def test_an_item_beyond_all_files(self, tmp_path: Path) -> None:
        ds = header(1)
        data = items(JPEG_HEAD, table=bytes(4)).replace(struct.pack("<I", len(JPEG_HEAD)) + JPEG_HEAD, b"\xf0" * 4)
        path = save(tmp_path / "a.dcm", ds, JPEGBaseline8Bit, data)
        tracemalloc.start()
        try:
            with pytest.raises(SourceError, match="cut short"):
                Part10File(path).read_frame(0)
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("kind", ["basic", "extended"])
    @pytest.mark.parametrize("fragments", [1, 3])
    def test_frames_in_no_order(self, tmp_path: Path, kind: str, fragments: int) -> None:
        """The table says where each is, and not the order in the file; what is cut off stays so."""
        stored, order = streams(9, fragments=fragments), [4, 0, 8, 1, 7, 2, 6, 3, 5]
        places = struct.unpack("<9I", basic_table(stored))
        path = _with_table(tmp_path, stored, [places[n] for n in order], kind)
        assert read_all(path) == [b"".join(stored[n]) for n in order]
        if fragments == 1:
            path.write_bytes(path.read_bytes()[:-100])
            file = Part10File(path)
            for index, n in enumerate(order):
                if n == 8:
                    with pytest.raises(SourceError, match="cut short"):
                        file.read_frame(index)
                else:
                    assert file.read_frame(index) == stored[n][0]
            file.close()

    @pytest.mark.parametrize("kind", ["basic", "extended"])
    @pytest.mark.parametrize("order", [[0, 1, 1, 1, 2, 3], [3, 1, 0, 2, 3, 3], [0] * 6])
    def test_frames_that_share_a_code_stream(self, tmp_path: Path, kind: str, order: list[int]) -> None:
        """As blank tiles may."""
        stored = streams(max(order) + 1)
        places = struct.unpack(f"<{len(stored)}I", basic_table(stored))
        path = _with_table(tmp_path, stored, [places[n] for n in order], kind)
        assert read_all(path) == [stored[n][0] for n in order]

    @pytest.mark.parametrize("kind", ["basic", "extended"])
    def test_frames_of_fragments_that_share_a_code_stream(self, tmp_path: Path, kind: str) -> None:
        stored, order = streams(2, fragments=2), [0, 1, 0]
        places = struct.unpack("<2I", basic_table(stored))
        path = _with_table(tmp_path, stored, [places[n] for n in order], kind)
        assert read_all(path) == [b"".join(stored[n]) for n in order]

    @pytest.mark.parametrize("table", ["wrapped", "extended", "none"])
    def test_beyond_4_gib(self, tmp_path: Path, table: str) -> None:
        """Two frames of 3 GiB of nothing, so that the third lies beyond what 32 bits address."""
        hole, small = 3 << 30, JPEG_HEAD + b"third " + JPEG_TAIL
        offsets = [0, hole + 8, 2 * (hole + 8)]
        ds = header(3)
        if table == "extended":
            ds.ExtendedOffsetTable = struct.pack("<3Q", *offsets)
            ds.ExtendedOffsetTableLengths = struct.pack("<3Q", hole, hole, len(small))
        basic = struct.pack("<3I", *(offset % (1 << 32) for offset in offsets)) if table == "wrapped" else b""
        path = save(tmp_path / "big.dcm", ds, JPEGBaseline8Bit, items(table=basic))
        first = path.stat().st_size - 8  # over the sequence delimiter
        with path.open("r+b") as stream:
            for offset, length in zip(offsets, (hole, hole, len(small)), strict=True):
                stream.seek(first + offset)
                stream.write(ITEM + struct.pack("<I", length))
            stream.write(small + SEQUENCE_END + bytes(4))
        assert path.stat().st_size > 6 << 30
        assert path.stat().st_blocks * 512 < 1 << 24  # sparse
        file = Part10File(path)
        assert file.read_frame(2) == small
        file.close()

    def test_many_frames(self, tmp_path: Path) -> None:
        count = 100_000
        frames = [struct.pack("<II", index, index) for index in range(count)]
        path = save(tmp_path / "a.dcm", header(count), JPEGBaseline8Bit, items(*frames))
        file = Part10File(path)
        assert [file.read_frame(index) for index in (99_999, 0, 12_345)] == [frames[i] for i in (99_999, 0, 12_345)]
        file.close()


def _with_table(folder: Path, stored: list[list[bytes]], offsets: list[int], kind: str) -> Path:
    """Save fragments of code streams with an offset table of any kind."""
    ds, table = header(len(offsets)), struct.pack(f"<{len(offsets)}I", *offsets)
    if kind == "extended":
        ds.ExtendedOffsetTable = np.array(offsets, "<u8").tobytes()
        ds.ExtendedOffsetTableLengths = bytes(8 * len(offsets))  # nobody needs them
    data = items(*(part for frame in stored for part in frame), table=table if kind == "basic" else b"")
    return save(folder / "a.dcm", ds, JPEGBaseline8Bit, data)
