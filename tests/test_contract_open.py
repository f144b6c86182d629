"""Opening: every form of ``Slide.open``, what a slide tells, and the errors of what is no slide."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from dicomweb_client import DICOMfileClient, DICOMwebClient
from dicomweb_server import DICOMwebServer
from faults import Fault, Request
from orthanc import free_port
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    generate_uid,
)
from requests.auth import HTTPBasicAuth
from synthetic import make_slide

from wsiweb import (
    AuthenticationError,
    MetadataError,
    MetadataWarning,
    ReadOptions,
    RegionError,
    Slide,
    SlideNotFoundError,
    SourceError,
    UnsupportedError,
    WsiWebError,
    search,
)
from wsiweb.doctor import examine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Opener, SlideMaker
    from synthetic import SyntheticSlide

QUICK = ReadOptions(max_attempts=2, timeout_seconds=5)


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("jpeg")


@pytest.fixture
def server(truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder) as server:
        yield server


def assert_whole(slide: Slide, truth: SyntheticSlide) -> None:
    assert (slide.study_uid, slide.series_uid) == (truth.study_uid, truth.series_uid)
    assert [level.size for level in slide.levels] == [level.size for level in truth.levels]
    np.testing.assert_array_equal(slide.read_region(1, 10, 20, 200, 100), truth.truth(1, 10, 20, 200, 100))


def test_series_url(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    for end in ("", "/"):
        with Slide.open(server.series_url(truth.study_uid, truth.series_uid) + end) as slide:
            assert_whole(slide, truth)


@pytest.mark.parametrize("around", ["{} ", "{}\n", "\t {}\r\n"])
def test_urls_are_pasted_with_white_space(server: DICOMwebServer, truth: SyntheticSlide, around: str) -> None:
    url = server.series_url(truth.study_uid, truth.series_uid)
    for place in (around.format(url), around.format(f"{url}?key=a")):
        with Slide.open(place) as slide:
            assert_whole(slide, truth)
    assert {request.path.partition("?")[2] for request in server.requests} == {"", "key=a"}
    (found,) = search(around.format(server.url))
    assert found.series_uid == truth.series_uid


@pytest.mark.parametrize(("place", "said"), [
    ("http://h/dicom-web/series/1.2.3", "h/dicom-web/series/1.2.3 has no /studies/.../series/... in it. A series is"),
    ("http://h/viewer?StudyInstanceUIDs=1.2.3&key=SECRET", "viewer has no /studies/.../series/... in it. It looks"),
    ("http://h:8042/app/explorer.html#series?uuid=1-2", "the address of a viewer"),
    ("http://u:SECRET@h/dicom-web", "http://h/dicom-web has no /studies/.../series/... in it. If it is the root"),
    ("s3://bucket/slide", "s3://bucket/slide is no URL of a DICOMweb service: that begins with https"),
    ("htp://u:SECRET@host/dicom-web/studies/1.2/series/3", "htp://host/dicom-web/studies/1.2/series/3 is no URL"),
    (["https://u:SECRET@h/studies/1/series/2?key=SECRET"], "https://h/studies/1/series/2 is a URL in a list"),
    (["gs://bucket/a.dcm"], "gs://bucket/a.dcm is no URL"),
])  # fmt: skip
def test_what_names_no_slide_is_said_to_be_what_it_is(place: Any, said: str) -> None:
    with pytest.raises(SlideNotFoundError) as caught:
        Slide.open(place, options=QUICK)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_service_url_with_uids(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    for url in (server.url, server.url + "/"):
        with Slide.open(url, study_uid=truth.study_uid, series_uid=truth.series_uid) as slide:
            assert_whole(slide, truth)
    assert "//" not in "".join(request.path for request in server.requests)


def test_series_uid_alone(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    with Slide.open(server.url, series_uid=truth.series_uid) as slide:
        assert_whole(slide, truth)


def test_users_client_is_honoured(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    """Its session's headers go along, and it stays open and unchanged."""
    with requests.Session() as session:
        client = DICOMwebClient(server.url, session=session, headers={"X-Api-Key": "k"})
        adapters = dict(session.adapters)
        with Slide.open(client, study_uid=truth.study_uid, series_uid=truth.series_uid) as slide:
            assert_whole(slide, truth)
        assert {request.headers.get("x-api-key") for request in server.requests} == {"k"}
        assert dict(session.adapters) == adapters
        assert len(client.search_for_instances()) == len(truth.files)


def own_client(server: DICOMwebServer, **changes: Callable[[Any], Any]) -> Any:
    """Return an object with the methods of a client, some of which change what they return."""

    def changing(name: str) -> Callable[..., Any]:
        method, change = getattr(client, name), changes.get(name, lambda found: found)
        return lambda *args, **kwargs: change(method(*args, **kwargs))

    client = DICOMwebClient(server.url)
    names = ("retrieve_series_metadata", "retrieve_instance_frames", "retrieve_bulkdata")
    return SimpleNamespace(**{name: changing(name) for name in names})


@pytest.mark.parametrize("change", [list, iter, lambda found: map(bytearray, found)], ids=["list", "iterator", "map"])
def test_frames_of_users_own_client(
    server: DICOMwebServer, truth: SyntheticSlide, change: Callable[[Any], Any]
) -> None:
    client = own_client(server, retrieve_instance_frames=change, retrieve_series_metadata=iter)
    with Slide.open(client, study_uid=truth.study_uid, series_uid=truth.series_uid) as slide:
        assert_whole(slide, truth)


@pytest.mark.parametrize("change", [
    lambda _: None, lambda found: map(str, found), lambda found: [None for _ in found], lambda found: found[1:],
    lambda found: [len(data) for data in found],
], ids=["nothing", "texts", "none", "one less", "numbers"])  # fmt: skip
def test_no_frames_of_users_own_client(
    server: DICOMwebServer, truth: SyntheticSlide, change: Callable[[Any], Any]
) -> None:
    client = own_client(server, retrieve_instance_frames=change)
    with Slide.open(client, study_uid=truth.study_uid, series_uid=truth.series_uid) as slide:
        with pytest.raises(SourceError, match="Frames") as caught:
            slide.read_region(0, 0, 0, 300, 200)
        assert caught.value.frame_numbers


@pytest.mark.parametrize("change", [
    lambda _: None, lambda found: map(str, found), lambda found: [None for _ in found],
    lambda found: [Dataset.from_json(item) for item in found],
], ids=["nothing", "texts", "none", "datasets of pydicom"])  # fmt: skip
def test_no_metadata_of_users_own_client(
    server: DICOMwebServer, truth: SyntheticSlide, change: Callable[[Any], Any]
) -> None:
    client = own_client(server, retrieve_series_metadata=change)
    with pytest.raises(SourceError, match=f"series {truth.series_uid}"):
        Slide.open(client, study_uid=truth.study_uid, series_uid=truth.series_uid)


def test_users_session_auth_and_headers(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    url = server.series_url(truth.study_uid, truth.series_uid)
    basic = "Basic dXNlcjpwYXNz"
    with requests.Session() as session:
        session.headers["X-From-Session"] = "s"
        ways: list[tuple[dict[str, Any], str, str]] = [
            ({"auth": ("user", "pass")}, "authorization", basic),
            ({"auth": HTTPBasicAuth("user", "pass")}, "authorization", basic),
            ({"token": "abc"}, "authorization", "Bearer abc"),
            ({"token": lambda: "called"}, "authorization", "Bearer called"),
            ({"headers": {"X-Own": "h"}}, "x-own", "h"),
            ({"session": session}, "x-from-session", "s"),
        ]
        for kwargs, name, value in ways:
            server.forget()
            with Slide.open(url, **kwargs) as slide:
                assert_whole(slide, truth)
            assert {request.headers.get(name) for request in server.requests} == {value}, kwargs


def test_an_expired_token_is_renewed(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    tokens = iter(["old", "new"])

    def deny_old(request: Request) -> Fault | None:
        return Fault(status=401) if request.headers["authorization"] == "Bearer old" else None

    server.fault = deny_old
    url = server.series_url(truth.study_uid, truth.series_uid)
    with Slide.open(url, token=lambda: next(tokens)) as slide:
        assert_whole(slide, truth)


def test_local_forms(truth: SyntheticSlide, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    for file in truth.files:
        shutil.copy(file, tmp_path)
    for place in (
        truth.folder,
        str(truth.folder),
        tmp_path,
        truth.files,
        [str(file) for file in truth.files],
    ):
        with Slide.open(place) as slide:
            assert_whole(slide, truth)
    first = next(file for file in truth.files if file.name.startswith("level-0"))
    with Slide.open(first) as slide:
        assert slide.size == truth.levels[0].size
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 99, 99), truth.truth(0, 0, 0, 99, 99))


def test_file_client(truth: SyntheticSlide, tmp_path: Path) -> None:
    for file in truth.files:
        shutil.copy(file, tmp_path)
    client = DICOMfileClient(f"file://{tmp_path}", in_memory=True)
    with Slide.open(client, study_uid=truth.study_uid, series_uid=truth.series_uid) as slide:
        assert_whole(slide, truth)
    client._db_manager._connection.close()  # it has no way to be closed, and Python 3.13 warns of that


@pytest.mark.parametrize("name", ["rgb", "RBG", "", "YBR"])
def test_no_photometric_interpretation(truth: SyntheticSlide, name: str) -> None:
    with pytest.raises(MetadataError, match="YBR_FULL_422"):
        Slide.open(truth.folder, photometric=name)


def test_a_folder_of_two_series_needs_a_choice(synthetic: SlideMaker, tmp_path: Path) -> None:
    for kind in ("rgb", "mono8"):
        for file in synthetic(kind).files:
            shutil.copy(file, tmp_path / f"{kind}-{file.name}")
    with Slide.open(tmp_path, series_uid=synthetic("mono8").series_uid) as slide:
        assert slide.dtype == np.uint8
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 99, 99), synthetic("mono8").truth(0, 0, 0, 99, 99))


def test_what_a_slide_tells(open_slide: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("by-fours-and-odd")
    slide = open_slide(truth)
    assert slide.size == (913, 641) == slide.levels[0].size
    assert slide.mpp == pytest.approx((0.5, 0.5))
    assert slide.dtype == np.uint8
    assert isinstance(slide.levels, tuple)
    for index, (level, expected) in enumerate(zip(slide.levels, truth.levels, strict=True)):
        assert level.index == index
        assert (level.width, level.height) == level.size == expected.size
        assert level.downsample == pytest.approx(913 / level.width, rel=0.02)
        assert isinstance(level.downsample, float)
        assert level.mpp == pytest.approx(expected.mpp, rel=1e-6)
        assert level.tile_size == (64, 48)
        assert level.shape == (level.height, level.width, 3)
        assert level.dtype == np.uint8
    assert slide.levels[0].downsample == 1.0
    assert slide.optical_paths == ("1",)
    assert slide.focal_planes == (0.0,)
    assert isinstance(slide.properties, dict)
    expected_properties = {
        "vendor": "Acme",
        "model": "Scan-o-mat",
        "serial_number": "42",
        "objective_power": 20,
        "patient_id": "P-1",
        "container_id": "C-1",
    }
    assert {name: slide.properties[name] for name in expected_properties} == expected_properties


def test_monochrome_levels_have_two_axes(open_slide: Opener, synthetic: SlideMaker) -> None:
    slide = open_slide(synthetic("mono16"))
    assert slide.levels[0].shape == (530, 700)
    assert slide.dtype == np.uint16


def test_read_options_are_checked_and_frozen() -> None:
    options = ReadOptions()
    assert (options.tile_cache_bytes, options.frame_cache_bytes) == (512 << 20, 128 << 20)
    assert (options.readahead_bytes, options.max_region_bytes) == (256 << 20, 4 << 30)
    assert options.frames_per_request is None
    with pytest.raises(FrozenInstanceError):
        options.max_connections = 3  # type: ignore[misc]  # that is the test
    for wrong in (
        {"max_connections": 0},
        {"timeout_seconds": -1.0},
        {"max_attempts": 0},
        {"tile_cache_bytes": -1},
        {"trusted_hosts": 5},
        {"deadline_seconds": 10**400},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReadOptions(**wrong)


def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web/studies/1.2/series/3.4"
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        Slide.open(url, options=QUICK)


def test_unknown_host() -> None:
    with pytest.raises(SourceError, match=r"wsiweb\.invalid"):
        Slide.open("http://wsiweb.invalid/studies/1.2/series/3.4", options=QUICK)


def test_unknown_uids(server: DICOMwebServer, truth: SyntheticSlide) -> None:
    with pytest.raises(SlideNotFoundError, match=r"1\.2\.3"):
        Slide.open(server.url, study_uid=truth.study_uid, series_uid="1.2.3", options=QUICK)
    with pytest.raises(SlideNotFoundError, match=r"1\.2\.3"):
        Slide.open(server.url, series_uid="1.2.3", options=QUICK)
    with pytest.raises(SlideNotFoundError, match=r"1\.2\.3"):
        Slide.open(truth.folder, series_uid="1.2.3")
    for place in (server.url, truth.folder):  # of several that are one slide, none may lack
        with pytest.raises(SlideNotFoundError, match=r"1\.2\.3"):
            Slide.open(place, study_uid=truth.study_uid, series_uid=[truth.series_uid, "1.2.3"], options=QUICK)


@pytest.mark.parametrize("status", [200, 204])
def test_empty_answers_mean_no_slide(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    body = b"[]" if status == 200 else b""
    server.fault = lambda _: Fault(status=status, body=body, headers={"Content-Type": "application/dicom+json"})
    for study_uid in (truth.study_uid, None):
        with pytest.raises(SlideNotFoundError):
            Slide.open(server.url, study_uid=study_uid, series_uid=truth.series_uid, options=QUICK)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(server: DICOMwebServer, truth: SyntheticSlide, status: int) -> None:
    server.fault = lambda _: Fault(status=status, body=b"no entry")
    with pytest.raises(AuthenticationError) as caught:
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), token="s3cr3t", options=QUICK)
    assert caught.value.status == status
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"{", b'{"not": "a list"}', b"[1, 2]"])
def test_metadata_that_are_none(server: DICOMwebServer, truth: SyntheticSlide, body: bytes) -> None:
    server.fault = lambda _: Fault(status=200, body=body, headers={"Content-Type": "text/html"})
    with pytest.raises(WsiWebError):
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), options=QUICK)


def _no_slide(dataset: Dataset) -> None:
    dataset.SOPClassUID = ComprehensiveSRStorage
    dataset.Modality = "SR"


def _only_label(dataset: Dataset) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]


@pytest.mark.parametrize("change", [_no_slide, _only_label])
def test_a_series_without_slide(open_slide: Opener, tmp_path: Path, change: Callable[[Dataset], None]) -> None:
    truth = make_slide(tmp_path, sizes=((64, 48),), change=change)
    with pytest.raises(SlideNotFoundError):
        open_slide(truth)


def test_a_study_without_slide(tmp_path: Path) -> None:
    truth = make_slide(tmp_path, sizes=((64, 48),), change=_no_slide)
    with DICOMwebServer(tmp_path) as server, pytest.raises(SlideNotFoundError):
        Slide.open(server.url, series_uid=truth.series_uid)


def test_other_objects_in_the_series_are_ignored(open_slide: Opener, tmp_path: Path) -> None:
    truth = make_slide(tmp_path)

    def intrude(dataset: Dataset) -> None:
        _no_slide(dataset)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = truth.study_uid, truth.series_uid

    make_slide(tmp_path, sizes=((1400, 1060),), change=intrude)
    assert_whole(open_slide(truth), truth)


def test_folders_without_dicom(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFoundError, match=tmp_path.name):
        Slide.open(tmp_path)
    (tmp_path / "a.dcm").write_bytes(b"not DICOM at all" * 50)
    (tmp_path / "empty.dcm").touch()
    for place in (tmp_path, tmp_path / "a.dcm", [tmp_path / "a.dcm"], tmp_path / "nowhere"):
        with pytest.raises(WsiWebError):
            Slide.open(place)
    with pytest.raises(WsiWebError):
        Slide.open([])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(truth: SyntheticSlide, tmp_path: Path) -> None:
    for file in truth.files:
        shutil.copy(file, tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Timer(5, lambda: pipe.open("wb").close())  # lets who waits fail, and not hang
    writer.daemon = True
    writer.start()
    with Slide.open(tmp_path) as slide:
        assert_whole(slide, truth)
    with pytest.raises(SlideNotFoundError, match="pipe is neither a file nor a folder"):
        Slide.open(pipe)
    writer.cancel()


def test_a_link_to_nowhere_is_told(truth: SyntheticSlide, tmp_path: Path) -> None:
    """It may be a level whose content is elsewhere, or none of the slide's; named, it is an error."""
    for file in truth.files:
        shutil.copy(file, tmp_path)
    (tmp_path / "level.dcm").symlink_to(tmp_path / "gone")
    with pytest.warns(MetadataWarning, match=r"level\.dcm cannot be opened"):
        Slide.open(tmp_path).close()
    with pytest.raises(SlideNotFoundError, match="does not exist"):
        Slide.open([tmp_path / "level.dcm"])


@pytest.fixture
def few_files() -> Iterator[Callable[[int], None]]:
    """Let so many more files be open than those that are."""
    resource: Any = pytest.importorskip("resource", reason="needs limits of open files")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(spare: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        free = [os.open(os.devnull, os.O_RDONLY) for _ in range(spare + 1)]  # there may be gaps among those in use
        for number in free:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_no_level_is_missing_when_files_run_out(truth: SyntheticSlide, few_files: Callable[[int], None]) -> None:
    refused, whole = [], 0
    Slide.open(truth.folder).close()  # imports need files, too
    for spare in range(8):
        few_files(spare)
        try:
            with Slide.open(truth.folder) as slide:
                assert len(slide.levels) == len(truth.levels)
                whole += 1
        except SourceError as error:
            refused.append(str(error))
    assert whole
    assert refused
    assert all("Too many open files" in message and "ulimit -n" in message for message in refused)


def test_slides_that_are_not_read_hold_no_file(truth: SyntheticSlide, few_files: Callable[[int], None]) -> None:
    with ExitStack() as stack:
        few_files(8)
        slides = [stack.enter_context(Slide.open(truth.folder)) for _ in range(10)]
        np.testing.assert_array_equal(slides[3].read_region(0, 5, 5, 9, 9), truth.truth(0, 5, 5, 9, 9))


def test_a_slide_is_read_while_the_interpreter_ends(truth: SyntheticSlide) -> None:
    """By a handler that was registered before the slide was opened, and is therefore called late."""
    child = """if True:
        import atexit, sys
        from wsiweb import Slide
        atexit.register(lambda: print(slide.read_region(0, 200, 150, 9, 9).tobytes().hex()))
        slide = Slide.open(sys.argv[1])
        slide.read_region(0, 0, 0, 1, 1)
    """
    found = subprocess.run([sys.executable, "-c", child, truth.folder], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == truth.truth(0, 200, 150, 9, 9).tobytes().hex(), found.stderr


def test_a_disk_that_fails_is_not_a_broken_file(truth: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(SourceError, match=r"\.dcm cannot be read: .*error\. .*again"):
        Slide.open(truth.folder)


def test_a_dicomdir_is_no_image(truth: SyntheticSlide, tmp_path: Path) -> None:
    """Nor is it broken: it lists the files of a medium (PS3.10 8.6)."""
    for file in truth.files:
        shutil.copy(file, tmp_path)
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.FileSetID, directory.FileSetConsistencyFlag, directory.DirectoryRecordSequence = "SLIDE", 0, []
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    with Slide.open(tmp_path) as slide:  # a warning would fail
        assert_whole(slide, truth)
    with pytest.raises(SlideNotFoundError, match="DICOMDIR is a directory of other files"):
        Slide.open(tmp_path / "DICOMDIR")


@pytest.mark.parametrize("kind", ["rgb", "jpeg", "jpeg-no-offsets", "jpeg-extended-offsets"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_an_error_not_blank_pixels(
    synthetic: SlideMaker, tmp_path: Path, kind: str, part: float
) -> None:
    source = next(file for file in synthetic(kind).files if file.name.startswith("level-0"))
    data = source.read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(WsiWebError) as caught, Slide.open(tmp_path) as slide:
        slide.read_region(0, 0, 0, *slide.size)
    assert not isinstance(caught.value, RegionError)
    assert "cut.dcm" in str(caught.value) or synthetic(kind).levels[0].instance_uids[0] in str(caught.value)


def test_unsupported_transfer_syntax(open_slide: Opener, tmp_path: Path) -> None:
    def film(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        dataset["PixelData"].is_undefined_length = True

    fake = {(0, 1): b"\x00\x00\x01\xb3" + bytes(60)}
    truth = make_slide(tmp_path, sizes=((64, 48),), syntax=JPEGBaseline8Bit, corrupt=fake, change=film)
    with pytest.raises(UnsupportedError, match=r"1\.2\.840\.10008\.1\.2\.4\.100|MPEG"):
        open_slide(truth).read_region(0, 0, 0, 9, 9)


def test_frame_count_that_cannot_be(open_slide: Opener, tmp_path: Path) -> None:
    """A TILED_FULL level that lacks frames names its instance; its pixels would be in the wrong place."""

    def shrink(dataset: Dataset) -> None:
        dataset.TotalPixelMatrixColumns += 64

    truth = make_slide(tmp_path, sizes=((300, 200),), change=shrink)
    with pytest.raises(MetadataError, match=truth.levels[0].instance_uids[0].replace(".", r"\.")):
        open_slide(truth)


def test_pyramids_are_chosen_by_index_or_uid(open_slide: Opener, tmp_path: Path) -> None:
    """Two pyramids in one series: the larger is the default."""
    uids = {64: generate_uid(), 48: generate_uid()}

    def name(dataset: Dataset) -> None:
        dataset.PyramidUID = uids[dataset.Columns]

    small = make_slide(tmp_path, sizes=((300, 200),), tile_size=(48, 48), change=name)

    def join(dataset: Dataset) -> None:
        name(dataset)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = small.study_uid, small.series_uid

    large = make_slide(tmp_path, sizes=((320, 220), (160, 110)), tile_size=(64, 48), change=join)
    slide = open_slide(small)
    assert [level.size for level in slide.levels] == [(320, 220), (160, 110)]
    assert len(slide.pyramids) == 2
    np.testing.assert_array_equal(slide.read_region(0, 0, 0, 320, 220), large.truth(0, 0, 0, 320, 220))
    for choice in (1, uids[48]):
        other = open_slide(small, pyramid=choice)
        assert [level.size for level in other.levels] == [(300, 200)]
        np.testing.assert_array_equal(other.read_region(0, 0, 0, 300, 200), small.truth(0, 0, 0, 300, 200))
    with pytest.raises(WsiWebError):
        open_slide(small, pyramid=7)


@pytest.mark.parametrize(("given", "error"), [
    ({"series_uid": 12}, SlideNotFoundError),
    ({"series_uid": [1, 2]}, SlideNotFoundError),
    ({"mpp": "a"}, MetadataError),
    ({"mpp": (1, "b")}, MetadataError),
    ({"mpp": "12"}, MetadataError),
    ({"mpp": b"12"}, MetadataError),
    ({"mpp": {0.2, 0.3}}, MetadataError),
    ({"mpp": (1, 2, 3)}, MetadataError),
    ({"mpp": 10**400}, MetadataError),
    ({"pyramid": False}, RegionError),
    ({"pyramid": -1}, RegionError),
    ({"pyramid": 0.0}, RegionError),
    ({"options": {"max_connections": 2}}, ValueError),
])  # fmt: skip
def test_arguments_of_the_wrong_kind(synthetic: SlideMaker, given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Slide.open(synthetic("rgb").folder, **given)


@pytest.mark.parametrize(("given", "mpp"), [
    (np.float32(0.5), (0.5, 0.5)), (np.int64(1), (1, 1)), (np.array([0.5, 0.25]), (0.5, 0.25)), ([1, 2], (1, 2)),
])  # fmt: skip
def test_numbers_of_any_kind_are_numbers(synthetic: SlideMaker, given: Any, mpp: tuple[float, float]) -> None:
    with Slide.open(synthetic("rgb").folder, mpp=given, pyramid=np.int64(0)) as slide:  # type: ignore[arg-type]
        assert slide.mpp == mpp
        assert {type(axis) for axis in slide.mpp} == {float}


@pytest.mark.parametrize(("given", "said"), [
    ({"session": "x"}, "session= is a requests.Session, not str"),
    ({"session": requests.Session}, r"requests.Session()"),
    ({"session": object()}, "session= is a requests.Session, not object"),
    ({"headers": {5: "a"}}, "headers="), ({"headers": {b"Key": "SECRET"}}, "headers="), ({"headers": "a"}, "headers="),
    ({"study_uid": 5}, "study_uid"), ({"wado_url_prefix": 5}, "wado_url_prefix"), ({"qido_url_prefix": b"a"}, "qido"),
    ({"verify": 5}, "verify="), ({"cert": 5}, "cert="), ({"cert": ("a", None)}, "cert="),
    ({"auth": ["bob", "SECRET"]}, "auth="), ({"auth": ("bob", None)}, "auth="), ({"auth": (None, "SECRET")}, "auth="),
])  # fmt: skip
def test_connections_of_the_wrong_kind(
    server: DICOMwebServer, truth: SyntheticSlide, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(WsiWebError) as caught:
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), **given)
    assert said in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert server.count() == 0


@pytest.mark.parametrize("options", [5, {}, {"max_attempts": 3}])
@pytest.mark.parametrize("ask", [Slide.open, search, examine])
def test_options_of_the_wrong_kind(ask: Callable[..., object], options: Any) -> None:
    with pytest.raises(ValueError, match=f"options is a ReadOptions, not {type(options).__name__}"):
        ask("http://127.0.0.1:9/studies/1/series/2", options=options)


def test_a_slide_is_made_by_opening_it(truth: SyntheticSlide) -> None:
    for place, more in ((truth.folder, {}), ("https://host/studies/1/series/2", {"token": "a"}), ([truth.folder], {})):
        with pytest.raises(WsiWebError, match=r"Slide\.open"):
            Slide(place, **more)  # type: ignore[arg-type]


def test_lists_of_the_wrong_kind(truth: SyntheticSlide) -> None:
    for wrong in (None, 5, b"x"):
        with pytest.raises(SlideNotFoundError, match=f"no {type(wrong).__name__}"):
            Slide.open([truth.folder, wrong])


def test_a_series_that_is_not_among_the_files(truth: SyntheticSlide) -> None:
    said = f"it holds no DICOM file of series 1.2, but {len(truth.files)} of others"
    with pytest.raises(SlideNotFoundError, match=re.escape(said)):
        Slide.open(truth.folder, series_uid="1.2")


@pytest.mark.parametrize("plane", ["a", None, float("nan"), [0.0]])
def test_focal_planes_of_the_wrong_kind(open_slide: Opener, synthetic: SlideMaker, plane: Any) -> None:
    slide = open_slide(synthetic("rgb"))
    if plane is None:
        slide.read_region(0, 0, 0, 5, 5, focal_plane=plane)
    else:
        with pytest.raises(RegionError):
            slide.read_region(0, 0, 0, 5, 5, focal_plane=plane)


def test_options_take_numpys_integers() -> None:
    assert ReadOptions(max_connections=np.int64(3)).max_connections == 3  # type: ignore[arg-type]
