"""In which order patches are read, and who reads which: shuffles and shards that keep neighbours together. Pure.

A frame serves all patches that touch it only as long as it is cached. A true shuffle comes back to a frame when it is
long gone, and fetches many times as many; here patches are shuffled by blocks, and within a few blocks at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.regions import integer

if TYPE_CHECKING:
    from wsiweb.patches.layout import Integers

BLOCK_PATCHES = 8
"""Side of a block, at least."""
BLOCK_TILES = 6
"""Side of a block in tiles, at least: few of them are then shared with neighbours."""
BUFFER_BLOCKS = 4
"""Blocks that are shuffled into each other."""
BUFFER_BLOCKS_OF_TILES = 2
"""The same, where the side is by the tiles: four that touch 49 tiles of 1024 x 1024 each would be more than 400 MB."""
_BLOCKS_PER_SHARD = 4


def block_side(stride: int, tile: float) -> int:
    """Return the side of a block in patches, for tiles of so many pixels of the view."""
    return max(BLOCK_PATCHES, -(-round(BLOCK_TILES * tile) // stride))


def blocks(x: Integers, y: Integers, width: int, height: int) -> Integers:
    """Return the block, of ``width`` x ``height`` pixels, that each patch lies in: row by row from 0, without gaps."""
    columns, rows = x // width, y // height
    wide = int(columns.max(initial=0)) + 1 - min(int(columns.min(initial=0)), 0)
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


def shuffled(block_of: Integers | None, count: int, seed: int, buffer_blocks: int = BUFFER_BLOCKS) -> Integers:
    """Return a permutation: blocks in random order, patches in random order within ``buffer_blocks`` of them.

    ``block_of`` is the block of each patch; None shuffles without regard to where patches lie.
    """
    random = generator(seed)
    if block_of is None:
        anywhere: Integers = random.permutation(count)
        return anywhere
    number = int(block_of.max(initial=-1)) + 1
    place = np.empty(number, np.int64)
    place[random.permutation(number)] = np.arange(number) // buffer_blocks
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
        sizes = np.bincount(block_of) if len(block_of) else np.zeros(0, np.int64)
        if len(sizes) >= _BLOCKS_PER_SHARD * count or (width == 1 and height == 1):
            break
        width, height = max(width // 2, 1), max(height // 2, 1)
    middles = np.cumsum(sizes) - sizes / 2
    shard_of = np.minimum((middles * count / max(len(x), 1)).astype(np.int64), count - 1)
    return np.flatnonzero(shard_of[block_of] == number)
