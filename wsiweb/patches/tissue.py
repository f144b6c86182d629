"""Where there is tissue, and how much of it a patch shows. Pure.

A mask is a boolean array of any scale that spans level 0. Fractions come from its summed-area table, which is exact
for patches that begin and end within mask pixels, too.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiweb.errors import RegionError
from wsiweb.patches.polygons import drawn, polygons_of
from wsiweb.regions import integer

if TYPE_CHECKING:
    from collections.abc import Callable

    Mask = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Otsu:
    """Finds tissue by its colour: HSV saturation after a median blur, above Otsu's threshold. Holes are not filled.

    Monochrome images are taken by their brightness.

    Attributes
    ----------
    threshold
        Saturation, 0 to 255, above which there is tissue; None finds it. Pale stains need a lower one.
    blur
        Side of the median filter in pixels of the thumbnail, odd; 1 leaves it out.
    """

    threshold: int | None = None
    blur: int = 7

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= integer(self.threshold, "threshold") <= 255:
            raise RegionError(f"threshold is an integer from 0 to 255, or None, not {self.threshold}.")
        if integer(self.blur, "blur") < 1 or self.blur % 2 == 0:
            raise RegionError(f"blur is an odd number of pixels, not {self.blur}.")

    def __call__(self, image: npt.NDArray[Any]) -> Mask:
        """Return where the image, ``(h, w, 3)`` uint8 or ``(h, w)``, shows tissue."""
        from PIL import Image, ImageFilter  # noqa: PLC0415

        values = Image.fromarray(_saturation(image) if image.ndim == 3 else _eight_bits(image))
        blurred = np.asarray(values.filter(ImageFilter.MedianFilter(self.blur)))
        threshold = otsu_threshold(blurred) if self.threshold is None else self.threshold
        found: Mask = blurred > threshold
        return found


def _saturation(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    red, green, blue = (np.ascontiguousarray(image[..., sample]) for sample in range(3))  # the last axis is too short
    most = np.maximum(np.maximum(red, green), blue).astype(np.uint16)
    spread = most - np.minimum(np.minimum(red, green), blue)
    saturation: npt.NDArray[np.uint8] = (spread * np.uint16(255) // np.maximum(most, 1)).astype(np.uint8)
    return saturation


def _eight_bits(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    return (image.astype(np.float64) * (255 / max(int(image.max(initial=1)), 1))).astype(np.uint8)


def otsu_threshold(values: npt.NDArray[np.uint8]) -> int:
    """Return the value that best splits a histogram of two humps: what is above it is the brighter one."""
    counts = np.bincount(values.reshape(-1), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = sums / below - (sums[-1] - sums) / above
        between = below * above * distance**2
    best = np.nan_to_num(between, nan=-1.0)
    # Of equally good ones the middle: an empty valley has no better side.
    return int(np.flatnonzero(best == best.max()).mean()) if best.max() > 0 else 255


class TissueMask:
    """A mask that spans level 0, ready to measure patches.

    Parameters
    ----------
    mask
        Boolean, ``(h, w)``.
    base_size
        (w, h) of level 0.
    side
        Of a pixel of the mask, in pixels of level 0, where the last ones reach beyond it; None spans level 0.
    """

    def __init__(self, mask: Mask, base_size: tuple[int, int], side: int | None = None) -> None:
        if mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
            raise RegionError(f"A mask is a boolean array (h, w) that spans level 0, not {mask.dtype} {mask.shape}.")
        self.mask = mask.copy()  # its owner may go on with it, and what is pickled should be what was measured
        self.base_size = base_size
        self.side = side
        self._sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32 if mask.size < 1 << 31 else np.int64)
        inner = self._sums[1:, 1:]
        np.cumsum(np.cumsum(mask, axis=0, out=inner), axis=1, out=inner)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "bits": zlib.compress(np.packbits(self.mask).tobytes()),
            "shape": self.mask.shape,
            "base_size": self.base_size,
            "side": self.side,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        h, w = state["shape"]
        bits = np.frombuffer(zlib.decompress(state["bits"]), np.uint8)
        mask = np.unpackbits(bits, count=h * w).reshape(h, w).astype(np.bool_)
        self.__init__(mask, state["base_size"], state["side"])  # type: ignore[misc]

    def fractions(self, x: Floats, y: Floats, w: float, h: float) -> Floats:
        """Return how much of each patch is tissue; what lies outside of the slide is none.

        Parameters
        ----------
        x, y
            Left and top edges, in pixels of level 0; may lie between pixels.
        w, h
            Size of all patches, in pixels of level 0.
        """
        width, height = self.spanned
        scale_x, scale_y = self.mask.shape[1] / width, self.mask.shape[0] / height
        left, right = (np.clip(edge, 0, self.base_size[0]) * scale_x for edge in (x, x + w))
        top, bottom = (np.clip(edge, 0, self.base_size[1]) * scale_y for edge in (y, y + h))
        inside = self._sum(right, bottom) - self._sum(left, bottom) - self._sum(right, top) + self._sum(left, top)
        fractions: Floats = np.clip(inside / (w * scale_x * h * scale_y), 0.0, 1.0)
        return fractions

    @property
    def spanned(self) -> tuple[int, int]:
        """Return (w, h) of what the mask spans, in pixels of level 0."""
        height, width = self.mask.shape
        return self.base_size if self.side is None else (width * self.side, height * self.side)

    def _sum(self, x: Floats, y: Floats) -> Floats:
        """Return the tissue above and left of points: between pixels, the table is bilinear."""
        x = np.clip(x, 0, self.mask.shape[1])
        y = np.clip(y, 0, self.mask.shape[0])
        column = np.minimum(x.astype(np.int64), self.mask.shape[1] - 1)
        row = np.minimum(y.astype(np.int64), self.mask.shape[0] - 1)
        fx, fy = x - column, y - row
        sums = self._sums
        upper = sums[row, column] * (1 - fx) + sums[row, column + 1] * fx
        lower = sums[row + 1, column] * (1 - fx) + sums[row + 1, column + 1] * fx
        found: Floats = upper * (1 - fy) + lower * fy
        return found


def make_mask(mask: Any, base_size: tuple[int, int], thumbnail: Callable[[], npt.NDArray[Any]]) -> TissueMask:
    """Return what ``mask=`` of ``Slide.patches`` means.

    Raises
    ------
    RegionError
        It is nothing that can be a mask.
    """
    if isinstance(mask, str):
        if mask != "otsu":
            raise RegionError(f'mask is "otsu", a boolean array, a callable or polygons, not {mask!r}.')
        mask = Otsu()
    if isinstance(mask, type):
        raise RegionError(f"mask is the class {mask.__name__}; make one of it: {mask.__name__}().")
    if callable(mask):
        mask = np.asarray(mask(thumbnail()))
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        return TissueMask(mask, base_size)
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.shape[1] != 2:
        raise RegionError(f"A mask is a boolean array, not {mask.dtype}; write mask > 0, say.")
    drawing, side = drawn(polygons_of(mask), base_size)
    return TissueMask(drawing, base_size, side)
