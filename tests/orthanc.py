"""Debian's Orthanc with its DICOMweb plugin, on a free port, with a database of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
import requests
from dicomweb_client import DICOMwebClient

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True, slots=True)
class Orthanc:
    """A running server."""

    root: str

    @property
    def url(self) -> str:
        return f"{self.root}/dicom-web"

    def store(self, files: Iterable[Path]) -> None:
        """Upload with STOW-RS."""
        with requests.Session() as session:
            client = DICOMwebClient(self.url, session=session)
            client.store_instances([pydicom.dcmread(file) for file in files])

    def empty(self) -> None:
        """Delete everything (some slides share their UIDs)."""
        for patient in requests.get(f"{self.root}/patients", timeout=20).json():
            requests.delete(f"{self.root}/patients/{patient}", timeout=20).raise_for_status()


def find_program() -> str | None:
    """Return the program, if it and the plugin are installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    return program if PLUGIN.is_file() else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(program: str, folder: Path) -> Iterator[Orthanc]:
    """Start a server that keeps its database in ``folder``; ends only what it started."""
    port = free_port()
    configuration = {
        "Name": "wsiweb-test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "KeepAlive": True,
        "HttpThreadsCount": 20,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "EnableWado": False,
            "StudiesMetadata": "Full",
            "SeriesMetadata": "Full",
        },
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, "orthanc.json"], cwd=folder, stdout=log, stderr=log)
    server = Orthanc(f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(server, process, folder / "orthanc.log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        try:
            requests.get(f"{server.root}/system", timeout=5).raise_for_status()
        except requests.RequestException:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"Orthanc did not start:\n{log.read_text(errors='replace')[-2000:]}")
