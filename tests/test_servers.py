"""Every server of the field: the right pixels, in the form in which they are stored, for the fewest requests."""

from __future__ import annotations

import pickle
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import numpy as np
import personalities
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault
from personalities import PERSONALITIES
from serving import forms, open_slide, prefixes, tell_lossy, tell_transfer_syntax
from synthetic import srgb_profile

from wsiweb import ReadOptions, Slide, SlideNotFoundError, SourceError, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import SlideMaker
    from personalities import Form
    from synthetic import SyntheticSlide

BOXES = [(128 * place, 0, 128, 96) for place in range(3)]
"""Of four frames each, none of them twice."""
EXPLICIT = "1.2.840.10008.1.2.1"
KINDS = ("jpeg", "jpeg2000", "rgb")
FIRST_SIGHT: tuple[tuple[int, int, int], Form] = (1, 1, 1), "native"
COSTS: dict[tuple[str, str], tuple[tuple[int, int, int], Form]] = {
    # Decompressed at first; what is stored goes by its own name. The frames of the first answer are kept.
    ("dcm4chee", "jpeg"): ((1, 1, 1), "native"),
    ("dcm4chee", "jpeg2000"): ((1, 1, 1), "native"),
    ("IDC proxy, huge study", "jpeg"): ((1, 1, 1), "native"),
    # Native frames cannot be had; two more forms are tried, once.
    ("IDC proxy, huge study", "jpeg2000"): ((1, 3, 1), "raw"),
    ("Orthanc, old core", "rgb"): ((3, 1, 1), "native"),
    # Lists are refused: halved down to single frames, once.
    ("static-wado", "jpeg"): ((7, 4, 4), "native"),
    ("static-wado", "jpeg2000"): ((7, 4, 4), "native"),
    ("static-wado", "rgb"): ((7, 4, 4), "native"),
    ("dcmjs", "jpeg"): ((7, 4, 4), "native"),
    ("dcmjs", "jpeg2000"): ((7, 4, 4), "native"),
    ("dcmjs", "rgb"): ((7, 4, 4), "native"),
    # Four forms of multipart are refused, then single frames go.
    ("single part only", "jpeg"): ((8, 4, 4), "native"),
    ("single part only", "jpeg2000"): ((8, 4, 4), "native"),
    ("single part only", "rgb"): ((7, 4, 4), "native"),
}
"""Requests for each of three boxes, and the form in which the last comes; else ``FIRST_SIGHT``."""


@pytest.fixture(params=PERSONALITIES)
def server(request: pytest.FixtureRequest, truth: SyntheticSlide) -> Iterator[DICOMwebServer]:
    with DICOMwebServer(truth.folder, personality=PERSONALITIES[request.param]) as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def truth(synthetic: SlideMaker, kind: str) -> SyntheticSlide:
    return synthetic(kind)


def read(slide: Slide, truth: SyntheticSlide, box: tuple[int, int, int, int]) -> None:
    np.testing.assert_array_equal(slide.read_region(0, *box), truth.truth(0, *box))


def test_stored_forms_for_the_fewest_requests(
    server: DICOMwebServer, truth: SyntheticSlide, kind: str, request: pytest.FixtureRequest
) -> None:
    tell_transfer_syntax(server)
    costs, form = COSTS.get((server.personality.name, kind), FIRST_SIGHT)
    spent = []
    with open_slide(server, truth, options=ReadOptions(max_attempts=2)) as slide:
        for box in BOXES:
            before = server.count("frames")
            read(slide, truth, box)
            spent.append(server.count("frames") - before)
        assert slide.stats.requests == server.count()
    assert (tuple(spent), forms(server)[-1]) == (costs, form)


def test_requests_are_what_servers_can_read(server: DICOMwebServer, truth: SyntheticSlide, kind: str) -> None:
    """One range, never JPEG for what is not (it would be compressed again), frames ascending, our own name."""
    tell_transfer_syntax(server)
    with open_slide(server, truth, options=ReadOptions(max_attempts=1)) as slide:
        for box in BOXES:
            with suppress(SourceError):  # some of the servers above
                read(slide, truth, box)
    for request in server.requests:
        accept = request.headers["accept"]
        assert "," not in accept
        assert "image/jpeg" not in accept or kind == "jpeg"
        assert list(request.frame_numbers) == sorted(set(request.frame_numbers))
        assert "//" not in request.path
        assert request.headers["user-agent"].startswith("wsiweb/")
        assert request.headers["host"] == server.host.removeprefix("http://")


UNTOLD = {
    # What is stored is known only from LossyImageCompression: who sends raw pixels of that has decompressed them.
    ("dcm4chee", "jpeg", "01"): ((1, 1, 1), "native"),
    # Lossless: raw pixels may well be what is stored.
    ("dcm4chee", "jpeg2000", "00"): ((1, 1, 1), "raw"),
    ("dcm4chee", "rgb", "00"): ((1, 1, 1), "native"),
    ("Orthanc 1.7", "jpeg", "01"): ((1, 1, 1), "native"),
    ("Orthanc 1.7", "rgb", "00"): ((1, 1, 1), "native"),
    ("Orthanc, old core", "rgb", "00"): ((3, 1, 1), "native"),
    ("DICOMcloud", "jpeg", "01"): ((1, 1, 1), "native"),
}


@pytest.mark.parametrize(("name", "kind", "lossy"), UNTOLD)
def test_servers_that_do_not_tell_what_they_store(
    synthetic: SlideMaker, name: str, kind: str, lossy: str, request: pytest.FixtureRequest
) -> None:
    truth = synthetic(kind)
    spent = []
    with DICOMwebServer(truth.folder, personality=PERSONALITIES[name]) as server:
        tell_lossy(server, lossy)
        with open_slide(server, truth) as slide:
            for box in BOXES:
                before = server.count("frames")
                read(slide, truth, box)
                spent.append(server.count("frames") - before)
        assert (tuple(spent), forms(server)[-1]) == UNTOLD[name, kind, lossy]


def test_what_was_learnt_outlives_a_pickle(synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder, personality=personalities.ORTHANC_OLD_CORE) as server:
        with open_slide(server, truth) as slide:
            read(slide, truth, BOXES[0])
            before = server.count()
            with pickle.loads(pickle.dumps(slide)) as copied:
                read(copied, truth, BOXES[1])
        assert server.count() - before == 1


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.usefixtures("hurried")
def test_a_500_writes_no_form_off(synthetic: SlideMaker, monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    """It may pass: what has brought frames decompressed meanwhile is not asked with for good."""
    truth, outage = synthetic("jpeg2000"), Fault(status=500)
    monkeypatch.setattr("wsiweb.sources.retrieval._DOUBT_SECONDS", 0 if later else 3600)
    with DICOMwebServer(truth.folder, personality=personalities.GOOGLE) as server, ExitStack() as stack:
        tell_transfer_syntax(server)
        slide = stack.enter_context(open_slide(server, truth, options=ReadOptions(max_connections=1)))
        server.fault = lambda request: None if request.headers["accept"].endswith(EXPLICIT) else outage
        read(slide, truth, BOXES[0])
        server.fault = lambda request: None
        read(slide, truth, BOXES[1])
        assert forms(server)[-2:] == ["raw", "native" if later else "raw"]
        elsewhere = stack.enter_context(pickle.loads(pickle.dumps(slide)))  # where moments mean nothing
        read(elsewhere, truth, BOXES[2])
        assert forms(server)[-1] == "native"


@pytest.mark.parametrize("kind", ["jpeg2000", "rgb"])
def test_no_lossy_transcoding_in_silence(synthetic: SlideMaker, kind: str) -> None:
    truth = synthetic(kind)
    with DICOMwebServer(truth.folder, personality=personalities.ALWAYS_LOSSY) as server:
        tell_lossy(server, "00")
        tell_transfer_syntax(server)
        with open_slide(server, truth, options=ReadOptions(max_attempts=2)) as slide:
            with pytest.raises(WsiWebError, match=r"(?i)lossy|transcod|re-?encod") as caught:
                slide.read_region(0, *BOXES[0])
            assert truth.levels[0].instance_uids[0] in str(caught.value)
        assert server.count("frames") <= 5  # each form of the request once


# Metadata, searches, bulk data ------------------------------------------------------------------------------

EXTRA = {"Orthanc, old core": 3}
"""Requests for metadata beyond one: an extract is completed instance by instance."""


@pytest.mark.parametrize("name", PERSONALITIES)
def test_a_slide_opens_by_its_series(synthetic: SlideMaker, name: str) -> None:
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder, personality=PERSONALITIES[name]) as server:
        with Slide.open(server.url, series_uid=truth.series_uid, **prefixes(server)) as slide:
            assert slide.study_uid == truth.study_uid
            assert [level.size for level in slide.levels] == [level.size for level in truth.levels]
            assert [level.mpp for level in slide.levels] == [pytest.approx(level.mpp) for level in truth.levels]
            assert slide.properties["vendor"] == "Acme"
        assert (server.count("search"), server.count("metadata")) == (1, 1 + EXTRA.get(name, 0))


@pytest.mark.parametrize("name", PERSONALITIES)
def test_unknown_series_are_not_found(synthetic: SlideMaker, name: str) -> None:
    with DICOMwebServer(synthetic("rgb").folder, personality=PERSONALITIES[name]) as server:
        with pytest.raises(SlideNotFoundError, match=r"1\.2\.3\.99"):
            Slide.open(server.url, series_uid="1.2.3.99", **prefixes(server))
        with pytest.raises(SlideNotFoundError, match=r"1\.2\.3\.99.*404"):
            Slide.open(server.url, study_uid="1.2.3", series_uid="1.2.3.99", **prefixes(server))
        assert server.count() == 2


BULK_REQUESTS = {"Google Healthcare v1beta1": 2}
"""A multipart answer is asked for first, which Google refuses."""


@pytest.mark.parametrize("name", PERSONALITIES)
def test_icc_profiles(synthetic: SlideMaker, name: str) -> None:
    profile = srgb_profile()
    truth = synthetic("rgb", icc_profile=profile, sizes=((200, 150),))
    with DICOMwebServer(truth.folder, personality=PERSONALITIES[name]) as server, open_slide(server, truth) as slide:
        if name == "Azure":  # has none
            assert slide.icc_profile is None
        else:
            assert slide.icc_profile == profile
            assert server.count("bulk") == BULK_REQUESTS.get(name, 1)


# Frames that do not exist -----------------------------------------------------------------------------------

BAD_FRAME_REQUESTS = {
    # 3 -> 1 and 2 -> 1 and 1; where 400 may mean anything, another form of the request once.
    "good": 5,
    "dcm4chee": 2,  # 206, then 404 for the one that is left out
    "Google Healthcare v1": 6,
    "Orthanc 1.7": 3,  # ends early, then 400, then another form once
    "static-wado": 3,
}


@pytest.mark.parametrize("name", BAD_FRAME_REQUESTS)
def test_a_frame_that_does_not_exist_is_named(synthetic: SlideMaker, name: str, request: pytest.FixtureRequest) -> None:
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder, personality=PERSONALITIES[name]) as server, open_slide(server, truth) as slide:
        read(slide, truth, BOXES[0])  # the server is known
        level = next(i for i in server.instances if i.uid("SOPInstanceUID") == truth.levels[0].instance_uids[0])
        del level.frames[-1]
        before = server.count("frames")
        with pytest.raises(SourceError) as caught:
            slide.read_region(0, 640, 432, 60, 98)  # frames 110, 121, 132
        assert caught.value.frame_numbers == (132,)
        assert "132" in str(caught.value)
        assert truth.levels[0].instance_uids[0] in str(caught.value)
        assert caught.value.status in (400, 404)
        # Whoever has not begun when the frame is found bad does not.
        assert 1 <= server.count("frames") - before <= BAD_FRAME_REQUESTS[name]
        read(slide, truth, (640, 432, 60, 90))  # the others of the list
