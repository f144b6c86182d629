"""Paint decoded tiles into an output array. The only module that turns rectangles into slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.plan import ReadPlan


def canvas(plan: ReadPlan, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Return the array that ``plan`` fills, with the background painted where frames leave gaps.

    ``out``, of the plan's shape and dtype, is used instead of a new array.
    """
    array = np.empty(plan.shape, plan.dtype) if out is None else out
    if not plan.covered:
        array[...] = plan.background if array.ndim == 3 else plan.background[0]
    return array


def paste(array: npt.NDArray[Any], tile: npt.NDArray[Any], plan: ReadPlan, row: int) -> None:
    """Copy the part of ``tile`` that row ``row`` of the plan's placements names into ``array``."""
    place = plan.placements
    sx, sy, tx, ty = place.source_x[row], place.source_y[row], place.target_x[row], place.target_y[row]
    w, h = place.width[row], place.height[row]
    target = array[ty : ty + h, tx : tx + w]
    if plan.stacked:
        target = target[..., place.channel[row]]
    target[...] = tile[sy : sy + h, sx : sx + w]
