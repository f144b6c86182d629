"""Values that stores keep out of the metadata: behind a BulkDataURI of any form, or nowhere at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, Request
from kinds_writer import assert_reads
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence
from pydicom.sequence import Sequence as DicomSequence
from synthetic import SyntheticSlide, make_slide, srgb_profile

from wsiweb import MetadataError, Slide, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Json = dict[str, Any]

PROFILE = srgb_profile(swapped=True)
PER_FRAME, ICC, ORGANIZATION = "52009230", "00282000", "00209311"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(tmp_path_factory.mktemp("slide"), sizes=((150, 110), (75, 55)), icc_profile=PROFILE)


@pytest.fixture
def server(stored: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(stored.folder) as server:
        yield server


def opened_from(server: DICOMwebServer, slide: SyntheticSlide) -> Slide:
    return Slide.open(server.series_url(slide.study_uid, slide.series_uid))


def profiles_in(server: DICOMwebServer) -> Iterator[Json]:
    """Yield the elements that are ICC profiles."""
    for instance in server.instances:
        for path in instance.metadata["00480105"]["Value"]:
            yield path[ICC]


def relative_to_service(uri: str) -> str:
    return uri[uri.index("/studies/") + 1 :]


PLACES: dict[str, Callable[[str], str]] = {
    "absolute": lambda uri: uri,
    "path": lambda uri: uri[uri.index("/dicom-web") :],
    "other host": lambda uri: uri.replace("127.0.0.1", "pacs.internal.example"),
    "without port": lambda uri: "http://127.0.0.1" + uri[uri.index("/dicom-web") :],
    "https behind a proxy": lambda uri: "https://pacs.example:8443" + uri[uri.index("/dicom-web") :],
    "other root": lambda uri: "http://orthanc:8042/" + relative_to_service(uri),
    "relative to the metadata": lambda uri: uri[uri.index("instances/") :],
    "relative to the metadata, up and down": lambda uri: "../../" + uri[uri.index("series/") :],
    "relative to the study": lambda uri: uri[uri.index("series/") :],
}


@pytest.mark.parametrize("place", PLACES)
def test_icc_profile_elsewhere(server: DICOMwebServer, stored: SyntheticSlide, place: str) -> None:
    paths = set()
    for element in profiles_in(server):
        paths.add(element["BulkDataURI"].removeprefix(server.url))
        element["BulkDataURI"] = PLACES[place](element["BulkDataURI"])
    with opened_from(server, stored) as opened:
        assert opened.icc_profile == PROFILE
        assert_reads(opened, stored)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("query", ["", "?item=2"])
def test_icc_profile_is_asked_for_where_it_is(
    server: DICOMwebServer, stored: SyntheticSlide, place: str, query: str
) -> None:
    """By a service that has it nowhere else."""
    right = {element["BulkDataURI"].removeprefix(server.host) + query for element in profiles_in(server)}
    server.fault = lambda request: Fault(status=404) if "bulk" in request.path and request.path not in right else None
    for element in profiles_in(server):
        element["BulkDataURI"] = PLACES[place](element["BulkDataURI"]) + query
    with opened_from(server, stored) as opened:
        assert opened.icc_profile == PROFILE


@pytest.mark.parametrize(
    "uri", ["http://evil.example/profile.icc", "file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"]
)
def test_icc_profile_at_a_stranger(server: DICOMwebServer, stored: SyntheticSlide, uri: str) -> None:
    """It is refused, and only that."""
    for element in profiles_in(server):
        element["BulkDataURI"] = uri
    with opened_from(server, stored) as opened:
        assert_reads(opened, stored)
        with pytest.raises(WsiWebError):
            _ = opened.icc_profile


def in_multipart(server: DICOMwebServer, *, quoted: bool) -> Callable[[Request], Fault | None]:
    """Answer bulk data as Orthanc does: one part of a multipart answer."""

    def hook(request: Request) -> Fault | None:
        if request.kind != "bulk":
            return None
        name = request.path.rpartition("/")[2].partition("?")[0]
        data = next(i.bulk[name] for i in server.instances if i.uid("SOPInstanceUID") == request.instance_uid)
        body = b"--b1\r\nContent-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--b1--\r\n"
        boundary = '"b1"' if quoted else "b1"
        kind = f'multipart/related; type="application/octet-stream"; boundary={boundary}'
        return Fault(status=200, body=body, headers={"Content-Type": kind})

    return hook


@pytest.mark.parametrize("quoted", [True, False])
def test_bulk_data_in_multipart(server: DICOMwebServer, stored: SyntheticSlide, quoted: bool) -> None:
    server.fault = in_multipart(server, quoted=quoted)
    with opened_from(server, stored) as opened:
        assert opened.icc_profile == PROFILE


def sequence_bytes(items: list[Json], *, implicit: bool, undefined: bool) -> bytes:
    """Write the items of a sequence, little endian, as Google's v1beta1 serves PerFrameFunctionalGroupsSequence."""
    datasets = [Dataset.from_json(json.dumps(item)) for item in items]
    for dataset in datasets:
        dataset.is_undefined_length_sequence_item = undefined
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, implicit
    element = Dataset()
    element.PerFrameFunctionalGroupsSequence = DicomSequence(datasets)
    write_sequence(buffer, element["PerFrameFunctionalGroupsSequence"], ["utf-8"])
    return bytes(buffer.getvalue())


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[tuple[DICOMwebServer, SyntheticSlide]]:
    slide = make_slide(
        tmp_path,
        sizes=((150, 110), (75, 55)),
        content="mono8",
        tiling="sparse",
        optical_paths=("a", "b"),
        focal_planes=(0.0, 2.0),
        missing={0: {(1, 1)}},
    )
    with DICOMwebServer(slide.folder) as server:
        yield server, slide


@pytest.mark.parametrize("encoding", ["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(("declared", "multipart"), [(True, False), (False, True)])
def test_per_frame_groups_elsewhere(
    sparse: tuple[DICOMwebServer, SyntheticSlide], encoding: str, undefined: bool, declared: bool, multipart: bool
) -> None:
    server, slide = sparse
    for instance in server.instances:
        items = instance.metadata[PER_FRAME]["Value"]
        instance.bulk["groups"] = sequence_bytes(items, implicit=encoding == "implicit", undefined=undefined)
        place = f"{server.series_url(slide.study_uid, slide.series_uid)}/instances/{instance.uid('SOPInstanceUID')}"
        instance.metadata[PER_FRAME] = {"vr": "SQ", "BulkDataURI": f"{place}/bulkdata/groups"}
        if not declared:
            del instance.metadata[ORGANIZATION]
    if multipart:
        server.fault = in_multipart(server, quoted=True)
    with opened_from(server, slide) as opened:
        assert_reads(opened, slide)


def test_per_frame_groups_of_a_full_slide_are_not_fetched(tmp_path: Path) -> None:
    slide = make_slide(tmp_path, sizes=((150, 110),))
    with DICOMwebServer(slide.folder) as server:
        place = f"{server.series_url(slide.study_uid, slide.series_uid)}/instances/1.2.3/bulkdata/groups"
        server.instances[0].metadata[PER_FRAME] = {"vr": "SQ", "BulkDataURI": place}
        with opened_from(server, slide) as opened:
            assert_reads(opened, slide)
        assert server.count("bulk") == 0


@pytest.mark.filterwarnings("ignore::wsiweb.MetadataWarning")
@pytest.mark.parametrize("left", ["nothing", "empty", "dead reference", "broken sequence", "reference to nowhere"])
def test_per_frame_groups_left_out(sparse: tuple[DICOMwebServer, SyntheticSlide], left: str) -> None:
    """The cause is named: without positions a TILED_SPARSE level cannot be read."""
    server, slide = sparse
    for instance in server.instances:
        place = f"{server.series_url(slide.study_uid, slide.series_uid)}/instances/{instance.uid('SOPInstanceUID')}"
        instance.bulk["groups"] = b"\xfe\xff\x00\xe0\xff\xff\x00\x00garbage"
        instance.metadata[PER_FRAME] = {
            "nothing": {"vr": "SQ"},
            "empty": {"vr": "SQ", "Value": []},
            "dead reference": {"vr": "SQ", "BulkDataURI": f"{place}/bulkdata/gone"},
            "broken sequence": {"vr": "SQ", "BulkDataURI": f"{place}/bulkdata/groups"},
            "reference to nowhere": {"vr": "SQ", "BulkDataURI": "http://elsewhere.example/1"},
        }[left]
        if left == "nothing":
            del instance.metadata[PER_FRAME]

    def gone(request: Request) -> Fault | None:
        return Fault(status=404) if request.path.endswith("/gone") else None

    server.fault = gone
    with pytest.raises(MetadataError, match="PerFrameFunctionalGroupsSequence"):
        opened_from(server, slide)
