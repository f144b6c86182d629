"""Read whole-slide images over DICOMweb: regions, patches and PNGs as numpy arrays, without downloading the slide.

from wsiweb import Slide

with Slide.open("https://host/dicomWeb/studies/1.2/series/3.4") as slide:
    region = slide.read_region(0, x=10_000, y=8_000, w=1024, h=1024)
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from wsiweb.errors import (
    AuthenticationError,
    DecodeError,
    MetadataError,
    MetadataWarning,
    ProtocolError,
    QuotaExceededError,
    RegionError,
    SearchError,
    SlideNotFoundError,
    SourceError,
    SourceTimeoutError,
    ThrottledError,
    UnsupportedError,
    WsiWebError,
)
from wsiweb.options import ReadOptions

if TYPE_CHECKING:
    from wsiweb import doctor as doctor
    from wsiweb import idc as idc
    from wsiweb import patches as patches
    from wsiweb import server as server
    from wsiweb import torch as torch
    from wsiweb.finding import FoundSlide, search
    from wsiweb.pyramid import Level
    from wsiweb.slide import Slide

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "DecodeError",
    "FoundSlide",
    "Level",
    "MetadataError",
    "MetadataWarning",
    "ProtocolError",
    "QuotaExceededError",
    "ReadOptions",
    "RegionError",
    "SearchError",
    "Slide",
    "SlideNotFoundError",
    "SourceError",
    "SourceTimeoutError",
    "ThrottledError",
    "UnsupportedError",
    "WsiWebError",
    "search",
]

logging.getLogger("wsiweb").addHandler(logging.NullHandler())

_LAZY = {
    "FoundSlide": "wsiweb.finding", "Level": "wsiweb.pyramid", "Slide": "wsiweb.slide", "search": "wsiweb.finding",
}  # fmt: skip

_SUBMODULES = frozenset({"doctor", "idc", "patches", "server", "torch"})


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """Import what needs numpy when it is first used: ``import wsiweb`` stays light."""
        if name in _SUBMODULES:
            try:
                return importlib.import_module(f"wsiweb.{name}")
            except ImportError as missing:  # help(), hasattr() and completion expect no other
                raise AttributeError(str(missing)) from missing
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'wsiweb' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what there is to use, whether it has been imported yet or not."""
    return sorted({*__all__, *_SUBMODULES, "__version__"})
