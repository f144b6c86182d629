"""What reading patches gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from wsiweb.errors import WsiWebError
    from wsiweb.patches.layout import Integers

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """One patch with its pixels."""

    image: npt.NDArray[Any]
    """``(h, w, 3)`` uint8, or ``(h, w)`` for monochrome."""
    x: int
    """Left edge in pixels of the level read, or of the virtual level at ``mpp``."""
    y: int
    x_base: int
    """Left edge in pixels of level 0."""
    y_base: int
    level: int
    """Index of the level that it was read from."""
    mpp: tuple[float, float] | None
    """(x, y) of the patch."""
    index: int
    """Place in the whole plan."""
    tissue: float
    """Fraction of tissue; NaN without a mask."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchBatch:
    """Several patches, stacked."""

    images: npt.NDArray[Any]
    """``(n, h, w, 3)`` uint8, or ``(n, h, w)`` for monochrome."""
    x: Integers
    y: Integers
    x_base: Integers
    y_base: Integers
    level: int
    mpp: tuple[float, float] | None
    index: Integers
    tissue: Floats

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class PatchCost:
    """What reading a plan once costs, as far as it is known beforehand."""

    patches: int
    frames: int
    """Tiles of the level that the patches touch, each once."""
    bytes: int
    """An estimate: by the mean of the frames read so far, else by a tenth of their pixels."""


@dataclass(frozen=True, slots=True)
class SkippedPatch:
    """A patch that could not be read."""

    index: int
    error: WsiWebError
