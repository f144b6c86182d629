"""The embedded server, asked by dicomweb-client and by plain requests; pydicom says what is right."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MicroscopyBulkSimpleAnnotationsStorage,
    generate_uid,
)
from synthetic import make_slide, srgb_profile

from wsiweb import Slide, SlideNotFoundError, SourceError, WsiWebError
from wsiweb.server import DicomWebServer
from wsiweb.server.http import _HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from synthetic import SyntheticSlide

NATIVE = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
DECODED = 'multipart/related; type="application/octet-stream"'
JPEG = 'multipart/related; type="image/jpeg"'
DESCRIPTORS = Path("/proc/self/fd")
PADDING = bytes(1000)
"""Makes an ICC profile long enough to be bulk data."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    return make_slide(
        tmp_path_factory.mktemp("jpeg"),
        syntax=JPEGBaseline8Bit,
        associated=("label", "overview"),
        icc_profile=srgb_profile() + PADDING,
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    """A sparse 16-bit slide of another patient."""

    def change(dataset: Dataset) -> None:
        dataset.PatientID, dataset.PatientName, dataset.StudyDate = "Q-22", "Muster^Erika", "20250607"

    folder = tmp_path_factory.mktemp("mono16")
    return make_slide(folder, content="mono16", tiling="sparse", sizes=((200, 150), (100, 75)), change=change)


@pytest.fixture(scope="module")
def server(slide: SyntheticSlide, other: SyntheticSlide) -> Iterator[DicomWebServer]:
    (other.folder / "notes.txt").write_text("no DICOM")
    with DicomWebServer([slide.folder, str(other.folder)]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: DicomWebServer) -> DICOMwebClient:
    return DICOMwebClient(server.url)


def datasets(synthetic: SyntheticSlide) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(synthetic.folder.glob("*.dcm"))]


def base_level(synthetic: SyntheticSlide) -> Dataset:
    return next(d for d in datasets(synthetic) if d.SOPInstanceUID == synthetic.levels[0].instance_uids[0])


def instance_url(server: DicomWebServer, dataset: Dataset) -> str:
    return (
        f"{server.url}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
        f"/instances/{dataset.SOPInstanceUID}"
    )


def get(url: str, accept: str | None = None, **headers: str) -> requests.Response:
    return requests.get(url, headers={"Accept": accept, **headers}, timeout=20)


def parts_of(response: requests.Response) -> list[tuple[dict[str, str], bytes]]:
    """Split a multipart body as RFC 2046 says."""
    boundary = response.headers["Content-Type"].rpartition("boundary=")[2].encode()
    head, *parts, tail = (b"\r\n" + response.content).split(b"\r\n--" + boundary)
    assert (head, tail) == (b"", b"--\r\n")
    split = [part.removeprefix(b"\r\n").partition(b"\r\n\r\n") for part in parts]
    return [(dict(line.split(": ", 1) for line in head.decode().split("\r\n")), body) for head, _, body in split]


class TestSearch:
    def test_studies(self, client: DICOMwebClient, slide: SyntheticSlide, other: SyntheticSlide) -> None:
        found = {study["0020000D"]["Value"][0]: study for study in client.search_for_studies()}
        assert set(found) == {slide.study_uid, other.study_uid}
        study = found[slide.study_uid]
        assert study["00080061"]["Value"] == ["SM"]
        assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([1], [5])
        assert study["00100020"]["Value"] == ["P-1"]
        assert study["00100010"]["Value"] == [{"Alphabetic": "Test^Slide"}]
        assert study["00081190"]["Value"][0].endswith(f"/dicom-web/studies/{slide.study_uid}")
        assert "00280010" not in study
        assert "0020000E" not in study

    @pytest.mark.parametrize(
        ("filters", "patients"),
        [
            ({"PatientID": "Q-22"}, ["Q-22"]),
            ({"00100020": "Q-22"}, ["Q-22"]),
            ({"PatientID": "?-*"}, ["P-1", "Q-22"]),
            ({"PatientID": "?-?"}, ["P-1"]),
            ({"PatientID": ""}, ["P-1", "Q-22"]),
            ({"PatientID": "q-22"}, []),
            ({"PatientID": "[PQ]-22"}, []),
            ({"PatientID": "[!Q]-2?"}, []),
            ({"PatientID": "*-*2*"}, ["Q-22"]),
            ({"PatientName": "muster*"}, ["Q-22"]),
            ({"StudyDate": "20250101-20251231"}, ["Q-22"]),
            ({"StudyDate": "-20241231"}, ["P-1"]),
            ({"StudyDate": "20240102"}, ["P-1"]),
            ({"ModalitiesInStudy": "SM"}, ["P-1", "Q-22"]),
            ({"ModalitiesInStudy": "CT"}, []),
            ({"NumberOfStudyRelatedInstances": "2"}, ["Q-22"]),
            ({"OpticalPathSequence.OpticalPathIdentifier": "1"}, ["P-1", "Q-22"]),
            ({"OpticalPathSequence.OpticalPathIdentifier": "2"}, []),
            ({"PatientID": "P-1", "StudyDate": "20250607"}, []),
        ],
    )
    def test_matching(self, client: DICOMwebClient, filters: dict[str, Any], patients: list[str]) -> None:
        found = client.search_for_studies(search_filters=filters)
        assert sorted(study["00100020"]["Value"][0] for study in found) == patients

    def test_many_stars_take_no_time(self) -> None:
        check = "from wsiweb.server.qido import _value_matches as m; assert not m('LO', 'a' * 64, '*a' * 20 + '*b')"
        subprocess.run([sys.executable, "-c", check], check=True, timeout=60)  # else it would take years

    def test_series_tell_of_their_study_unless_it_was_named(
        self, client: DICOMwebClient, slide: SyntheticSlide
    ) -> None:
        everywhere = client.search_for_series(search_filters={"PatientID": "P-1"})
        assert [series["00100020"]["Value"] for series in everywhere] == [["P-1"]]
        (series,) = client.search_for_series(slide.study_uid)
        assert "00100020" not in series
        assert series["0020000E"]["Value"] == [slide.series_uid]
        assert series["00080060"]["Value"] == ["SM"]
        assert series["00201209"]["Value"] == [5]
        assert series["00081190"]["Value"][0].endswith(f"/studies/{slide.study_uid}/series/{slide.series_uid}")

    def test_instances(self, client: DICOMwebClient, slide: SyntheticSlide) -> None:
        found = client.search_for_instances(slide.study_uid, slide.series_uid)
        by_uid = {str(dataset.SOPInstanceUID): dataset for dataset in datasets(slide)}
        assert {instance["00080018"]["Value"][0] for instance in found} == set(by_uid)
        for instance in found:
            dataset = by_uid[instance["00080018"]["Value"][0]]
            assert instance["00280010"]["Value"] == [dataset.Rows]
            assert instance["00280008"]["Value"] == [int(dataset.NumberOfFrames)]
            assert instance["00083002"]["Value"] == [dataset.file_meta.TransferSyntaxUID]
            assert instance["00081190"]["Value"][0].endswith(f"/instances/{dataset.SOPInstanceUID}")
        assert len(client.search_for_instances(slide.study_uid)) == 5
        assert len(client.search_for_instances()) == 7

    def test_a_list_of_uids(self, client: DICOMwebClient, slide: SyntheticSlide) -> None:
        uids = [str(dataset.SOPInstanceUID) for dataset in datasets(slide)[:2]]
        found = client.search_for_instances(search_filters={"SOPInstanceUID": ",".join([*uids, "1.2.3"])})
        assert sorted(instance["00080018"]["Value"][0] for instance in found) == sorted(uids)

    def test_pages_cover_all_once(self, client: DICOMwebClient) -> None:
        pages = [client.search_for_instances(limit=3, offset=offset) for offset in (0, 3, 6)]
        assert [len(page) for page in pages] == [3, 3, 1]
        assert len({instance["00080018"]["Value"][0] for page in pages for instance in page}) == 7

    def test_includefield(self, client: DICOMwebClient) -> None:
        filters = {"PatientID": "P-1"}
        (plain,) = client.search_for_series(search_filters=filters)
        (more,) = client.search_for_series(search_filters=filters, fields=["ContainerIdentifier", "00080070"])
        assert set(more) - set(plain) == {"00400512", "00080070"}
        (everything,) = client.search_for_series(search_filters=filters, fields=["all"])
        assert everything["00480105"]["Value"][0]["00480112"]["Value"] == [20]

    @pytest.mark.parametrize("search", ["studies", "series", "instances"])
    def test_nothing_found_is_204(self, server: DicomWebServer, search: str) -> None:
        response = get(f"{server.url}/{search}?PatientID=nobody")
        assert (response.status_code, response.content) == (204, b"")

    @pytest.mark.parametrize("query", ["limit=-1", "limit=x", "offset=1.5", "Nonsense=1", "includefield=Nonsense"])
    def test_bad_queries_are_400(self, server: DicomWebServer, query: str) -> None:
        response = get(f"{server.url}/studies?{query}")
        assert response.status_code == 400
        assert response.json()["message"]

    def test_xml_is_406(self, server: DicomWebServer) -> None:
        accept = 'multipart/related; type="application/dicom+xml"'
        assert get(f"{server.url}/studies", accept).status_code == 406


class TestMetadata:
    def test_is_what_pydicom_reads(self, client: DICOMwebClient, slide: SyntheticSlide) -> None:
        by_uid = {str(dataset.SOPInstanceUID): dataset for dataset in datasets(slide)}
        found = client.retrieve_series_metadata(slide.study_uid, slide.series_uid)
        assert {instance["00080018"]["Value"][0] for instance in found} == set(by_uid)
        for instance in found:
            dataset = by_uid[instance["00080018"]["Value"][0]]
            expected = dataset.to_json_dict(bulk_data_threshold=1024, bulk_data_element_handler=lambda _: "elsewhere")
            for tag in ("7FE00010", "00480105"):
                expected.pop(tag)
            served = {tag: value for tag, value in instance.items() if tag in expected}
            assert served == expected
            assert set(instance) - set(expected) == {"00020010", "00480105"}
            assert instance["00020010"]["Value"] == [dataset.file_meta.TransferSyntaxUID]

    @pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="this system does not tell which files are open")
    def test_files_are_open_while_they_are_read(self, slide: SyntheticSlide) -> None:
        with DicomWebServer(slide.folder) as server:
            for url in server.series_urls():
                for instance in get(f"{url}/metadata").json():
                    for element in instance.values():
                        if "BulkDataURI" in element:
                            assert get(element["BulkDataURI"]).ok
            opened = {link.resolve() for link in DESCRIPTORS.iterdir()}
            assert opened.isdisjoint(path.resolve() for path in slide.folder.iterdir())

    def test_frame_positions_of_a_sparse_slide(self, client: DICOMwebClient, other: SyntheticSlide) -> None:
        dataset = base_level(other)
        served = client.retrieve_instance_metadata(other.study_uid, other.series_uid, dataset.SOPInstanceUID)
        positions = [item["0048021A"]["Value"][0] for item in served["52009230"]["Value"]]
        assert [(p["0048021E"]["Value"][0], p["0048021F"]["Value"][0]) for p in positions] == [
            (p.ColumnPositionInTotalImagePixelMatrix, p.RowPositionInTotalImagePixelMatrix)
            for p in (groups.PlanePositionSlideSequence[0] for groups in dataset.PerFrameFunctionalGroupsSequence)
        ]

    def test_study_and_gzip(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        url = f"{server.url}/studies/{slide.study_uid}/metadata"
        zipped, plain = get(url), get(url, **{"Accept-Encoding": "gzip;q=0"})
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert "Content-Encoding" not in plain.headers
        assert int(zipped.headers["Content-Length"]) < int(plain.headers["Content-Length"])
        assert zipped.json() == plain.json()
        assert len(plain.json()) == 5

    @pytest.mark.parametrize(
        ("accepted", "zipped"),
        [("identity, gzip;q=0.5", True), ("gzip;q=0.0", False), ("gzip;q=1.0.0", False), ("gzip;q=.", False)],
    )
    def test_weights_of_gzip(self, server: DicomWebServer, slide: SyntheticSlide, accepted: str, zipped: bool) -> None:
        response = get(f"{server.url}/studies/{slide.study_uid}/metadata", **{"Accept-Encoding": accepted})
        assert (response.status_code, "Content-Encoding" in response.headers) == (200, zipped)

    def test_icc_profile_is_bulk_data(self, client: DICOMwebClient, slide: SyntheticSlide) -> None:
        dataset = base_level(slide)
        served = client.retrieve_instance_metadata(slide.study_uid, slide.series_uid, dataset.SOPInstanceUID)
        (path,) = served["00480105"]["Value"]
        assert "InlineBinary" not in path["00282000"]
        uri, profile = path["00282000"]["BulkDataURI"], dataset.OpticalPathSequence[0].ICCProfile
        single = get(uri, "application/octet-stream")
        assert single.headers["Content-Type"] == "application/octet-stream"
        assert single.content == profile
        assert get(uri).content == profile
        assert [body for _, body in parts_of(get(uri, 'multipart/related; type="application/octet-stream"'))] == [
            profile
        ]
        assert get(uri, "image/png").status_code == 406

    def test_uris_name_the_host_that_was_asked(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        url = f"{server.url}/studies/{slide.study_uid}/metadata"
        assert "http://proxy.example:8443/dicom-web/studies/" in get(url, Host="proxy.example:8443").text
        assert server.url in get(url).text
        assert server.url in get(url, Host="127.0.0.1").text  # dicomweb-client leaves the port out
        assert server.url in get(url, Host='evil"{}/').text

    @pytest.mark.parametrize("path", ["00480105", "00480105/2/00282000", "00480105/0/00282000", "nonsense", "../../x"])
    def test_no_such_bulk_data(self, server: DicomWebServer, slide: SyntheticSlide, path: str) -> None:
        assert get(f"{instance_url(server, base_level(slide))}/bulkdata/{path}").status_code == 404

    def test_numbers_that_json_lacks(self, tmp_path: Path) -> None:
        def change(dataset: Dataset) -> None:
            dataset.add_new(0x00480001, "FL", float("nan"))

        make_slide(tmp_path, sizes=((64, 48),), change=change)
        with DicomWebServer(tmp_path) as server:
            (served,) = json.loads(get(server.series_urls()[0] + "/metadata").content, parse_constant=pytest.fail)
        assert served["00480001"] == {"vr": "FL", "Value": ["nan"]}


class TestFrames:
    @pytest.mark.parametrize(
        ("accept", "part_type"),
        [
            (None, "image/jpeg"),
            ("*/*", "image/jpeg"),
            ('multipart/related; type="*/*"; transfer-syntax=*', "image/jpeg"),
            (JPEG, "image/jpeg"),
            (f'{JPEG}; transfer-syntax="{JPEGBaseline8Bit}"', "image/jpeg"),
            (NATIVE, "application/octet-stream"),
            (f"multipart/related; type=image/jp2, {JPEG};q=0.5", "image/jpeg"),
        ],
    )
    def test_as_stored(self, server: DicomWebServer, slide: SyntheticSlide, accept: str | None, part_type: str) -> None:
        dataset = base_level(slide)
        stored = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
        response = get(f"{instance_url(server, dataset)}/frames/7,1,2", accept)
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith(f'multipart/related; type="{part_type}"; boundary=')
        parts = parts_of(response)
        assert [body for _, body in parts] == [stored[6], stored[0], stored[1]]
        for (headers, body), number in zip(parts, (7, 1, 2), strict=True):
            assert headers == {
                "Content-Type": f"{part_type}; transfer-syntax={JPEGBaseline8Bit}",
                "Content-Location": f"{instance_url(server, dataset)}/frames/{number}",
                "Content-Length": str(len(body)),
            }

    def test_dicomweb_client_reads_them(self, client: DICOMwebClient, slide: SyntheticSlide) -> None:
        dataset = base_level(slide)
        count = int(dataset.NumberOfFrames)
        frames = client.retrieve_instance_frames(
            slide.study_uid,
            slide.series_uid,
            dataset.SOPInstanceUID,
            list(range(1, count + 1)),
            media_types=(("image/jpeg", JPEGBaseline8Bit),),
        )
        assert frames == list(generate_frames(dataset.PixelData, number_of_frames=count))

    def test_decoded(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        dataset = base_level(slide)
        ((headers, body),) = parts_of(get(f"{instance_url(server, dataset)}/frames/5", DECODED))
        assert headers["Content-Type"] == f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
        stored = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))[4]
        expected = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"), np.int16)
        pixels = np.frombuffer(body, np.uint8).reshape(expected.shape).astype(np.int16)
        assert np.abs(pixels - expected).max() <= 4

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_decoded_monochrome_is_as_stored(self, tmp_path: Path, photometric: str) -> None:
        def change(dataset: Dataset) -> None:
            dataset.PhotometricInterpretation = photometric

        synthetic = make_slide(tmp_path, content="mono16", sizes=((64, 48),), syntax=JPEG2000Lossless, change=change)
        with DicomWebServer(tmp_path) as server:
            dataset = base_level(synthetic)
            ((_, body),) = parts_of(get(f"{instance_url(server, dataset)}/frames/1", DECODED))
        assert np.array_equal(np.frombuffer(body, "<u2").reshape(48, 64), dataset.pixel_array)

    @pytest.mark.parametrize("accept", [None, NATIVE, DECODED, f"{DECODED}; transfer-syntax={ExplicitVRLittleEndian}"])
    @pytest.mark.parametrize("big_endian", [False, True])
    def test_native_frames_are_little_endian(self, tmp_path: Path, accept: str | None, big_endian: bool) -> None:
        synthetic = make_slide(tmp_path, content="mono16", sizes=((100, 75),))
        dataset = base_level(synthetic)
        pixels = dataset.pixel_array
        if big_endian:
            (path,) = tmp_path.glob("*.dcm")
            swapped = Dataset()
            for element in dataset:
                swapped.add(element)
            swapped.file_meta = dataset.file_meta
            swapped.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            swapped.PixelData = pixels.astype(">u2").tobytes()
            swapped.save_as(path, enforce_file_format=True)
        with DicomWebServer(tmp_path) as server:
            parts = parts_of(get(f"{instance_url(server, dataset)}/frames/1,4", accept))
        assert [headers["Content-Type"] for headers, _ in parts] == [
            f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
        ] * 2
        for (_, body), index in zip(parts, (0, 3), strict=True):
            assert np.array_equal(np.frombuffer(body, "<u2").reshape(48, 64), pixels[index])

    @pytest.mark.parametrize(
        "accept",
        [
            'multipart/related; type="image/jp2"',
            f'{JPEG}; transfer-syntax="1.2.840.10008.1.2.4.70"',
            f"{DECODED}; transfer-syntax=1.2.840.10008.1.2.4.90",
            "image/jpeg",
            "text/html",
            f"{JPEG}; q=0",
        ],
    )
    def test_not_acceptable(self, server: DicomWebServer, slide: SyntheticSlide, accept: str) -> None:
        response = get(f"{instance_url(server, base_level(slide))}/frames/1", accept)
        assert response.status_code == 406
        assert "image/jpeg" in response.json()["message"]

    @pytest.mark.parametrize(
        ("frames", "status"),
        [("0", 404), ("1,100000", 404), ("1,,2", 400), ("1,1", 400), ("-1", 400), ("x", 400), ("1;2", 400), ("²", 400)],
    )
    def test_bad_frame_lists(self, server: DicomWebServer, slide: SyntheticSlide, frames: str, status: int) -> None:
        response = get(f"{instance_url(server, base_level(slide))}/frames/{frames}", NATIVE)
        assert (response.status_code, response.json()["status"]) == (status, status)

    def test_long_answers_are_chunked(self, tmp_path: Path) -> None:
        synthetic = make_slide(tmp_path, sizes=((1200, 1000),), tile_size=(256, 256))
        dataset = base_level(synthetic)
        count = int(dataset.NumberOfFrames)
        numbers = ",".join(map(str, range(1, count + 1)))
        with DicomWebServer(tmp_path) as server:
            url = f"{instance_url(server, dataset)}/frames/{numbers}"
            response = get(url, NATIVE)
            with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))) as plain:
                plain.sendall(f"GET {url[url.index('/dicom-web') :]} HTTP/1.0\r\n\r\n".encode())
                old = b"".join(iter(lambda: plain.recv(65536), b""))
        assert response.headers["Transfer-Encoding"] == "chunked"
        bodies = [body for _, body in parts_of(response)]
        assert b"".join(bodies) == dataset.PixelData[: sum(map(len, bodies))]
        assert len(bodies) == count
        assert b"Transfer-Encoding" not in old
        assert all(body in old for body in bodies)

    def test_a_file_cut_short_breaks_off_visibly(self, tmp_path: Path) -> None:
        synthetic = make_slide(tmp_path, sizes=((1200, 1000),), tile_size=(256, 256))
        (path,) = tmp_path.glob("*.dcm")
        dataset = base_level(synthetic)
        with DicomWebServer(tmp_path) as server:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - 300_000)
            url = f"{instance_url(server, dataset)}/frames/"
            last = int(dataset.NumberOfFrames)
            assert get(f"{url}{last}", NATIVE).status_code == 500
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                get(url + ",".join(map(str, range(1, last + 1))), NATIVE)
            assert get(f"{url}1", NATIVE).status_code == 200


class TestInstances:
    def test_whole(self, server: DicomWebServer, client: DICOMwebClient, slide: SyntheticSlide) -> None:
        for path in sorted(slide.folder.glob("*.dcm")):
            dataset = pydicom.dcmread(path)
            url = instance_url(server, dataset)
            ((headers, body),) = parts_of(get(url, 'multipart/related; type="application/dicom"'))
            assert body == path.read_bytes() == get(url, "application/dicom").content
            assert (
                headers["Content-Type"] == f"application/dicom; transfer-syntax={dataset.file_meta.TransferSyntaxUID}"
            )
            assert client.retrieve_instance(slide.study_uid, slide.series_uid, dataset.SOPInstanceUID) == dataset
        assert len(client.retrieve_series(slide.study_uid, slide.series_uid)) == 5

    def test_content_length_is_told(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        response = get(f"{server.url}/studies/{slide.study_uid}")
        assert int(response.headers["Content-Length"]) == len(response.content)
        assert len(parts_of(response)) == 5

    @pytest.mark.parametrize(
        "accept",
        ["application/json", 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.5'],
    )
    def test_not_acceptable(self, server: DicomWebServer, slide: SyntheticSlide, accept: str) -> None:
        assert get(instance_url(server, base_level(slide)), accept).status_code == 406


class TestRendered:
    def test_frame(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        dataset = base_level(slide)
        response = get(f"{instance_url(server, dataset)}/frames/3/rendered", "image/png")
        assert response.headers["Content-Type"] == "image/png"
        stored = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))[2]
        expected = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"), np.int16)
        assert np.abs(np.asarray(Image.open(io.BytesIO(response.content)), np.int16) - expected).max() <= 4

    @pytest.mark.parametrize(
        ("accept", "form"),
        [(None, "JPEG"), ("*/*", "JPEG"), ("image/png", "PNG"), ("image/webp,image/png;q=0.9,*/*;q=0.8", "PNG")],
    )
    def test_forms(self, server: DicomWebServer, slide: SyntheticSlide, accept: str | None, form: str) -> None:
        response = get(f"{instance_url(server, base_level(slide))}/frames/1/rendered", accept)
        assert Image.open(io.BytesIO(response.content)).format == form
        assert Image.open(io.BytesIO(get(f"{response.url}?accept=image/png").content)).format == "PNG"

    def test_viewport(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        url = f"{instance_url(server, base_level(slide))}/frames/1/rendered"  # a frame is 64 x 48
        assert Image.open(io.BytesIO(get(f"{url}?viewport=32,32").content)).size == (32, 24)
        assert Image.open(io.BytesIO(get(f"{url}?viewport=128,999").content)).size == (128, 96)
        for bad in ("32", "0,5", "a,b", "99999,99999"):
            assert get(f"{url}?viewport={bad}").status_code == 400

    def test_label(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        label = next(dataset for dataset in datasets(slide) if dataset.ImageType[2] == "LABEL")
        for resource in ("rendered", "thumbnail"):
            response = get(f"{instance_url(server, label)}/{resource}", "image/png")
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.content))), slide.associated["label"])

    def test_thumbnails(self, server: DicomWebServer, slide: SyntheticSlide, other: SyntheticSlide) -> None:
        series = f"{server.url}/studies/{slide.study_uid}/series/{slide.series_uid}/thumbnail"
        volume = f"{instance_url(server, base_level(slide))}/thumbnail"
        for url in (series, volume):
            image = Image.open(io.BytesIO(get(f"{url}?viewport=120,120", "image/png").content))
            assert image.size == (120, 91)
            truth = Image.fromarray(slide.levels[2].pixels["1", 0.0]).resize(image.size, Image.Resampling.BOX)
            difference = np.asarray(image, np.int16) - np.asarray(truth, np.int16)
            assert np.abs(difference).mean() < 12
        deep = f"{server.url}/studies/{other.study_uid}/series/{other.series_uid}/thumbnail"
        image = Image.open(io.BytesIO(get(deep).content))
        assert (image.mode, image.size) == ("L", (200, 150))

    @pytest.mark.parametrize("resource", ["rendered", "thumbnail"])
    def test_a_label_of_many_frames_is_not_its_slide(self, tmp_path: Path, resource: str) -> None:
        synthetic = make_slide(tmp_path / "slide", sizes=((200, 150),), associated=("label",))

        def into_the_same_series(dataset: Dataset) -> None:
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = synthetic.study_uid, synthetic.series_uid
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]

        tiled = make_slide(tmp_path / "tiled", sizes=((130, 90),), change=into_the_same_series)
        for paths, status in ((tmp_path, 200), (tiled.folder, 406)):
            with DicomWebServer(paths) as server:
                url = f"{server.series_urls()[0]}/instances/{tiled.levels[0].instance_uids[0]}/{resource}"
                response = get(url, "image/png")
            assert response.status_code == status
            if response.ok:
                pixels = np.asarray(Image.open(io.BytesIO(response.content)))
                assert np.array_equal(pixels, tiled.levels[0].pixels["1", 0.0])

    def test_a_label_alone(self, tmp_path: Path) -> None:
        make_slide(tmp_path, sizes=(), associated=("label",))
        with DicomWebServer(tmp_path) as server:
            assert Image.open(io.BytesIO(get(f"{server.series_urls()[0]}/thumbnail").content)).size == (90, 60)

    def test_not_acceptable(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        url = instance_url(server, base_level(slide))
        assert get(f"{url}/rendered", "video/mp4").status_code == 406
        assert get(f"{url}/frames/1,2/rendered").status_code == 406


class TestService:
    @pytest.mark.parametrize(
        "path",
        [
            "",
            "/",
            "/dicom-web",
            "/dicom-web/",
            "/dicom-web/nonsense",
            "/dicom-web/studies/1.2.3/metadata",
            "/dicom-web/instances/1.2.3",
            "/dicom-web/studies/1.2/instances/1.2.3/metadata",
            "/dicom-web/../../../etc/passwd",
            "/dicom-web/%2e%2e/%2e%2e/etc/passwd",
            "/dicom-web/studies/%2e%2e/series/1/instances/2/frames/1",
        ],
    )
    def test_unknown_paths_are_404_in_json(self, server: DicomWebServer, path: str) -> None:
        response = get(server.url.removesuffix("/dicom-web") + path)
        assert response.status_code == 404
        assert set(response.json()) == {"status", "error", "message"}

    def test_instances_are_found_below_their_own_series_only(
        self, server: DicomWebServer, slide: SyntheticSlide, other: SyntheticSlide
    ) -> None:
        dataset = base_level(slide)
        dataset.StudyInstanceUID = other.study_uid
        assert get(f"{instance_url(server, dataset)}/metadata").status_code == 404

    def test_read_only(self, server: DicomWebServer) -> None:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            response = requests.request(method, f"{server.url}/studies", data=b"x", timeout=20)
            assert response.status_code == 405
            assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
            assert response.json()["message"]
        with requests.Session() as session:
            for _ in range(2):  # the second needs the first to have ended where it says
                options = session.options(f"{server.url}/studies", timeout=20)
                assert (options.status_code, options.content) == (204, b"")
                assert options.headers["Allow"] == "GET, HEAD, OPTIONS"

    def test_head(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        url = f"{instance_url(server, base_level(slide))}/frames/1,2"
        with requests.Session() as session:
            head, got = session.head(url, timeout=20), session.get(url, timeout=20)
        assert head.content == b""
        assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(got.content))

    def test_connections_are_kept_and_closed_at_the_end(self, slide: SyntheticSlide) -> None:
        before = set(threading.enumerate())
        with requests.Session() as session:
            with DicomWebServer(slide.folder) as server:
                for _ in range(3):
                    assert session.get(f"{server.url}/studies", timeout=20).ok
                (connection,) = server._http.connections
                assert connection.fileno() >= 0
            assert set(threading.enumerate()) <= before
            with pytest.raises(requests.ConnectionError):
                session.get(f"{server.url}/studies", timeout=20)

    def test_no_thread_is_left_by_a_connection_that_has_only_just_come(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finish_request, begun = _HttpServer.finish_request, threading.Event()

        def late(self: _HttpServer, request: Any, client_address: Any) -> None:
            begun.set()
            time.sleep(0.2)  # long enough for the server to be closed before the handler exists
            finish_request(self, request, client_address)

        monkeypatch.setattr(_HttpServer, "finish_request", late)
        before = set(threading.enumerate())
        server = DicomWebServer(tmp_path).start()
        with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))):
            assert begun.wait(20)
            server.close()
            assert set(threading.enumerate()) <= before

    def test_malformed_requests(self, server: DicomWebServer) -> None:
        port = int(server.url.split(":")[2].split("/")[0])
        for request, status in (
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET http://[/dicom-web/studies HTTP/1.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 400 "),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        ):
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(request)
                assert status in b"".join(iter(lambda: plain.recv(65536), b""))

    def test_requests_are_remembered_in_order(self, slide: SyntheticSlide) -> None:
        with DicomWebServer(slide.folder) as server:
            get(f"{server.url}/studies?PatientID=P-1")
            get(f"{server.url}/nonsense")
            requests.post(f"{server.url}/studies", timeout=20)
            assert server.requests == [
                "GET /dicom-web/studies?PatientID=P-1",
                "GET /dicom-web/nonsense",
                "POST /dicom-web/studies",
            ]

    def test_many_threads(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        dataset = base_level(slide)
        count = int(dataset.NumberOfFrames)
        stored = list(generate_frames(dataset.PixelData, number_of_frames=count))
        url = instance_url(server, dataset)

        def read(number: int) -> bytes:
            return parts_of(get(f"{url}/frames/{number}", NATIVE))[0][1]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(read, range(1, count + 1))) == stored

    def test_series_urls(self, tmp_path: Path, slide: SyntheticSlide) -> None:
        shutil.copytree(slide.folder, tmp_path / "a")
        shutil.copytree(slide.folder, tmp_path / "b")  # copies count once
        annotation = datasets(slide)[0]
        annotation.SOPClassUID = annotation.file_meta.MediaStorageSOPClassUID = MicroscopyBulkSimpleAnnotationsStorage
        annotation.SOPInstanceUID = annotation.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        annotation.SeriesInstanceUID = generate_uid()
        annotation.save_as(tmp_path / "annotation.dcm")
        with DicomWebServer(tmp_path) as server:
            assert server.series_urls() == [f"{server.url}/studies/{slide.study_uid}/series/{slide.series_uid}"]
            assert len(get(f"{server.url}/instances").json()) == 6

    def test_broken_files_cost_only_themselves(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        make_slide(tmp_path, sizes=((64, 48),))
        (tmp_path / "cut.dcm").write_bytes(next(tmp_path.glob("level*")).read_bytes()[:300])
        (tmp_path / "empty.dcm").touch()
        with DicomWebServer(tmp_path) as server:
            assert len(get(f"{server.url}/instances").json()) == 1
        assert "cut.dcm" in caplog.text

    def test_a_path_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(SlideNotFoundError, match="missing"):
            DicomWebServer(tmp_path / "missing")

    def test_a_port_that_is_taken(self, server: DicomWebServer, tmp_path: Path) -> None:
        port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(WsiWebError, match=str(port)):
            DicomWebServer(tmp_path, port=port)

    @pytest.mark.parametrize("port", [-1, 65_536])
    def test_a_port_that_is_none(self, tmp_path: Path, port: int) -> None:
        with pytest.raises(WsiWebError, match=f"port {port}"):
            DicomWebServer(tmp_path, port=port)

    def test_closing_what_never_started(self, tmp_path: Path) -> None:
        DicomWebServer(tmp_path).close()

    def test_the_library_reads_from_it(self, server: DicomWebServer, slide: SyntheticSlide) -> None:
        with Slide.open(f"{server.url}/studies/{slide.study_uid}/series/{slide.series_uid}") as opened:
            pixels = opened.read_region(0, 50, 40, 200, 150).astype(np.int16)
            assert slide.icc_profile is not None
            assert opened.icc_profile == slide.icc_profile[: -len(PADDING)]
        assert np.abs(pixels - slide.levels[0].pixels["1", 0.0][40:190, 50:250]).max() <= 4

    def test_what_the_library_asks_for(self, slide: SyntheticSlide) -> None:
        with DicomWebServer(slide.folder) as server:
            series = server.series_urls()[0]
            place = "GET " + series[series.index("/dicom-web") :]
            with Slide.open(series) as opened:
                assert server.requests == [f"{place}/metadata"]
                opened.read_region(0, 50, 40, 90, 60)
                numbers = [row * 11 + column + 1 for row in range(3) for column in range(3)]  # of 700 x 530 in 64 x 48
                assert len(slide.tiles(0, 50, 40, 90, 60)) == len(numbers)
                frames = f"{place}/instances/{slide.levels[0].instance_uids[0]}/frames/"
                asked = [request.removeprefix(frames).replace("%2C", ",") for request in server.requests[1:]]
                assert sorted(int(number) for part in asked for number in part.split(",")) == numbers
                assert len(asked) <= 5  # two frames each at the least, however late the metadata came
                opened.read_region(0, 60, 50, 70, 40)  # lies within
                assert len(server.requests) == 1 + len(asked)


def test_before_it_is_started_it_refuses(slide: SyntheticSlide) -> None:
    """Who asked a server that listens, and does not answer yet, would wait."""
    server = DicomWebServer(slide.folder)
    try:
        with pytest.raises(SourceError, match="No connection"):
            Slide.open(server.series_urls()[0])
        with server.start(), Slide.open(server.series_urls()[0]) as opened:
            assert opened.size == slide.levels[0].size
    finally:
        server.close()


@pytest.mark.slides
def test_real_slides(slides: Path) -> None:
    with DicomWebServer(slides) as server:
        client = DICOMwebClient(server.url)
        for url in server.series_urls():
            study_uid, series_uid = url.split("/")[-3::2]
            for instance in client.retrieve_series_metadata(study_uid, series_uid):
                uid = instance["00080018"]["Value"][0]
                whole = client.retrieve_instance(study_uid, series_uid, uid)
                count = int(whole.get("NumberOfFrames", 1))
                numbers = sorted({1, (count + 1) // 2, count})
                got = client.retrieve_instance_frames(
                    study_uid, series_uid, uid, numbers, media_types=(("application/octet-stream", "*"),)
                )
                if whole.file_meta.TransferSyntaxUID.is_encapsulated:
                    extended = None
                    if "ExtendedOffsetTable" in whole:
                        extended = whole.ExtendedOffsetTable, whole.ExtendedOffsetTableLengths
                    frames = list(generate_frames(whole.PixelData, number_of_frames=count, extended_offsets=extended))
                else:
                    length = len(whole.PixelData) // count
                    frames = [whole.PixelData[i * length : (i + 1) * length] for i in range(count)]
                assert got == [frames[number - 1] for number in numbers]
            picture = get(f"{url}/thumbnail")
            assert Image.open(io.BytesIO(picture.content)).format == "JPEG"
