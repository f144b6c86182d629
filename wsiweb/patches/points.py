"""Patches off the grid: at given points, and at random ones. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.patches.order import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from wsiweb.geometry import Rectangle
    from wsiweb.patches.layout import Integers
    from wsiweb.resolution import View

_FAR = 2.0**40
"""Pixels from any slide."""
_DRAWS = 200
"""Rounds of drawing random places until there is tissue under enough of them."""


def corners(view: View, size: tuple[int, int], xy: Any, *, centre: bool) -> tuple[Integers, Integers]:
    """Return left and top edges in pixels of the view, of patches at points ``(n, 2)`` in pixels of level 0.

    Raises
    ------
    RegionError
        The points are no such array, or a patch would show nothing of the slide.
    """
    try:
        points = np.asarray(xy, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(())
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise RegionError(f"Points are an array (n, 2) of finite x, y in level-0 pixels, not {xy!r:.80}.")
    places = points / np.array(view.base_scale) - (np.array(size) / 2 if centre else 0)
    rounded = np.rint(np.clip(places, -_FAR, _FAR)).astype(np.int64)
    x, y = rounded[:, 0].copy(), rounded[:, 1].copy()
    shown = (x < view.width) & (y < view.height) & (x > -size[0]) & (y > -size[1])
    if not shown.all():
        first = int(np.flatnonzero(~shown)[0])
        raise RegionError(f"Point {first}, {points[first].tolist()}, shows nothing of the slide.")
    return x, y


def draw(
    areas: Sequence[Rectangle],
    size: tuple[int, int],
    n: int,
    seed: int,
    accept: Callable[[Integers, Integers], npt.NDArray[np.bool_]] | None,
) -> tuple[Integers, Integers]:
    """Return left and top edges of ``n`` patches within areas, all in pixels of the view, that ``accept`` takes.

    Raises
    ------
    RegionError
        The areas have no room for a patch, or too few were accepted.
    """
    w, h = size
    areas = [area for area in areas if area.w >= w and area.h >= h]
    if n < 0:
        raise RegionError(f"n is at least 0, not {n}.")
    if not areas:
        raise RegionError(f"There is no room for {n} patches of {w} x {h} pixels in the plan's areas.")
    random = generator(seed)
    room = np.array([[area.x, area.y, area.w - w + 1, area.h - h + 1] for area in areas])
    weights = room[:, 2] * room[:, 3] / (room[:, 2] * room[:, 3]).sum()
    found_x, found_y, found = [], [], 0
    for _ in range(_DRAWS):
        mine = room[random.choice(len(room), size=2 * n + 16, p=weights)]
        x = random.integers(mine[:, 0], mine[:, 0] + mine[:, 2])
        y = random.integers(mine[:, 1], mine[:, 1] + mine[:, 3])
        if accept is not None:
            enough = accept(x, y)
            x, y = x[enough], y[enough]
        found_x.append(x)
        found_y.append(y)
        found += len(x)
        if found >= n:
            return np.concatenate(found_x)[:n], np.concatenate(found_y)[:n]
    raise RegionError(f"Only {found} places with enough tissue were found, not {n}. Ask for fewer, or for less tissue.")
