"""The decoders of imagecodecs, which loads them slowly: each when it is first needed."""

from __future__ import annotations

from typing import Any

from wsiweb.locks import module_lock

_decoders: dict[str, Any] = {}
_loading = module_lock()  # a child could not load what another thread was loading


def decoder(name: str) -> Any:
    """Return a decoder by its name in imagecodecs."""
    found = _decoders.get(name)
    if found is None:
        with _loading:
            import imagecodecs  # noqa: PLC0415

            found = _decoders[name] = getattr(imagecodecs, name)
    return found
