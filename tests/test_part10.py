"""Part 10 files that are cut, odd, shared or no DICOM at all; their headers against pydicom's."""

from __future__ import annotations

import logging
import os
import pickle
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from pydicom import DataElement, Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from synthetic import make_slide

from wsiweb import MetadataError, SourceError, UnsupportedError
from wsiweb.dicomjson import Attributes
from wsiweb.sources.part10 import NotDicomError, Part10File

if TYPE_CHECKING:
    from pathlib import Path

from part10_files import ITEM, SEQUENCE_END, header, items, pydicoms, read_all, save, streams


class TestFilesThatAreCut:
    @pytest.mark.parametrize("offsets", ["basic", "none", "extended"])
    def test_in_the_pixel_data(self, tmp_path: Path, offsets: str) -> None:
        frames = [fragment for frame in streams(9) for fragment in frame]
        ds = header(9)
        if offsets == "extended":
            data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        else:
            data = encapsulate(frames, has_bot=offsets == "basic")
        path = save(tmp_path / "cut.dcm", ds, JPEGBaseline8Bit, data)
        whole = path.read_bytes()
        for cut in (9, 20, len(frames[8]) + 8, len(frames[8]) + 30):
            path.write_bytes(whole[:-cut])
            file = Part10File(path)
            lost = 8 if cut <= len(frames[8]) + 16 else 7
            for index in range(lost):
                assert file.read_frame(index) == frames[index]
            for index in range(lost, 9):
                with pytest.raises(SourceError, match=r"cut\.dcm") as caught:
                    file.read_frame(index)
                assert caught.value.frame_numbers == (index + 1,)
            file.close()

    def test_before_the_pixel_data(self, tmp_path: Path) -> None:
        path = save(tmp_path / "cut.dcm", header(1), ExplicitVRLittleEndian, bytes(72))
        whole = path.read_bytes()
        pixels = whole.index(b"\xe0\x7f\x10\x00")
        ends = {}
        for end in range(140, pixels + 12):
            path.write_bytes(whole[:end])
            try:
                file = Part10File(path)
            except MetadataError as error:
                ends[end] = str(error)
            else:  # between two elements: nothing tells but the missing pixels
                with pytest.raises(SourceError, match=r"cut\.dcm") as caught:
                    file.read_frame(0)
                assert caught.value.frame_numbers == (1,)
                file.close()
        assert all("cut.dcm" in message for message in ends.values())
        assert len(ends) > 0.9 * (pixels - 140)

    def test_in_the_middle_of_a_long_value(self, tmp_path: Path) -> None:
        ds = header(1)
        path_item = Dataset()
        path_item.OpticalPathIdentifier, path_item.ICCProfile = "1", bytes(5000)
        ds.OpticalPathSequence = [path_item]
        path = save(tmp_path / "cut.dcm", ds, ExplicitVRLittleEndian, bytes(72))
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(bytes(5000)) + 2000])
        with pytest.raises(MetadataError, match=r"cut\.dcm"):
            Part10File(path)

    @pytest.mark.parametrize("undefined", [False, True])
    def test_in_the_frame_positions(self, tmp_path: Path, undefined: bool) -> None:
        path = sparse_file(tmp_path / "cut.dcm", 50, ExplicitVRLittleEndian, undefined=undefined)
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(b"\x00\x52\x30\x92") + 700])
        with pytest.raises(MetadataError, match=r"cut\.dcm"):
            Part10File(path)

    def test_frames_out_of_range(self, tmp_path: Path) -> None:
        file = Part10File(save(tmp_path / "a.dcm", header(3), ExplicitVRLittleEndian, bytes(216)))
        for index in (-1, 3, 10**9):
            with pytest.raises(SourceError, match=r"a\.dcm") as caught:
                file.read_frame(index)
            assert caught.value.frame_numbers == (index + 1,)
        file.close()


class TestOtherFiles:
    @pytest.mark.parametrize(
        "content",
        [b"", b"x", b"Some text.\n" * 100, bytes(500), b"\x89PNG\r\n\x1a\n" + bytes(200), b"\2" * 300, b"\x08\0\x05\0"],
    )
    def test_no_dicom(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.bin"
        path.write_bytes(content)
        with pytest.raises(NotDicomError, match=r"other\.bin"):
            Part10File(path)

    def test_a_prefix_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "prefix.dcm"
        path.write_bytes(bytes(128) + b"DICM")
        with pytest.raises(MetadataError, match=r"prefix\.dcm"):
            Part10File(path)

    def test_garbage_after_the_prefix(self, tmp_path: Path) -> None:
        path = tmp_path / "garbage.dcm"
        for seed in range(30):
            path.write_bytes(bytes(128) + b"DICM" + np.random.default_rng(seed).bytes(400))
            with pytest.raises(MetadataError, match=r"garbage\.dcm"):
                Part10File(path)

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(SourceError, match=path.name):
                Part10File(path)

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit])
    def test_without_preamble(self, tmp_path: Path, syntax: UID) -> None:
        data = items(b"\1\2\3\4", b"\5\6\7\7") if syntax.is_encapsulated else bytes(range(144))
        path = save(tmp_path / "a.dcm", header(2), syntax, data)
        expected = read_all(path)
        whole = path.read_bytes()
        path.write_bytes(whole[132:])
        assert Part10File(path).transfer_syntax_uid == syntax
        assert read_all(path) == expected

    @pytest.mark.parametrize("flaw", ["no preamble", "no group length", "a wrong group length"])
    def test_deflated_behind_a_flawed_head(self, tmp_path: Path, flaw: str) -> None:
        """Where the dataset begins, the elements before it say."""
        ds, path = header(2), tmp_path / "a.dcm"
        whole = save(path, ds, DeflatedExplicitVRLittleEndian, bytes(range(144))).read_bytes()
        flawed = {
            "no preamble": whole[132:],
            "no group length": whole[:132] + whole[144:],
            "a wrong group length": whole[:140] + struct.pack("<I", 7) + whole[144:],
        }
        path.write_bytes(flawed[flaw])
        file = Part10File(path)
        assert (file.transfer_syntax_uid, file.instance_uid) == (DeflatedExplicitVRLittleEndian, ds.SOPInstanceUID)
        assert read_all(path) == [bytes(range(72)), bytes(range(72, 144))]

    def test_float_pixels(self, tmp_path: Path) -> None:
        ds = header(2)
        ds.FloatPixelData = np.zeros(48, np.float32).tobytes()
        file = Part10File(save(tmp_path / "a.dcm", ds, ExplicitVRLittleEndian, None))
        assert file.number_of_frames == 2
        with pytest.raises(UnsupportedError, match="float"):
            file.read_frame(0)

    def test_an_inflated_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "bomb.dcm", header(1), DeflatedExplicitVRLittleEndian, bytes(1 << 20))
        monkeypatch.setattr("wsiweb.sources.part10.MAX_INFLATED_BYTES", 1 << 16)
        with pytest.raises((MetadataError, UnsupportedError), match=r"bomb\.dcm"):
            Part10File(path).read_frame(0)


def sparse_file(path: Path, count: int, syntax: UID, *, undefined: bool = False) -> Path:
    """A TILED_SPARSE file; ``undefined`` writes sequences and items with delimiters."""
    ds = header(count)
    ds.DimensionOrganizationType = "TILED_SPARSE"
    groups = []
    for index in range(count):
        position, optical, measures, frame, content = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
        position.ColumnPositionInTotalImagePixelMatrix = 1 + 256 * (index % 100)
        position.RowPositionInTotalImagePixelMatrix = 1 + 256 * (index // 100)
        position.XOffsetInSlideCoordinateSystem = f"{index % 100 / 7:.8g}"
        position.YOffsetInSlideCoordinateSystem = "-2.5"
        position.ZOffsetInSlideCoordinateSystem = str(index % 3)
        optical.OpticalPathIdentifier = f"path {index % 2}"
        content.DimensionIndexValues = [1, index + 1]
        frame.FrameContentSequence = [content]
        frame.PlanePositionSlideSequence = [position]
        frame.OpticalPathIdentificationSequence = [optical]
        if index == 0:
            measures.PixelSpacing = ["0.00025", "0.0005"]
            frame.PixelMeasuresSequence = [measures]
        groups.append(frame)
    ds.PerFrameFunctionalGroupsSequence = groups
    if undefined:
        for dataset in (ds, *groups):
            for element in dataset:
                if element.VR == "SQ":
                    element.is_undefined_length = True
                    for item in element.value:
                        item.is_undefined_length_sequence_item = True
    return save(path, ds, syntax, bytes(72 * count))


class TestJson:
    def test_equals_pydicom(self, tmp_path: Path) -> None:
        synthetic = make_slide(tmp_path, syntax=JPEGBaseline8Bit, icc_profile=bytes(range(256)) * 4000)
        for path in synthetic.folder.glob("*.dcm"):
            expected = pydicom.dcmread(path).to_json_dict()
            del expected["7FE00010"]
            found = Part10File(path).json_dataset()
            assert found.pop("00020010") == {"vr": "UI", "Value": [JPEGBaseline8Bit]}
            assert found == expected

    def test_words_of_a_big_endian_file(self, tmp_path: Path) -> None:
        """In JSON they are little endian, as palettes are read (PS3.18 F.2.7); bytes are bytes."""
        words, ds, path = np.array([1, 2, 0x1234], np.uint16), header(1), Dataset()
        ds.RedPaletteColorLookupTableData = words.astype(">u2").tobytes()
        path.OpticalPathIdentifier, path.ICCProfile = "1", b"\1\2\3\4"
        ds.OpticalPathSequence = [path]
        found = Attributes(Part10File(save(tmp_path / "a.dcm", ds, ExplicitVRBigEndian, bytes(72))).json_dataset())
        table = found.binary("RedPaletteColorLookupTableData")
        profile = found.first_item("OpticalPathSequence").binary("ICCProfile")
        assert table is not None
        assert profile is not None
        assert (table.inline, profile.inline) == (words.astype("<u2").tobytes(), b"\1\2\3\4")

    def test_tables_and_pixels_are_left_out(self, tmp_path: Path) -> None:
        ds = header(1)
        data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended([b"\1\2"])
        found = Part10File(save(tmp_path / "a.dcm", ds, JPEGBaseline8Bit, data)).json_dataset()
        assert not [tag for tag in found if tag.startswith("7FE0")]

    @pytest.mark.parametrize("undefined", [False, True])
    @pytest.mark.parametrize(
        "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
    )
    def test_frame_positions(self, tmp_path: Path, syntax: UID, undefined: bool) -> None:
        path = sparse_file(tmp_path / "a.dcm", 30, syntax, undefined=undefined)
        expected = pydicom.dcmread(path).to_json_dict()["52009230"]["Value"]
        file = Part10File(path)
        found = file.json_dataset()["52009230"]["Value"]
        assert file.read_frame(29) == bytes(72)
        assert len(found) == len(expected) == 30
        for ours, theirs in zip(found, expected, strict=True):
            for sequence in ("0048021A", "00480207", "00289110"):
                assert (sequence in ours) == (sequence in theirs)
                if sequence in ours:
                    (item,), (truth,) = ours[sequence]["Value"], theirs[sequence]["Value"]
                    assert item.items() <= truth.items()
            position = Attributes(ours["0048021A"]["Value"][0])
            truth = Attributes(theirs["0048021A"]["Value"][0])
            for name in (
                "ColumnPositionInTotalImagePixelMatrix",
                "RowPositionInTotalImagePixelMatrix",
                "XOffsetInSlideCoordinateSystem",
                "YOffsetInSlideCoordinateSystem",
                "ZOffsetInSlideCoordinateSystem",
            ):
                assert position.number(name) == truth.number(name)
                assert position.number(name) is not None

    @pytest.mark.parametrize("vr", ["IS", "DS", "US", "UL", "SS", "SV", "FL", "FD", "LO"])
    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_positions_of_another_vr(self, tmp_path: Path, vr: str, syntax: UID) -> None:
        """They are what the file says they are."""
        path = tmp_path / "a.dcm"
        ds = pydicom.dcmread(sparse_file(path, 12, syntax))
        name, expected = "ColumnPositionInTotalImagePixelMatrix", []
        for item in ds.PerFrameFunctionalGroupsSequence:
            position = item.PlanePositionSlideSequence[0]
            tag, value = position[name].tag, position[name].value
            expected.append(value)
            position[tag] = DataElement(tag, vr, f"{value:04d}" if vr in ("IS", "DS", "LO") else value)
        save(path, ds, syntax, ds.PixelData)
        found = [Attributes(item) for item in Part10File(path).json_dataset()["52009230"]["Value"]]
        assert [item.first_item("PlanePositionSlideSequence").integer(name) for item in found] == expected

    def test_positions_of_a_senseless_vr(self, tmp_path: Path) -> None:
        path = sparse_file(tmp_path / "a.dcm", 3, ExplicitVRLittleEndian)
        path.write_bytes(path.read_bytes().replace(b"\x48\0\x1e\2SL", b"\x48\0\x1e\2AT", 1))
        with pytest.raises(MetadataError, match=r"a\.dcm.*0048021E.*AT.*SL"):
            Part10File(path)

    def test_many_frames(self, tmp_path: Path) -> None:
        file = Part10File(sparse_file(tmp_path / "a.dcm", 20_000, ExplicitVRLittleEndian))
        first = file.json_dataset()
        assert len(first["52009230"]["Value"]) == 20_000
        assert file.json_dataset() == first  # however often

    @pytest.mark.parametrize("delimited", [False, True])
    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_sequences_of_unknown_vr(self, tmp_path: Path, syntax: UID, delimited: bool) -> None:
        """The items of one of undefined length are in implicit VR, whatever the others are (PS3.5 6.2.2)."""
        path = sparse_file(tmp_path / "a.dcm", 5, syntax)
        ds = pydicom.dcmread(path)
        expected = Part10File(path).json_dataset()["52009230"]
        text = struct.pack("<HHI", 9, 0x1002, 600) + b"SQ" * 300
        inner = struct.pack("<HHI", 9, 0x1003, 0xFFFFFFFF) + items(text) + SEQUENCE_END + bytes(4)
        value = items(text + inner, text)
        if delimited:
            value = (ITEM + b"\xff" * 4 + text + inner + b"\xfe\xff\x0d\xe0" + bytes(4)) * 2
        for place, group in ((ds, 0x0009), (ds, 0x5401), *((item, 0x0009) for item in ds[0x52009230].value)):
            place.add_new((group, 0x0010), "LO", "PRIVATE")
            place.add_new((group, 0x1001), "UN", value)
            place[group, 0x1001].is_undefined_length = True
        ds.save_as(path)
        assert pydicom.dcmread(path)[0x54011001].value[1][0x00091002].value == b"SQ" * 300
        file = Part10File(path)
        assert file.json_dataset()["52009230"] == expected
        assert file.read_frame(4) == bytes(72)

    def test_malformed_elements_are_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        ds = header(2)
        ds.ImagedVolumeWidth = 15.0
        path = save(tmp_path / "odd.dcm", ds, ExplicitVRLittleEndian, bytes(144))
        whole = path.read_bytes()
        place = whole.index(b"\x48\x00\x01\x00FL\x04\x00")
        path.write_bytes(whole[:place] + b"\x48\x00\x01\x00FL\x03\x00abc" + whole[place + 12 :])
        with caplog.at_level(logging.WARNING, "wsiweb"):
            found = Part10File(path).json_dataset()
        assert "00480001" not in found
        assert found["00280010"]["Value"] == [4]
        assert "odd.dcm" in caplog.text

    def test_a_malformed_element_does_not_sink_its_sequence(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ds, item = header(2), Dataset()
        item.OpticalPathIdentifier, item.ObjectiveLensPower, item.ICCProfile = "1", "20", b"\1\2"
        ds.OpticalPathSequence = [item]
        path = save(tmp_path / "odd.dcm", ds, ExplicitVRLittleEndian, bytes(144))
        path.write_bytes(path.read_bytes().replace(b"DS\x02\x0020", b"DS\x02\x00x%"))
        with caplog.at_level(logging.WARNING, "wsiweb"):
            (found,) = Part10File(path).json_dataset()["00480105"]["Value"]
        assert found["00480106"]["Value"] == ["1"]
        assert found["00282000"]["InlineBinary"] == "AQI="
        assert "odd.dcm" in caplog.text

    def test_a_malformed_number_of_frames(self, tmp_path: Path) -> None:
        ds = header(12)
        path = save(tmp_path / "odd.dcm", ds, ExplicitVRLittleEndian, bytes(72 * 12))
        path.write_bytes(path.read_bytes().replace(b"IS\x02\x0012", b"IS\x02\x00x2"))
        try:
            file = Part10File(path)
        except MetadataError as error:
            assert "odd.dcm" in str(error)  # noqa: PT017  (either is right; nothing else may come out)
        else:
            assert file.number_of_frames == 1


class TestSharing:
    def test_threads(self, tmp_path: Path) -> None:
        frames = streams(400, fragments=2)
        path = save(tmp_path / "a.dcm", header(400), JPEGBaseline8Bit, items(*(f for frame in frames for f in frame)))
        file = Part10File(path)
        wishes = np.random.default_rng(3).integers(0, 400, 4000).tolist()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(file.read_frame, wishes))
        assert found == [b"".join(frames[index]) for index in wishes]
        file.close()

    def test_threads_that_open_and_close(self, tmp_path: Path) -> None:
        """Closing while others read takes the file from under nobody, and hands nobody another file."""
        paths = []
        for number in range(2):
            path = tmp_path / f"{number}.dcm"
            paths.append(save(path, header(50), ExplicitVRLittleEndian, bytes([number]) * 3600))
        files = [Part10File(path) for path in paths]

        def read(step: int) -> bool:
            number = step % 2
            if step % 7 == 0:
                files[number].close()
            return files[number].read_frame(step % 50) == bytes([number]) * 72

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(20_000)))
        for file in files:
            file.close()

    def test_headers_in_many_threads(self, tmp_path: Path) -> None:
        path = sparse_file(tmp_path / "a.dcm", 200, ExplicitVRLittleEndian)
        expected = Part10File(path).json_dataset()
        file = Part10File(path)
        with ThreadPoolExecutor(8) as pool:
            assert all(found == expected for found in pool.map(lambda _: file.json_dataset(), range(40)))

    @pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
    def test_pickle(self, tmp_path: Path, syntax: UID) -> None:
        frames = [struct.pack("<H", index) * 36 for index in range(2000)]
        data = items(*frames) if syntax.is_encapsulated else b"".join(frames)
        file = Part10File(save(tmp_path / "a.dcm", header(2000), syntax, data))
        assert file.read_frame(3) == frames[3]
        pickled = pickle.dumps(file)
        assert len(pickled) < 5000
        file.close()
        copy: Part10File = pickle.loads(pickled)
        assert copy.path == file.path
        assert copy.instance_uid == file.instance_uid
        assert copy.read_frame(1999) == frames[1999]
        assert copy.json_dataset() == file.json_dataset()
        copy.close()

    def test_reading_after_closing_opens_again(self, tmp_path: Path) -> None:
        file = Part10File(save(tmp_path / "a.dcm", header(2), ExplicitVRLittleEndian, bytes(range(144))))
        for _ in range(2):
            assert file.read_frame(1) == bytes(range(72, 144))
            file.close()
            file.close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_fork(self, tmp_path: Path) -> None:
        frames = streams(50, fragments=2)
        path = save(tmp_path / "a.dcm", header(50), JPEGBaseline8Bit, items(*(f for frame in frames for f in frame)))
        file = Part10File(path)
        for before in (None, 0):  # before and after the first read in the parent
            if before is not None:
                file.read_frame(before)
            child = os.fork()
            if child == 0:
                os._exit(0 if file.read_frame(49) == b"".join(frames[49]) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        file.close()


@pytest.mark.slides
def test_real_slides(slides: Path) -> None:
    seen = 0
    for path in sorted(slides.rglob("*.dcm")):
        truth: Any = pydicom.dcmread(path)
        file = Part10File(path)
        assert file.instance_uid == truth.SOPInstanceUID
        if "PixelData" in truth and truth.BitsAllocated > 1:
            assert read_all(path) == pydicoms(path)
            seen += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some hold values that pydicom objects to
            expected = truth.to_json_dict()
        found = file.json_dataset()
        for tag in set(expected) - {"52009230"}:
            assert tag.startswith("7FE0") or found[tag] == expected[tag], tag
        file.close()
    assert seen
