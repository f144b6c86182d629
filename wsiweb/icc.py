"""ICC profiles: apply one to an image on its way to sRGB. Pillow's ImageCms does the arithmetic."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import UnsupportedError
from wsiweb.locks import module_lock

if TYPE_CHECKING:
    import numpy.typing as npt

_HEADER_BYTES = 128
_lock = module_lock()


def trimmed(profile: bytes) -> bytes:
    """Cut DICOM's padding off: a profile states its own size (ICC.1 7.2.2)."""
    size = int.from_bytes(profile[:4], "big")
    return profile[:size] if _HEADER_BYTES <= size <= len(profile) else profile


def whole(profile: bytes) -> bool:
    """Whether a profile is as long as it says, and has a header."""
    return len(profile) >= max(int.from_bytes(profile[:4], "big"), _HEADER_BYTES)


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes) -> Any:
    from PIL import ImageCms  # noqa: PLC0415

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise UnsupportedError(f"The slide's ICC profile cannot be applied: {error}.") from error


def srgb_profile() -> bytes:
    """Return a profile of sRGB, to embed."""
    from PIL import ImageCms  # noqa: PLC0415

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def to_srgb(image: npt.NDArray[np.uint8], profile: bytes) -> npt.NDArray[np.uint8]:
    """Convert ``(h, w, 3)`` uint8 from the profile's colours to sRGB, in place."""
    from PIL import Image, ImageCms  # noqa: PLC0415

    with _lock:  # so that threads do not each build it
        transform = _transform(profile)
    converted = ImageCms.applyTransform(Image.fromarray(image), transform)
    image[...] = np.asarray(converted)
    return image
