"""``PatchPlan``: which patches, in which order; data until it is read."""

from __future__ import annotations

import hashlib
import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from wsiweb.cache import Keep
from wsiweb.errors import RegionError, WsiWebError
from wsiweb.geometry import Rectangle
from wsiweb.patches import order, packing, points
from wsiweb.patches.batches import Batches
from wsiweb.patches.cost import count_tiles
from wsiweb.patches.layout import MAX_SIDE, Integers, Layout, Points, pair, to_base
from wsiweb.patches.values import Floats, Patch, PatchBatch, PatchCost
from wsiweb.plan import check_region
from wsiweb.regions import RegionArrays, integer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from wsiweb.patches.tissue import TissueMask
    from wsiweb.resolution import View
    from wsiweb.slide import Slide


_CHUNK = 4096
"""Rows that are turned into Python numbers at a time."""
_MASK_CHUNK = 1 << 16
_COMPRESSION = 10
"""About what JPEG makes of tissue: the guess where no frame has been seen yet."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchPlan:
    """Where patches are: data until read. ``plan[10]`` reads a patch, ``plan[10:20]`` is a plan.

    Iterating, and ``batches``, fetch and decode ahead of the consumer within ``ReadOptions.readahead_bytes``.

    Attributes
    ----------
    slide
        That the patches are of.
    view
        The level, or virtual level, that is read.
    size
        (w, h) of a patch in output pixels.
    stride
        (x, y) of the grid in output pixels.
    layout
        Rule for the places of the whole plan.
    index
        ``(n,)`` int64: place of each patch in the whole plan, the unshuffled, unsliced one.
    tissue
        ``(n,)`` float64: fraction of tissue of each; NaN without a mask.
    mask
        Where there is tissue, or None.
    min_tissue
        Fraction of each patch that the mask covers, at least.
    areas
        That the grid covers, in pixels of the level read, or of the virtual level at ``mpp``.
    mask_lost
        Whether the mask that chose the patches is not known any more: files do not keep it.
    """

    slide: Slide
    view: View
    size: tuple[int, int]
    stride: tuple[int, int]
    layout: Layout
    index: Integers
    tissue: Floats
    mask: TissueMask | None = None
    min_tissue: float = 0.0
    areas: tuple[Rectangle, ...] = ()
    mask_lost: bool = False

    # What is known without reading -----------------------------------------------------------------

    @property
    def x(self) -> Integers:
        """``(n,)`` int64: left edges in pixels of the level read, or of the virtual level at ``mpp``."""
        return self.layout.positions(self.index)[0]

    @property
    def y(self) -> Integers:
        """``(n,)`` int64: top edges in pixels of the level read, or of the virtual level at ``mpp``."""
        return self.layout.positions(self.index)[1]

    @property
    def x_base(self) -> Integers:
        """``(n,)`` int64: left edges in pixels of level 0."""
        return to_base(self.x, self.view.base_scale[0])

    @property
    def y_base(self) -> Integers:
        """``(n,)`` int64: top edges in pixels of level 0."""
        return to_base(self.y, self.view.base_scale[1])

    @property
    def level(self) -> int:
        """Index of the level that is read."""
        return self.view.level.index

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) of the patches in µm a pixel, or None where the slide does not tell."""
        return self.view.mpp

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one patch: ``(h, w, 3)`` or ``(h, w)``."""
        return (self.size[1], self.size[0], *self.view.level.shape[2:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels."""
        return self.view.level.dtype

    def __len__(self) -> int:
        return len(self.index)

    def cost(self) -> PatchCost:
        """Return what reading the plan once costs. Nothing is fetched.

        Frames are counted on the level's grid of tiles; levels with gaps or overlaps have fewer or more.
        """
        level, stats = self.view.level, self.slide.stats
        frames = count_tiles(self.view, self.size, self._positions(_MASK_CHUNK))
        raw = math.prod(level.tile_size) * math.prod(level.shape[2:]) * level.dtype.itemsize
        seen = stats.frames + stats.disk_hits
        each = stats.frame_bytes / seen if seen else raw / _COMPRESSION
        return PatchCost(len(self), frames, round(frames * each))

    def fingerprint(self) -> str:
        """Return what tells this plan from any other: of the slide, the resolution, the places and their order."""
        view = self.view
        level = view.level
        known = *self.slide._identity, level.index, level.size, view.scale, self.size, len(self)  # noqa: SLF001
        digest = hashlib.blake2b(repr(known).encode(), digest_size=16)
        for column in (self.index, *self.layout.positions(self.index)):
            digest.update(np.ascontiguousarray(column).astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    # Other plans ------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: int) -> Patch: ...
    @overload
    def __getitem__(self, key: slice) -> PatchPlan: ...
    def __getitem__(self, key: int | slice) -> Patch | PatchPlan:
        if isinstance(key, slice):
            return self._rows(key)
        return next(iter(self._rows(np.array([self._place(key)]))))

    def take(self, places: Sequence[int] | Integers) -> PatchPlan:
        """Return a plan of the patches at these places, in this order."""
        return self._rows(np.array([self._place(place) for place in places], np.int64))

    def _place(self, key: int) -> int:
        place = operator.index(key)
        if not -len(self) <= place < len(self):
            raise IndexError(f"There is no patch {place}; the plan has {len(self)}.")
        return place % len(self)

    def _rows(self, rows: slice | Integers) -> PatchPlan:
        return replace(self, index=self.index[rows], tissue=self.tissue[rows])

    def shuffle(self, seed: int = 0, *, locality: int | Literal["auto"] | None = "auto") -> PatchPlan:
        """Return the plan in random order, which the seed decides.

        Parameters
        ----------
        seed
            Equal seeds give equal orders.
        locality
            "auto" shuffles blocks of neighbours, and patches within a few blocks at a time: an epoch then fetches
            hardly more than one that is read row by row where a block can be made of whole tiles, and at most half as
            much again where it cannot (but for tiles of more than 1024 pixels). An integer is the side of a block in
            patches. None is a true shuffle, which fetches a frame for nearly each patch that shows it, where not all
            fit into the caches.
        """
        if locality is None:
            return self._rows(order.shuffled(None, len(self), seed, 1))
        side = None if locality == "auto" else integer(locality, "locality")
        if side is not None and side < 1:
            raise RegionError(f'locality is "auto", None or a number of patches, not {locality!r}.')
        sides = self._block_sides(side)
        blocks = order.blocks(*self.layout.positions(self.index), sides[0].pixels, sides[1].pixels)
        return self._rows(order.shuffled(blocks, len(self), seed, order.buffer_blocks(*sides)))

    def shard(self, number: int, count: int) -> PatchPlan:
        """Return part ``number`` (from 0) of ``count``: every patch is in one of them, neighbours in the same.

        The order stays. Parts are of about equal size; frames are shared only along their borders.

        Raises
        ------
        RegionError
            There is no such part.
        """
        x, y = self.layout.positions(self.index)
        sides = self._block_sides(None)
        part, parts = integer(number, "number"), integer(count, "count")
        return self._rows(order.shard(x, y, (sides[0].pixels, sides[1].pixels), part, parts))

    def _block_sides(self, patches: int | None) -> tuple[order.Side, order.Side]:
        """Return the sides of a block of so many patches, or of the best for the tiles, along x and y."""
        level, found = self.view.level, []
        for size, stride, tile, scale in zip(self.size, self.stride, level.tile_size, self.view.scale, strict=True):
            if patches is None:
                found.append(order.best_side(size, stride, tile, scale))
            else:
                all_there_are = MAX_SIDE // stride + 1
                found += order.sides(np.array([min(patches, all_there_are)]), size, stride, tile, scale)
        return found[0], found[1]

    def at(self, xy: Any, size: int | tuple[int, int] | None = None, *, centre: bool = False) -> PatchPlan:
        """Return a plan of patches of this resolution at given points.

        Parameters
        ----------
        xy
            ``(n, 2)``: left top corners in pixels of level 0.
        size
            Of the patches in output pixels; that of the plan by default.
        centre
            Whether the points are the patches' centres instead.

        Raises
        ------
        RegionError
            The points are no such array, or a patch would show nothing of the slide.
        """
        if size is not None:
            return self._sized(size).at(xy, centre=centre)
        return self._of_points(*points.corners(self.view, self.size, xy, centre=centre))

    def random(self, n: int, seed: int = 0, *, size: int | tuple[int, int] | None = None) -> PatchPlan:
        """Return a plan of ``n`` patches at random places within the plan's areas, off the grid.

        With a mask, each shows at least ``min_tissue``. Equal seeds give equal places; ``size`` is as for ``at``.

        Raises
        ------
        RegionError
            The areas have no room for a patch, or no such tissue was found.
        """
        if size is not None:
            return self._sized(size).random(n, seed)

        def enough(x: Integers, y: Integers) -> npt.NDArray[np.bool_]:
            return np.asarray(self._fractions(self.mask, x, y) >= self.min_tissue - 1e-9)

        if self.mask_lost:
            raise WsiWebError("This plan comes from a file, which keeps no mask; make the plan anew, with mask=.")
        accept = None if self.mask is None else enough
        return self._of_points(*points.draw(self.areas, self.size, integer(n, "n"), seed, accept))

    def _sized(self, size: int | tuple[int, int]) -> PatchPlan:
        return replace(self, size=pair(size, "size"))

    def _of_points(self, x: Integers, y: Integers) -> PatchPlan:
        tissue = self._fractions(self.mask, x, y)
        return replace(self, layout=Points(x, y), index=np.arange(len(x), dtype=np.int64), tissue=tissue)

    def _fractions(self, mask: TissueMask | None, x: Integers, y: Integers) -> Floats:
        """Return how much of each patch is tissue; NaN without a mask."""
        if mask is None:
            return np.full(len(x), np.nan)
        scale_x, scale_y = self.view.base_scale
        return mask.fractions(x * scale_x, y * scale_y, self.size[0] * scale_x, self.size[1] * scale_y)

    def masked(self, mask: TissueMask, min_tissue: float) -> PatchPlan:
        """Return the patches that show at least so much tissue, with their fractions."""
        found = [self._fractions(mask, x, y) for x, y in self._positions(_MASK_CHUNK)]
        tissue = np.concatenate([np.empty(0), *found])
        enough = tissue >= min_tissue - 1e-9
        return replace(self, index=self.index[enough], tissue=tissue[enough], mask=mask, min_tissue=min_tissue)

    # Reading ----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Patch]:
        images = self._images(None)
        for start in range(0, len(self), _CHUNK):
            part = self._rows(slice(start, start + _CHUNK))
            columns = (part.x, part.y, part.x_base, part.y_base, part.index, part.tissue)
            for x, y, x_base, y_base, index, tissue in zip(*(column.tolist() for column in columns), strict=True):
                yield Patch(next(images), x, y, x_base, y_base, self.level, self.mpp, index, tissue)

    def read(self, places: Sequence[int] | Integers) -> PatchBatch:
        """Read the patches at these places as one batch; their frames are fetched together."""
        return next(iter(self.take(places).batches(max(len(places), 1))), self._batch(slice(0, 0)))

    def batches(self, n: int, *, on_error: Literal["raise", "skip"] = "raise") -> Batches:
        """Return an iterator over batches of ``n`` patches; the last may be smaller. Another epoch takes another one.

        Parameters
        ----------
        on_error
            "skip" leaves out patches that cannot be read, and lists them in the iterator's ``skipped``. A batch of
            which nothing is left is left out as well.

        Raises
        ------
        RegionError
            ``n`` is below 1.
        """
        n = integer(n, "n")
        if n < 1:
            raise RegionError(f"A batch has at least one patch, not {n}.")
        if on_error not in ("raise", "skip"):
            raise RegionError(f'on_error is "raise" or "skip", not {on_error!r}.')
        return Batches(self, n, skip=on_error == "skip")

    def map(
        self,
        function: Callable[[PatchBatch], npt.ArrayLike],
        out: str | os.PathLike[str],
        *,
        batch_size: int = 64,
        resume: bool = True,
        progress: bool | Callable[[int, int], None] | None = None,
    ) -> Any:
        """Run a function over batches, into a ``.npy`` or ``.zarr`` of one row a patch; see ``mapping.map_to_file``.

        A run that was killed goes on where it was, to the same file as if it had not been. What is whole already is
        read, and the function is not called, not even another one: give each its own file, or ``resume=False``.
        """
        from wsiweb.patches.mapping import map_to_file  # noqa: PLC0415

        return map_to_file(self, function, out, batch_size=batch_size, resume=resume, progress=progress)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan: ``.npz``, ``.parquet`` or ``.h5`` (CLAM, TRIDENT); see ``wsiweb.patches.load``."""
        from wsiweb.patches.storage import save  # noqa: PLC0415

        save(self, path)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame of index, x, y, x_base, y_base and tissue. Needs pandas."""
        from wsiweb.patches.storage import to_pandas  # noqa: PLC0415

        return to_pandas(self)

    def plot(self, axes: Any = None, *, max_size: int = 1024) -> Any:
        """Draw thumbnail, mask and grid, and return the matplotlib axes. Needs matplotlib (``wsiweb[plot]``)."""
        from wsiweb.patches.plot import plot  # noqa: PLC0415

        return plot(self, axes, max_size=max_size)

    def _images(self, outs: Iterator[npt.NDArray[Any]] | None) -> RegionArrays:
        slide, view = self.slide, self.view
        planner = slide._planner(view.level, None, None)  # noqa: SLF001
        if len(self):
            one = Rectangle(0, 0, *self.size)  # all are of this size, and touch the view
            limit = slide.options.max_region_bytes
            check_region(one, one, where=view.name, itemsize=planner.pixel_bytes, max_region_bytes=limit)
        reader = slide._running()  # noqa: SLF001
        return RegionArrays(reader, view, self._rectangles(), planner, outs=outs, keep=Keep.ON_TRIAL, single=False)

    def _positions(self, chunk: int) -> Iterator[tuple[Integers, Integers]]:
        for start in range(0, len(self), chunk):
            yield self.layout.positions(self.index[start : start + chunk])

    def _rectangles(self) -> Iterator[Rectangle]:
        w, h = self.size
        for x, y in self._positions(_CHUNK):
            for left, top in zip(x.tolist(), y.tolist(), strict=True):
                yield Rectangle(left, top, w, h)

    def _batch(self, rows: slice | Integers, images: npt.NDArray[Any] | None = None) -> PatchBatch:
        part = self._rows(rows)
        x, y = self.layout.positions(part.index)
        scale_x, scale_y = self.view.base_scale
        if images is None:
            images = np.empty((len(part), *self.shape), self.dtype)
        return PatchBatch(
            images, x, y, to_base(x, scale_x), to_base(y, scale_y), self.level, self.mpp, part.index.copy(),
            part.tissue.copy(),
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        if isinstance(self.layout, Points):
            state["layout"] = self.layout.only(self.index)
        state["index"] = packing.pack(self.index)
        found_again = self.mask is not None or np.isnan(self.tissue).all()  # a mask tells how much tissue there is
        state["tissue"] = None if found_again else packing.pack(self.tissue)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        index, tissue = packing.unpack(state["index"]), state["tissue"]
        state["index"] = index
        for name, value in state.items():
            object.__setattr__(self, name, value)
        found = self._fractions(self.mask, self.x, self.y) if tissue is None else packing.unpack(tissue)
        object.__setattr__(self, "tissue", found)

    def __repr__(self) -> str:
        resolution = f"{self.mpp[0]:g} µm/px" if self.mpp else f"level {self.level}"
        return f"<{len(self)} patches of {self.size[0]} x {self.size[1]} px at {resolution}>"
