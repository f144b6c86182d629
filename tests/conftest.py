"""Fixtures: synthetic slides by kind, a slide opened from a folder or over HTTP, Orthanc, real slides."""

from __future__ import annotations

import os
import signal
import ssl
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orthanc as orthanc_server
import pytest
from dicomweb_server import DICOMwebServer
from kinds import KINDS
from serving import self_signed
from synthetic import SyntheticSlide, make_slide

from wsiweb import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


class SlideMaker(Protocol):
    """Makes a synthetic slide: a named kind (made once a session), or a new one from keyword arguments."""

    def __call__(self, kind: str = ..., /, **overrides: Any) -> SyntheticSlide: ...


class Opener:
    """Opens synthetic slides from one kind of source, and closes them (and their servers) at the end."""

    def __init__(self, source: str, stack: ExitStack) -> None:
        self.source = source
        self.servers: list[DICOMwebServer] = []
        self._stack = stack

    def __call__(self, synthetic: SyntheticSlide, **kwargs: Any) -> Slide:
        place: str | Path = synthetic.folder
        if self.source == "web":
            self.servers.append(self._stack.enter_context(DICOMwebServer(synthetic.folder)))
            place = self.servers[-1].series_url(synthetic.study_uid, synthetic.series_uid)
        return self._stack.enter_context(Slide.open(place, **kwargs))

    def requests(self) -> int:
        """Return the number of requests made so far to any of the servers; 0 for local slides."""
        return sum(server.count() for server in self.servers)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> SlideMaker:
    made: dict[str, SyntheticSlide] = {}

    def maker(kind: str = "rgb", /, **overrides: Any) -> SyntheticSlide:
        if overrides:
            return make_slide(tmp_path_factory.mktemp(kind), **{**KINDS[kind], **overrides})
        if kind not in made:
            made[kind] = make_slide(tmp_path_factory.mktemp(kind), **KINDS[kind])
        return made[kind]

    return maker


@pytest.fixture(params=["local", "web"])
def open_slide(request: pytest.FixtureRequest) -> Iterator[Opener]:
    with ExitStack() as stack:
        yield Opener(request.param, stack)


@pytest.fixture
def open_web() -> Iterator[Opener]:
    with ExitStack() as stack:
        yield Opener("web", stack)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backoff be short: how long it is, is tested elsewhere."""
    monkeypatch.setattr("wsiweb.sources.retry.BACKOFF_BASE_SECONDS", 0.01)


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Let no file grow beyond so many bytes, for the time of a ``with``: to who writes, that is a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def full(size: int) -> Iterator[None]:
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return full


@pytest.fixture(scope="session")
def slides() -> Path:
    """Folder of real slides: the variable WSIWEB_SLIDES, else shared/slides beside the checkout."""
    folder = Path(os.environ.get("WSIWEB_SLIDES") or Path(__file__).parents[2] / "shared" / "slides")
    if not (folder / "MANIFEST.md").is_file():
        pytest.skip(f"no real slides at {folder} (set WSIWEB_SLIDES)")
    return folder


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[orthanc_server.Orthanc]:
    program = orthanc_server.find_program()
    if program is None:
        pytest.skip("Orthanc or its DICOMweb plugin is not installed (apt install orthanc orthanc-dicomweb)")
    with orthanc_server.running(program, tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def no_certificates_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the environment says of certificates."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a self-signed certificate with its key, for server and client alike."""
    return self_signed(tmp_path_factory.mktemp("tls"), "DNS:localhost,IP:127.0.0.1")


@pytest.fixture
def secure(certificate: Path) -> ssl.SSLContext:
    """Return a server's side of TLS that takes a client's certificate, and needs none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context
