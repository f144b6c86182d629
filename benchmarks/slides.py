"""The slides that are measured: what they look like, which frames a region needs, and which pixels it has.

A picture of some thousand pixels square is painted once, and repeats over a level, further up each time to the right
(else whoever compresses a row would find the repetition): a level of any number of frames is then made of some hundred
distinct encoded frames, the same for every reader, and the pixels of any region are known without any reader. Used by
every process of a benchmark, in whatever environment, so it needs nothing but numpy.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

JPEG, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"
SHIFT = 7
"""Tiles by which the picture is moved up wherever it repeats to the right."""
Region = tuple[int, int, int, int]
"""(x, y, w, h) in pixels of a level."""


@dataclass(frozen=True, slots=True)
class SlideSpec:
    """A slide as it is asked for."""

    name: str
    size: tuple[int, int]
    """Width and height of level 0."""
    tile: int
    """Columns and rows of a frame."""
    factors: tuple[int, ...]
    """Downsample of each level; powers of two, since wsidicom reads no others."""
    period: int
    """Side of the picture that repeats, in pixels of level 0; a multiple of ``tile``."""
    syntax: str = JPEG
    sparse_frames: int | None = None
    """TILED_SPARSE with so many frames, at random places, each described by itself; None is TILED_FULL."""
    associated: bool = True
    """Whether there are a label and an overview."""
    seed: int = 1
    """Chooses the picture, and the UIDs."""

    def levels(self) -> tuple[LevelSpec, ...]:
        """Return the pyramid, finest first."""
        return tuple(LevelSpec(self, factor) for factor in self.factors)

    @property
    def uid(self) -> str:
        """Return the root of the slide's UIDs."""
        digits = int(hashlib.sha256(self.name.encode()).hexdigest()[:10], 16)
        return f"1.2.826.0.1.3680043.8.498.{digits}.{self.seed}"

    @property
    def study_uid(self) -> str:
        return f"{self.uid}.1"

    @property
    def series_uid(self) -> str:
        return f"{self.uid}.2"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(**{**data, "size": tuple(data["size"]), "factors": tuple(data["factors"])})


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One level of a slide."""

    slide: SlideSpec
    factor: int

    @property
    def size(self) -> tuple[int, int]:
        w, h = self.slide.size
        return -(-w // self.factor), -(-h // self.factor)

    @property
    def grid(self) -> tuple[int, int]:
        """Columns and rows of tiles."""
        w, h = self.size
        return -(-w // self.slide.tile), -(-h // self.slide.tile)

    @property
    def period(self) -> int:
        """Tiles after which the picture repeats, along both axes."""
        return max(self.slide.period // self.factor // self.slide.tile, 1)

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Return column and row of the tile of each frame, ``(frames, 2)``."""
        columns, rows = self.grid
        order = np.arange(columns * rows)
        if self.slide.sparse_frames is not None and self.factor == 1:
            order = np.random.default_rng(self.slide.seed).permutation(order)[: self.slide.sparse_frames]
        return np.stack([order % columns, order // columns], axis=1)

    @property
    def palette_indices(self) -> npt.NDArray[np.int64]:
        """Return, for each frame, which of the distinct frames it is."""
        column, row = self.places.T
        return self._palette_index(column, row)

    def _palette_index(self, column: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        shifted = row + SHIFT * (column // self.period)
        return shifted % self.period * self.period + column % self.period

    def palette_indices_of(self, regions: Iterable[Region]) -> npt.NDArray[np.int64]:
        """Return the distinct frames that regions of a full level touch, each frame once, by index into the palette."""
        columns, rows = self.grid
        touched = np.zeros((rows, columns), bool)
        tile = self.slide.tile
        for x, y, w, h in regions:
            touched[max(y, 0) // tile : -(-(y + h) // tile), max(x, 0) // tile : -(-(x + w) // tile)] = True
        row, column = np.nonzero(touched)
        return self._palette_index(column, row)


class StoredSlide:
    """A slide as it was made, in a folder: distinct encoded frames, their pixels, and the metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = SlideSpec.from_json(json.loads((folder / "slide.json").read_text()))

    def palette(self, level: int) -> list[bytes]:
        """Return the distinct encoded frames of a level."""
        data = (self.folder / f"frames-{level}.bin").read_bytes()
        stops: list[int] = json.loads((self.folder / f"frames-{level}.json").read_text())
        return [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def pixels(self, level: int, region: Region) -> Pixels:
        """Return the pixels of a region inside of a level, decoded when the slide was made, by another decoder."""
        picture = np.load(self.folder / f"pixels-{level}.npy", mmap_mode="r")
        x, y, w, h = region
        side = picture.shape[0]
        columns = np.arange(x, x + w)
        rows = np.arange(y, y + h)[:, None] + SHIFT * self.spec.tile * (columns // side)
        found: Pixels = picture[rows % side, columns % side]
        return found

    def metadata(self) -> list[dict[str, Any]]:
        """Return the DICOM JSON of every instance: levels, then associated images."""
        found: list[dict[str, Any]] = json.loads((self.folder / "metadata.json").read_text())
        return found
