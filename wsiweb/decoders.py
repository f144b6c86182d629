"""The decoders of imagecodecs, which loads them slowly: each when it is first needed."""

from __future__ import annotations

import os
import threading
from typing import Any

_decoders: dict[str, Any] = {}
_loading = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child could not load what another thread was loading
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def decoder(name: str) -> Any:
    """Return a decoder by its name in imagecodecs."""
    found = _decoders.get(name)
    if found is None:
        with _loading:
            import imagecodecs  # noqa: PLC0415

            found = _decoders[name] = getattr(imagecodecs, name)
    return found
