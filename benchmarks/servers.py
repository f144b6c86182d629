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

import certifi

from benchmarks.environments import ROOT
from benchmarks.painting import part10_files
from benchmarks.profiles import PROFILES

if TYPE_CHECKING:
    from benchmarks.slides import StoredSlide

    Json = dict[str, Any]

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60


def environment(trusted: Path | None = None) -> dict[str, str]:
    """Return the environment of child processes: they find this package, from wherever they run, and whom to trust."""
    trust = {} if trusted is None else {"REQUESTS_CA_BUNDLE": str(trusted)}
    return {**os.environ, "PYTHONPATH": str(ROOT), **trust}


def certificate(folder: Path) -> Path | None:
    """Make a certificate for loopback; return the file with its key, or None where there is no openssl."""
    if shutil.which("openssl") is None:
        return None
    key, file = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9",
         "-subj", "/CN=benchmark", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file)],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + key.read_text())
    return file


class OwnServer:
    """The server that plays networks, while used as a context.

    Readers trust its certificate beside all authorities of the web, as they would have to elsewhere.
    """

    def __init__(self, slides: list[StoredSlide], nice: int, folder: Path) -> None:
        own = certificate(folder)
        self.trusted = None
        if own is not None:
            self.trusted = folder / "trusted.pem"
            self.trusted.write_bytes(Path(certifi.where()).read_bytes() + own.read_bytes())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", str(own or "-"), *(str(slide.folder) for slide in slides)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        if nice:
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)
        assert self._process.stdout is not None
        self._ports = [int(port) for port in self._process.stdout.readline().split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def url(self, profile: str) -> str:
        """Return the root of the service, over a network."""
        tls = PROFILES[profile].tls
        return f"{'https' if tls else 'http'}://127.0.0.1:{self._ports[tls]}/{profile}"

    def plays(self, profile: str) -> bool:
        """Whether it can play a network."""
        return not PROFILES[profile].tls or self.trusted is not None

    def taken(self) -> Json:
        """Return what was served since the last call."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[0]}/control", timeout=20) as answer:
            found: Json = json.load(answer)
        return found


class Orthanc:
    """Orthanc on a free port with a database of its own, while used as a context; it counts nothing."""

    trusted = None

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
