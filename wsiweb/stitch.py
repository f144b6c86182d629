"""Paint decoded tiles into an output array. The only module that turns rectangles into slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.plan import ReadPlan


def bare(plan: ReadPlan) -> npt.NDArray[np.uint8]:
    """Return a mask ``(h, w)``: 255 where no frame shows, 0 elsewhere."""
    mask = np.full(plan.shape[:2], 255, np.uint8)
    for row in range(len(plan.keys)):
        _, _, x, y, w, h = plan.place(row)
        mask[y : y + h, x : x + w] = 0
    return mask


def paste(array: npt.NDArray[Any], tile: npt.NDArray[Any], plan: ReadPlan, row: int) -> None:
    """Copy the part of ``tile``, the plan's ``row``-th, that shows in ``array``."""
    sx, sy, tx, ty, w, h = plan.place(row)
    target = array[ty : ty + h, tx : tx + w]
    if plan.channel_of is not None:
        target = target[..., plan.channel_of[row]]
    target[...] = tile[sy : sy + h, sx : sx + w]
