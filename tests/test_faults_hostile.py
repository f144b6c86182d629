"""Answers meant to hurt: each ends in an error of ours, within bounds of time and memory."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, every, fail_first
from serving import open_slide, within
from synthetic import srgb_profile

import wsiweb
from wsiweb import (
    MetadataError,
    ProtocolError,
    ReadOptions,
    SlideNotFoundError,
    SourceError,
    ThrottledError,
    WsiWebError,
)
from wsiweb.sources import http
from wsiweb.sources.multipart import parse_content_type
from wsiweb.sources.quoting import readable_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from conftest import SlideMaker
    from faults import Kind
    from synthetic import SyntheticSlide

pytestmark = pytest.mark.usefixtures("hurried")
TILE = (0, 0, 64, 48)
OPTIONS = ReadOptions(max_attempts=2, timeout_seconds=2, deadline_seconds=4, max_connections=1)
OK = b"HTTP/1.1 200 OK\r\n"
MULTIPART = OK + b"Content-Type: multipart/related; boundary=b\r\n"
JSON = OK + b"Content-Type: application/dicom+json\r\n"
MEBIBYTE = 1 << 20
LARGEST_ANSWER_BYTES = 200 * MEBIBYTE
"""More than any answer for one tile of 64 x 48 can be worth."""


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


class Tap:
    """Counts what is sent: head, then the same again and again until the client hangs up or ``total_bytes``."""

    def __init__(self, head: bytes, piece: bytes, total_bytes: int = 300 << 20) -> None:
        self.head, self.piece, self.total_bytes = head, piece, total_bytes
        self.sent = 0

    def __call__(self) -> Iterable[bytes]:
        yield self.head
        while self.sent < self.total_bytes:
            yield self.piece
            self.sent += len(self.piece)


def deflated_zeros(total_bytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(MEBIBYTE)
    return b"".join([packer.compress(zeros) for _ in range(total_bytes // MEBIBYTE)]) + packer.flush()


ENDLESS = {
    "no boundary": (MULTIPART + b"\r\n", bytes(65536)),
    "a boundary line": (MULTIPART + b"\r\n--b", b" " * 65536),
    "headers of a part": (MULTIPART + b"\r\n--b\r\n", b"a: b\r\n" * 9000),
    "a header of a part": (MULTIPART + b"\r\n--b\r\n", b"a" * 65536),
    "tiny parts": (MULTIPART + b"\r\n--b", b"\r\n\r\nx\r\n--b" * 6000),
    "tiny parts of other frames": (MULTIPART + b"\r\n--b", b"\r\nContent-Location: /frames/7\r\n\r\nx\r\n--b" * 1500),
    "headers": (OK, b"X-A: b\r\n" * 8000),
    "a header": (OK + b"X-A: ", b"a" * 65536),
    "a status line": (b"HTTP/1.1 200 ", b"O" * 65536),
    "nothing that is HTTP": (b"", bytes(65536)),
    "chunk extensions": (MULTIPART + b"Transfer-Encoding: chunked\r\n\r\n", b"5;" + b"a" * 65536),
    "a part": (MULTIPART + b"\r\n--b\r\n\r\n", bytes(MEBIBYTE)),
    "a part that announces it": (MULTIPART + b"\r\n--b\r\nContent-Length: 99999999999\r\n\r\n", bytes(MEBIBYTE)),
    "the body of a redirect": (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n", bytes(MEBIBYTE)),
    "a single part": (OK + b"Content-Type: image/jpeg\r\n\r\n", b"\xff\xd8" + bytes(MEBIBYTE)),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_answers(
    server: DICOMwebServer, truth: SyntheticSlide, name: str, request: pytest.FixtureRequest
) -> None:
    tap = Tap(*ENDLESS[name])
    server.fault = every(Fault(raw=tap))
    with open_slide(server, truth, options=OPTIONS) as slide:
        with pytest.raises(SourceError) as caught:
            within(30, lambda: slide.read_region(0, *TILE))
        assert caught.value.frame_numbers == (1,)
        assert truth.levels[0].instance_uids[0] in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert tap.sent < LARGEST_ANSWER_BYTES
        server.fault = lambda request: None
        np.testing.assert_array_equal(slide.read_region(0, *TILE), truth.truth(0, *TILE))


def test_a_refusal_that_drips(server: DICOMwebServer, truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for all of what it says."""
    monkeypatch.setattr(http, "_MAX_ERROR_SECONDS", 0.1)
    dripped: list[bytes] = []

    def drip() -> Iterable[bytes]:
        yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n"
        while len(dripped) < 1000:
            dripped.append(b"x")
            yield b"x"
            time.sleep(0.02)

    server.fault = every(Fault(raw=drip), "metadata")
    with pytest.raises(SlideNotFoundError):
        open_slide(server, truth, options=OPTIONS)
    assert len(dripped) < 1000


@pytest.mark.parametrize(
    "kind",
    [
        "metadata",
        "frames",
    ],
)
def test_endless_continues(server: DICOMwebServer, truth: SyntheticSlide, kind: Kind) -> None:
    server.fault = every(Fault(raw=Tap(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 100 << 30)), kind)

    def read() -> None:
        options = ReadOptions(max_attempts=2, timeout_seconds=1, deadline_seconds=1)
        with open_slide(server, truth, options=options) as slide:
            slide.read_region(0, *TILE)

    with pytest.raises(SourceError):
        within(4, read)
    assert server.count() <= 3


GARBAGE = {
    "nothing": b"",
    "no status": b"\r\n\r\n",
    "no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a number out of range": b"HTTP/1.1 99999 OK\r\n\r\n",
    "a negative number": b"HTTP/1.1 -200 OK\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "an end within the headers": OK + b"Content-Type: multi",
    "headers without names": OK + b": x\r\n\r\n",
    "headers that are no text": OK + bytes(range(128, 256)) + b": \xff\xfe\r\n\r\n",
    "a header of two lines": OK + b"Content-Type: a\r\n  b\r\n\r\n",
    "NUL in a header": OK + b"Content-Type: a\0b\r\nContent-Length: 0\r\n\r\n",
    "two lengths": MULTIPART + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a negative length": MULTIPART + b"Content-Length: -5\r\n\r\nabcdef",
    "a length that is no number": MULTIPART + b"Content-Length: many\r\n\r\nabcdef",
    "a length of a thousand digits": MULTIPART + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabcdef",
    "a length that is too large": MULTIPART + b"Content-Length: 99999999999999\r\n\r\nabcdef",
    "a chunk that is too large": MULTIPART + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc",
    "a negative chunk": MULTIPART + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc",
    "a chunk that is no number": MULTIPART + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "an unknown transfer encoding": MULTIPART + b"Transfer-Encoding: banana\r\n\r\nabc",
    "no gzip": MULTIPART + b"Content-Encoding: gzip\r\n\r\nthis is no gzip",
    "gzip that ends early": MULTIPART + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(999))[:-9],
    "many encodings": MULTIPART + b"Content-Encoding: " + b"gzip, " * 20 + b"gzip\r\n\r\nabc",
    "an unknown encoding": MULTIPART + b"Content-Encoding: banana\r\n\r\nabc",
    "a status of 1xx": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
    "a long boundary": OK + b"Content-Type: multipart/related; boundary=" + b"x" * 60000 + b"\r\n\r\n--x",
    "an empty boundary": OK + b'Content-Type: multipart/related; boundary=""\r\n\r\n--\r\n\r\n--\r\n\r\n----',
    "a boundary of hyphens": OK
    + b"Content-Type: multipart/related; boundary=--\r\n\r\n------\r\n------\r\n\r\n--------",
    "a boundary within parts": MULTIPART + b"\r\n--b\r\n\r\n--b\r\n\r\n--b--b--b\r\n--b--",
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("kind", ["metadata", "frames"])
def test_garbage(server: DICOMwebServer, truth: SyntheticSlide, name: str, kind: Kind) -> None:
    """It is no slide, no frame and no foreign exception; asking again brings the truth."""
    fault = Fault(raw=lambda: [GARBAGE[name]])

    def read() -> None:
        with open_slide(server, truth, options=OPTIONS) as slide:
            slide.read_region(0, *TILE)

    server.fault = every(fault, kind)
    with pytest.raises(SourceError if kind == "frames" else WsiWebError) as caught:
        within(20, read)
    assert len(str(caught.value)) < 2000
    assert server.count(kind) <= 4
    server.fault = lambda request: None
    read()


def test_informal_answers_are_skipped(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    body = b"--b\r\n\r\n" + server.instances[0].frames[0] + b"\r\n--b--"
    uid = server.instances[0].uid("SOPInstanceUID")
    level = next(n for n, level in enumerate(truth.levels) if uid in level.instance_uids)
    head = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + MULTIPART + b"Content-Length: %d\r\n\r\n" % len(body)
    server.fault = every(Fault(raw=lambda: [head, body]))
    with open_slide(server, truth, options=OPTIONS) as slide:
        np.testing.assert_array_equal(slide.read_region(level, *TILE), truth.truth(level, *TILE))
        assert server.count("frames") == 1


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints", "199 ?"])
@pytest.mark.parametrize("latency_seconds", [0.0, 0.02])
def test_no_informal_answer_is_taken_for_the_answer(
    server: DICOMwebServer, truth: SyntheticSlide, status: str, latency_seconds: float
) -> None:
    """Or each request on its connection would get the answer of the one before."""
    interim = f"HTTP/1.1 {status}\r\nLink: </style.css>\r\n\r\n".encode()
    server.fault = lambda request: Fault(interim=interim, latency_seconds=latency_seconds, locations=False)
    with open_slide(server, truth, options=replace(OPTIONS, tile_cache_bytes=0, frame_cache_bytes=0)) as slide:
        for column in range(5):
            place = (64 * column, 0, 64, 48)
            np.testing.assert_array_equal(slide.read_region(0, *place), truth.truth(0, *place))
    assert server.count("frames") == 5


HEADS = {
    "status line": b"HTTP/1.1 200 OK\r\n",
    "headers": JSON,
    "within a header": JSON + b"Content-Le",
    "within the blank line": JSON + b"\r",
    "no content": b"HTTP/1.1 204 No Content\r\nServer: x\r\n",
    "an interim answer": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nServ",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_breaks_off_is_no_answer(synthetic: SlideMaker, name: str) -> None:
    """Or nothing is found, the series has no instances, and the slide no profile."""
    truth = synthetic("rgb", icc_profile=srgb_profile(), sizes=((100, 70),))
    cut = Fault(raw=lambda: [HEADS[name]])
    with DICOMwebServer(truth.folder) as server:
        server.fault = lambda request: cut if request.attempt == 1 else None
        with open_slide(server, truth, options=OPTIONS) as slide:
            assert slide.icc_profile == truth.icc_profile
        assert [found.series_uid for found in wsiweb.search(server.url, options=OPTIONS)] == [truth.series_uid]
        assert set(Counter(request.path for request in server.requests).values()) == {2}
        server.fault = lambda request: cut
        with pytest.raises(ProtocolError, match="broke off"):
            list(wsiweb.search(server.url, options=OPTIONS))


CODINGS = {
    "identity, chunked": b"",
    "gzip, chunked": b"",
    "chunked, identity": b"",
    "chunked\r\nTransfer-Encoding: gzip": b"",
    "chunked ": b"",
    "Chunked\r\nTransfer-Encoding: chunked": b"",
    "chunked": b"-5\r\n",
}


@pytest.mark.parametrize("coding", CODINGS)
def test_no_heads_of_chunks_are_taken_for_pixels(server: DICOMwebServer, truth: SyntheticSlide, coding: str) -> None:
    """A JPEG with a few bytes too many decodes, to other pixels."""
    uid = truth.levels[0].instance_uids[0]
    frame = next(i.frames[0] for i in server.instances if i.uid("SOPInstanceUID") == uid)
    body = b"--b\r\nContent-Location: /frames/1\r\n\r\n" + frame + b"\r\n--b--"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:500], body[500:700], body[700:]))
    head = MULTIPART + f"Transfer-Encoding: {coding}\r\n\r\n".encode()
    server.fault = fail_first(1, Fault(raw=lambda: [head, CODINGS[coding] + chunks + b"0\r\n\r\n"]))
    with open_slide(server, truth, options=OPTIONS) as slide:
        np.testing.assert_array_equal(slide.read_region(0, *TILE), truth.truth(0, *TILE))


@pytest.mark.parametrize("kind", ["metadata", "frames"])
def test_lengths_that_contradict_each_other(server: DICOMwebServer, truth: SyntheticSlide, kind: Kind) -> None:
    """It is the answer that is wrong, and not what was asked with: asked for again, and said so."""
    fault = Fault(raw=lambda: [GARBAGE["two lengths"]])
    server.fault = fail_first(1, fault, kind)
    with open_slide(server, truth, options=OPTIONS) as slide:
        np.testing.assert_array_equal(slide.read_region(0, *TILE), truth.truth(0, *TILE))
        server.fault = every(fault)
        with pytest.raises(ProtocolError, match="Content-Length"):
            slide.read_region(0, 128, 0, 64, 48)


def test_another_protocol_is_refused(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    server.fault = every(Fault(interim=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"))
    with open_slide(server, truth, options=OPTIONS) as slide, pytest.raises(SourceError):
        slide.read_region(0, *TILE)


def test_json_that_ends_early_is_asked_for_again(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Where the connection's end is all that tells the end, only the text shows that something is missing."""
    cut = Fault(framing="close", hang_up_after_bytes=1000)
    server.fault = fail_first(1, cut, "metadata")
    with open_slide(server, truth, options=OPTIONS) as slide:
        np.testing.assert_array_equal(slide.read_region(0, *TILE), truth.truth(0, *TILE))
    assert server.count("metadata") == 2
    server.fault = fail_first(1, replace(cut, hang_up_after_bytes=100), "search")
    assert [slide.series_uid for slide in wsiweb.search(server.url, options=OPTIONS)] == [truth.series_uid]
    server.fault = every(cut, "metadata")
    with pytest.raises(ProtocolError, match=r"2 attempts.*DICOM JSON"):
        open_slide(server, truth, options=OPTIONS)


@pytest.mark.parametrize("body", [b"<html>Log in", b"Hello", b"[1, 2]", b"true"])
def test_who_does_not_speak_json_is_asked_once(server: DICOMwebServer, truth: SyntheticSlide, body: bytes) -> None:
    server.fault = every(Fault(status=200, body=body), "metadata")
    with pytest.raises(ProtocolError):
        open_slide(server, truth, options=OPTIONS)
    assert server.count() == 1


# Deadlines --------------------------------------------------------------------------------------------------

DRIPS = {
    "headers": (OK, b"X-A: b\r\n"),
    "a header": (OK + b"X-A: ", b"b"),
    "interim answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "the line of a chunk": (JSON + b"Transfer-Encoding: chunked\r\n\r\n2;", b"x"),
    "gzip that has nothing in it": (
        JSON + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10], b"\0\0\0\xff\xff",
    ),
    "a refusal": (b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"x"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRIPS)
def test_a_deadline_holds_for_what_drips(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    """However little comes each time, and whichever library waits for it."""
    head, drop = DRIPS[name]

    def drip() -> Iterator[bytes]:
        yield head
        for _ in range(15):  # no more interim answers are skipped
            time.sleep(0.4)
            yield drop

    server.fault = every(Fault(raw=drip), "metadata")
    options = ReadOptions(timeout_seconds=1, deadline_seconds=1, max_attempts=1)
    began = time.monotonic()
    with pytest.raises(WsiWebError):
        open_slide(server, truth, options=options)
    assert time.monotonic() - began < 4


def test_a_deadline_holds_at_the_gate(synthetic: SlideMaker) -> None:
    """Which one refused frame has shut for all that is asked of the service."""
    truth = synthetic("rgb", icc_profile=srgb_profile(), sizes=((100, 70),))
    options = ReadOptions(deadline_seconds=1)
    with DICOMwebServer(truth.folder) as server, open_slide(server, truth, options=options) as slide:
        cast("Any", slide)._reader.source._gate.shut_for(100)
        with pytest.raises(ThrottledError, match="bulk data"):
            within(30, lambda: slide.icc_profile)
        assert server.count("bulk") == 0


# Bombs ------------------------------------------------------------------------------------------------------


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_in_bulk_data(synthetic: SlideMaker) -> None:
    """256 MiB of zeros in 256 KiB."""
    truth = synthetic("rgb", icc_profile=srgb_profile(), sizes=((100, 70),))
    bomb = deflated_zeros(1 << 28)
    with DICOMwebServer(truth.folder) as server:
        server.fault = every(Fault(status=200, body=bomb, headers={"Content-Encoding": "gzip"}), "bulk")
        with open_slide(server, truth, options=OPTIONS) as slide:

            def read() -> None:
                with pytest.raises(ProtocolError, match="larger than"):
                    within(30, lambda: slide.icc_profile)

            assert peak_bytes(read) < 200 * MEBIBYTE
        assert server.count("bulk") <= 2


def test_a_bomb_in_frames(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    head = gzip.compress(b"--b\r\n\r\n")
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/related; boundary=b"}
    server.fault = every(Fault(status=200, body=head + deflated_zeros(1 << 28), headers=headers))
    with open_slide(server, truth, options=OPTIONS) as slide:

        def read() -> None:
            with pytest.raises(ProtocolError):
                within(30, lambda: slide.read_region(0, *TILE))

        assert peak_bytes(read) < 200 * MEBIBYTE


JSON_BOMBS = {
    "lists": b"[" * 500_000,
    "objects": b'{"a":' * 200_000,
    "closed lists": b"[" * 100_000 + b"]" * 100_000,
    "sequences": b"[" + b'{"00480105":{"vr":"SQ","Value":[' * 50_000,
    "a number": b"[" + b"9" * 1_000_000 + b"]",
    "an exponent": b'[{"00280010": {"vr": "US", "Value": [1e999999999]}}]',
    "keys": b"[{" + b",".join(b'"%d": {}' % n for n in range(100_000)) + b"}]",
    "text": b'["' + b"a" * 5_000_000 + b'"]',
    "surrogates": b'[{"00080018": {"vr": "UI", "Value": ["\\ud800"]}}]',
    "UTF-16": "[{}]".encode("utf-16"),
    "empty datasets": b"[" + b"{}," * 100_000 + b"{}]",
    "null": b"null",
    "a list of null": b"[null]",
    "an object": b'{"error": "no"}',
    "true": b"true",
    "NaN": b"NaN",
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_json_bombs(server: DICOMwebServer, truth: SyntheticSlide, name: str) -> None:
    headers = {"Content-Type": "application/dicom+json"}
    server.fault = fail_first(1, Fault(status=200, body=JSON_BOMBS[name], headers=headers), "metadata")
    with pytest.raises((ProtocolError, MetadataError, SlideNotFoundError)) as caught:
        within(20, lambda: open_slide(server, truth, options=ReadOptions(max_attempts=1)))
    assert 0 < len(str(caught.value)) < 2000


# Text -------------------------------------------------------------------------------------------------------

SLOW_TEXTS = {
    "tags": b"<" * 30_000,
    "scripts": b"<script" * 4_500,
    "scripts, closed otherwise": b"<script></style>" * 2_000,
    "spaces": b" " * 60_000 + b"x",
    "braces": b"{" * 60_000,
    "quotes": b'{"error": "' + b"\\" * 60_000,
}


def cpu_seconds(action: Callable[[], object]) -> float:
    began = time.thread_time()
    action()
    return time.thread_time() - began


@pytest.mark.parametrize("name", SLOW_TEXTS)
def test_error_pages_are_read_in_no_time(name: str, request: pytest.FixtureRequest) -> None:
    """In steps that grow with the length, not with its square: 60 kB that take seconds hold up all threads."""
    assert cpu_seconds(lambda: readable_error(SLOW_TEXTS[name])) < 1.5


@pytest.mark.parametrize(
    "text", [";" * 60_000, "; a" * 20_000, '; a="' + "\\" * 60_000, ";" + " " * 60_000, "; a=" * 15_000]
)
def test_headers_are_read_in_no_time(text: str) -> None:
    assert cpu_seconds(lambda: parse_content_type(f"multipart/related{text}")) < 1.5


def test_errors_do_not_grow_with_what_a_server_says(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Nor do they pass on what only a terminal would understand."""
    server.fault = every(Fault(status=418, body=b"\x1b[31mred\x07" + b"word " * 10_000))
    with open_slide(server, truth, options=OPTIONS) as slide, pytest.raises(SourceError) as caught:
        slide.read_region(0, *TILE)
    assert len(str(caught.value)) < 1500


def test_an_endless_error_page(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    tap = Tap(b"HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\n\r\n", b"<p>sorry " * 7000)
    server.fault = every(Fault(raw=tap))
    with open_slide(server, truth, options=OPTIONS) as slide, pytest.raises(SourceError, match="sorry"):
        within(30, lambda: slide.read_region(0, *TILE))
    assert tap.sent < 100 * MEBIBYTE
