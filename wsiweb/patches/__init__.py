"""Patches of a slide: planned as numpy columns, read ahead of the consumer. See ``Slide.patches``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.patches.layout import areas_of, grid, pair
from wsiweb.patches.loading import load
from wsiweb.patches.plan import PatchPlan
from wsiweb.patches.tissue import Otsu, make_mask
from wsiweb.patches.values import Patch, PatchBatch, PatchCost, SkippedPatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.regions import Region
    from wsiweb.resolution import View
    from wsiweb.slide import Slide

__all__ = ["Otsu", "Patch", "PatchBatch", "PatchCost", "PatchPlan", "SkippedPatch", "load", "plan_patches"]

THUMBNAIL_SIDE = 1024
"""Longer side of the image that tissue is looked for in."""


def plan_patches(
    slide: Slide,
    view: View,
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None,
    mask: Any,
    min_tissue: float,
    roi: Region | Sequence[Region] | None,
    edge: str,
) -> PatchPlan:
    """Lay the grid; see ``Slide.patches``."""
    size = pair(size, "size")
    stride = size if stride is None else pair(stride, "stride")
    if not (isinstance(min_tissue, (int, float, np.floating)) and 0 <= min_tissue <= 1):
        raise RegionError(f"min_tissue is a fraction from 0 to 1, not {min_tissue!r}.")
    areas = areas_of(view, roi)
    layout = grid(areas, size, stride, edge)
    index = np.arange(len(layout), dtype=np.int64)
    tissue = np.full(len(index), np.nan)
    plan = PatchPlan(slide, view, size, stride, layout, index, tissue, areas=tuple(areas))
    if mask is None:
        return plan
    return plan.masked(make_mask(mask, slide.size, lambda: slide.thumbnail(THUMBNAIL_SIDE)), float(min_tissue))


def __dir__() -> list[str]:
    """Return what there is to use."""
    return list(__all__)
