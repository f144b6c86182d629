"""Bodies that come in chunks, whole and broken; http.client says what is in them."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from wsiweb.sources.adapters import own_adapters
from wsiweb.sources.chunked import ChunkedDecoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE_ENDS = st.sampled_from([b"\r\n", b"\n"])
SIZE_ENDS = st.sampled_from([b"", b" ", b";name=value", b"\t; a; b"])
TRAILERS = st.lists(st.sampled_from([b"Digest: x", b"X-Cost:"]), max_size=2)


@st.composite
def transfers(draw: st.DrawFn) -> bytes:
    """Return chunks of any size, and what comes behind the last."""
    sent = b""
    for chunk in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6)):
        size = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(chunk)
        sent += size + draw(SIZE_ENDS) + draw(LINE_ENDS) + chunk + b"\r\n"
    sent += b"0" + draw(SIZE_ENDS) + draw(LINE_ENDS)
    return sent + b"".join(line + draw(LINE_ENDS) for line in [*draw(TRAILERS), b""])


def as_http_client_reads(sent: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(HEAD + sent)
        theirs.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(ours)
        response.begin()
        return response.read()


def pieces_of(sent: bytes, places: list[int]) -> Iterator[bytes]:
    cuts = sorted({0, len(sent), *(place % len(sent) for place in places)})
    return (sent[start:end] for start, end in itertools.pairwise(cuts))


def feed_all(decoder: ChunkedDecoder, pieces: Iterable[bytes]) -> bytes:
    return b"".join([decoder.feed(piece) for piece in pieces])


@given(transfers(), st.lists(st.integers(0, 500), max_size=8))
def test_the_body_is_that_of_http_client_however_it_is_cut(sent: bytes, places: list[int]) -> None:
    decoder, body = ChunkedDecoder(), b""
    for piece in pieces_of(sent, places):
        assert not decoder.finished
        body += decoder.feed(piece)
    assert decoder.finished
    assert body == as_http_client_reads(sent)


@given(transfers(), st.lists(st.integers(0, 500), max_size=8), st.data())
def test_what_breaks_off_is_not_whole(sent: bytes, places: list[int], data: st.DataObject) -> None:
    whole = as_http_client_reads(sent)
    cut = sent[: data.draw(st.integers(1, len(sent) - 1))]
    decoder = ChunkedDecoder()
    body = feed_all(decoder, pieces_of(cut, places))
    assert whole.startswith(body)
    try:
        decoder.feed(b"")
    except ValueError:
        assert not decoder.finished
    else:  # only lines of the trailer are missing, which http.client does not miss, either
        assert body == whole == as_http_client_reads(cut)


@pytest.mark.parametrize(
    "sent",
    [
        b"-5\r\nabc", b"zz\r\n", b"\r\n", b"0x5\r\nabcde\r\n", b"1_0\r\n", b" 5\r\n", b"F" * 16 + b"\r\n",
        b"0" * 20_000, b"3\r\nabcXX0\r\n\r\n", b"5;" + b"a" * 20_000, b"0\r\n" + b"A: b\r\n" * 4000, b"1\r\na\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:12]),
)  # fmt: skip
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_no_chunk_is_refused(sent: bytes, at_once: bool) -> None:
    pieces = [sent] if at_once else [sent[i : i + 1] for i in range(len(sent))]
    with pytest.raises(ValueError, match="chunk"):
        feed_all(ChunkedDecoder(), pieces)


def test_a_chunk_that_claims_to_be_huge_costs_nothing() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"0FFFFFFFFFFFFFFF\r\nabc") == b"abc"
    assert decoder.feed(b"def") == b"def"
    with pytest.raises(ValueError, match="missing"):
        decoder.feed(b"")


def test_many_small_chunks_are_one_read_and_the_connection_serves_again() -> None:
    """Each chunk by itself would be a turn of many threads at the interpreter."""
    body = b"%x\r\n%s\r\n" % (100, b"x" * 100) * 50 + b"0\r\nX-Cost: 1\r\n\r\n"
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_all(connection: socket.socket) -> None:
            connections.append(connection)
            with connection:
                while connection.recv(65_536):  # each request comes at once
                    connection.sendall(HEAD + body)

        def serve() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    threading.Thread(target=answer_all, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        with requests.Session() as session:
            session.adapters = own_adapters(session, 1)
            for _ in range(2):
                answer = session.get(f"http://127.0.0.1:{listener.getsockname()[1]}/", stream=True, timeout=10)
                reads = list(iter(functools.partial(answer.raw.read1, 1 << 18), b""))
                assert b"".join(reads) == b"x" * 5000
                assert len(reads) <= 2  # what came with the head, and the rest
        listener.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
    assert len(connections) == 1
