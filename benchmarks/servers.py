"""The servers that are read from, each a process of its own: ``benchmarks.server``, and Debian's Orthanc as it is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.environments import ROOT
from benchmarks.painting import part10_files

if TYPE_CHECKING:
    from benchmarks.slides import StoredSlide

    Json = dict[str, Any]

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60


def environment() -> dict[str, str]:
    """Return the environment of child processes: they find this package, from wherever they run."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class OwnServer:
    """The server that plays networks, while used as a context."""

    def __init__(self, slides: list[StoredSlide], nice: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", *(str(slide.folder) for slide in slides)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        if nice:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)
        assert self._process.stdout is not None
        self._url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def url(self, profile: str) -> str:
        """Return the root of the service, over a network."""
        return f"{self._url}/{profile}"

    def taken(self) -> Json:
        """Return what was served since the last call."""
        with urllib.request.urlopen(f"{self._url}/control", timeout=20) as answer:
            found: Json = json.load(answer)
        return found


class Orthanc:
    """Orthanc on a free port with a database of its own, while used as a context; it counts nothing."""

    def __init__(self, program: str, folder: Path, slides: list[StoredSlide]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        folder.mkdir()
        settings = {
            "Name": "benchmark",
            "StorageDirectory": "storage",
            "IndexDirectory": "storage",
            "HttpPort": port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._root = f"http://127.0.0.1:{port}"
        with (folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen([program, "orthanc.json"], cwd=folder, stdout=log, stderr=log)
        try:
            self._wait()
            for slide in slides:
                for file in part10_files(slide):
                    request = urllib.request.Request(f"{self._root}/instances", data=file.read_bytes(), method="POST")
                    urllib.request.urlopen(request, timeout=60).close()
        except BaseException:
            self._end()
            raise

    def _wait(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self._root}/system", timeout=5).close()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return
        raise RuntimeError("Orthanc did not start.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def url(self, _: str) -> str:
        """Return the root of the service."""
        return f"{self._root}/dicom-web"

    def taken(self) -> Json:
        """Nothing is known."""
        return {}


def orthanc_program() -> str | None:
    """Return Orthanc's program where it and its plugin are installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    return program if PLUGIN.is_file() else None
