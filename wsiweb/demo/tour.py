"""The tour of ``wsiweb demo``: open a slide over HTTP, read it in every way, and say what each way cost."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from wsiweb import ReadOptions
from wsiweb.demo.slide import default_cache_folder, make_demo_slide
from wsiweb.slide import Slide
from wsiweb.sources.quoting import counted, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

PICTURE = "wsiweb-demo.png"
_PICTURE_SIDE = 4096


def run_demo(
    console: Console,
    place: str | None,
    picture: Path | None,
    connection: dict[str, Any],
    level_table: Callable[[Slide], Table],
) -> None:
    """Give the tour.

    Parameters
    ----------
    console
        To print on.
    place
        A slide, as ``Slide.open`` takes it; None makes one and serves it on loopback.
    picture
        PNG to write; None puts it beside the demo slide in the cache folder.
    connection
        Further arguments of ``Slide.open``.
    level_table
        Draws the pyramid.
    """
    picture = picture or default_cache_folder() / PICTURE
    with contextlib.ExitStack() as stack:
        if place is None:
            place = stack.enter_context(_served_demo_slide(console))
        _tour(console, place, picture, connection, level_table)


@contextlib.contextmanager
def _served_demo_slide(console: Console) -> Iterator[str]:
    """Make the demo slide where there is none yet, and serve it from a server of our own."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    from wsiweb.server import DicomWebServer  # noqa: PLC0415

    started = time.perf_counter()
    columns = TextColumn("Painting a slide"), BarColumn(), MofNCompleteColumn(), TextColumn("frames")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        folder = make_demo_slide(
            default_cache_folder() / "demo", progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.iterdir())
    made = f"made in {seconds:.1f} s" if seconds > 0.5 else "made before"
    console.print(f"[bold]A slide[/bold], {made}: {escape(str(folder))} ({size / 1e6:.0f} MB of DICOM files)")
    with DicomWebServer(folder) as server:
        console.print(f"[bold]A DICOMweb server[/bold] on this computer: {server.url}\n")
        yield server.series_urls()[0]
    console.print(
        f'The server is gone now, the slide stays: [cyan]Slide.open("{escape(str(folder))}")[/cyan]', soft_wrap=True
    )


def _tour(
    console: Console, place: str, picture: Path, connection: dict[str, Any], level_table: Callable[[Slide], Table]
) -> None:
    # No decoded tile outlives its read here, so that each step shows what it costs by itself.
    options = ReadOptions(tile_cache_bytes=0, frame_cache_bytes=0)
    started = time.perf_counter()
    with Slide.open(place, options=options, **connection) as slide:
        seconds = time.perf_counter() - started
        shown = without_secrets(place) if "://" in place else place
        console.print(f'slide = Slide.open("{shown}")', style="cyan", soft_wrap=True, markup=False)
        console.print(f"  {counted(slide.stats.requests, 'request')}, {seconds * 1000:.0f} ms\n")
        console.print(level_table(slide))
        console.print()
        x, y, w, h = _centre(slide, _PICTURE_SIDE)

        with _step(console, slide, f"slide.read_region(0, {x}, {y}, {w}, {h})") as pixels:
            pixels.append(slide.read_region(0, x, y, w, h).shape[:2])

        side = min(512, w, h)
        places = np.random.default_rng(1).integers(0, (slide.size[0] - side + 1, slide.size[1] - side + 1), (100, 2))
        regions = [(int(left), int(top), side, side) for left, top in places]
        with _step(
            console, slide, f"slide.read_regions(0, [...])  # {len(regions)} random ones of {side} x {side}"
        ) as pixels:
            pixels.extend(region.shape[:2] for region in slide.read_regions(0, regions))

        level = slide.levels[min(1, len(slide.levels) - 1)].index
        patches = slide.patches(256, level=level, edge="pad")[:400]
        with _step(
            console, slide, f"slide.patches(256, level={level}).batches(64)  # {len(patches)} patches"
        ) as pixels:
            pixels.extend(batch.images.shape[1:3] for batch in patches.batches(64) for _ in batch.images)

        picture.parent.mkdir(parents=True, exist_ok=True)
        with _step(console, slide, f'slide.export_png("{picture.name}", 0, {x}, {y}, {w}, {h})') as pixels:
            slide.export_png(picture, 0, x, y, w, h)
            pixels.append((h, w))

        stats = slide.stats
        console.print(
            f"In all: {stats.requests} requests, {stats.frames:,} frames, {stats.bytes / 1e6:.1f} MB received, "
            f"nothing downloaded to disk.\nThe picture: [bold]{escape(str(picture))}[/bold]",
            soft_wrap=True,
        )


def _centre(slide: Slide, side: int) -> tuple[int, int, int, int]:
    """Return a region in the middle of level 0, off the grid of tiles."""
    width, height = slide.size
    w, h = min(side, width), min(side, height)
    return (width - w) // 2, (height - h) // 2, w, h


@contextlib.contextmanager
def _step(console: Console, slide: Slide, code: str) -> Iterator[list[tuple[int, ...]]]:
    """Time a step; it appends (h, w) of each array that it read."""
    console.print(code, style="cyan", soft_wrap=True, markup=False)
    before, started = slide.stats.as_dict(), time.perf_counter()
    shapes: list[tuple[int, ...]] = []
    yield shapes
    seconds = time.perf_counter() - started
    after = slide.stats.as_dict()
    frames = counted(after["frames"] - before["frames"], "frame")
    requests = counted(after["requests"] - before["requests"], "request")
    megapixels = sum(height * width for height, width in shapes) / 1e6
    console.print(
        f"  {frames} in {requests}, {megapixels:.1f} megapixels in {seconds:.2f} s: "
        f"{megapixels / seconds:.0f} megapixels a second\n"
    )
