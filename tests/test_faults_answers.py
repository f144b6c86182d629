"""Broken answers to requests for frames: good parts are kept, only the rest is asked for again, nothing is guessed."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, every, fail_first
from serving import open_slide

from wsiweb import DecodeError, ProtocolError, ReadOptions, SourceTimeoutError
from wsiweb.sources.answers import frames_in
from wsiweb.sources.base import Cancellation, FrameBatch, InstanceAddress
from wsiweb.sources.http import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker
    from faults import Framing, Request
    from synthetic import SyntheticSlide

pytestmark = pytest.mark.usefixtures("hurried")
BOX = (0, 0, 256, 144)
NUMBERS = tuple(row * 11 + column + 1 for row in range(3) for column in range(4))
"""The frames under it, 12 in one request."""
ONE_AT_A_TIME = ReadOptions(max_connections=1, frames_per_request=12, max_attempts=3, timeout_seconds=5)
HEALED: dict[str, tuple[Fault, tuple[int, ...]]] = {
    # In order, or of no consequence
    "parts in another order": (Fault(reverse_parts=True), ()),
    "every part twice": (Fault(repeat_parts=True), ()),
    "parts that nobody asked for": (Fault(extra_parts=5), ()),
    "every part twice, in another order, and more": (
        Fault(reverse_parts=True, repeat_parts=True, extra_parts=9), (),
    ),
    "parts that do not say which they are": (Fault(locations=False), ()),
    "chunked": (Fault(framing="chunked"), ()),
    "until the end of the connection": (Fault(framing="close"), ()),
    "no boundary parameter": (Fault(headers={"Content-Type": "multipart/related"}), ()),
    "206 that is whole": (Fault(label=206), ()),
    "a part's length that is right": (Fault(part_headers=("Content-Length: {length}",)), ()),
    "a part's length that is negative": (Fault(part_headers=("Content-Length: -5",)), ()),
    "a part's length that is too small": (Fault(part_headers=("Content-Length: 3",)), ()),
    "a part's length that is too large": (Fault(part_headers=("Content-Length: 999999999999",)), ()),
    "a part's length that is no number": (Fault(part_headers=("Content-Length: many",)), ()),
    "in small pieces": (Fault(drip=(900, 0.001)), ()),
    "in small chunks": (Fault(drip=(900, 0.001), framing="chunked"), ()),
    # Something is missing
    "no closing delimiter": (Fault(omit_closing=True), NUMBERS[-1:]),
    "no closing delimiter, connection closed": (Fault(omit_closing=True, framing="close"), NUMBERS[-1:]),
    "last part cut, closed": (Fault(cut_last_part_bytes=50), NUMBERS[-1:]),
    "last part cut, no closing delimiter": (Fault(cut_last_part_bytes=50, omit_closing=True), NUMBERS[-1:]),
    "fewer parts": (Fault(drop_parts=3), NUMBERS[-3:]),
    "fewer parts, 206": (Fault(drop_parts=3, label=206), NUMBERS[-3:]),
    "fewer parts, each twice": (Fault(drop_parts=3, repeat_parts=True), NUMBERS[-3:]),
    "fewer parts, and others instead": (Fault(drop_parts=3, extra_parts=3), NUMBERS[-3:]),
    "another order, fewer": (Fault(drop_parts=2, reverse_parts=True), NUMBERS[-2:]),
    # Nothing is sure: everything again
    "fewer parts that do not say which they are": (Fault(drop_parts=1, locations=False), NUMBERS),
    "more parts, that do not say which they are": (Fault(extra_parts=1, locations=False), NUMBERS),
    "another boundary than is said": (Fault(boundary="another"), NUMBERS),
    "no parts": (Fault(drop_parts=100), NUMBERS),
    "an error page": (Fault(status=200, body=b"<html>busy</html>", headers={"Content-Type": "text/html"}), NUMBERS),
    "an error in JSON": (
        Fault(status=200, body=b'{"Message": "busy"}', headers={"Content-Type": "application/json"}), NUMBERS,
    ),
    "an error page without a type": (Fault(status=200, body=b"<html>busy</html>"), NUMBERS),
    "an empty answer": (Fault(status=200), NUMBERS),
    "an empty multipart": (Fault(status=200, headers={"Content-Type": "multipart/related; boundary=x"}), NUMBERS),
    "reset at once": (Fault(reset_after_bytes=0), NUMBERS),
}  # fmt: skip
"""A fault of the first answer, and which frames are asked for by the second request, if there is one."""


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def asked(server: DICOMwebServer) -> list[tuple[int, ...]]:
    """Return the frames of each request for frames so far."""
    with server.lock:
        return [request.frame_numbers for request in server.requests if request.kind == "frames"]


def read(server: DICOMwebServer, truth: SyntheticSlide, options: ReadOptions = ONE_AT_A_TIME) -> None:
    with open_slide(server, truth, options=options) as slide:
        np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))
        assert slide.stats.requests == server.count()
        assert slide.stats.retries == server.count("frames") - 1


@pytest.mark.parametrize("name", HEALED)
def test_healed(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    fault, again = HEALED[name]
    server.fault = fail_first(1, fault)
    read(server, truth)
    assert asked(server) == [NUMBERS, again] if again else [NUMBERS]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("ending", ["reset", "hang up", "silence"])
def test_cut_in_the_middle(server: DICOMwebServer, truth: SyntheticSlide, framing: Framing, ending: str) -> None:
    """Whole parts are kept; the one that was cut and those behind it are asked for again."""
    sizes = [len(frame) for frame in next(
        i.frames for i in server.instances if i.uid("SOPInstanceUID") == truth.levels[0].instance_uids[0]
    )]  # fmt: skip
    end = sum(sizes[number - 1] + 350 for number in NUMBERS[:6])  # the headers of a part take some 350 bytes
    faults = {
        "reset": Fault(framing=framing, reset_after_bytes=end),
        "hang up": Fault(framing=framing, hang_up_after_bytes=end),
        "silence": Fault(framing=framing, stall_after_bytes=end),
    }
    server.fault = fail_first(1, faults[ending])
    options = ReadOptions(max_connections=1, frames_per_request=12, max_attempts=3, timeout_seconds=0.4)
    read(server, truth, options)
    first, second = asked(server)
    assert first == NUMBERS
    assert second == NUMBERS[-len(second) :]
    # A reset throws away what the client has not read yet.
    assert len(second) in range(4, 9) or ending == "reset"


@pytest.mark.parametrize("cut", [-1, -2, -3])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_broken_off_after_all_frames(server: DICOMwebServer, truth: SyntheticSlide, framing: Framing, cut: int) -> None:
    """Below the slide, which would have stopped the request by then."""
    server.fault = fail_first(1, Fault(hang_up_after_bytes=cut, framing=framing))
    address = InstanceAddress(truth.study_uid, truth.series_uid, truth.levels[0].instance_uids[0])
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        source = slide._reader.source
        found = list(itertools.chain.from_iterable(source.fetch(FrameBatch(address, NUMBERS, None), Cancellation())))
    assert [frame.frame_number for frame in found] == list(NUMBERS)
    assert asked(server) == [NUMBERS]


LASTING: dict[str, tuple[Fault, type[Exception], str]] = {
    "an error page": (
        Fault(status=200, body=b"<html><b>Under repair</b></html>", headers={"Content-Type": "text/html"}),
        ProtocolError, "Under repair",
    ),
    "another boundary": (Fault(boundary="another"), ProtocolError, "boundary"),
    "reset": (Fault(reset_after_bytes=0), ProtocolError, "broke off"),
    "hung up": (Fault(hang_up_after_bytes=100), ProtocolError, "broke off"),
    "silence": (Fault(stall_after_bytes=100), SourceTimeoutError, "silent"),
}  # fmt: skip


@pytest.mark.parametrize("name", LASTING)
def test_lasting(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    fault, kind, said = LASTING[name]
    server.fault = every(fault)
    options = ReadOptions(max_connections=1, frames_per_request=12, max_attempts=3, timeout_seconds=0.3)
    with open_slide(server, truth, options=options) as slide:
        with pytest.raises(kind, match=said) as caught:
            slide.read_region(0, *BOX)
        assert asked(server) == [NUMBERS, NUMBERS, NUMBERS[:6]]
        message = str(caught.value)
        assert "3 attempts" in message
        assert truth.levels[0].instance_uids[0] in message
        assert getattr(caught.value, "frame_numbers", None) == NUMBERS[:6]
        server.fault = lambda request: None
        np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))  # nothing latches


@pytest.mark.parametrize("fault", [
    Fault(reset_after_bytes=0), Fault(hang_up_after_bytes=100), Fault(stall_after_bytes=100),
    Fault(locations=False, drop_parts=1), Fault(locations=False, drop_parts=1, label=206),
], ids=["reset", "hung up", "silence", "fewer parts", "fewer parts, 206"])  # fmt: skip
@pytest.mark.parametrize("poison", [7, 64])
def test_one_frame_that_spoils_the_answer(
    server: DICOMwebServer, truth: SyntheticSlide, fault: Fault, poison: int
) -> None:
    """It costs itself and a few that were asked for with it, and not all of a long list."""
    server.fault = lambda request: fault if poison in request.frame_numbers else Fault(locations=False)
    options = ReadOptions(max_connections=1, frames_per_request=66, max_attempts=5, timeout_seconds=0.3)
    with open_slide(server, truth, options=options) as slide:
        batches = slide.patches((64, 48), level=0).batches(16, on_error="skip")
        read = {index for batch in batches for index in batch.index.tolist()}
        skipped = {patch.index for patch in batches.skipped}
    lost = {index for index in range(110) if index // 10 * 11 + index % 10 + 1 == poison}
    assert lost <= skipped
    assert len(skipped) <= 8
    assert read | skipped == set(range(110))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("rest", [b"", b"\r\n", b"\r\nepi"])
def test_what_is_whole_needs_no_good_end(named: bool, rest: bytes) -> None:
    """Behind the closing delimiter a service may break off, or say nothing more."""
    location = "Content-Location: x/frames/{}\r\n" if named else ""
    parts = "".join(f"--b\r\n{location.format(number)}\r\n{number}\r\n" for number in (1, 2))

    def chunks() -> Iterator[bytes]:
        yield parts.encode() + b"--b--"
        yield rest
        raise ProtocolError("it broke off", url="x")

    answer = Answer(200, 'multipart/related; boundary="b"', {}, "x", chunks(), lambda data: "")
    frames = [frame for together in frames_in(answer, [1, 2]) for frame in together]
    assert [(frame.frame_number, frame.data) for frame in frames] == [(1, b"1"), (2, b"2")]


@pytest.mark.parametrize("without", [("00480006", "00480007"), ("00280010", "00280011"), ("00480006",)])
def test_series_metadata_that_are_an_extract(
    server: DICOMwebServer, truth: SyntheticSlide, without: tuple[str, ...]
) -> None:
    """Orthanc leaves out what it is told to, or cannot tell: each instance is asked for by itself."""
    extract = [{tag: one.metadata[tag] for tag in one.metadata if tag not in without} for one in server.instances]
    of_series = Fault(status=200, headers={"Content-Type": "application/dicom+json"}, body=json.dumps(extract).encode())
    server.fault = lambda request: of_series if (request.kind, request.instance_uid) == ("metadata", None) else None
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))
    assert server.count("metadata") == 1 + len(extract)


def test_metadata_of_which_a_part_came(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """206 says that instances are missing: the slide would have other levels."""
    server.fault = fail_first(1, Fault(label=206), "metadata")
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        assert (len(slide.levels), server.count("metadata")) == (len(truth.levels), 2)
    server.fault = every(Fault(label=206), "metadata")
    with pytest.raises(ProtocolError, match="a part of the metadata"):
        open_slide(server, truth, options=ONE_AT_A_TIME)


def test_a_service_that_breaks_off_everything_is_not_asked_for_ever(
    server: DICOMwebServer, truth: SyntheticSlide
) -> None:
    """Of 132 frames in three lists, each is asked for once more after the first of them were blamed."""
    server.fault = every(Fault(reset_after_bytes=0))
    options = ReadOptions(max_connections=1, frames_per_request=44, max_attempts=5)
    with open_slide(server, truth, options=options) as slide:
        batches = slide.patches((64, 48), level=0).batches(16, on_error="skip")
        assert [batch for batch in batches if len(batch.images)] == []
        assert len(batches.skipped) == 110
    assert server.count("frames") <= 3 * 2 * 5 + 5


def test_a_service_that_sends_a_few_of_each_list(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """And does not say which: shorter lists are asked for, from then on."""

    def eight_at_most(request: Request) -> Fault | None:
        return Fault(drop_parts=max(len(request.frame_numbers) - 8, 0), locations=False)

    server.fault = eight_at_most
    options = ReadOptions(max_connections=1, frames_per_request=44, max_attempts=2)
    with open_slide(server, truth, options=options) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 700, 192), truth.truth(0, 0, 0, 700, 192))
        before = len(asked(server))
        np.testing.assert_array_equal(slide.read_region(0, 0, 192, 700, 192), truth.truth(0, 0, 192, 700, 192))
        assert max(map(len, asked(server)[before:])) <= 8


@pytest.mark.parametrize("status", [204, 400, 404, 413])
def test_one_stray_refusal_of_a_list_is_not_held_against_lists_for_good(
    server: DICOMwebServer, truth: SyntheticSlide, status: int
) -> None:
    """Lists become longer again where the service goes on answering them."""
    options = ReadOptions(max_connections=1, tile_cache_bytes=0, frame_cache_bytes=0)
    with open_slide(server, truth, options=options) as slide:
        slide.read_region(0, *BOX)
        server.fault = fail_first(1, Fault(status=status))
        np.testing.assert_array_equal(slide.read_region(0, *BOX), truth.truth(0, *BOX))
        for _ in range(20):
            slide.read_region(0, *BOX)
        before = len(asked(server))
        slide.read_region(0, *BOX)
        assert asked(server)[before:] == [NUMBERS]


def test_a_frame_that_is_never_whole(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """It is asked for once more, alone, then named; the others are not asked for again."""

    def cut_14(number: int, data: bytes) -> bytes:
        return data[:-100] if number == 14 else data

    server.fault = every(Fault(change_frame=cut_14))
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        with pytest.raises(DecodeError, match=r"Frame 14 of instance .* cut short"):
            slide.read_region(0, *BOX)
        assert asked(server) == [NUMBERS, (14,)]
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 256, 48), truth.truth(0, 0, 0, 256, 48))
        assert asked(server) == [NUMBERS, (14,)]


def test_a_little_more_each_time(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Attempts that bring something do not count as failed."""

    def two_at_most(request: Request) -> Fault | None:
        return Fault(drop_parts=max(len(request.frame_numbers) - 2, 0)) if request.kind == "frames" else None

    server.fault = two_at_most
    read(server, truth, ReadOptions(max_connections=1, frames_per_request=12, max_attempts=1))
    assert asked(server) == [NUMBERS[start:] for start in range(0, 12, 2)]


def test_bytes_that_are_counted(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    with open_slide(server, truth, options=ONE_AT_A_TIME) as slide:
        before = slide.stats.bytes
        slide.read_region(0, *BOX)
        frames = next(i for i in server.instances if i.uid("SOPInstanceUID") == truth.levels[0].instance_uids[0]).frames
        least = sum(len(frames[number - 1]) for number in NUMBERS)
        assert least < slide.stats.bytes - before < least + 12 * 600
        assert slide.stats.frames == 12
