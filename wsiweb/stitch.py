"""Paint decoded tiles into an output array. The only module that turns rectangles into slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsiweb.colour import paint

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.plan import ReadPlan


def fill(array: npt.NDArray[Any], plan: ReadPlan) -> None:
    """Paint the background, where the plan's frames leave gaps."""
    paint(array, plan.background)


def paste(array: npt.NDArray[Any], tile: npt.NDArray[Any], plan: ReadPlan, row: int) -> None:
    """Copy the part of ``tile``, the plan's ``row``-th, that shows in ``array``."""
    sx, sy, tx, ty, w, h = plan.place(row)
    target = array[ty : ty + h, tx : tx + w]
    if plan.channel_of is not None:
        target = target[..., plan.channel_of[row]]
    target[...] = tile[sy : sy + h, sx : sx + w]
