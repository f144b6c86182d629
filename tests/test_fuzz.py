"""What comes from a server may be anything: each reader of it gives a value, or one of the library's errors.

The quick version runs with the tests. ``python tests/fuzz.py --minutes 30`` runs the same properties for longer.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import headers
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from wsiweb import MetadataError, MetadataWarning, ProtocolError, ReadOptions, WsiWebError
from wsiweb.bulk import _sequence
from wsiweb.codestream import complete, inspect
from wsiweb.content import load_content
from wsiweb.dicomjson import TAGS, Attributes
from wsiweb.sources.answers import frames_in
from wsiweb.sources.http import Answer
from wsiweb.sources.multipart import MAX_HEADER_BYTES, MultipartParser, Part, parse_content_type
from wsiweb.sources.quoting import readable_error, without_secrets
from wsiweb.sources.retry import RefusedError
from wsiweb.sources.web import WebSource
from wsiweb.stats import ReadStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsiweb.sources.http import Service

Json = dict[str, Any]
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))  # of so many cases as the profile says
URL = "http://host/dicomWeb/studies/1.2/series/1.2.3"

# Bytes ------------------------------------------------------------------------------------------------------

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(40)) + b"\xff\xd9"
BODIES = (
    # Orthanc, dcm4chee, DICOMcloud, static-wado, a naive one
    b"--e8-44\r\nContent-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\nContent-Length: 46\r\n"
    b"MIME-Version: 1.0\r\nContent-Location: http://h/frames/1\r\n\r\n" + JPEG + b"\r\n"
    b"--e8-44\r\nContent-Location: http://h/frames/2\r\n\r\n" + JPEG + b"\r\n--e8-44--\r\n",
    b"--e8-44\r\nContent-ID: <1@resteasy-multipart>\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG + b"\r\n--e8-44\r\n\r\n"
    b"second\r\n--e8-44--",
    b"\r\n--e8-44 \r\nContent-Type: application/octet-stream\r\n\r\nraw\r\n\r\n--e8-44--\r\n",
    b"--e8-44\nContent-Location: /frames/2\n\n" + JPEG + b"\n--e8-44\n\n--e8-44--",
    b"A preamble.\r\n--e8-44\r\n\r\n\r\n--e8-44--epilogue",
)
SNIPPETS = st.sampled_from(
    (
        b"\r\n", b"\n", b"\r", b"--e8-44", b"\r\n--e8-44\r\n", b"\r\n--e8-44--", b"--", b":", b": ", b"\r\n\r\n", b"\0",
        b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Location: x/frames/2\r\n", b"frames/99999999999",
        b"Content-Location: x/frames/" + b"9" * 5000 + b"\r\n", "/frames/\u0661".encode(), b"Content-Type: \xb2;=;\r\n",
    )
)  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "delete", "repeat", "flip"]),
        st.integers(0, 400),
        st.integers(0, 60),
        SNIPPETS | st.binary(max_size=6),
    ),
    max_size=6,
)
PLACES = st.lists(st.integers(0, 600), max_size=10)
BOUNDARIES = st.sampled_from(["e8-44", "e8-4", "", "-", "\r\n", None])


def mutated(body: bytes, mutations: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, where, length, snippet in mutations:
        start = where % (len(body) + 1)
        stop = min(start + length, len(body))
        middle = {
            "cut": b"",
            "insert": snippet + body[start:stop],
            "delete": b"",
            "repeat": body[start:stop] * 2,
            "flip": bytes(byte ^ 1 for byte in body[start:stop]),
        }[kind]
        body = body[:start] + middle + (b"" if kind == "cut" else body[stop:])
    return body


def chunked(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:stop] for start, stop in itertools.pairwise(edges)]


def parse(chunks: list[bytes], boundary: str | None) -> tuple[list[Part], bool, bool]:
    """Return the parts, whether the body was closed, and whether it was refused."""
    parser = MultipartParser(boundary)
    parts: list[Part] = []
    try:
        for chunk in chunks:
            parts += parser.feed(chunk)  # an error later on takes nothing back
    except ProtocolError:
        return parts, parser.finished, True
    return parts, parser.finished, False


@given(st.sampled_from(BODIES) | st.binary(max_size=200), MUTATIONS, PLACES, BOUNDARIES)
@QUICK
def test_multipart(body: bytes, mutations: list[tuple[str, int, int, bytes]], places: list[int], boundary: str) -> None:
    """Any bytes, however they are cut: the same parts, each of them bytes that stand between two delimiters."""
    body = mutated(body, mutations)
    parts, finished, refused = parse([body], boundary)
    assert parse(chunked(body, places), boundary) == (parts, finished, refused)
    event(f"{len(parts)} parts{' finished' * finished}{' refused' * refused}")
    at = 0
    for part in parts:
        at = body.index(part.data, at)
        at += len(part.data)
        if boundary:
            assert b"\n--" + boundary.encode() not in part.data
            assert b"--" + boundary.encode() in body[at:]
    if len(body) < MAX_HEADER_BYTES:
        assert not refused


@given(
    st.sampled_from(BODIES),
    MUTATIONS,
    PLACES,
    st.sampled_from(["multipart/related; boundary=e8-44", 'multipart/related;type="a;b";boundary="e8-44"'])
    | st.sampled_from(
        ["multipart/related", "image/jpeg", "text/html", "application/json", "", "\0;;==", "multipart/x;"]
    )
    | st.text(max_size=20),
    st.sampled_from([(1, 2), (1,), (2, 3), (1, 2, 3), (7,)]),
)
@QUICK
def test_answers(
    body: bytes, mutations: list[tuple[str, int, int, bytes]], places: list[int], content_type: str,
    numbers: tuple[int, ...],
) -> None:  # fmt: skip
    """An answer gives some of the frames that were asked for, each once; where any lacks there is an error."""
    body = mutated(body, mutations)
    answer = Answer(200, content_type, {}, URL, iter(chunked(body, places)))
    found = []
    missing: tuple[int, ...] = ()
    try:
        for frames in frames_in(answer, numbers):
            found += frames
    except ProtocolError as error:
        missing = error.frame_numbers
        assert missing
    assert sorted([*missing, *(frame.frame_number for frame in found)]) == sorted(numbers)
    assert len({frame.frame_number for frame in found}) == len(found)
    assert all(frame.frame_number in numbers and frame.data in body for frame in found)


ERROR_BODIES = st.sampled_from(
    (
        b'{"error": {"code": 400, "message": "generic::invalid_argument", "status": "INVALID_ARGUMENT"}}',
        b'[{"error": {"message": "no"}}]',
        b'{"Message": "Bad", "Details": "x", "HttpStatus": 400}',
        b"<html><script>var a = 1</script><h1>Quota &amp; midnight</h1></html>",
        b"{" * 3000,
        b"<" * 3000,
        b"[" * 300_000,
    )
)


@given(ERROR_BODIES | st.binary(max_size=100), MUTATIONS, st.integers(100, 599),
       st.text(max_size=20) | st.sampled_from(["text/html", "application/json"]), st.text(max_size=20))  # fmt: skip
@QUICK
def test_error_bodies(
    body: bytes, mutations: list[tuple[str, int, int, bytes]], status: int, content_type: str, retry_after: str
) -> None:
    """Whatever a server says in its refusal becomes one short line."""
    body = mutated(body, mutations)
    said = readable_error(body)
    assert len(said) <= 500
    assert not said or said.isprintable()
    refused = RefusedError(Answer(status, content_type, {"retry-after": retry_after}, URL, iter([body])))
    assert refused.retry_after is None or refused.retry_after >= 0
    assert isinstance(refused.quota, bool)


@given(st.text(max_size=60) | st.text("htps:/@[]%.;=#?01 \t\r\n\u2160", max_size=40).map("http://u:pa55@".__add__))
@QUICK
def test_urls_and_content_types(text: str) -> None:
    shown = without_secrets(text)
    if text.startswith("http://u:pa55@") and not set("/?#\\") & set(text[14:]) and shown.startswith("http"):
        assert "pa55" not in shown
    parse_content_type(text)


@given(st.text(max_size=20) | st.sampled_from(["http://[", "http://h:x/", "//", "../1", "file:///etc/passwd"]))
@QUICK
def test_any_reference_to_bulk_data(uri: str) -> None:
    source = source_of(b"value")
    try:
        assert source.fetch_bulk(uri) == b"value"
    except WsiWebError as error:
        assert str(error)  # noqa: PT017


# JSON -------------------------------------------------------------------------------------------------------


class FakeService:
    """Answers every request with the same bytes."""

    reached = True
    base_url = wado_url = qido_url = "http://host/dicomWeb"

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.stats = ReadStats()

    @contextmanager
    def get(self, url: str, *_: object, **__: object) -> Iterator[Answer]:
        yield Answer(200, "application/dicom+json", {}, url, iter([self.body]))


def source_of(body: bytes) -> WebSource:
    return WebSource(cast("Service", FakeService(body)), "1.2", ["1.2.3"], ReadOptions(max_attempts=1))


DATASETS = (
    headers.volume(),
    headers.volume(SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422", BitsAllocated=8, BitsStored=8),
    headers.sparse([(0, 0), (64, 0), (0, 48), (30, 20)]),
    headers.sparse([(0, 0)], ConcatenationUID="1.9.9", ConcatenationFrameOffsetNumber=0),
    headers.volume(
        DimensionOrganizationType=None,
        TotalPixelMatrixFocalPlanes=3,
        NumberOfFrames=36,
        SharedFunctionalGroupsSequence=[
            headers.dataset(PixelMeasuresSequence=[headers.dataset(SpacingBetweenSlices=0.001)])
        ],
    ),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 70_000) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["1\\2", "VOLUME", "TILED_FULL", "1.2.3", "PALETTE COLOR", 2**31, 2**63, 1e308, "\0", "AAAA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*TAGS.values(), "vr", "Value", "InlineBinary", "BulkDataURI", "Alphabetic"]), inner, max_size=3
    ),
    max_leaves=6,
)  # fmt: skip
ELEMENTS = JSON_VALUES | st.fixed_dictionaries(
    {"vr": st.sampled_from(["SQ", "US", "OB", "DS", "PN", "UN", "FD", "UI", "OW", "", "XX"])},
    optional={"Value": JSON_VALUES, "InlineBinary": JSON_VALUES, "BulkDataURI": JSON_VALUES},
)
CHANGES = st.lists(st.tuples(st.sampled_from(sorted(TAGS.values())), st.integers(0, 40), ELEMENTS), max_size=4)


def dictionaries_in(value: Any) -> Iterator[Json]:
    """Yield the datasets within a dataset, itself first."""
    if isinstance(value, dict):
        yield value
        for element in list(value.values()):
            items = element.get("Value") if isinstance(element, dict) and element.get("vr") == "SQ" else None
            for item in items if isinstance(items, list) else ():
                yield from dictionaries_in(item)


def changed(datasets: list[Json], changes: list[tuple[str, int, Any]]) -> list[Json]:
    datasets = copy.deepcopy(datasets)
    for tag, where, element in changes:
        places = [place for dataset in datasets for place in dictionaries_in(dataset)]
        place = places[where % len(places)]
        if element is None:
            place.pop(tag, None)
        else:
            place[tag] = element
    return datasets


@given(
    st.lists(st.sampled_from(DATASETS), min_size=1, max_size=2), CHANGES, st.integers(-1, 3000), st.binary(max_size=3)
)
@QUICK
def test_metadata(datasets: list[Json], changes: list[tuple[str, int, Any]], cut: int, inserted: bytes) -> None:
    """Metadata, by value and by byte, up to pyramids and properties."""
    body = json.dumps(changed(datasets, changes)).encode()
    if 0 <= cut < len(body):
        body = body[:cut] + inserted + body[cut + len(inserted) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetadataWarning)
        try:
            content = load_content(source_of(body), mpp=None, photometric=None)
        except WsiWebError as error:
            assert str(error)  # noqa: PT017
            event(type(error).__name__)
        else:
            event("opened")
            assert content.pyramids[0].levels[0].width > 0


JSON_BODIES = st.sampled_from(
    (b"[" * 200_000, b'{"a":' * 100_000, b"[{}]" * 2, b"\xff\xfe[\0]\0", b"1" * 5000, b"[NaN]")
)


@given(JSON_VALUES.map(json.dumps).map(str.encode) | st.binary(max_size=60) | JSON_BODIES)
@QUICK
def test_any_json(body: bytes) -> None:
    """Searches and metadata alike: a list of datasets or an error."""
    source = source_of(body)
    for ask in (source.metadata, source.slide_series, lambda: source.studies_of("1.2.3")):
        try:
            found = ask()
        except WsiWebError as error:
            assert str(error)  # noqa: PT017
        else:
            assert isinstance(found, list)


@given(st.sampled_from(sorted(TAGS)), ELEMENTS)
@QUICK
def test_any_element(keyword: str, element: Any) -> None:
    attributes = Attributes({TAGS[keyword]: element})
    for read in (attributes.strings, attributes.number, attributes.integer, attributes.sequence, attributes.binary):
        try:
            read(keyword)
        except MetadataError as error:
            assert keyword in str(error)  # noqa: PT017


# Bulk data and code streams ---------------------------------------------------------------------------------

ITEM = bytes.fromhex("feff00e0") + b"\xff\xff\xff\xff"
ITEM_END, SEQUENCE_END = bytes.fromhex("feff0de000000000"), bytes.fromhex("feffdde000000000")
POSITION = bytes.fromhex("48001e02") + b"SL\4\0\1\0\0\0" + bytes.fromhex("48001f02") + b"SL\4\0\1\0\0\0"
PLACED = bytes.fromhex("48001a02") + b"SQ\0\0\xff\xff\xff\xff" + ITEM + POSITION + ITEM_END + SEQUENCE_END
GROUPS = (ITEM + PLACED + ITEM_END) * 2


@given(st.sampled_from([GROUPS, ITEM * 30, GROUPS + SEQUENCE_END]) | st.binary(max_size=80), MUTATIONS)
@QUICK
def test_sequences_in_bulk_data(data: bytes, mutations: list[tuple[str, int, int, bytes]]) -> None:
    """Google's per-frame functional groups, whose encoding is nowhere written."""
    try:
        element = _sequence(mutated(data, mutations))
    except MetadataError:
        return
    assert isinstance(element["Value"], list)


STREAMS = (
    JPEG,
    bytes.fromhex("ffd8ffc0001108001000100301220002110103110fffda"),
    bytes.fromhex("ff4fff51002f000000000040000000300000000000000000000000400000003000000000000000000003070101"),
    bytes.fromhex("0000000c6a5020200d0a870a00000014667479706a703220000000006a703220"),
    bytes.fromhex("ff0a"),
    bytes.fromhex("0000000c4a584c200d0a870a"),
    bytes.fromhex("ffd8fff7000b080010001001011100ffda"),
)


@given(st.sampled_from(STREAMS) | st.binary(max_size=80), MUTATIONS)
@QUICK
def test_headers_of_code_streams(data: bytes, mutations: list[tuple[str, int, int, bytes]]) -> None:
    data = mutated(data, mutations)
    stream = inspect(data)
    assert complete(data) in (True, False)
    event("none" if stream is None else stream.coding.value)


def test_the_seeds_are_sound() -> None:
    """Mutations of what was broken from the start would find nothing."""
    assert [len(parse([body], "e8-44")[0]) for body in BODIES] == [2, 2, 1, 2, 1]
    assert all(parse([body], "e8-44")[1] for body in BODIES)
    assert len(_sequence(GROUPS)["Value"]) == 2  # type: ignore[arg-type]
    for dataset in DATASETS:
        body = json.dumps([dataset]).encode()
        assert load_content(source_of(body), mpp=(0.5, 0.5), photometric=None).pyramids
    with pytest.raises(ProtocolError):
        source_of(b"[1]").metadata()
