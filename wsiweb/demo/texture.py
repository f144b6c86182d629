"""What the demo slide's picture is put together from: noise, seamless textures, stamps of nuclei, and colours.

Pure numpy, and nothing of what tissue looks like at large; that is ``tissue``'s.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatMap = npt.NDArray[np.float32]

CELL = 8
"""Pixels of level 0 from one sample of a coarse map to the next."""
TEXTURE = 1024
"""Width and height of the seamless textures; a power of two."""
GLASS = (243, 241, 244)
"""Colour where there is no tissue."""
HAEMATOXYLIN_DENSITY = (0.60, 0.70, 0.32)
"""Optical density in red, green and blue at the full amount."""
EOSIN_DENSITY = (0.05, 0.46, 0.23)
"""Optical density in red, green and blue at the full amount."""

ANGLES = 16
"""Orientations that nuclei come in, over half a turn."""
VARIANTS = 5
"""Stamps of one kind and orientation."""
STAMP = 40
"""Width and height of a nucleus's stamp."""
KINDS = ((13.5, 7.0, 0.80), (15.0, 4.6, 0.78), (8.2, 7.6, 0.97), (12.0, 9.5, 0.66))
"""Epithelial, spindle-shaped, lymphocyte, large: half axes in pixels and darkness."""


def noise(rng: np.random.Generator, shape: tuple[int, int], wavelength_pixels: float) -> FloatMap:
    """Return smooth noise of mean 0 and deviation 1 as a coarse map."""
    from PIL import Image  # noqa: PLC0415  (only the demo needs it here)

    step = max(wavelength_pixels / CELL / 2, 1)
    knots = rng.normal(size=(int(shape[0] / step) + 4, int(shape[1] / step) + 4)).astype(np.float32)
    box = (1, 1, 1 + shape[1] / step, 1 + shape[0] / step)
    image = Image.fromarray(knots).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, np.float32) / np.float32(0.72)  # what interpolation leaves of the deviation


def texture(
    rng: np.random.Generator, layers: tuple[tuple[float, float, float], ...], deviation: float
) -> npt.NDArray[np.uint8]:
    """Return seamless noise around 128, of layers of (weight, length along x, length along y)."""
    frequency_y, frequency_x = np.fft.fftfreq(TEXTURE)[:, None], np.fft.rfftfreq(TEXTURE)[None, :]
    total = np.zeros((TEXTURE, TEXTURE))
    for weight, length_x, length_y in layers:
        fade = np.exp(-8 * ((frequency_x * length_x) ** 2 + (frequency_y * length_y) ** 2))
        layer = np.fft.irfft2(np.fft.rfft2(rng.normal(size=total.shape)) * fade, total.shape)
        total += weight * layer / layer.std()
    scaled: npt.NDArray[np.float64] = 128 + deviation * total / total.std()
    return np.clip(scaled, 0, 255).astype(np.uint8)


def nucleus_stamps(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the amounts of haematoxylin of nuclei, one stamp for each kind, angle and variant."""
    y, x = np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    stamps = np.empty((len(KINDS), ANGLES, VARIANTS, STAMP, STAMP), np.uint8)
    for kind, (a, b, darkness) in enumerate(KINDS):
        for angle in range(ANGLES):
            cos, sin = np.cos(np.pi * angle / ANGLES), np.sin(np.pi * angle / ANGLES)
            for variant in range(VARIANTS):
                grow_a, grow_b = rng.uniform(0.82, 1.15, 2)
                bend = rng.normal(0, 0.006)
                u, v = x * cos + y * sin, y * cos - x * sin
                r = np.hypot(u / (a * grow_a), (v + bend * u * u) / (b * grow_b))
                grain = rng.normal(size=(STAMP + 1, STAMP + 1))
                chromatin = (grain[1:, 1:] + grain[1:, :-1] + grain[:-1, 1:] + grain[:-1, :-1]) / 2
                rim = np.exp(-(((r - 0.9) / 0.16) ** 2))
                amount = (darkness * rng.uniform(0.86, 1.1) * 200) * (0.84 + 0.2 * rim + 0.09 * chromatin)
                stamps[kind, angle, variant] = np.clip(amount, 0, 255) * np.clip((1 - r) * b / 1.8 + 0.5, 0, 1)
    return stamps.reshape(-1, STAMP, STAMP)


def jittered_grid(
    rng: np.random.Generator, size: tuple[int, int], pitch: float, jitter: float
) -> npt.NDArray[np.float64]:
    """Return spots, ``(n, 2)`` as x and y, about a pitch apart: a honeycomb with each spot moved at random."""
    rows, columns = np.mgrid[: int(size[1] / pitch / 0.87) + 1, : int(size[0] / pitch) + 1].astype(float)
    spots = np.stack([columns + 0.5 * (rows % 2), rows * 0.87], axis=-1).reshape(-1, 2)
    return (spots + rng.uniform(-jitter, jitter, spots.shape)) * pitch


def enlarge(field: FloatMap, x: int, y: int, w: int, h: int) -> FloatMap:
    """Return a coarse map at every pixel of a rectangle, interpolated linearly."""
    rows, columns = -(-h // CELL), -(-w // CELL)
    part = field[y // CELL : y // CELL + rows + 1, x // CELL : x // CELL + columns + 1]
    weight = np.arange(CELL, dtype=np.float32) / np.float32(CELL)
    wide = part[:, :-1, None] + (part[:, 1:] - part[:, :-1])[..., None] * weight
    wide = wide.reshape(rows + 1, columns * CELL)
    tall = wide[:-1, None] + (wide[1:] - wide[:-1])[:, None] * weight[:, None]
    return tall.reshape(rows * CELL, columns * CELL)[:h, :w]


@cache
def stain_colours() -> npt.NDArray[np.uint32]:
    """Return the colour of each amount of haematoxylin (high byte) and eosin (low byte) as RGBX."""
    amount = np.arange(256) / 255
    density = amount[:, None, None] * HAEMATOXYLIN_DENSITY + amount[None, :, None] * EOSIN_DENSITY
    table = np.zeros((256, 256, 4), np.uint8)
    table[..., :3] = np.rint(np.array(GLASS) * 10.0**-density)
    return table.reshape(-1, 4).view(np.uint32).ravel()
