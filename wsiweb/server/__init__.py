"""An embedded, read-only DICOMweb server over local files: for demonstrations, tests and work without a network.

Only what was indexed is served. There is neither authentication nor encryption: keep it on the loopback interface.
"""

from __future__ import annotations

from wsiweb.server.http import DicomWebServer

__all__ = ["DicomWebServer"]


def __dir__() -> list[str]:
    """Return what there is to use."""
    return list(__all__)
