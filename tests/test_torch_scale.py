"""20,000 patches through a DataLoader, in every kind of worker: right pixels, one request for metadata, even memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wsiweb import ReadOptions

if TYPE_CHECKING:
    from conftest import Opener, SlideMaker
    from synthetic import SyntheticSlide

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
data = pytest.importorskip("torch.utils.data")
from wsiweb.torch import PatchDataset, PatchIterableDataset  # noqa: E402

PATCHES, SIDE, STRIDE = 20_000, 32, 18
MEBIBYTE = 1 << 20
CACHES = ReadOptions(
    tile_cache_bytes=8 * MEBIBYTE, frame_cache_bytes=4 * MEBIBYTE, readahead_bytes=2 * MEBIBYTE, decode_threads=1
)
"""Less than the slide has, so that a thousand patches fill them."""
GROWTH_BYTES = 20 * MEBIBYTE
"""A worker that kept its patches would grow by 23 MB in the last three quarters, one that kept its tiles by more."""


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("rgb", sizes=((3000, 2400),), tile_size=(80, 80))


def with_memory(image: Any) -> dict[str, Any]:
    """Return an image with the process it is made in, and what memory that holds of its own."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    memory_bytes = (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return {"image": image, "process": os.getpid(), "memory_bytes": memory_bytes}


def loader(kind: str, patches: Any, workers: int, method: str | None) -> Any:
    generator = torch.Generator().manual_seed(5)
    if kind == "stream":
        dataset: Any = PatchIterableDataset(patches, seed=1, transform=with_memory)
        options: dict[str, Any] = {"batch_size": 64}
    elif kind == "shuffled":
        dataset = PatchDataset(patches, transform=with_memory)
        options = {"batch_size": 64, "shuffle": True, "generator": generator}
    else:
        dataset = PatchDataset(patches, transform=with_memory)
        sampler = data.RandomSampler(patches, generator=generator)
        options = {"batch_size": None, "sampler": data.BatchSampler(sampler, 64, drop_last=False)}
        options["collate_fn"] = data.default_collate
    return data.DataLoader(dataset, num_workers=workers, multiprocessing_context=method, timeout=60 * bool(workers),
                           **options)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "workers", "method"),
    [
        ("shuffled", 0, None),
        ("shuffled", 2, "fork"),
        ("lists", 2, "forkserver"),
        ("stream", 2, "spawn"),
    ],
)
def test_many_patches(open_web: Opener, truth: SyntheticSlide, kind: str, workers: int, method: str | None) -> None:
    slide = open_web(truth, options=CACHES)
    patches = slide.patches(SIDE, stride=STRIDE)[:PATCHES]
    slide.read_region(0, 0, 0, 10, 10)  # the parent has threads and connections
    pixels = next(iter(truth.levels[0].pixels.values()))
    seen: list[int] = []
    memory: dict[int, list[int]] = {}
    for batch in loader(kind, patches, workers, method):
        seen += batch["index"].tolist()
        images = batch["image"]["image"].numpy()
        for image, x, y in zip(images, batch["x_base"].tolist(), batch["y_base"].tolist(), strict=True):
            assert np.array_equal(np.moveaxis(image, 0, -1), pixels[y : y + SIDE, x : x + SIDE])
        places = zip(batch["image"]["process"].tolist(), batch["image"]["memory_bytes"].tolist(), strict=True)
        for process, memory_bytes in places:
            memory.setdefault(process, []).append(memory_bytes)
    assert sorted(seen) == list(range(PATCHES))
    assert open_web.servers[0].count("metadata") == 1
    assert len(memory) == max(workers, 1)
    for figures in memory.values():
        settled = len(figures) // 4  # by then all that is used again has been made once
        assert max(figures[settled:]) - max(figures[:settled]) < GROWTH_BYTES
