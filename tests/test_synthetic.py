"""The test slides themselves: the truth about them is what a naive reader and wsidicom see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import oracle
import pytest
from kinds import KINDS

if TYPE_CHECKING:
    from conftest import SlideMaker


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if not {"optical_paths", "focal_planes"} & set(v)])
def test_naive_reader_sees_the_truth(synthetic: SlideMaker, kind: str) -> None:
    truth = synthetic(kind)
    levels = oracle.stitch_levels(truth.folder)
    assert len(levels) == len(truth.levels)
    for level, found in zip(truth.levels, levels, strict=True):
        np.testing.assert_array_equal(found, level.pixels[truth.default_key])


@pytest.mark.parametrize("kind", ["rgb", "jpeg", "jpeg2000", "sparse-holes", "exact"])
def test_wsidicom_sees_the_truth(synthetic: SlideMaker, kind: str) -> None:
    wsidicom: Any = pytest.importorskip("wsidicom")
    truth = synthetic(kind, sizes=((640, 512), (320, 256)))
    with wsidicom.WsiDicom.open(truth.folder) as slide:
        image = np.asarray(slide.read_region((10, 20), 0, (300, 200)).convert("RGB"))
    np.testing.assert_array_equal(image, truth.truth(0, 10, 20, 300, 200))


def test_every_tile_differs(synthetic: SlideMaker) -> None:
    """A tile in the wrong place, level, channel or plane cannot pass for the right one."""
    for kind in ("rgb", "mono8", "mono16", "paths-and-planes"):
        truth = synthetic(kind)
        tiles = [
            pixels[y : y + 48, x : x + 64].tobytes()
            for level in truth.levels
            for pixels in level.pixels.values()
            for y in range(0, level.size[1] - 47, 48)
            for x in range(0, level.size[0] - 63, 64)
        ]
        assert len(set(tiles)) == len(tiles)
