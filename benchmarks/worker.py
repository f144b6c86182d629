"""One measurement: a fresh process in a reader's environment. Speaks JSON lines over its standard streams.

It imports the reader, reads something small from another slide so that whatever is imported late is there, prepares the
job (opens the slide, if opening is not what is timed), says so, waits to be told to go, and reports.

Arguments: reader, settings as JSON, and the folder that holds the ``wsiweb`` to measure.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.readers import MODULES, Place
from benchmarks.slides import Region, StoredSlide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.readers import Pixels, Reader

    Json = dict[str, Any]

CHECKED = 250
"""Of a long list of patches so many, spread over it, are compared with the truth."""
FIRST_USE_SIDE = 64
THREADS = 16
"""That read at the same time, where many do."""


@dataclass(slots=True)
class Check:
    """Compares pixels with the truth; the time that it takes is taken off."""

    slide: StoredSlide
    level_index: int
    wanted: bool
    reduced_by: int = 1
    seconds: float = 0.0
    difference: int | None = None
    """Largest difference of any sample; None where nothing was compared."""

    def region(self, region: Region, pixels: Pixels) -> None:
        if not self.wanted:
            return
        started = time.perf_counter()
        truth = self.slide.pixels(self.level_index, region)
        found = 255
        if self.reduced_by > 1:
            w, h = (side // self.reduced_by for side in region[2:])
            found = difference_of_means(truth, pixels) if pixels.shape[:2] == (h, w) else 255
        elif truth.shape == pixels.shape:
            found = int(np.abs(truth.astype(np.int16) - pixels).max())
        self.difference = max(self.difference or 0, found)
        self.seconds += time.perf_counter() - started


def run(reader: Reader, job: Json, check: Check) -> Json:
    """Do what is timed."""
    place, regions = Place(*job["place"]), [tuple(region) for region in job["regions"]]
    level, kind = job["factor"], job["kind"]
    result: Json = {}
    started = time.perf_counter()
    if kind in ("open", "first", "start"):
        size = reader.open(place)
        if tuple(size) != check.slide.spec.size:
            raise ValueError(f"The slide is {size}, it says.")
    if kind in ("first", "start", "region", "warm"):
        check.region(regions[0], reader.region(level, regions[0]))
    elif kind in ("regions", "reduced", "threads"):
        step = -(-len(regions) // CHECKED)
        count = 0
        for count, pixels in enumerate(images_of(reader, job, regions), start=1):
            if count == 1:
                result["first_seconds"] = time.perf_counter() - started
            assert pixels[-1, -1, 0] >= 0
            if count % step == 0:
                check.region(regions[count - 1], pixels)
        if count != len(regions):
            raise ValueError(f"{count} regions came, {len(regions)} were asked for.")
    elif kind == "thumbnail":
        result["thumbnail"] = reader.thumbnail(job["max_size"])
    elif kind == "png":
        reader.png(job["path"], level, regions[0])
    return {"seconds": time.perf_counter() - started - check.seconds, **result}


def images_of(reader: Reader, job: Json, regions: Sequence[Region]) -> Iterator[Pixels]:
    """Yield many regions, in order, in the way that is measured."""
    if job["kind"] == "regions":
        yield from reader.regions(job["factor"], regions)
    elif job["kind"] == "reduced":
        yield from reader.reduced(job["factor"], regions, job["reduced_by"])
    else:
        with ThreadPoolExecutor(THREADS) as threads:
            yield from threads.map(functools.partial(reader.region, job["factor"]), regions)


def prepare(reader: Reader, job: Json) -> None:
    """Do what is not timed."""
    if job["kind"] not in ("open", "first", "start"):
        reader.open(Place(*job["place"]))
    if job["kind"] == "warm":
        reader.region(job["factor"], tuple(job["regions"][0]))


def check_thumbnail(slide: StoredSlide, level_index: int, pixels: Pixels, max_size: int) -> int:
    """Compare with the whole picture."""
    if abs(max(pixels.shape[:2]) - max_size) > 1:
        return 255
    return difference_of_means(slide.pixels(level_index, (0, 0, *slide.spec.levels()[level_index].size)), pixels)


def difference_of_means(truth: Pixels, pixels: Pixels) -> int:
    """Compare pictures of different sizes by the means of parts: readers resample differently."""
    cells = 16
    grids = [
        np.stack([[part.mean(axis=(0, 1)) for part in np.array_split(row, cells, axis=1)] for row in rows])
        for rows in (np.array_split(np.asarray(image, np.float32), cells, axis=0) for image in (truth, pixels))
    ]
    return int(np.abs(grids[0] - grids[1]).max())


def check_png(slide: StoredSlide, level_index: int, region: Region, path: str) -> int:
    """Compare a file with the truth, band by band."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    x, y, w, h = region
    with Image.open(path) as image:
        if image.size != (w, h) or image.mode != "RGB":
            return 255
        pixels = np.asarray(image)
    worst = 0
    for top in range(0, h, 512):
        rows = min(512, h - top)
        truth = slide.pixels(level_index, (x, y + top, w, rows)).astype(np.int16)
        worst = max(worst, int(np.abs(truth - pixels[top : top + rows]).max()))
    return worst


def memory() -> tuple[int, int]:
    """Return resident bytes now, and at their highest."""
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak  # bytes on macOS
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak


def forget_peak() -> None:
    """Let the highest resident size begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(action: Callable[[], Json], tell: Callable[[Json], None]) -> Json:
    """Say that all is ready, wait for the word, and run."""
    gc.collect()
    forget_peak()
    base_bytes, _ = memory()
    tell({"state": "ready"})
    sys.stdin.readline()
    before = cpu_seconds()
    result = action()
    cpu = cpu_seconds() - before
    tell({"state": "done"})
    sys.stdin.readline()  # the server's counters are read meanwhile
    return {**result, "cpu_seconds": cpu, "base_bytes": base_bytes, "peak_bytes": memory()[1]}


def measure(name: str, settings: Json, import_seconds: float, job: Json, tell: Callable[[Json], None]) -> Json:
    if name == "floor":
        from benchmarks.readers import floor

        return measured(floor.prepare(job), tell)
    module = importlib.import_module(MODULES[name])
    slide = StoredSlide(Path(job["folder"]))
    check = Check(slide, job["level_index"], wanted=job["check"], reduced_by=job["reduced_by"])
    started = time.perf_counter()
    if job["warm_up"] is not None:
        first: Reader = module.Reader(settings)
        first.open(Place(*job["warm_up"]))
        small = (0, 0, FIRST_USE_SIDE, FIRST_USE_SIDE)
        first.region(1, small)
        if job["kind"] == "reduced":
            collections.deque(first.reduced(1, [small], job["reduced_by"]), 0)
        first.close()
    warm_up_seconds = time.perf_counter() - started
    reader: Reader = module.Reader(settings)
    prepare(reader, job)
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as folder:
        job["path"] = str(Path(folder) / "region.png")
        result = measured(lambda: run(reader, job, check), tell)
        if job["kind"] == "png":
            result["file_bytes"] = Path(job["path"]).stat().st_size
            if job["check"]:
                check.difference = check_png(slide, check.level_index, tuple(job["regions"][0]), job["path"])
    if job["kind"] == "start":
        result["seconds"] += import_seconds
    thumbnail = result.pop("thumbnail", None)
    if thumbnail is not None and job["check"]:
        check.difference = check_thumbnail(slide, check.level_index, thumbnail, job["max_size"])
    reader.close()
    times = {"import_seconds": import_seconds, "warm_up_seconds": warm_up_seconds}
    return {**result, **times, "difference": check.difference}


def main() -> None:
    name, settings, package_root = sys.argv[1:]
    sys.path.insert(0, package_root)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints

    def tell(message: Json) -> None:
        print(json.dumps(message), file=replies, flush=True)

    started = time.perf_counter()
    if name in MODULES:
        importlib.import_module(MODULES[name])
    import_seconds = time.perf_counter() - started
    job = json.loads(sys.stdin.readline())
    try:
        tell({"state": "result", **measure(name, json.loads(settings), import_seconds, job, tell)})
    except Exception as error:  # noqa: BLE001  (whatever it is, it is the answer)
        tell({"state": "failed", "error": f"{type(error).__name__}: {error}"[:500]})
    replies.flush()
    os._exit(0)  # threads of a reader that failed do not keep the process


if __name__ == "__main__":
    main()
