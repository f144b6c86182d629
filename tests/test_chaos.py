"""500 random regions over 8 threads, from a server that does everything wrong now and then."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault
from serving import open_slide, settled, within
from test_cancellation import open_files

from wsiweb import ReadOptions, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import SlideMaker
    from faults import Request

    from wsiweb import Slide

REGIONS = 500
SHARE = 0.05
"""Of the requests, for each kind of trouble."""
TROUBLE: dict[str, Callable[[random.Random], Fault]] = {
    "reset": lambda rng: Fault(reset_after_bytes=rng.randrange(20_000)),
    "truncation": lambda rng: Fault(cut_body_bytes=rng.randrange(1, 5000), framing=rng.choice(("length", "close"))),
    "503": lambda rng: Fault(status=503, headers=rng.choice(({}, {"Retry-After": "0"}))),
    "slow drip": lambda rng: Fault(drip=(rng.randrange(500, 4000), 0.01)),
    "short answer": lambda rng: Fault(drop_parts=rng.randrange(1, 4)),
}


class Chaos:
    """Draws the trouble of each request; the seed settles what is drawn, the threads who gets it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.drawn: Counter[str] = Counter()

    def __call__(self, request: Request) -> Fault | None:
        if request.kind != "frames":
            return None
        with self.lock:
            place = int(self.random.random() / SHARE)
            name = [*TROUBLE, *["none"] * 20][place]
            self.drawn[name] += 1
            return TROUBLE[name](self.random) if name in TROUBLE else None


@pytest.mark.parametrize(("seed", "attempts"), [(1, 8), (2, 1)])
def test_chaos(synthetic: SlideMaker, seed: int, attempts: int, hurried: None) -> None:
    """With attempts enough every pixel is right; with one, what fails is named. Nothing hangs, nothing stays."""
    truth = synthetic("jpeg")
    settled()
    threads_before, files_before = threading.active_count(), open_files()
    rng = random.Random(seed)
    regions = []
    for _ in range(REGIONS):
        level = rng.choice((0, 0, 0, 1, 2))
        width, height = truth.levels[level].size
        w, h = rng.randrange(1, 200), rng.randrange(1, 150)
        regions.append((level, rng.randrange(-50, width - 1), rng.randrange(-50, height - 1), w + 50, h + 50))
    # Small caches, so that nearly every region is asked for.
    options = ReadOptions(
        max_attempts=attempts,
        timeout_seconds=2,
        deadline_seconds=60,
        tile_cache_bytes=200_000,
        frame_cache_bytes=20_000,
    )
    failures: Counter[str] = Counter()
    chaos = Chaos(seed)

    def read(slide: Slide, region: tuple[int, int, int, int, int]) -> None:
        try:
            image = slide.read_region(*region)
        except WsiWebError as error:
            failures[f"{type(error).__name__}, {'named' if 'instance' in str(error) else 'unnamed'}"] += 1
            return
        np.testing.assert_array_equal(image, truth.truth(*region))

    def read_all(slide: Slide) -> None:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(read, slide, region) for region in regions]:
                done.result()

    with DICOMwebServer(truth.folder) as server, open_slide(server, truth, options=options) as slide:
        server.fault = chaos
        within(120, lambda: read_all(slide))
        server.fault = lambda request: None
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 700, 530), truth.truth(0, 0, 0, 700, 530))
        # A request may be lost with a connection that the server has just reset.
        assert server.count() <= slide.stats.requests <= server.count() + chaos.drawn["reset"]
        assert slide.stats.retries > 0
    assert set(chaos.drawn) == {*TROUBLE, "none"}
    assert min(chaos.drawn.values()) >= 10
    if attempts > 1:
        assert not failures
    else:
        assert 0 < failures.total() < REGIONS
        assert all(name.endswith(", named") for name in failures)
    settled()
    deadline = time.monotonic() + 20
    while open_files() > files_before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)  # the server's side of the connections
    assert open_files() <= files_before
    assert threading.active_count() <= threads_before
