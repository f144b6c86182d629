"""Over TLS: what is cut off, what comes unasked, what fails before anything is said."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from dicomweb_server import DICOMwebServer
from faults import Fault
from kinds import KINDS
from personalities import GOOD
from requests.adapters import BaseAdapter, HTTPAdapter
from serving import self_signed
from synthetic import make_slide

from wsiweb import AuthenticationError, ProtocolError, ReadOptions, Slide, SourceError
from wsiweb.sources import trust, wire
from wsiweb.sources.base import Cancellation
from wsiweb.sources.http import Service
from wsiweb.sources.retry import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import SlideMaker

pytestmark = pytest.mark.usefixtures("no_certificates_from_outside")

PLAIN = b"A" * 300_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Listener:
    """Accepts connections, over TLS, and answers requests with a function of the socket and the request's number."""

    def __init__(self, context: ssl.SSLContext | None, answer: Callable[[socket.socket, int], None]) -> None:
        self.connections = self.requests = 0
        self._context, self._answer = context, answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            if self._context is not None:
                threading.Thread(target=self._serve, args=(connection, self._context), daemon=True).start()

    def _serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                while secure.recv(65_536):
                    self.requests += 1
                    self._answer(secure, self.requests)
        except OSError:  # the reader has gone
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
        self._listener.close()
        for connection in self._open:
            connection.close()


@contextmanager
def listening(context: ssl.SSLContext | None, answer: Callable[[socket.socket, int], None]) -> Iterator[Listener]:
    listener = Listener(context, answer)
    try:
        yield listener
    finally:
        listener.close()


def service_of(
    listener: Listener, certificate: Path, *, adapter: BaseAdapter | None = None, cert: Path | None = None
) -> Service:
    session = requests.Session()
    session.verify = str(certificate)
    session.cert = None if cert is None else str(cert)
    if adapter is not None:
        session.mount("https://", adapter)
    return Service(
        listener.url, session, qido_url_prefix=None, wado_url_prefix=None, connections=2, timeout_seconds=10
    )  # fmt: skip


def body_of(service: Service, cancellation: Cancellation | None = None) -> bytes:
    with service.get(service.base_url + "/x", "*/*", cancellation=cancellation) as answer:
        return b"".join(answer.chunks)


@pytest.mark.parametrize("length", [True, False])
def test_what_is_cut_off_is_no_ciphertext(secure: ssl.SSLContext, certificate: Path, length: bool) -> None:
    """Not even where the end of the connection is that of the body."""
    sent = threading.Event()

    def answer(secure_socket: socket.socket, _number: int) -> None:
        head = HEAD % len(PLAIN) if length else b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        secure_socket.sendall(head + PLAIN)
        sent.set()

    body: list[bytes] = []

    def read_and_cut(service: Service) -> None:
        cancellation = Cancellation()
        with service.get(service.base_url + "/x", "*/*", cancellation=cancellation) as got:
            for chunk in got.chunks:
                body.append(chunk)
                sent.wait(1)  # it lies in the socket, encrypted, unless that is too small
                cancellation.cancel()

    with listening(secure, answer) as listener, pytest.raises(SourceError):
        read_and_cut(service_of(listener, certificate))
    assert body
    assert PLAIN.startswith(b"".join(body))


def test_who_comes_too_late_cuts_nothing_off(secure: ssl.SSLContext, certificate: Path) -> None:
    """The connection may serve somebody else by then."""

    def answer(secure_socket: socket.socket, _number: int) -> None:
        secure_socket.sendall(HEAD % len(PLAIN) + PLAIN)

    cancellation = Cancellation()
    with listening(secure, answer) as listener:
        service = service_of(listener, certificate)
        with service.get(service.base_url + "/x", "*/*", cancellation=cancellation) as got:
            assert b"".join(got.chunks) == PLAIN
            cancellation.cancel()
        assert body_of(service) == PLAIN
        assert (listener.connections, listener.requests) == (1, 2)


class Throttle(BaseAdapter):
    """An adapter around another, as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = HTTPAdapter()

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        return self.inner.send(*args, **kwargs)

    def close(self) -> None:
        self.inner.close()


def test_connections_of_the_users_own_kind_are_cut_off_too(secure: ssl.SSLContext, certificate: Path) -> None:
    """And what was read of them is no ciphertext."""

    def answer(secure_socket: socket.socket, _number: int) -> None:
        secure_socket.sendall(HEAD % (len(PLAIN) + 1) + PLAIN)  # and waits

    body: list[bytes] = []

    def read_and_cut(service: Service) -> None:
        cancellation = Cancellation()
        with service.get(service.base_url + "/x", "*/*", cancellation=cancellation) as got:
            threading.Timer(0.2, cancellation.cancel).start()
            body.extend(got.chunks)

    with listening(secure, answer) as listener, pytest.raises(ProtocolError):  # and not the timeout
        read_and_cut(service_of(listener, certificate, adapter=Throttle()))
    assert PLAIN.startswith(b"".join(body))


@pytest.mark.parametrize("chunked", [True, False])
def test_what_comes_unasked_is_no_answer(secure: ssl.SSLContext, certificate: Path, chunked: bool) -> None:
    """Two answers in one record, the first as long as what is read at once: TLS holds the second, and no socket."""

    def answer(secure_socket: socket.socket, number: int) -> None:
        letter = b"%d" % number
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f00\r\n" if chunked else HEAD % 0x1F00
        end = b"\r\n0\r\n\r\n" if chunked else b""
        padding = b"X-Padding: %s\r\n\r\n"
        missing = 8192 - len(head + end) - 0x1F00 - len(padding % b"") + 2
        head = head.replace(b"\r\n\r\n", b"\r\n" + padding % (b"x" * missing), 1)
        whole = head + letter * 0x1F00 + end
        assert len(whole) == 8192
        secure_socket.sendall(whole + whole.replace(letter * 0x1F00, b"!" * 0x1F00))

    with listening(secure, answer) as listener:
        service = service_of(listener, certificate)
        assert [body_of(service)[:1] for _ in range(3)] == [b"1", b"2", b"3"]


def test_connections_that_were_idle_for_long_are_left(
    secure: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router on the way may have forgotten them, and says nothing."""
    with listening(secure, lambda secure_socket, _: secure_socket.sendall(HEAD % 2 + b"ok")) as listener:
        service = service_of(listener, certificate)
        assert [body_of(service) for _ in range(2)] == [b"ok"] * 2
        assert listener.connections == 1
        monkeypatch.setattr(wire, "IDLE_SECONDS", 0)
        assert body_of(service) == b"ok"
        assert listener.connections == 2


def test_who_answers_slowly_is_not_idle(
    secure: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(secure_socket: socket.socket, _number: int) -> None:
        time.sleep(1.2)
        secure_socket.sendall(HEAD % 2 + b"ok")

    monkeypatch.setattr(wire, "IDLE_SECONDS", 1)
    with listening(secure, answer) as listener:
        service = service_of(listener, certificate)
        assert [body_of(service) for _ in range(2)] == [b"ok"] * 2
        assert listener.connections == 1


def test_who_never_answers_the_handshake_is_not_asked_again(synthetic: SlideMaker) -> None:
    """As who cannot be reached: the port may speak plain http, and wait for a request."""
    truth = synthetic("rgb")
    with listening(None, lambda _socket, _number: None) as listener:
        where = f"{listener.url}/studies/{truth.study_uid}/series/{truth.series_uid}"
        with pytest.raises(UnreachableError, match="handshake"):
            Slide.open(where, options=ReadOptions(timeout_seconds=0.2))
        assert listener.connections == 1


@pytest.mark.parametrize("name", ["verify", "cert"])
def test_an_empty_path_is_not_taken_for_none(name: str) -> None:
    """``verify=os.environ.get("CA", "")`` would turn verification off."""
    ways: Any = {name: ""}
    with pytest.raises(AuthenticationError, match=f"{name}= is .* not an empty one"):
        Slide.open("https://127.0.0.1:9/studies/1.2/series/3.4", **ways)


@pytest.mark.parametrize("in_session", [True, False])
def test_an_encrypted_key_asks_no_terminal(
    synthetic: SlideMaker, secure: ssl.SSLContext, certificate: Path, tmp_path: Path, in_session: bool
) -> None:
    truth = synthetic("rgb")
    encrypted = tmp_path / "encrypted.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", str(certificate), "-aes256", "-passout", "pass:word", "-out", str(encrypted)],
        check=True, capture_output=True,
    )  # fmt: skip
    encrypted.write_text(encrypted.read_text() + certificate.with_suffix(".crt").read_text())
    ways: dict[str, Any] = {"cert": str(encrypted)}
    if in_session:
        session = requests.Session()
        session.cert = str(encrypted)
        ways = {"session": session}
    with DICOMwebServer(truth.folder, tls=secure) as server:
        with pytest.raises(SourceError, match=r"key is encrypted.*without a password"):
            Slide.open(server.series_url(truth.study_uid, truth.series_uid), verify=str(certificate), **ways)
        assert server.count() == 0


def test_a_certificate_for_another_name(synthetic: SlideMaker, tmp_path: Path) -> None:
    truth = synthetic("rgb")
    file = self_signed(tmp_path, "DNS:elsewhere.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with DICOMwebServer(truth.folder, tls=context) as server, pytest.raises(SourceError, match="for another name"):
        Slide.open(server.series_url(truth.study_uid, truth.series_uid), verify=str(file))


OK = HEAD % 2 + b"ok"


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the files of authorities that are read from now on."""
    read: list[str] = []
    load = ssl.SSLContext.load_verify_locations

    def counting(context: ssl.SSLContext, cafile: str | None = None, *others: Any) -> None:
        read.append(str(cafile))
        load(context, cafile, *others)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counting)
    trust._context.cache_clear()
    return read


def test_whom_to_trust_is_read_once(
    synthetic: SlideMaker, secure: ssl.SSLContext, certificate: Path, read_files: list[str]
) -> None:
    """And not for each connection: the file of the web's authorities takes longer than a small region."""
    truth = synthetic("jpeg", sizes=((1500, 900),), tile_size=(64, 64))
    boxes = [(300 * column, 300 * row, 300, 300) for row in range(3) for column in range(5)]
    with DICOMwebServer(truth.folder, tls=secure) as server:
        server.fault = lambda _request: Fault(latency_seconds=0.05)
        where = server.series_url(truth.study_uid, truth.series_uid)
        for _ in range(2):
            with Slide.open(where, verify=str(certificate)) as slide, ThreadPoolExecutor(len(boxes)) as threads:
                list(threads.map(lambda box, slide=slide: slide.read_region(0, *box), boxes))
        assert max(request.concurrent for request in server.requests) > 2
    assert read_files == [str(certificate)]


def test_another_file_of_the_same_name_is_read_anew(secure: ssl.SSLContext, certificate: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted.pem"
    another = self_signed(tmp_path, "DNS:localhost,IP:127.0.0.1")
    with listening(secure, lambda secure_socket, _: secure_socket.sendall(OK)) as listener:
        for file, is_right in ((certificate, True), (another, False), (certificate, True)):
            trusted.write_bytes(file.read_bytes() + b"\n" * is_right)
            service = service_of(listener, trusted)
            if is_right:
                assert body_of(service) == b"ok"
            else:
                with pytest.raises(SourceError, match="certificate"):
                    body_of(service)


def test_who_connects_anew_looks_at_the_file_anew(secure: ssl.SSLContext, certificate: Path, tmp_path: Path) -> None:
    """Whom it trusts no longer, it does not read from, on connections that were made before neither."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(certificate.read_bytes())
    another = self_signed(tmp_path, "DNS:localhost,IP:127.0.0.1")

    def answer(secure_socket: socket.socket, _number: int) -> None:
        secure_socket.sendall(OK)
        secure_socket.shutdown(socket.SHUT_RDWR)

    with listening(secure, answer) as listener:
        service = service_of(listener, trusted)
        assert [body_of(service) for _ in range(2)] == [b"ok"] * 2
        assert listener.connections == 2
        trusted.write_bytes(another.read_bytes() + b"\n")
        with pytest.raises(SourceError, match="certificate"):
            body_of(service)


def test_a_service_is_no_farther_for_its_handshake(
    synthetic: SlideMaker, secure: ssl.SSLContext, certificate: Path
) -> None:
    """How far it is decides over how many connections it is asked."""
    shaken: list[float] = []

    def slowly(*_: object) -> None:
        time.sleep(0.3)
        shaken.append(time.monotonic())

    secure.sni_callback = slowly
    truth = synthetic("rgb")
    with DICOMwebServer(truth.folder, tls=secure) as server:
        where = server.series_url(truth.study_uid, truth.series_uid)
        with Slide.open(where, verify=str(certificate)) as slide:
            source: Any = slide._reader.source
            assert 0 < source._wait_seconds <= time.monotonic() - shaken[0]


class AnyName(HTTPAdapter):
    """As requests_toolbelt's, for services that are reached by an address."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, assert_hostname=False)


def test_who_heeds_no_names_changes_nothing_for_others(tmp_path: Path) -> None:
    file = self_signed(tmp_path, "DNS:elsewhere.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with listening(context, lambda secure_socket, _: secure_socket.sendall(OK)) as listener:
        for _ in range(2):
            assert body_of(service_of(listener, file, adapter=AnyName())) == b"ok"
            with pytest.raises(SourceError, match="for another name"):
                body_of(service_of(listener, file))


def test_who_shows_a_certificate_shows_it_for_nobody_else(secure: ssl.SSLContext, certificate: Path) -> None:
    def answer(secure_socket: socket.socket, _number: int) -> None:
        assert isinstance(secure_socket, ssl.SSLSocket)
        shown = b"yes" if secure_socket.getpeercert() else b"no"
        secure_socket.sendall(HEAD % len(shown) + shown)

    with listening(secure, answer) as listener:
        for _ in range(2):
            assert body_of(service_of(listener, certificate)) == b"no"
            assert body_of(service_of(listener, certificate, cert=certificate)) == b"yes"


def test_a_loop_that_is_left_leaves_no_noise_in_the_cache(
    tmp_path: Path, secure: ssl.SSLContext, certificate: Path
) -> None:
    """Pixels that are not compressed, each frame an answer: nothing else would tell that they are none."""
    truth = make_slide(tmp_path, **{**KINDS["rgb"], "sizes": ((2048, 1536),), "tile_size": (512, 512)})
    boxes = [(x, y, 512, 512) for y in range(0, 1536, 512) for x in range(0, 2048, 512)]
    one_by_one = replace(GOOD, single_part=True)
    with DICOMwebServer(truth.folder, personality=one_by_one, tls=secure) as server:
        where = server.series_url(truth.study_uid, truth.series_uid)
        for _ in range(12):
            with Slide.open(where, verify=str(certificate), options=ReadOptions(tile_cache_bytes=0)) as slide:
                for _region in slide.read_regions(0, boxes):
                    break
                for box in boxes:
                    np.testing.assert_array_equal(slide.read_region(0, *box), truth.truth(0, *box))
