"""From a painted picture to the levels of a slide, written while it is being painted.

Each level is the area mean of the one before. Memory is bounded by one strip of tiles for each level.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wsiweb.demo.file import EncapsulatedFile
from wsiweb.demo.header import Picture
from wsiweb.demo.texture import GLASS, TEXTURE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from wsiweb.demo.header import Uids

    Pixels = npt.NDArray[np.uint8]
    Progress = Callable[[int, int], None]


BLOCK_COLUMNS = TEXTURE
"""Width of what is painted in one go. Threads that paint single tiles mostly wait for the interpreter's lock."""


class Painter(Protocol):
    """What shows level 0."""

    def paint(self, x: int, y: int, w: int, h: int) -> Pixels:
        """Return a rectangle inside the picture as ``(h, w, 3)`` RGB; called from several threads."""


def plan_levels(size: tuple[int, int], tile: int, mpp: float, corner_mm: tuple[float, float]) -> list[Picture]:
    """Return levels that halve until one fits into a tile; an odd last row or column has no part in the next."""
    levels: list[Picture] = []
    while not levels or max(levels[-1].size) > tile:
        index = len(levels)
        level = Picture(
            name=f"level-{index}",
            number=index + 1,
            flavour="VOLUME",
            size=(size[0] >> index, size[1] >> index),
            tile_size=(tile, tile),
            mpp=(mpp * 2**index, mpp * 2**index),
            corner_mm=corner_mm,
            derived=index > 0,
        )
        levels.append(level)
    return levels


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Return JPEG baseline with YCbCr 4:2:2, which DICOM calls YBR_FULL_422."""
    import imagecodecs  # noqa: PLC0415  (its codecs load slowly)

    pixels = np.ascontiguousarray(pixels)
    return bytes(
        imagecodecs.jpeg8_encode(pixels, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="422")
    )


def write_levels(
    painter: Painter,
    levels: list[Picture],
    folder: Path,
    uids: Uids,
    *,
    quality: int,
    keep: int,
    progress: Progress | None,
) -> Pixels:
    """Paint level 0 and write all levels, a strip of tiles at a time.

    Parameters
    ----------
    painter
        Shows level 0.
    levels
        As planned, the finest first; each becomes the file of its name in the folder.
    quality
        Of JPEG, 1 to 100.
    keep
        Index of the level to return.
    progress
        Called with (frames written, frames in all), from this thread.

    Returns
    -------
    The level to keep as it was before compression, ``(h, w, 3)``.
    """
    total, done = sum(level.frames for level in levels), 0
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(min(os.cpu_count() or 1, 8)))
        writers: list[_LevelWriter] = []
        for level in reversed(levels):
            file = stack.enter_context(EncapsulatedFile(folder / level.file_name, level, uids))
            writers.append(_LevelWriter(level, file, quality, writers[-1] if writers else None))
        base, kept = writers[-1], writers[len(levels) - 1 - keep]
        kept.strips = []
        for row in range(levels[0].grid[1]):
            for _ in base.write_strip(row, pool, painter):
                done += 1
                if progress is not None:
                    progress(done, total)
    return np.concatenate(kept.strips)


class _LevelWriter:
    """Collects a strip of tiles of one level, writes it, and hands its area mean to the next coarser level."""

    def __init__(self, level: Picture, file: EncapsulatedFile, quality: int, coarser: _LevelWriter | None) -> None:
        self.strips: list[Pixels] | None = None
        self._level, self._file, self._quality, self._coarser = level, file, quality, coarser
        self._tile = level.tile_size[0]
        self._strip = np.full((self._tile, level.grid[0] * self._tile, 3), GLASS, np.uint8)

    def write_strip(self, row: int, pool: ThreadPoolExecutor, painter: Painter | None = None) -> Iterator[None]:
        """Write a row of tiles and what it completes of coarser levels; yield after each frame."""
        columns, rows = self._level.grid
        if row >= rows:  # one row of pixels has no part in a coarser level, nor has a strip that consists of it
            return
        blocks = range(0, columns, BLOCK_COLUMNS // self._tile)
        for frames in pool.map(partial(self._finish_block, row, painter), blocks):
            for frame in frames:
                self._file.write(frame)
                yield
        if self.strips is not None:
            self.strips.append(self._strip[: self._level.size[1] - row * self._tile, : self._level.size[0]].copy())
        if row == rows - 2:
            self._strip[:] = GLASS  # since the last strip may fill the buffer in part only
        is_second_half = row % 2 == 1 or row == rows - 1
        if self._coarser is not None and is_second_half:
            yield from self._coarser.write_strip(row // 2, pool)

    def _finish_block(self, row: int, painter: Painter | None, column: int) -> list[bytes]:
        """Return the code streams of some tiles of the strip, painted first where there is a painter."""
        tile = self._tile
        x, y = column * tile, row * tile
        pixels = self._strip[:, x : x + BLOCK_COLUMNS // tile * tile]
        if painter is not None:
            w, h = min(self._level.size[0] - x, pixels.shape[1]), min(self._level.size[1] - y, tile)
            pixels[:h, :w] = painter.paint(x, y, w, h)
        if self._coarser is not None:
            self._coarser.take(pixels, x // 2, y // 2)
        return [encode_jpeg(pixels[:, left : left + tile], self._quality) for left in range(0, pixels.shape[1], tile)]

    def take(self, finer: Pixels, x: int, y: int) -> None:
        """Set a part of the strip, at pixels of this level, to the means of 2 x 2 pixels."""
        w = min(finer.shape[1] // 2, self._level.size[0] - x)
        h = min(finer.shape[0] // 2, self._level.size[1] - y)
        if w <= 0 or h <= 0:
            return
        pairs = finer[: 2 * h : 2, : 2 * w].astype(np.uint16) + finer[1 : 2 * h : 2, : 2 * w]
        half = np.uint16(1 + self._level.number % 2)  # up and down in turn, so that no level drifts
        target = self._strip[y % self._tile :, x:][:h, :w]
        for channel in range(3):  # faster than at once
            target[..., channel] = (pairs[:, ::2, channel] + pairs[:, 1::2, channel] + half) >> 2
