"""Colour arithmetic: YBR to RGB, CIELab to sRGB. What a frame's colours *are* is decided in ``codecs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_D50 = (0.9642, 1.0, 0.8249)
# Bradford adaptation from D50 to D65, then XYZ to linear sRGB (IEC 61966-2-1), as one matrix.
_XYZ_D50_TO_SRGB = (
    (3.1338561, -1.6168667, -0.4906146),
    (-0.9787684, 1.9161415, 0.0334540),
    (0.0719453, -0.2289914, 1.4052427),
)


def cielab_to_srgb(value: tuple[int, int, int]) -> tuple[int, int, int]:
    """Convert an encoded CIELab value (PS3.3 C.10.7.1.1: D50, 16 bits a component) to 8-bit sRGB."""
    lightness = value[0] * 100 / 65535
    a, b = (component * 255 / 65535 - 128 for component in value[1:])
    fy = (lightness + 16) / 116
    xyz = [white * _lab_inverse(f) for white, f in zip(_D50, (fy + a / 500, fy, fy - b / 200), strict=True)]
    red, green, blue = (
        _srgb_byte(sum(factor * component for factor, component in zip(row, xyz, strict=True)))
        for row in _XYZ_D50_TO_SRGB
    )
    return red, green, blue


def _lab_inverse(f: float) -> float:
    delta = 6 / 29
    return f**3 if f > delta else 3 * delta**2 * (f - 4 / 29)


def _srgb_byte(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(encoded * 255)


def paint(array: npt.NDArray[Any], colour: tuple[int, ...]) -> None:
    """Fill an array, ``(h, w, samples)`` or ``(h, w)``, with one colour.

    One row, which is then copied: numpy spreads three samples over pixels fifty times as slowly.
    """
    array[:1] = colour if array.ndim == 3 else colour[0]
    array[1:] = array[:1]


def ybr_full_to_rgb(ybr: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Convert full-range YCbCr, ``(h, w, 3)`` uint8, to RGB (PS3.3 C.7.6.3.1.2, YBR_FULL)."""
    # Plane by plane: strided samples, and a stack of them, would take three times as long.
    luma, cb, cr = (np.ascontiguousarray(ybr[..., sample]).astype(np.float32) for sample in range(3))
    cb -= 128
    cr -= 128
    rgb = np.empty(ybr.shape, np.uint8)
    planes = luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb
    for sample, plane in enumerate(planes):
        rgb[..., sample] = np.rint(np.clip(plane, 0, 255, out=plane), out=plane)
    return rgb


def interleaved(planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``(samples, h, w)`` as ``(h, w, samples)``: sample by sample, which numpy does sooner than all at once."""
    pixels = np.empty((*planes.shape[1:], len(planes)), planes.dtype)
    for sample, plane in enumerate(planes):
        pixels[..., sample] = plane
    return pixels
