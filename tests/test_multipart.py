"""The multipart parser: the same parts however the bytes arrive, and nothing but ProtocolError whatever they are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsiweb.errors import ProtocolError
from wsiweb.sources import multipart
from wsiweb.sources.multipart import MultipartParser, Part, parse_content_type


@dataclass(frozen=True, slots=True)
class Body:
    """A multipart body to be written."""

    parts: list[tuple[dict[str, str], bytes]]
    """Headers and data of each."""
    boundary: str = "b-1"
    newline: str = "\r\n"
    padding: str = ""
    """After each delimiter."""
    preamble: str = ""
    epilogue: str = "\r\n"
    ends: list[int] = field(default_factory=list)
    """Filled by ``written``: where the delimiter after each part ends."""
    starts: list[int] = field(default_factory=list)
    """Filled by ``written``: where the data of each part begin."""

    def written(self) -> bytes:
        newline, delimiter = self.newline.encode(), b"--" + self.boundary.encode("latin-1")
        body = self.preamble.encode() + delimiter
        for headers, data in self.parts:
            head = "".join(f"{name}: {value}{self.newline}" for name, value in headers.items())
            body += self.padding.encode() + newline + head.encode("latin-1") + newline
            self.starts.append(len(body))
            body += data + newline + delimiter
            self.ends.append(len(body))
        return body + b"--" + self.epilogue.encode()

    def expected(self) -> list[Part]:
        return [Part({name.lower(): value for name, value in headers.items()}, data) for headers, data in self.parts]


def parse(chunks: list[bytes], boundary: str | None) -> tuple[list[Part], bool]:
    parser = MultipartParser(boundary)
    parts = [part for chunk in chunks for part in parser.feed(chunk)]
    parts += parser.close()
    return parts, parser.finished


def assume_no_plausible_lie(body: Body, written: bytes) -> None:
    """A length that is wrong, and leads to a delimiter all the same, would have to be believed."""
    for (headers, data), start in zip(body.parts, body.starts, strict=True):
        length = headers.get("Content-Length", "")
        if length.isascii() and length.isdecimal() and int(length) > len(data):
            assume(not written[start + int(length) :].startswith((b"\r\n--b-1", b"\n--b-1")))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


# Bytes that look like what delimits parts, as often as not.
fragments = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b":", b"-", b"--", b"--b", b"--b-1", b"\n--b", b"\n--b-", b"\r\n--b-"]
)
contents = st.lists(fragments | st.binary(max_size=8), max_size=8).map(b"".join)
no_longer = st.sampled_from(["none", "right", "too small", "no number"])


@st.composite
def bodies(draw: st.DrawFn, *, lengths: st.SearchStrategy[str]) -> Body:
    newline = draw(st.sampled_from(["\r\n", "\n"]))
    parts = []
    for number in range(draw(st.integers(1, 4))):
        data = draw(contents)
        assume(b"\n--b-1" not in b"\n" + data)  # a delimiter within a part is no valid body (RFC 2046 5.1.1)
        assume(newline == "\r\n" or not data.endswith(b"\r"))  # whose would it be?
        headers = {"Content-Type": "image/jpeg"} if draw(st.booleans()) else {}
        if draw(st.booleans()):
            headers["Content-Location"] = f"http://host/frames/{number + 1}"
        length = {
            "none": None,
            "right": str(len(data)),
            "too small": str(draw(st.integers(0, max(len(data) - 1, 0)))),
            "too large": str(len(data) + draw(st.integers(2, 300))),  # one more would make the CR data
            "no number": draw(st.sampled_from(["", "-1", "1.5", "0x10", "\xb2", "many"])),
        }[draw(lengths)]
        if length is not None:
            headers["Content-Length"] = length
        parts.append((headers, data))
    return Body(
        parts,
        newline=newline,
        padding=draw(st.sampled_from(["", " ", "\t  "])),
        preamble=draw(st.sampled_from(["", "\r\n", "\n", f"This is multipart.{newline}", f"--b{newline}"])),
        epilogue=draw(st.sampled_from(["", "\r\n", "\r\n--b-1\r\n\r\nno part\r\n--b-1--"])),
    )


@given(bodies(lengths=no_longer | st.just("too large")), st.lists(st.integers(0, 5000), max_size=12))
@settings(max_examples=400, deadline=None)
def test_any_split_gives_the_same_parts(body: Body, places: list[int]) -> None:
    written = body.written()
    assume_no_plausible_lie(body, written)
    assert parse(cut(written, places), "b-1") == (body.expected(), True)


@given(bodies(lengths=no_longer | st.just("too large")), st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_byte_by_byte(body: Body, size: int) -> None:
    written = body.written()
    assume_no_plausible_lie(body, written)
    assert parse(pieces(written, size), "b-1") == (body.expected(), True)


@given(bodies(lengths=st.sampled_from(["none", "right", "no number"])), st.integers(0, 5000), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_a_truncated_body_gives_whole_parts_only(body: Body, end: int, size: int) -> None:
    written = body.written()
    end %= len(written) + 1
    check_truncated(body, pieces(written[:end], size), end)


def check_truncated(body: Body, chunks: list[bytes], end: int) -> None:
    found, finished = parse(chunks, "b-1")
    # Two more bytes may be wanted, to tell the delimiter from something longer.
    whole = sum(delimiter_end + 2 <= end for delimiter_end in body.ends)
    # Without its delimiter a part is whole where it is as long as it says.
    at_most = sum(start + len(data) <= end for start, (_, data) in zip(body.starts, body.parts, strict=True))
    assert found == body.expected()[: len(found)]
    assert whole <= len(found) <= at_most
    assert finished == (end >= body.ends[-1] + 2)


def test_every_cut_of_one_body() -> None:
    body = Body([({"Content-Type": "image/jpeg", "Content-Length": "7"}, b"\xff\xd8a\r\nb-"), ({}, b"second")])
    written = body.written()
    for end in range(len(written) + 1):
        check_truncated(body, [written[:end]], end)


@given(st.binary(max_size=300), st.none() | st.sampled_from(["b-1", "", " ", "\u20ac"]), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_protocol_error_at_worst(data: bytes, boundary: str | None, size: int) -> None:
    try:
        parse(pieces(data, size), boundary)
    except ProtocolError:
        return


@given(st.lists(fragments | st.sampled_from([b"Content-Length: ", b"7", b"99", b"--b-1\r\n", b"\r\n\r\n"]) |
                st.binary(max_size=3), max_size=25).map(b"".join), st.booleans(), st.integers(1, 40))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_scrambled_bodies_are_a_protocol_error_at_worst(data: bytes, sniffed: bool, size: int) -> None:
    try:
        parse(pieces(b"--b-1\r\n" + data, size), None if sniffed else "b-1")
    except ProtocolError:
        return


@pytest.mark.parametrize("excess", [2, 3, 4, 5, 8, 50, 10_000])
@pytest.mark.parametrize("epilogue", ["", "\r\n"])
def test_a_last_part_shorter_than_it_says(excess: int, epilogue: str) -> None:
    """Some servers count the line break that belongs to the delimiter."""
    body = Body([({"Content-Length": str(4 + excess)}, b"data")] * 2, epilogue=epilogue)
    assert parse([body.written()], "b-1") == (body.expected(), True)


@pytest.mark.parametrize("digits", ["1" * 30, "9" * 5000])
def test_a_length_beyond_all_numbers_is_one_that_lies(digits: str) -> None:
    body = Body([({"Content-Length": digits}, b"data"), ({}, b"more")])
    assert parse([body.written()], "b-1") == (body.expected(), True)


def test_a_part_may_look_like_the_end_of_itself() -> None:
    """By its length it is known to go on."""
    data = b"begin\r\n--b\r\n\r\nnot another part\r\n--b--\r\nend"
    body = b"--b\r\nContent-Length: %d\r\n\r\n%b\r\n--b\r\n\r\nsecond\r\n--b--" % (len(data), data)
    for size in (1, 7, len(body)):
        parts, finished = parse(pieces(body, size), "b")
        assert [part.data for part in parts] == [data, b"second"]
        assert finished


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_parts_without_bodies(size: int) -> None:
    """The line break before a delimiter may be the one that ends the headers (RFC 2046 5.1.1)."""
    body = b"--b-1\r\nContent-Type: image/jpeg\r\n\r\n--b-1\r\n\r\nsecond\r\n--b-1--"
    found, finished = parse(pieces(body, size), "b-1")
    assert [part.data for part in found] == [b"", b"second"]
    assert finished


@pytest.mark.parametrize("size", [1000, 65_536, 10_000_000])
@pytest.mark.parametrize("length", [None, 5, 300_000, 400_000])
def test_parts_larger_than_any_chunk(length: int | None, size: int) -> None:
    """300,000 bytes, full of almost delimiters, with no length, the right one, and two that lie."""
    data = b"\n--b-" * 60_000
    head = f"--b-1\r\n{'' if length is None else f'Content-Length: {length}'}\r\n".encode()
    head += b"\r\n" if length is not None else b""
    body = b"".join([head, data, b"\r\n", head, data[::-1], b"\r\n--b-1--"])
    found, finished = parse(pieces(body, size), "b-1")
    assert finished
    assert [len(part.data) for part in found] == [300_000, 300_000]
    assert (found[0].data == data, found[1].data == data[::-1]) == (True, True)


def test_parts_come_as_soon_as_they_are_whole() -> None:
    """Decoding begins while the rest is on its way."""
    body = Body([({"Content-Length": "5"}, b"first"), ({}, b"second")])
    written = body.written()
    parser = MultipartParser("b-1")
    arrived = [[part.data for part in parser.feed(piece)] for piece in pieces(written, 1)]
    whole_at = [number + 1 for number, parts in enumerate(arrived) if parts]
    assert [parts for parts in arrived if parts] == [[b"first"], [b"second"]]
    assert all(at <= end + 2 for at, end in zip(whole_at, body.ends, strict=True))


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("preamble", ["", "A word before.\r\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_missing_boundary_parameter(newline: str, preamble: str, size: int) -> None:
    body = Body([({"A": "b"}, b"x--y"), ({}, b"z")], "some boundary", newline, "  ", preamble)
    assert parse(pieces(body.written(), size), None) == (body.expected(), True)


@pytest.mark.parametrize(("chunks", "expected"), [
    ([b"--b", b"\nA: b\n\nx\r", b"\n--b--"], Part({"a": "b"}, b"x")),  # behind a delimiter
    ([b"--b\r\n\r\n", b"--b--\r"], Part({}, b"")),  # and before one
])  # fmt: skip
def test_a_line_break_is_looked_for_where_it_may_be(chunks: list[bytes], expected: Part) -> None:
    """Not at the other end of the buffer."""
    assert parse(chunks, "b") == ([expected], True)


def test_boundaries_of_every_kind() -> None:
    for boundary in ("DICOM DATA BOUNDARY", "a'()+_,-./:=?b", "--", "x" * 70, "[.*"):
        body = Body([({}, b"data"), ({}, b"--")], boundary)
        assert parse([body.written()], boundary) == (body.expected(), True)


@pytest.mark.parametrize(("data", "match"), [
    (b"<html>" + bytes(multipart.MAX_PREAMBLE_BYTES), "no boundary is in it"),
    (b"--b-1" + b" " * (multipart.MAX_HEADER_BYTES + 1), "boundary line"),
    (b"--b-1\r\n" + b"a: b\r\n" * multipart.MAX_HEADER_BYTES, "headers of a part"),
])  # fmt: skip
def test_nothing_grows_without_bounds(data: bytes, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        parse(pieces(data, 4096), "b-1")


def test_a_part_has_a_bound() -> None:
    parser = MultipartParser("b-1", max_part_bytes=1000)
    chunks = [b"--b-1\r\n\r\n", *[bytes(100)] * 12]
    with pytest.raises(ProtocolError, match="larger than 1,000 bytes"):
        list(itertools.chain.from_iterable(map(parser.feed, chunks)))


@pytest.mark.parametrize(("value", "media_type", "parameters"), [
    ("multipart/related; boundary=abc", "multipart/related", {"boundary": "abc"}),
    ("Multipart/Related;BOUNDARY=abc", "multipart/related", {"boundary": "abc"}),
    ('multipart/related; boundary="DICOM DATA BOUNDARY"', "multipart/related", {"boundary": "DICOM DATA BOUNDARY"}),
    (  # Orthanc
        'multipart/related; type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"; boundary=e8-44',
        "multipart/related",
        {"type": "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50", "boundary": "e8-44"},
    ),
    (  # dcm4chee
        'multipart/related;start="<1@resteasy-multipart>";transfer-syntax=1.2;type="image/jpeg"; boundary=f-0',
        "multipart/related",
        {"start": "<1@resteasy-multipart>", "transfer-syntax": "1.2", "type": "image/jpeg", "boundary": "f-0"},
    ),
    ("image/jpeg;transfer-syntax=1.2.840.10008.1.2.4.50", "image/jpeg", {"transfer-syntax": "1.2.840.10008.1.2.4.50"}),
    (r'a/b; name="say \"x; y\""; z=1', "a/b", {"name": 'say "x; y"', "z": "1"}),
    ("a/b ; x = 1 ; y= 2 ", "a/b", {"x": "1", "y": "2"}),
    ("a/b; boundary=a=b", "a/b", {"boundary": "a=b"}),
    ("a/b;;x=1;", "a/b", {"x": "1"}),
    ("a/b", "a/b", {}),
    ("", "", {}),
])  # fmt: skip
def test_content_types(value: str, media_type: str, parameters: dict[str, str]) -> None:
    assert parse_content_type(value) == (media_type, parameters)


@given(st.text(alphabet=' ;="\\abc/', max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_content_type_is_split(value: str) -> None:
    media_type, parameters = parse_content_type(value)
    assert media_type == value.split(";", maxsplit=1)[0].strip().lower()
    assert all(name == name.lower() and name for name in parameters)
