"""What is known of a kind of service before it has shown anything: where to begin, and two quotas.

All of it is an opening bid. How many requests are made at once, and how long, follows what is measured (``pace``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ServiceKind:
    """A kind of DICOMweb service."""

    name: str
    max_connections: int | None = None
    """More are unwelcome."""
    parallel_requests: float | None = None
    """How many requests it really works on at once, until that is measured."""
    repeats_of_500: int = 2
    """How often a 500 is taken for passing weather."""
    advice: str = ""
    """For who is refused, or held back."""
    quota_path: str | None = None
    """Path on the host that answers with what is left of a quota."""


UNKNOWN = ServiceKind("unknown")
_BY_HOST = {
    "proxy.imaging.datacommons.cancer.gov": ServiceKind(
        "IDC proxy",
        max_connections=4,  # its policy: it is meant for viewers
        repeats_of_500=5,  # Google's throttling comes as a bare 500
        advice="The IDC proxy has a daily quota for each address, and may block one; GET /quota_usage there tells.",
        quota_path="/quota_usage",
    ),
    "healthcare.googleapis.com": ServiceKind("Google Cloud Healthcare API"),
}
_ORTHANC = ServiceKind("Orthanc", parallel_requests=1.0)  # each request reads and parses the whole instance
_ORTHANC_BULK = re.compile(rb'/instances/[0-9.]+/bulk/[0-9a-fA-F]{8}[/"]')


def recognise(url: str, headers: Mapping[str, str] | None = None, metadata: bytes = b"") -> ServiceKind:
    """Tell the kind of a service by its host, or by what it answered.

    Parameters
    ----------
    url
        Root of the service.
    headers
        Of its answer, by lower-case name.
    metadata
        The body: BulkDataURIs have the form of the program that wrote them, through any proxy.
    """
    kind = _BY_HOST.get(urlsplit(url).hostname or "")
    if kind is not None:
        return kind
    if _ORTHANC_BULK.search(metadata):
        return _ORTHANC
    # Without a proxy before it, Orthanc is the one that sends neither Date nor Server.
    if headers and headers.get("keep-alive") == "timeout=1" and not {"date", "server"} & set(headers):
        return _ORTHANC
    return UNKNOWN
