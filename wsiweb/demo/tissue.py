"""The picture of the demo slide: something like tissue, stained with haematoxylin and eosin, at any pixel on demand.

The amounts of both stains are painted, and a table turns them into colours as light through dye would (Beer and
Lambert). What is smooth (outlines, glands, the course of fibres) is kept on a coarse grid as distances or coordinates
and made sharp only where pixels are asked for. Knows no DICOM, and paints level 0 only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wsiweb.demo.texture import (
    ANGLES,
    CELL,
    GLASS,
    STAMP,
    TEXTURE,
    VARIANTS,
    enlarge,
    jittered_grid,
    noise,
    nucleus_stamps,
    stain_colours,
    texture,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatMap = npt.NDArray[np.float32]

EPITHELIUM = 66.0
"""Height of the cells of a gland in pixels; the lumen begins beyond."""
GLAND_PITCH = 400
"""Pixels from one gland to the next."""
ISLANDS = ((0.32, 0.50, 0.22, 0.40, 0.35), (0.78, 0.33, 0.13, 0.27, -0.45), (0.76, 0.79, 0.17, 0.12, 0.15))
"""Centre and half axes of each piece of tissue as parts of width and height, and its turn in radians."""


@dataclass(frozen=True, slots=True)
class Nuclei:
    """Where nuclei lie and what they look like, sorted by ``y``."""

    x: npt.NDArray[np.int32]
    """Left of the stamp in pixels of level 0."""
    y: npt.NDArray[np.int32]
    """Top of the stamp."""
    stamp: npt.NDArray[np.int32]
    """Index into the stamps."""


@dataclass(frozen=True, slots=True)
class Gland:
    """A ring of cells around a lumen; its outline is a circle with a few waves."""

    x: float
    """Centre in pixels of level 0."""
    y: float
    """Centre in pixels of level 0."""
    radius: float
    """Mean radius in pixels."""
    waves: tuple[tuple[float, float], ...]
    """Amplitude as part of the radius, and phase, of the waves of 2, 3, ... to a turn."""

    @classmethod
    def at_random(cls, rng: np.random.Generator, x: float, y: float) -> Self:
        """Return a gland of chance size and shape."""
        amplitudes = (rng.uniform(0, 0.24), *rng.normal(0, (0.05, 0.035, 0.02)))
        phases = rng.uniform(0, 2 * np.pi, len(amplitudes))
        return cls(x, y, rng.triangular(95, 140, 205), tuple(zip(amplitudes, phases, strict=True)))

    def outline(self, angle: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the distance from the centre to the outline at angles."""
        waves = (wave * np.cos(order * angle + phase) for order, (wave, phase) in enumerate(self.waves, start=2))
        return np.asarray(self.radius * (1 + sum(waves)))

    def draw(self, depths: FloatMap) -> None:
        """Raise a coarse map to the distance from the outline, positive inside."""
        reach = int(1.6 * self.radius / CELL)
        left, top = max(round(self.x / CELL) - reach, 0), max(round(self.y / CELL) - reach, 0)
        part = depths[top : top + 2 * reach, left : left + 2 * reach]
        rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
        dx, dy = (left + columns) * CELL - self.x, (top + rows) * CELL - self.y
        np.maximum(part, self.outline(np.arctan2(dy, dx)) - np.hypot(dx, dy), out=part)

    def lining(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Return the nuclei along the outline as (x, y, angle, kind)."""
        step = 19 / self.radius
        angle = np.arange(0, 2 * np.pi, step)
        angle = angle + rng.normal(0, 0.2, angle.size) * step
        r = self.outline(angle) - rng.normal(19, 5, angle.size)
        return np.stack([self.x + r * np.cos(angle), self.y + r * np.sin(angle), angle, 0 * angle], axis=1)


class Tissue:
    """A picture of a size that can be painted piece by piece; the same seed paints the same picture.

    Parameters
    ----------
    size
        Width and height in pixels.
    seed
        Chooses among pictures.
    """

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        self.size = size
        rng = np.random.default_rng(seed)
        shape = (-(-size[1] // CELL) + 1, -(-size[0] // CELL) + 1)
        y, x = (axis.astype(np.float32) * CELL for axis in np.ogrid[: shape[0], : shape[1]])
        self._tone = noise(rng, shape, 500) + 0.5 * noise(rng, shape, 130)
        self._inside = _islands(rng, size, shape, x, y)
        turn = rng.uniform(0, np.pi)
        cos, sin = float(np.cos(turn)), float(np.sin(turn))  # numpy's own would turn the maps into float64
        self._along = x * cos - y * sin + 200 * noise(rng, shape, 1000)
        self._across = x * sin + y * cos + 95 * noise(rng, shape, 850)
        self._across += 6 * noise(rng, shape, 170)
        self._gland = np.full(shape, -1000, np.float32)
        domain, crowd = noise(rng, shape, 1700), noise(rng, shape, 1100)
        lined = self._place_glands(rng, domain)
        self._nuclei = _gather([lined, *self._scatter(rng, crowd)])
        self._stamps = nucleus_stamps(rng)
        self._fibres = texture(rng, ((1.0, 70, 3.0), (0.9, 200, 9.0)), 40)
        self._grain = np.tile(texture(rng, ((1.0, 1.3, 1.3), (0.8, 5, 5)), 40), (2, 2))

    def paint(self, x: int, y: int, w: int, h: int) -> npt.NDArray[np.uint8]:
        """Return a rectangle inside the picture as ``(h, w, 3)`` RGB.

        ``x`` and ``y`` are multiples of ``CELL``, ``w`` and ``h`` at most ``TEXTURE``.
        """
        inside = enlarge(self._inside, x, y, w, h)
        if inside.max() < -20:
            return np.broadcast_to(np.array(GLASS, np.uint8), (h, w, 3))
        left, top = x % TEXTURE, y % TEXTURE
        grain = self._grain[top : top + h, left : left + w].astype(np.float32) - 128
        along = enlarge(self._along, x, y, w, h).astype(np.int32) & (TEXTURE - 1)
        across = enlarge(self._across, x, y, w, h).astype(np.int32) & (TEXTURE - 1)
        fibres = self._fibres.ravel().take(across * TEXTURE + along).astype(np.float32)
        tone = enlarge(self._tone, x, y, w, h)

        eosin = 62 + 0.55 * fibres + 15 * tone
        eosin *= np.clip((fibres - 62) / 26, 0.06, 1)  # clefts between the fibres
        haematoxylin = 8 + 0.07 * fibres + 5 * tone
        depth = enlarge(self._gland, x, y, w, h)
        if depth.max() > -20:
            depth += 0.03 * grain
            cells = np.clip(depth / 6 + 0.5, 0, 1)
            gap = np.clip(1 - np.abs(depth + 8) / 7, 0, 1) * np.clip(
                0.5 + 0.5 * tone, 0.1, 0.9
            )  # glands shrink off the stroma when fixed
            lumen = np.clip((depth - EPITHELIUM + 6 * tone) / 7 + 0.5, 0, 1)
            mucin = np.clip(1 - np.abs(depth - 0.66 * EPITHELIUM) / 18, 0, 1) * cells
            eosin += cells * (100 + 0.22 * grain - 46 * mucin - eosin)
            haematoxylin += cells * (46 + 0.2 * grain - 14 * mucin - haematoxylin)
            kept = (1 - lumen * np.clip(0.99 - 0.13 * tone, 0.6, 0.99)) * (1 - gap)
            eosin *= kept
            haematoxylin *= kept
        edge = np.clip((inside + 0.06 * grain) / 16 + 0.5, 0, 1)
        eosin *= edge * (1 + 0.0022 * grain)
        haematoxylin *= edge
        haematoxylin = np.clip(haematoxylin, 0, 255).astype(np.uint8)
        self._stamp_nuclei(haematoxylin, x, y)
        stains = haematoxylin.astype(np.uint16) << 8
        # Nuclei take up some eosin too, even those that lie in a cleft.
        stains |= np.maximum(np.clip(eosin, 0, 255).astype(np.uint8), haematoxylin // 3)
        colours = stain_colours().take(stains).view(np.uint8).reshape(h, w, 4)
        pixels = np.empty((h, w, 3), np.uint8)
        for channel in range(3):  # three times as fast as at once
            pixels[..., channel] = colours[..., channel]
        return pixels

    def _stamp_nuclei(self, haematoxylin: npt.NDArray[np.uint8], x: int, y: int) -> None:
        """Draw the nuclei that touch the rectangle at ``(x, y)``."""
        h, w = haematoxylin.shape
        nuclei = self._nuclei
        first, last = np.searchsorted(nuclei.y, (y - STAMP + 1, y + h))
        touching = (nuclei.x[first:last] > x - STAMP) & (nuclei.x[first:last] < x + w)
        for index in (np.flatnonzero(touching) + first).tolist():
            left, top = int(nuclei.x[index]) - x, int(nuclei.y[index]) - y
            target = haematoxylin[max(top, 0) : top + STAMP, max(left, 0) : left + STAMP]
            source = self._stamps[nuclei.stamp[index], max(-top, 0) :, max(-left, 0) :]
            np.maximum(target, source[: target.shape[0], : target.shape[1]], out=target)

    def _place_glands(self, rng: np.random.Generator, domain: FloatMap) -> npt.NDArray[np.float64]:
        """Draw glands into the coarse map; return the nuclei that line them as (x, y, angle, kind)."""
        found = [np.empty((0, 4))]
        for x, y in jittered_grid(rng, self.size, GLAND_PITCH, 0.2).tolist():
            gland = Gland.at_random(rng, x, y)
            if self._sample(self._inside, x, y) > 1.25 * gland.radius and self._sample(domain, x, y) > -0.15:
                gland.draw(self._gland)
                found.append(gland.lining(rng))
        lined = np.concatenate(found)
        x, y = lined[:, 0], lined[:, 1]
        depth = self._sample(self._gland, x, y)  # where glands merge, some would end up in the lumen
        kept: npt.NDArray[np.float64] = lined[(depth > 4) & (depth < 40) & (self._sample(self._inside, x, y) > 8)]
        return kept

    def _scatter(self, rng: np.random.Generator, crowd: FloatMap) -> list[npt.NDArray[np.float64]]:
        """Return the nuclei between the glands, sparse ones along the fibres and crowds of lymphocytes."""
        slope_y, slope_x = np.gradient(self._across)
        found = []
        for pitch, jitter, crowded in ((44, 0.42, False), (21, 0.3, True)):
            spots = jittered_grid(rng, self.size, pitch, jitter)
            x, y = spots[:, 0], spots[:, 1]
            chance = rng.uniform(size=x.size)
            density = np.clip((self._sample(crowd, x, y) - 1.15) * 4, 0, 1) if crowded else 0.6
            keep = (self._sample(self._inside, x, y) > 12) & (chance < density)
            keep &= self._sample(self._gland, x, y) < -14
            x, y = x[keep], y[keep]
            along = np.arctan2(self._sample(np.asarray(slope_x), x, y), -self._sample(np.asarray(slope_y), x, y))
            angle = along + rng.normal(0, 0.25, x.size)
            kind = np.full(x.size, 2) if crowded else rng.choice([1, 2, 3], x.size, p=[0.62, 0.2, 0.18])
            found.append(np.stack([x, y, angle, kind], axis=1))
        return found

    @staticmethod
    def _sample(field: FloatMap, x: Any, y: Any) -> Any:
        """Return a coarse map's nearest values at pixels."""
        row = np.clip(np.rint(np.asarray(y) / CELL).astype(int), 0, field.shape[0] - 1)
        column = np.clip(np.rint(np.asarray(x) / CELL).astype(int), 0, field.shape[1] - 1)
        return field[row, column]


def _islands(
    rng: np.random.Generator, size: tuple[int, int], shape: tuple[int, int], x: FloatMap, y: FloatMap
) -> FloatMap:
    """Return how many pixels each sample lies within the tissue, negative on glass; about right near the outline."""
    inside = np.full(shape, -np.inf, np.float32)
    reach = min(size)
    for centre_x, centre_y, half_x, half_y, turn in ISLANDS:
        dx, dy = x - centre_x * size[0], y - centre_y * size[1]
        a, b = half_x * size[0], half_y * size[1]
        cos, sin = float(np.cos(turn)), float(np.sin(turn))
        r = np.hypot((dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b)
        inside = np.maximum(inside, (1 - r) * min(a, b))
    for part, wavelength in ((0.024, 0.2), (0.009, 0.06), (0.003, 0.02)):
        inside += part * reach * noise(rng, shape, max(wavelength * reach, 4 * CELL))
    inside += 2.5 * noise(rng, shape, 60)
    return inside


def _gather(groups: list[npt.NDArray[np.float64]]) -> Nuclei:
    """Return nuclei given as (x, y, angle, kind) in the form that painting wants."""
    x, y, angle, kind = np.concatenate(groups).T
    order = np.argsort(y, kind="stable")
    steps = np.rint(angle / np.pi * ANGLES).astype(np.int32) % ANGLES
    variant = np.arange(x.size) % VARIANTS
    stamp = (kind.astype(np.int32) * ANGLES + steps) * VARIANTS + variant
    corner_x, corner_y = ((axis - STAMP / 2).astype(np.int32) for axis in (x, y))
    return Nuclei(corner_x[order], corner_y[order], stamp[order].astype(np.int32))
