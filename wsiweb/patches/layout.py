"""Where patches may lie: grids over regions of interest, and lists of points. Pure.

A layout is a rule, not a table: positions are worked out for the rows that are asked for, so that a million patches
cost little memory and pickle small.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from wsiweb.errors import RegionError
from wsiweb.geometry import Rectangle
from wsiweb.patches.packing import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsiweb.regions import Region
    from wsiweb.resolution import View

Integers = npt.NDArray[np.int64]
EDGES = ("drop", "pad", "shift")
MAX_SIDE = (1 << 32) - 1
"""Of a total pixel matrix (UL); so that sums of positions fit into 64 bits."""


class Layout(Protocol):
    """A rule for positions."""

    def __len__(self) -> int: ...

    def positions(self, index: Integers) -> tuple[Integers, Integers]:
        """Return the left and the top edges of some patches, in pixels of the view."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Positions along one axis of one area."""

    start: int
    stride: int
    count: int
    last: int
    """The last position; where the edge shifts, it is none of the others' stride."""

    def at(self, place: Integers) -> Integers:
        """Return positions by their places along the axis."""
        return np.minimum(self.start + place * self.stride, self.last)


@dataclass(frozen=True, eq=False)
class Grid:
    """Grids over one or more areas, row by row, one area after the other."""

    areas: tuple[tuple[Axis, Axis], ...]
    """(x, y) axes of each."""

    def __len__(self) -> int:
        return sum(x.count * y.count for x, y in self.areas)

    @functools.cached_property
    def _table(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Of all areas: the place of the first patch, patches in a row, and (start, stride, last) of both axes."""
        counts = [x.count * y.count for x, y in self.areas]
        axes = np.array([[(axis.start, axis.stride, axis.last) for axis in pair] for pair in self.areas], np.int64)
        columns = np.array([x.count for x, _ in self.areas], np.int64)
        return np.cumsum([0, *counts[:-1]], dtype=np.int64), columns, axes[:, 0].T, axes[:, 1].T

    def __getstate__(self) -> dict[str, Any]:
        return {"areas": self.areas}

    def positions(self, index: Integers) -> tuple[Integers, Integers]:
        """Return the left and the top edges of some patches, in pixels of the view."""
        if len(self.areas) == 1:
            ((x, y),) = self.areas
            row, column = np.divmod(index, x.count)
            return x.at(column), y.at(row)
        starts, columns, across, down = self._table
        area_of = np.searchsorted(starts, index, side="right") - 1
        row, column = np.divmod(index - starts[area_of], columns[area_of])
        xs, ys = (
            np.minimum(axes[0, area_of] + place * axes[1, area_of], axes[2, area_of])
            for axes, place in ((across, column), (down, row))
        )
        return xs, ys


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Positions one by one."""

    x: Integers
    y: Integers

    def __len__(self) -> int:
        return len(self.x)

    def positions(self, index: Integers) -> tuple[Integers, Integers]:
        """Return the left and the top edges of some patches, in pixels of the view."""
        return self.x[index], self.y[index]

    def only(self, index: Integers) -> Points:
        """Return the points at these places; others are at 0, which takes no room in a pickle."""
        x, y = np.zeros_like(self.x), np.zeros_like(self.y)
        x[index], y[index] = self.x[index], self.y[index]
        return Points(x, y)

    def __getstate__(self) -> dict[str, Any]:
        return {"x": pack(self.x), "y": pack(self.y)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, packed in state.items():
            object.__setattr__(self, name, unpack(packed))


def grid(areas: Sequence[Rectangle], size: tuple[int, int], stride: tuple[int, int], edge: str) -> Grid:
    """Lay a grid over each area; ``edge`` says what becomes of what does not fit (see ``Slide.patches``)."""
    if not isinstance(edge, str) or edge not in EDGES:
        raise RegionError(f"edge is one of {', '.join(EDGES)}, not {edge!r}.")
    return Grid(tuple(
        (_axis(area.x, area.w, size[0], stride[0], edge), _axis(area.y, area.h, size[1], stride[1], edge))
        for area in areas
    ))  # fmt: skip


def _axis(start: int, extent: int, size: int, stride: int, edge: str) -> Axis:
    if edge == "drop":
        count = (extent - size) // stride + 1 if extent >= size else 0
    else:
        count = -(-max(extent - size, 0) // stride) + 1
    last = start + (count - 1) * stride
    return Axis(start, stride, count, min(last, start + max(extent - size, 0)) if edge == "shift" else last)


def pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Return an integer, or a pair of them, as a pair of positive ones; else raise ``RegionError``."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        w, h = (operator.index(side) for side in both)
    except (TypeError, ValueError):
        raise RegionError(f"{name} is an integer or a pair of them, not {value!r}.") from None
    if not (1 <= w <= MAX_SIDE and 1 <= h <= MAX_SIDE):
        raise RegionError(f"{name} is from 1 to {MAX_SIDE:,} pixels, not {value!r}.")
    return w, h


def areas_of(view: View, roi: Region | Sequence[Region] | None) -> list[Rectangle]:
    """Return regions of interest, given in level-0 pixels, in pixels of the view and clipped to it.

    Raises
    ------
    RegionError
        One is no rectangle, is empty, or shows nothing of the slide.
    """
    if roi is None:
        return [view.bounds]
    rectangles: list[Any] = list(roi) if np.iterable(roi) else [roi]
    if rectangles and np.ndim(rectangles[0]) == 0:
        rectangles = [roi]
    if not rectangles:
        raise RegionError("roi is an empty list; give at least one (x, y, w, h), or None for the whole slide.")
    return [_area(view, rectangle) for rectangle in rectangles]


def _area(view: View, rectangle: Any) -> Rectangle:
    try:
        x, y, w, h = (operator.index(value) for value in rectangle)
    except (TypeError, ValueError):
        raise RegionError(f"An ROI is (x, y, w, h) in level-0 pixels, not {rectangle!r}.") from None
    if w < 1 or h < 1:
        raise RegionError(f"The ROI {rectangle!r} is empty: its width and height are at least 1.")
    shown = Rectangle(x, y, w, h).intersection(Rectangle(0, 0, *view.level.base_size))
    if shown.empty:
        raise RegionError(f"The ROI {rectangle!r} lies outside of the slide.")
    scale_x, scale_y = view.base_scale
    left, top = round(shown.x / scale_x), round(shown.y / scale_y)
    right, bottom = round(shown.right / scale_x), round(shown.bottom / scale_y)
    area = Rectangle(left, top, right - left, bottom - top).intersection(view.bounds)
    if area.empty:
        raise RegionError(f"The ROI {rectangle!r} is less than a pixel of {view.name.lower()}.")
    return area


def to_base(positions: Integers, scale: float) -> Integers:
    """Return positions of the view in pixels of level 0."""
    rounded: Integers = np.rint(positions * scale).astype(np.int64)
    return rounded
