"""The kinds of synthetic slide that the contract's tests run over, by name."""

from __future__ import annotations

from typing import Any

from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

EXACT = ((768, 512), (384, 256), (192, 128))
"""Sizes whose downsamples are whole in both axes."""

KINDS: dict[str, dict[str, Any]] = {
    "rgb": {},
    "implicit": {"syntax": ImplicitVRLittleEndian},
    "jpeg": {"syntax": JPEGBaseline8Bit},
    "jpeg-extended-offsets": {"syntax": JPEGBaseline8Bit, "offsets": "extended"},
    "jpeg-no-offsets": {"syntax": JPEGBaseline8Bit, "offsets": "none"},
    "jpeg-mono8": {"syntax": JPEGBaseline8Bit, "content": "mono8"},
    "jpeg2000": {"syntax": JPEG2000Lossless},
    "jpeg2000-mono16": {"syntax": JPEG2000Lossless, "content": "mono16"},
    "mono8": {"content": "mono8"},
    "mono16": {"content": "mono16"},
    "sparse": {"tiling": "sparse"},
    "sparse-holes": {"tiling": "sparse", "missing": {0: {(1, 1), (10, 11), (0, 5)}, 1: {(0, 0)}}},
    "sparse-mono16": {"tiling": "sparse", "content": "mono16", "missing": {0: {(2, 2)}}},
    "undeclared-positions": {"tiling": "positions", "missing": {1: {(1, 0)}}},
    "undeclared-raster": {"tiling": "raster"},
    "by-threes": {"sizes": ((630, 459), (210, 153), (70, 51))},
    "by-fours-and-odd": {"sizes": ((913, 641), (228, 160), (57, 40))},
    "one-tile": {"sizes": ((50, 40),), "content": "mono8"},
    "exact": {"sizes": EXACT},
    "paths": {"content": "mono16", "optical_paths": ("DAPI", "FITC", "1"), "sizes": EXACT[1:]},
    "planes": {"content": "mono8", "focal_planes": (-1.0, 0.5, 2.0), "sizes": EXACT[1:]},
    "paths-and-planes": {
        "content": "mono8",
        "optical_paths": ("B", "A"),
        "focal_planes": (0.0, 1.5),
        "sizes": EXACT[1:],
    },
    "spread": {
        "content": "mono8",
        "optical_paths": ("A", "B"),
        "focal_planes": (0.0, 1.5, 3.0),
        "sizes": EXACT[1:],
        "spread": True,
    },
    "sparse-paths-and-planes": {
        "content": "mono16",
        "tiling": "sparse",
        "optical_paths": ("A", "B"),
        "focal_planes": (-2.0, 0.0, 2.0),
        "sizes": EXACT[1:],
    },
}
