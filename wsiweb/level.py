"""A level of a slide as an array that is read where it is sliced: for numpy, dask, and what builds on them."""

from __future__ import annotations

import contextlib
import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import RegionError, UnsupportedError
from wsiweb.pyramid import Level
from wsiweb.regions import integer

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.slide import Slide

MAX_ARRAY_BYTES = 1 << 30
"""As a whole, a larger level is surely not what anybody wants."""
CHUNK_SIDE = 2048


@dataclass(frozen=True, slots=True)
class SlideLevel(Level):
    """A level of an open slide; ``level[y0:y1, x0:x1]`` reads just that, of the default optical path and focal plane.

    Axes are (rows, columns, samples), as in all arrays here. Integers, and slices with steps, are taken as numpy
    takes them; an empty slice costs no request, and tiles that steps leave out none, either. For its attributes see
    ``wsiweb.Level``.
    """

    slide: Slide = field(compare=False, repr=False, kw_only=True)
    """That it belongs to."""

    @property
    def ndim(self) -> int:
        """3 for colour, 2 for monochrome."""
        return len(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a good piece to read at once: whole tiles, about 2048 x 2048 pixels."""
        return self._chunks(CHUNK_SIDE)

    def _chunks(self, side: int) -> tuple[int, ...]:
        whole = (max(round(side / tile), 1) * tile for tile in reversed(self.tile_size))
        return (*whole, *self.shape[2:])

    def __len__(self) -> int:
        return self.height

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        axes = _axes(key, self.shape)
        rows, columns, *rest = (_places(one, extent) for one, extent in zip(axes, self.shape, strict=True))
        if not (rows and columns and all(rest)):
            pixels = np.empty((len(rows), len(columns), *self.shape[2:]), self.dtype)
        else:
            pixels = self._read(_rising(rows), _rising(columns))
        turned = [slice(None, None, -1 if places.step < 0 else 1) for places in (rows, columns)]
        within = [0 if isinstance(one, int) else turn for one, turn in zip(axes[:2], turned, strict=True)]
        shown = pixels[(*within, *axes[2:])]
        all_of_it = shown.nbytes == pixels.nbytes and shown.flags.c_contiguous
        return shown if all_of_it else shown.copy()  # which keeps nothing else in memory

    def _read(self, rows: range, columns: range) -> npt.NDArray[Any]:
        """Read where rows and columns cross: in one piece if no pixel lies between, else tile row by tile row.

        What lies between is then not held for long, and not read where no tile of it is needed.
        """
        tile_width, tile_height = self.tile_size
        shape = len(rows), len(columns), *self.shape[2:]
        too_large = math.prod(shape) * self.dtype.itemsize > self.slide.options.max_region_bytes
        if rows.step == columns.step == 1 or too_large:  # which is refused
            whole = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
            return self.slide.read_region(self.index, *whole)
        down = [rows] if rows.step == 1 and columns.step > tile_width else _runs(rows, tile_height)
        across = _runs(columns, tile_width) if columns.step > tile_width else [columns]
        parts = [(some_rows, some_columns) for some_rows in down for some_columns in across]
        regions = [(x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1) for y, x in parts]
        found = np.empty(shape, self.dtype)
        for (y, x), pixels in zip(parts, self.slide.read_regions(self.index, regions), strict=True):
            top, left = rows.index(y[0]), columns.index(x[0])
            found[top : top + len(y), left : left + len(x)] = pixels[:: rows.step, :: columns.step]
        return found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:  # noqa: FBT001
        """Read the whole level, where that is small.

        Raises
        ------
        RegionError
            It has more than 1 GiB.
        """
        if copy is False:
            raise ValueError("A level is no array in memory: it cannot be had without a copy.")
        size_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        if size_bytes > MAX_ARRAY_BYTES:
            raise RegionError(
                f"Level {self.index} as one array has {size_bytes:,} bytes. Slice it, take a coarser level, or use "
                f"level.to_dask()."
            )
        array = self[...]
        return array if dtype is None else array.astype(dtype, copy=False)

    def to_dask(self, chunks: int = CHUNK_SIDE) -> Any:
        """Return a dask array of the level; slices of it read no more than they show.

        Parameters
        ----------
        chunks
            Side of a chunk in pixels, about: it becomes a multiple of the tiles.

        Raises
        ------
        UnsupportedError
            dask is not installed (``wsiweb[dask]``).
        """
        try:
            import dask.array as da  # noqa: PLC0415
        except ImportError as error:
            raise UnsupportedError("This needs dask: pip install 'wsiweb[dask]'.") from error
        if integer(chunks, "chunks") < 1:
            raise RegionError(f"chunks is a number of pixels, not {chunks}.")
        meta = np.empty((0,) * self.ndim, self.dtype)
        from_array: Any = da.from_array  # untyped
        return from_array(self, chunks=self._chunks(chunks), meta=meta)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return "wsiweb.Level", *self.slide._identity, self.index, self.shape, self.mpp  # noqa: SLF001


def _axes(key: Any, shape: tuple[int, ...]) -> list[int | slice]:
    """Return an integer or a slice for each axis, as numpy would understand the key."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(one is Ellipsis for one in keys):
        place = next(n for n, one in enumerate(keys) if one is Ellipsis)
        keys[place : place + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    if len(keys) > len(shape):
        raise IndexError(f"This level has {len(shape)} axes, and {len(keys)} indices were given.")
    axes: list[int | slice] = []
    for one, extent in zip(keys, shape, strict=True):
        if isinstance(one, slice):
            axes.append(one)
            continue
        place = _place(one)
        if not -extent <= place < extent:
            raise IndexError(f"Index {place} is out of bounds for an axis of {extent}.")
        axes.append(place % extent)
    return axes


def _place(key: Any) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(key, (bool, np.bool_)):  # integers for Python (and numpy 1), masks for arrays
            return operator.index(key)
    raise IndexError(f"Levels are indexed by integers and slices, not by {type(key).__name__}.")


def _places(key: int | slice, extent: int) -> range:
    """Return the places along an axis that an index names."""
    return range(extent)[key] if isinstance(key, slice) else range(key, key + 1)


def _rising(places: range) -> range:
    return places if places.step > 0 else places[::-1]


def _runs(places: range, tile_side: int) -> list[range]:
    """Divide places along an axis into those that are in the same tile."""
    runs = []
    while places:
        to_the_end = -(places[0] % tile_side - tile_side)
        runs.append(places[: -(-to_the_end // places.step)])
        places = places[len(runs[-1]) :]
    return runs
