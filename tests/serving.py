"""What tests of servers share: opening a slide of a ``DICOMwebServer``, and what that answered."""

from __future__ import annotations

import gc
import queue
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
from frame_answers import MEDIA_TYPES

from wsiweb import Slide

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dicomweb_server import DICOMwebServer
    from personalities import Form
    from synthetic import SyntheticSlide

Result = TypeVar("Result")


def prefixes(server: DICOMwebServer) -> dict[str, Any]:
    """Return the arguments of ``Slide.open`` for a server whose services have roots of their own."""
    personality = server.personality
    return {
        "wado_url_prefix": personality.wado_prefix or None,
        "qido_url_prefix": personality.qido_prefix or None,
    }


def open_slide(server: DICOMwebServer, truth: SyntheticSlide, **kwargs: Any) -> Slide:
    kwargs = {"study_uid": truth.study_uid, "series_uid": truth.series_uid, **prefixes(server), **kwargs}
    return Slide.open(server.url, **kwargs)


def tell_transfer_syntax(server: DICOMwebServer) -> None:
    """Let the metadata say how the frames are stored: AvailableTransferSyntaxUID."""
    for instance in server.instances:
        instance.metadata["00083002"] = {"vr": "UI", "Value": [instance.transfer_syntax]}


def tell_lossy(server: DICOMwebServer, value: str) -> None:
    """Let the metadata say whether the images have ever been compressed lossily ("01") or not ("00")."""
    for instance in server.instances:
        instance.metadata["00282110"] = {"vr": "CS", "Value": [value]}


def forms(server: DICOMwebServer) -> list[Form | int]:
    """Return how each request for frames so far was answered, as far as its Accept decides."""
    with server.lock:
        asked = [request for request in server.requests if request.kind == "frames"]
    found: list[Form | int] = []
    for request in asked:
        syntax = next(i for i in server.instances if i.uid("SOPInstanceUID") == request.instance_uid).transfer_syntax
        media_type = MEDIA_TYPES.get(syntax, "application/octet-stream")
        form = server.personality.form(request.headers.get("accept", ""), media_type, syntax)
        found.append("native" if form == "raw" and syntax not in MEDIA_TYPES else form)
    return found


def within(seconds: float, action: Callable[[], Result]) -> Result:
    """Do something in a thread of its own, so that what never ends fails a test instead of stopping them all."""
    outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((action(), None))
        except BaseException as error:  # noqa: BLE001
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        pytest.fail(f"This did not end within {seconds:g} s.")
    if error is not None:
        raise error
    return cast("Result", result)


def threads() -> set[threading.Thread]:
    """Return the threads that the library runs at the moment."""
    # One whose start was interrupted stays listed, and never runs.
    return {thread for thread in threading.enumerate() if thread.name.startswith("wsiweb") and thread.is_alive()}


def settled() -> None:
    """Wait until the library runs no thread any more."""
    deadline = time.monotonic() + 20
    while threads() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not threads()


def self_signed(folder: Path, names: str) -> Path:
    """Make a certificate for such names; return the file with its key, beside which one without it lies (``.crt``)."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    file = folder / "both.pem"
    key, certificate = file.with_suffix(".key"), file.with_suffix(".crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=wsiweb", "-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(key.read_text() + certificate.read_text())
    return file
