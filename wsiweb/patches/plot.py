"""Thumbnail, mask and grid in one picture. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import UnsupportedError

if TYPE_CHECKING:
    from wsiweb.patches.plan import PatchPlan

MAX_DRAWN = 20_000
"""More patches than that are drawn as points."""


def plot(plan: PatchPlan, axes: Any, *, max_size: int) -> Any:
    """Draw; see ``PatchPlan.plot``. The axes are in pixels of level 0."""
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415
        from matplotlib.collections import PatchCollection  # noqa: PLC0415
        from matplotlib.patches import Rectangle  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError("Plotting needs matplotlib: pip install 'wsiweb[plot]'.") from error
    axes = plt.subplots()[1] if axes is None else axes
    width, height = plan.slide.size
    extent = (0, width, height, 0)
    thumbnail = plan.slide.thumbnail(max_size)
    axes.imshow(thumbnail, extent=extent, cmap="gray" if thumbnail.ndim == 2 else None)
    if plan.mask is not None:
        shade = np.zeros((*plan.mask.mask.shape, 4))
        shade[plan.mask.mask] = (0.1, 0.6, 0.2, 0.25)
        spanned = plan.mask.spanned
        axes.imshow(shade, extent=(0, spanned[0], spanned[1], 0))
        axes.set(xlim=(0, width), ylim=(height, 0))
    w, h = (side * scale for side, scale in zip(plan.size, plan.view.base_scale, strict=True))
    places = zip(plan.x_base.tolist(), plan.y_base.tolist(), strict=True)
    if len(plan) <= MAX_DRAWN:
        boxes = [Rectangle(place, w, h) for place in places]
        axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor="tab:blue", linewidth=0.5))
    else:
        axes.plot(plan.x_base + w / 2, plan.y_base + h / 2, ",", color="tab:blue")
    axes.set_title(f"{len(plan)} patches")
    return axes
