"""Write a region of a level to PNG in bands, with memory bounded whatever the region's size."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from wsiweb import icc as icc_profiles
from wsiweb.cache import Keep
from wsiweb.errors import RegionError, WsiWebError
from wsiweb.files import whole_stream, writable
from wsiweb.geometry import Rectangle
from wsiweb.plan import RegionPlanner, check_region
from wsiweb.png import DEFAULT_COMPRESSION, PngWriter
from wsiweb.regions import RegionArrays
from wsiweb.resolution import view_of_level

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from wsiweb.images import Channel
    from wsiweb.pyramid import Level
    from wsiweb.reader import Reader

    Progress = Callable[[int, int], None]

BAND_BYTES = 8 << 20
"""About so much of the region is one band: whole rows of tiles, unless these are too large."""
AHEAD_BYTES = 64 << 20
"""At most so much is read ahead of the compression: more would only wait in memory."""


def export_png(
    reader: Reader,
    path: str | os.PathLike[str],
    level: Level,
    region: Rectangle,
    channels: Sequence[Channel],
    *,
    compression: int | None,
    profile_of: Callable[[], bytes | None],
    to_srgb: bool,
    progress: bool | Progress | None,
) -> None:
    """Write ``region`` of ``level`` to ``path``; see ``Slide.export_png``.

    ``profile_of`` returns the slide's ICC profile, which may cost a request; it is embedded, or applied where
    ``to_srgb``.
    """
    channel = only_channel(channels)
    compression = DEFAULT_COMPRESSION if compression is None else compression
    if isinstance(compression, bool) or not isinstance(compression, (int, np.integer)) or not 1 <= compression <= 9:
        raise RegionError(f"compression is an integer from 1 (fast) to 9 (small), not {compression!r}.")
    check_region(region, level.bounds, where=f"Level {level.index}", itemsize=1, max_region_bytes=1 << 62)
    bands = _bands(level, region, 3 if channel.colour else channel.dtype.itemsize)
    profile = profile_of() if channel.colour else None
    embedded = icc_profiles.srgb_profile() if profile and to_srgb else profile
    arrays = RegionArrays(
        reader,
        view_of_level(level),
        bands,
        RegionPlanner(level, channels, stacked=False),
        profile=profile if to_srgb else None,
        ahead_bytes=min(AHEAD_BYTES, reader.options.readahead_bytes),
        keep=Keep.ON_TRIAL,
        single=False,
    )
    with progress_of(progress, region.h, "PNG") as report, _atomic(Path(path)) as stream:
        writer = PngWriter(
            stream,
            region.w,
            region.h,
            channels=3 if channel.colour else 1,
            bits=channel.dtype.itemsize * 8,
            compression=compression,
            icc_profile=embedded,
            pixels_per_metre=_density(level.mpp),
            map_ordered=reader.map_ordered,
        )
        done = 0
        with contextlib.closing(arrays):  # stops the reading if the writing fails
            for array in arrays:
                writer.write_rows(array)
                done += len(array)
                report(done, region.h)
        writer.close()


def only_channel(channels: Sequence[Channel]) -> Channel:
    """Return the channel of a picture, or raise ``RegionError`` where there are several."""
    if len(channels) != 1:
        raise RegionError("A PNG shows one optical path; name it with optical_path=.")
    return channels[0]


def write_png(
    path: str | os.PathLike[str],
    image: npt.NDArray[Any],
    *,
    mpp: tuple[float, float] | None,
    profile: bytes | None = None,
) -> None:
    """Write an array as the library returns it: ``(h, w, 3)`` uint8, or ``(h, w)`` or ``(h, w, 1)`` of either type."""
    image = image[..., 0] if image.shape[2:] == (1,) else image
    with _atomic(Path(path)) as stream:
        writer = PngWriter(
            stream,
            image.shape[1],
            image.shape[0],
            channels=3 if image.ndim == 3 else 1,
            bits=image.dtype.itemsize * 8,
            compression=DEFAULT_COMPRESSION,
            icc_profile=profile,
            pixels_per_metre=_density(mpp),
        )
        writer.write_rows(image)
        writer.close()


def _density(mpp: tuple[float, float] | None) -> tuple[int, int] | None:
    """Return pixels a metre, or None where it is unknown or senseless."""
    if mpp is None or not all(1 <= 1e6 / axis <= 2**31 - 1 for axis in mpp):
        return None
    return round(1e6 / mpp[0]), round(1e6 / mpp[1])


def _bands(level: Level, region: Rectangle, pixel_bytes: int) -> Iterator[Rectangle]:
    """Cut a region along rows of tiles into bands of about ``BAND_BYTES``."""
    tile_height = level.tile_size[1]
    rows = max(BAND_BYTES // (region.w * pixel_bytes * tile_height), 1) * tile_height
    if region.w * pixel_bytes * tile_height > AHEAD_BYTES:  # a wide region of tall tiles
        rows = max(BAND_BYTES // (region.w * pixel_bytes), 1)
    top = region.y
    while top < region.bottom:
        bottom = min((top // rows + 1) * rows, region.bottom)
        yield Rectangle(region.x, top, region.w, bottom - top)
        top = bottom


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """Write under a temporary name in the same folder; the final name appears with the whole file, or never."""
    with writable(path):
        path = path.resolve()  # a link stays a link
        irregular = path.exists() and not path.is_file()
    if irregular:
        raise WsiWebError(f"{path} is no regular file; it is not replaced.")
    with whole_stream(path) as stream:
        yield stream


@contextlib.contextmanager
def progress_of(progress: bool | Progress | None, total: int, what: str) -> Iterator[Progress]:  # noqa: FBT001
    """Yield what is told of progress: the user's own callable, a bar on the terminal, or nothing."""
    if callable(progress):
        yield progress
    elif progress:
        from rich.progress import Progress as Bar  # noqa: PLC0415

        with Bar() as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, _total: bar.update(task, completed=done)
    else:
        yield lambda _done, _total: None
