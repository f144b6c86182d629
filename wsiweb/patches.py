"""Grids of patches: planned as numpy columns, read ahead of the consumer through ``read_regions``."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.geometry import Rectangle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from wsiweb.regions import Region
    from wsiweb.resolution import View
    from wsiweb.slide import Slide

    Integers = npt.NDArray[np.int64]

EDGES = ("drop", "pad", "shift")


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
    tissue: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True, eq=False)
class PatchPlan:
    """Where patches are: data until read. ``plan[10]`` reads a patch, ``plan[10:20]`` is a plan.

    Iterating, and ``batches``, fetch and decode ahead of the consumer within ``ReadOptions.readahead_bytes``.
    """

    slide: Slide
    view: View
    """The level, or virtual level, that is read."""
    size: tuple[int, int]
    """(w, h) of a patch in output pixels."""
    x: Integers
    """Left edges, in pixels of the view."""
    y: Integers
    index: Integers
    """Place of each in the whole plan."""

    @property
    def x_base(self) -> Integers:
        """Left edges in pixels of level 0."""
        return _to_base(self.x, self.view.base_scale[0])

    @property
    def y_base(self) -> Integers:
        """Top edges in pixels of level 0."""
        return _to_base(self.y, self.view.base_scale[1])

    @property
    def level(self) -> int:
        """Index of the level that is read."""
        return self.view.level.index

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) of the patches in µm a pixel."""
        return self.view.mpp

    def __len__(self) -> int:
        return len(self.x)

    @overload
    def __getitem__(self, key: int) -> Patch: ...
    @overload
    def __getitem__(self, key: slice) -> PatchPlan: ...
    def __getitem__(self, key: int | slice) -> Patch | PatchPlan:
        if isinstance(key, slice):
            return replace(self, x=self.x[key], y=self.y[key], index=self.index[key])
        position = operator.index(key)
        if not -len(self) <= position < len(self):
            raise IndexError(f"There is no patch {position}; the plan has {len(self)}.")
        position %= len(self)
        return next(iter(self[position : position + 1]))

    def __iter__(self) -> Iterator[Patch]:
        x_base, y_base = self.x_base.tolist(), self.y_base.tolist()
        rows = zip(self.x.tolist(), self.y.tolist(), x_base, y_base, self.index.tolist(), strict=True)
        for image, (x, y, left, top, index) in zip(self._images(None), rows, strict=True):
            yield Patch(image, x, y, left, top, self.level, self.mpp, index, math.nan)

    def batches(self, n: int) -> Iterator[PatchBatch]:
        """Iterate over batches of ``n`` patches; the last may be smaller.

        Raises
        ------
        RegionError
            ``n`` is below 1.
        """
        n = operator.index(n)
        if n < 1:
            raise RegionError(f"A batch has at least one patch, not {n}.")
        return self._batches(n)

    def _batches(self, n: int) -> Iterator[PatchBatch]:
        shape = (self.size[1], self.size[0], *self.view.level.shape[2:])
        x_base, y_base = self.x_base, self.y_base
        pending: list[npt.NDArray[Any]] = []

        def targets() -> Iterator[npt.NDArray[Any]]:
            for start in range(0, len(self), n):
                images = np.empty((min(n, len(self) - start), *shape), self.view.level.dtype)
                pending.append(images)
                yield from images

        images = self._images(targets())
        for start in range(0, len(self), n):
            rows = slice(start, min(start + n, len(self)))
            for _ in range(rows.stop - rows.start):
                next(images)
            yield PatchBatch(
                pending.pop(0), self.x[rows].copy(), self.y[rows].copy(), x_base[rows], y_base[rows],
                self.level, self.mpp, self.index[rows].copy(), np.full(rows.stop - rows.start, np.nan),
            )  # fmt: skip

    def _images(self, outs: Iterator[npt.NDArray[Any]] | None) -> Iterator[npt.NDArray[Any]]:
        w, h = self.size
        regions = (Rectangle(x, y, w, h) for x, y in zip(self.x.tolist(), self.y.tolist(), strict=True))
        return self.slide._read(self.view, regions, None, None, None, outs, check=False)  # noqa: SLF001

    def __repr__(self) -> str:
        resolution = f"{self.mpp[0]:g} µm/px" if self.mpp else f"level {self.level}"
        return f"<{len(self)} patches of {self.size[0]} x {self.size[1]} px at {resolution}>"


def plan_patches(
    slide: Slide,
    view: View,
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None,
    roi: Region | Sequence[Region] | None,
    edge: str,
) -> PatchPlan:
    """Lay the grid; see ``Slide.patches``."""
    size = _pair(size, "size")
    stride = size if stride is None else _pair(stride, "stride")
    if edge not in EDGES:
        raise RegionError(f"edge is one of {', '.join(EDGES)}, not {edge!r}.")
    columns, rows = [], []
    for area in _areas(view, roi):
        xs = _positions(area.w, size[0], stride[0], edge) + area.x
        ys = _positions(area.h, size[1], stride[1], edge) + area.y
        columns.append(np.tile(xs, len(ys)))
        rows.append(np.repeat(ys, len(xs)))
    x, y = np.concatenate(columns), np.concatenate(rows)
    return PatchPlan(slide, view, size, x, y, np.arange(len(x), dtype=np.int64))


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    try:
        w, h = (operator.index(side) for side in pair)
    except (TypeError, ValueError):
        raise RegionError(f"{name} is an integer or a pair of them, not {value!r}.") from None
    if w < 1 or h < 1:
        raise RegionError(f"{name} is at least 1, not {value!r}.")
    return w, h


def _positions(extent: int, size: int, stride: int, edge: str) -> Integers:
    """Return the left edges along one axis of length ``extent``."""
    if edge == "drop":
        count = (extent - size) // stride + 1 if extent >= size else 0
    else:
        count = -(-max(extent - size, 0) // stride) + 1
    positions = np.arange(count, dtype=np.int64) * stride
    return np.minimum(positions, max(extent - size, 0)) if edge == "shift" else positions


def _areas(view: View, roi: Region | Sequence[Region] | None) -> list[Rectangle]:
    """Return the ROIs in pixels of the view, clipped to it."""
    if roi is None:
        return [view.bounds]
    rectangles: Sequence[Any] = [roi] if np.ndim(np.asarray(roi, dtype=object)) == 1 else list(roi)
    areas = []
    scale_x, scale_y = view.base_scale
    for rectangle in rectangles:
        try:
            x, y, w, h = (operator.index(value) for value in rectangle)
        except (TypeError, ValueError):
            raise RegionError(f"An ROI is (x, y, w, h) in level-0 pixels, not {rectangle!r}.") from None
        left, top = round(x / scale_x), round(y / scale_y)
        right, bottom = round((x + w) / scale_x), round((y + h) / scale_y)
        area = Rectangle(left, top, right - left, bottom - top).intersection(view.bounds)
        if w < 1 or h < 1 or area.empty:
            raise RegionError(f"The ROI {rectangle!r} is empty, or lies outside of the slide.")
        areas.append(area)
    if not areas:
        raise RegionError("An empty list of ROIs was given.")
    return areas


def _to_base(positions: Integers, scale: float) -> Integers:
    rounded: Integers = np.rint(positions * scale).astype(np.int64)
    return rounded
