"""Polygons as masks. Pure.

A pixel of the mask is inside where its centre is. Pixels are whole pixels of level 0, or squares of as many as keep
the mask within ``POLYGON_SIDE``: edges that lie between those are drawn exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiweb.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Mask = npt.NDArray[np.bool_]
    Points = npt.NDArray[np.float64]
    Places = npt.NDArray[np.int64]

MAX_COORDINATE = 100_000_000
"""In pixels of level 0: farther out, there is nothing to mark, and sums lose their fractions."""
POLYGON_SIDE = 4096
"""Longer side, at most, of the mask that polygons are drawn into."""
_CROSSINGS = 4_000_000
"""Of edges with rows, about as many as are held at once."""


def polygons_of(mask: Any) -> list[list[Points]]:
    """Return the rings of each polygon, outline and holes: of arrays, lists of points, or shapely's objects.

    Raises
    ------
    RegionError
        There are none, or they reach too far.
    """
    if hasattr(mask, "geoms"):
        return [polygon for part in mask.geoms for polygon in polygons_of(part)]
    if hasattr(mask, "exterior"):
        if not len(mask.exterior.coords):
            return []
        rings = (mask.exterior, *mask.interiors)
        return [[_within_reach(np.asarray(ring.coords, np.float64)[:, :2], mask) for ring in rings]]
    try:
        one = np.asarray(mask, np.float64)
    except (TypeError, ValueError):
        one = np.zeros(0)
    if one.ndim == 2 and one.shape[1] == 2 and len(one) >= 3:
        return [[_within_reach(one, mask)]]
    polygons = [] if isinstance(mask, np.ndarray) and mask.ndim < 3 else _items(mask)
    if not polygons:
        raise RegionError(f"A polygon is at least three (x, y) in level-0 pixels, not {mask!r:.80}.")
    return [polygon for part in polygons for polygon in polygons_of(part)]


def _within_reach(ring: Points, mask: Any) -> Points:
    if not (np.abs(ring) <= MAX_COORDINATE).all():
        raise RegionError(f"Polygons are finite, within {MAX_COORDINATE:,} pixels; one reaches beyond: {mask!r:.80}.")
    return ring


def _items(mask: Any) -> list[Any]:
    if isinstance(mask, (int, float)) or not hasattr(mask, "__iter__"):
        return []
    items = list(mask)
    return items if items and all(np.ndim(item) == 2 or hasattr(item, "exterior") for item in items) else []


def drawn(polygons: Sequence[list[Points]], base_size: tuple[int, int]) -> tuple[Mask, int]:
    """Return where any polygon is, and the side of a pixel of that in pixels of level 0.

    What a polygon shows in another's hole is inside. One too small to hold the centre of a pixel marks one pixel.
    """
    side = -(-max(base_size) // POLYGON_SIDE)
    width, height = (-(-length // side) for length in base_size)
    scaled = [[ring / side for ring in rings] for rings in polygons]
    changes = np.zeros((height, width + 1), np.int32)  # in how many polygons one is, from this pixel on
    seen = np.zeros(len(scaled), np.bool_)
    for polygon, first, last in _spans(scaled, width, height):
        np.add.at(changes.reshape(-1), first, 1)
        np.add.at(changes.reshape(-1), last, -1)
        seen[polygon] = True
    np.cumsum(changes, axis=1, out=changes)
    mask = changes[:, :width] > 0
    for number in np.flatnonzero(~seen).tolist():
        low, high = scaled[number][0].min(axis=0), scaled[number][0].max(axis=0)
        x, y = ((low + high) / 2).tolist()
        if (high > low).all() and 0 <= x < width and 0 <= y < height:
            mask[int(y), int(x)] = True
    return mask, side


def _spans(polygons: Sequence[list[Points]], width: int, height: int) -> Iterator[tuple[Places, Places, Places]]:
    """Yield the number of a polygon, and the first place within and the first behind, of each run of pixels in a row.

    Places are those of an array of ``height`` rows and ``width + 1`` columns, row by row. Inside is where a ray
    crosses the rings of a polygon an odd number of times.
    """
    rings = [(number, ring) for number, rings in enumerate(polygons) for ring in rings if len(ring)]
    if not rings:
        return
    starts = np.concatenate([ring for _, ring in rings])
    ends = np.concatenate([np.roll(ring, -1, axis=0) for _, ring in rings])
    owners = np.repeat([number for number, _ in rings], [len(ring) for _, ring in rings])
    # A row is crossed where its middle lies in the half-open range of an edge: a vertex counts once.
    rows = np.clip(np.ceil(np.stack([starts[:, 1], ends[:, 1]]) - 0.5), 0, height).astype(np.int64)
    top, bottom = rows.min(axis=0), rows.max(axis=0)
    edges = np.flatnonzero(bottom > top)
    starts, ends, owners, top, bottom = starts[edges], ends[edges], owners[edges], top[edges], bottom[edges]
    slopes = (ends[:, 0] - starts[:, 0]) / (ends[:, 1] - starts[:, 1])
    bands = int((bottom - top).sum()) // _CROSSINGS + 1
    for band in range(bands):
        upper = np.maximum(top, band * height // bands)
        counts = np.maximum(np.minimum(bottom, (band + 1) * height // bands) - upper, 0)
        edge = np.repeat(np.arange(len(counts)), counts)
        row = np.arange(len(edge)) + np.repeat(upper - (np.cumsum(counts) - counts), counts)
        x = starts[edge, 0] + (row + 0.5 - starts[edge, 1]) * slopes[edge]
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        # Each polygon crosses a row an even number of times: in order, two and two belong together.
        places = np.sort((owners[edge] * height + row) * (width + 1) + column).reshape(-1, 2)
        places = places[places[:, 0] < places[:, 1]]
        polygon = places[:, 0] // (height * (width + 1))
        yield polygon, *(places % (height * (width + 1))).T
