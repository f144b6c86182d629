"""The decoders of imagecodecs, which loads each when it is first needed; that of most slides is there before."""

from __future__ import annotations

from typing import Any

import imagecodecs

from wsiweb.locks import module_lock

_decoders: dict[str, Any] = {"jpeg8_decode": imagecodecs.jpeg8_decode}  # else the first read waits for its import
_loading = module_lock()  # a child could not load what another thread was loading


def decoder(name: str) -> Any:
    """Return a decoder by its name in imagecodecs."""
    found = _decoders.get(name)
    if found is None:
        with _loading:
            found = _decoders[name] = getattr(imagecodecs, name)
    return found
