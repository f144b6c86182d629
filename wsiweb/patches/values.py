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
    """One patch with its pixels.

    Attributes
    ----------
    image
        ``(h, w, 3)`` uint8, or ``(h, w)`` uint8 or uint16 for monochrome.
    x, y
        Left and top edge in pixels of the level read, or of the virtual level at ``mpp``.
    x_base, y_base
        The same in pixels of level 0.
    level
        Index of the level that it was read from.
    mpp
        (x, y) of its pixels in µm, or None where the slide does not tell.
    index
        Place in the whole plan: the unshuffled, unsliced one.
    tissue
        Fraction of tissue; NaN without a mask.
    """

    image: npt.NDArray[Any]
    x: int
    y: int
    x_base: int
    y_base: int
    level: int
    mpp: tuple[float, float] | None
    index: int
    tissue: float


@dataclass(frozen=True, slots=True, eq=False)
class PatchBatch:
    """Several patches, stacked. Its ``len`` is their number, n.

    Attributes
    ----------
    images
        ``(n, h, w, 3)`` uint8, or ``(n, h, w)`` uint8 or uint16 for monochrome.
    x, y
        ``(n,)`` int64: left and top edges in pixels of the level read, or of the virtual level at ``mpp``.
    x_base, y_base
        ``(n,)`` int64: the same in pixels of level 0.
    level
        Index of the level that all were read from.
    mpp
        (x, y) of all pixels in µm, or None where the slide does not tell.
    index
        ``(n,)`` int64: places in the whole plan, the unshuffled, unsliced one.
    tissue
        ``(n,)`` float64: fractions of tissue; NaN without a mask.
    """

    images: npt.NDArray[Any]
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
    """What reading a plan once costs, as far as it is known beforehand.

    Attributes
    ----------
    patches
        How many there are.
    frames
        Tiles of the level that the patches touch, each once.
    bytes
        An estimate: by the mean of the frames read so far, else by a tenth of their pixels.
    """

    patches: int
    frames: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SkippedPatch:
    """A patch that could not be read.

    Attributes
    ----------
    index
        Place in the whole plan.
    error
        What went wrong.
    """

    index: int
    error: WsiWebError
