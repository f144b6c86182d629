"""In which order patches are read, and who reads which: shuffles and shards that keep neighbours together. Pure.

A frame serves all patches that touch it only as long as it is cached. A true shuffle comes back to a frame when it is
long gone, and fetches many times as many; here patches are shuffled by blocks, and within a few blocks at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.regions import integer

if TYPE_CHECKING:
    from wsiweb.patches.layout import Integers

BLOCK_PATCHES = 8
"""Side of a block, at least."""
BLOCK_TILES = 6
"""Side of a block in tiles, at least, unless they are huge: few of them are then shared with neighbours."""
BUFFER_BLOCKS = 4
"""Blocks that are shuffled into each other."""
FEW_BUFFER_BLOCKS = 2
"""The same, where tiles or patches are large."""
BUFFER_PIXELS = 1 << 27
"""Of the tiles that are wanted at a time: 400 MB as colours, which leaves some of the default tile cache. More blocks
than few take half of it, so that arrays that are begun early have their room there, too."""
_BLOCKS_PER_SHARD = 4
_BLOCKS_COMPARED = 16
"""Which tiles blocks show differs from one to the next."""


@dataclass(frozen=True, slots=True)
class Side:
    """Of blocks along one axis."""

    pixels: int
    """Of the view."""
    read_pixels: float
    """Of the level: of all the tiles that a block shows, on average."""


def sides(patches: Integers, size: int, stride: int, tile: int, scale: float) -> list[Side]:
    """Return the sides of blocks of so many patches, for tiles of ``tile`` pixels of the level."""
    pixels = patches * stride
    first = np.arange(_BLOCKS_COMPARED)[:, np.newaxis] * pixels
    last = first + pixels - stride + size - 1
    tiles = last * scale // tile - first * scale // tile + 1
    return [Side(int(side), float(mean) * tile) for side, mean in zip(pixels, tiles.mean(axis=0), strict=True)]


def best_side(size: int, stride: int, tile: int, scale: float) -> Side:
    """Return the side of blocks that share the fewest tiles with their neighbours, of those from the least to twice it.

    32 patches of 224 pixels are 7 tiles of 1024: no tile is shared. More than the least are taken only where few such
    blocks are no more than ``BUFFER_PIXELS``.
    """
    most = math.sqrt(BUFFER_PIXELS / FEW_BUFFER_BLOCKS)
    least = max(BLOCK_PATCHES, -(-round(min(BLOCK_TILES * tile, most) / scale) // stride))
    candidates = sides(np.arange(least, 2 * least), size, stride, tile, scale)
    within = [side for side in candidates if side.read_pixels <= most]
    return min(within or candidates[:1], key=lambda side: side.read_pixels / side.pixels)


def buffer_blocks(x: Side, y: Side) -> int:
    """Return how many blocks of these sides are shuffled into each other."""
    fits = BUFFER_BLOCKS * x.read_pixels * y.read_pixels <= BUFFER_PIXELS / 2
    return BUFFER_BLOCKS if fits else FEW_BUFFER_BLOCKS


def blocks(x: Integers, y: Integers, width: int, height: int) -> Integers:
    """Return the block, of ``width`` x ``height`` pixels, that each patch lies in: row by row from 0, without gaps."""
    columns, rows = x // width, y // height
    wide = int(columns.max(initial=0)) + 1 - int(columns.min(initial=0))
    _, numbers = np.unique(rows * wide + columns, return_inverse=True)
    block_of: Integers = numbers.astype(np.int64).reshape(-1)
    return block_of


def generator(seed: int) -> np.random.Generator:
    """Return the source of everything that is random here: the same for the same seed.

    Raises
    ------
    RegionError
        The seed is no integer from 0.
    """
    if integer(seed, "seed") < 0:
        raise RegionError(f"seed is at least 0, not {seed}.")
    return np.random.default_rng(seed)


def shuffled(block_of: Integers | None, count: int, seed: int, together: int) -> Integers:
    """Return a permutation: blocks in random order, patches in random order within so many of them together.

    ``block_of`` is the block of each patch; None shuffles without regard to where patches lie.
    """
    random = generator(seed)
    if block_of is None:
        anywhere: Integers = random.permutation(count)
        return anywhere
    number = int(block_of.max(initial=-1)) + 1
    place = np.empty(number, np.int64)
    place[random.permutation(number)] = np.arange(number) // together
    shuffle: Integers = np.lexsort((random.random(count), place[block_of]))
    return shuffle


def shard(x: Integers, y: Integers, side: tuple[int, int], number: int, count: int) -> Integers:
    """Return which patches (by place, rising) belong to one of ``count`` shards: runs of whole blocks.

    Shards are of about equal size. Blocks are made smaller where there are too few to share out.

    Raises
    ------
    RegionError
        There is no such shard.
    """
    if count < 1 or not 0 <= number < count:
        raise RegionError(f"There is no shard {number} of {count}; they are numbered from 0.")
    width, height = side
    while True:
        block_of = blocks(x, y, width, height)
        sizes = np.bincount(block_of)
        if len(sizes) >= _BLOCKS_PER_SHARD * count or (width == 1 and height == 1):
            break
        width, height = max(width // 2, 1), max(height // 2, 1)
    middles = np.cumsum(sizes) - sizes / 2
    shard_of = (middles * count / max(len(x), 1)).astype(np.int64)
    return np.flatnonzero(shard_of[block_of] == number)
