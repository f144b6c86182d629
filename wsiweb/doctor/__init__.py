"""What works on a DICOMweb service, what it costs, and how it will be asked because of that.

from wsiweb.doctor import examine

report = examine("https://host/dicomWeb/studies/1.2/series/3.4")
"""

from __future__ import annotations

from wsiweb.doctor.examination import examine
from wsiweb.doctor.report import Check, Report

__all__ = ["Check", "Report", "examine"]


def __dir__() -> list[str]:
    """Return what there is to use."""
    return list(__all__)
