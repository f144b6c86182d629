"""The verbs that read a slide: demo, info, thumbnail, region."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from wsiweb.cli.common import (
    AsJson,
    Header,
    Overwrite,
    SeriesUid,
    SlidePlace,
    StudyUid,
    Token,
    Upsample,
    User,
    app,
    cell,
    check_output,
    connection,
    echo_json,
    escaped,
    open_slide,
    stderr,
    stdout,
)  # fmt: skip
from wsiweb.sources.quoting import counted

if TYPE_CHECKING:
    from wsiweb.regions import Region
    from wsiweb.slide import Slide


@app.command()
def demo(
    place: Annotated[
        str | None, typer.Argument(metavar="[SLIDE]", help="Another slide to tour; by default one is made.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the picture.")] = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    force: Overwrite = False,  # noqa: FBT002
) -> None:
    """Make a slide, serve it over DICOMweb on this computer, and read it: the library in twenty seconds."""
    from wsiweb.demo.tour import run_demo  # noqa: PLC0415

    if output is not None:
        check_output(output, force=force)
    run_demo(stdout, place, output, connection(token, user, header), level_table)


@app.command()
def info(
    place: SlidePlace,
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Show levels, resolution, optical paths and properties of a slide; fetches no pixels."""
    with open_slide(place, study, series, token, user, header) as slide:
        if as_json:
            echo_json(describe(slide), indent=2)
        else:
            _print_info(slide)


@app.command()
def thumbnail(
    place: SlidePlace,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("thumbnail.png"),
    max_size: Annotated[int, typer.Option("--max-size", min=1, help="Longer side in pixels, at most.")] = 1024,
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    force: Overwrite = False,  # noqa: FBT002
) -> None:
    """Write the whole slide as a small PNG."""
    check_output(output, force=force)
    with open_slide(place, study, series, token, user, header) as slide:
        from wsiweb.export import write_png  # noqa: PLC0415

        image = slide.thumbnail(max_size)
        write_png(output, image, mpp=None)
    stderr.print(f"{escaped(str(output))}: {image.shape[1]} x {image.shape[0]} px")


@app.command(context_settings={"ignore_unknown_options": True})  # so that x and y may be negative
def region(
    place: SlidePlace,
    x: Annotated[int, typer.Argument(help="Left edge, in pixels of the level.")],
    y: Annotated[int, typer.Argument(help="Top edge.")],
    w: Annotated[int, typer.Argument(help="Width.")],
    h: Annotated[int, typer.Argument(help="Height.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("region.png"),
    level: Annotated[int | None, typer.Option("--level", help="Level to read; 0, the finest, by default.")] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="Resolution in µm a pixel, in place of a level.")] = None,
    optical_path: Annotated[str | None, typer.Option("--optical-path", help="Identifier.")] = None,
    focal_plane: Annotated[float | None, typer.Option("--focal-plane", help="z offset in µm.")] = None,
    upsample: Upsample = False,  # noqa: FBT002
    srgb: Annotated[bool, typer.Option("--srgb", help="Convert by the slide's ICC profile.")] = False,  # noqa: FBT002
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    force: Overwrite = False,  # noqa: FBT002
) -> None:
    """Write a region as PNG, with its ICC profile and density; of a level any size, in bounded memory."""
    if level is not None and mpp is not None:
        raise typer.BadParameter("give --level or --mpp, not both")
    check_output(output, force=force)
    with open_slide(place, study, series, token, user, header) as slide:
        icc = "srgb" if srgb else None
        if mpp is None:
            level = level or 0
            _note_outside(slide, level, (x, y, w, h))
            slide.export_png(
                output, level, x, y, w, h, optical_path=optical_path, focal_plane=focal_plane, icc=icc,
                progress=stderr.is_terminal,
            )  # fmt: skip
        else:
            from wsiweb.export import only_channel, write_png  # noqa: PLC0415
            from wsiweb.icc import srgb_profile  # noqa: PLC0415

            view = slide._view(None, mpp, None, upsample=upsample)  # noqa: SLF001
            channel = only_channel(slide._channels(view.level, optical_path, focal_plane)[0])  # noqa: SLF001
            image = slide.read_region_mpp(
                mpp, x, y, w, h, optical_path=optical_path, focal_plane=focal_plane, icc=icc, upsample=upsample
            )
            profile = slide._icc_profile(optical_path, channel)  # noqa: SLF001
            write_png(output, image, mpp=(mpp, mpp), profile=srgb_profile() if srgb and profile else profile)
        cost = f"{counted(slide.stats.frames, 'frame')} in {counted(slide.stats.requests, 'request')}"
        stderr.print(f"{escaped(str(output))}: {w} x {h} px, {cost}")


def _note_outside(slide: Slide, level: int, region: Region) -> None:
    """Say when a region goes beyond its level: its numbers may be those of level 0."""
    x, y, w, h = region
    levels = slide.levels
    if not 0 <= level < len(levels):
        return  # which is an error of its own
    width, height = levels[level].size
    if x < width < x + w or y < height < y + h:
        stderr.print(f"[yellow]level {level} is {width} x {height} px:[/yellow] beyond, there is background only")


def describe(slide: Slide) -> dict[str, Any]:
    """Return what ``info --json`` prints."""
    return {
        "study_uid": slide.study_uid,
        "series_uid": slide.series_uid,
        "size": slide.size,
        "mpp": slide.mpp,
        "dtype": str(slide.dtype),
        "levels": [
            {
                "index": level.index,
                "size": level.size,
                "downsample": level.downsample,
                "mpp": level.mpp,
                "mpp_source": level.mpp_source,
                "tile_size": level.tile_size,
            }
            for level in slide.levels
        ],
        "optical_paths": slide.optical_paths,
        "focal_planes": slide.focal_planes,
        "associated_images": list(slide.associated_images),
        "properties": slide.properties,
        "pyramids": len(slide.pyramids),
    }


def level_table(slide: Slide) -> Table:
    """Return the pyramid as a table."""
    table = Table("level", "size", "downsample", "µm/px", "tile", box=None, header_style="bold", pad_edge=False)
    for level in slide.levels:
        table.add_row(
            str(level.index),
            f"{level.width:,} x {level.height:,}",
            f"{level.downsample:g}" if level.index == 0 else f"{level.downsample:.4g}",
            "" if level.mpp is None else " x ".join(dict.fromkeys(f"{axis:.4g}" for axis in level.mpp)),
            "{} x {}".format(*level.tile_size),
        )
    return table


def _print_info(slide: Slide) -> None:
    stdout.print(f"study   {escaped(slide.study_uid)}\nseries  {escaped(slide.series_uid)}\n")
    stdout.print(level_table(slide))
    facts = {
        "pixels": f"{slide.dtype}, {'RGB' if len(slide.levels[0].shape) == 3 else 'monochrome'}",
        "resolution from": slide.levels[0].mpp_source or "nowhere: state it with mpp=",
        "optical paths": ", ".join(slide.optical_paths),
        "focal planes": ", ".join(f"{plane:g} µm" for plane in slide.focal_planes),
        "associated images": ", ".join(slide.associated_images) or "none",
        **{name.replace("_", " "): str(value) for name, value in slide.properties.items()},
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, cell(value))
    stdout.print()
    stdout.print(table)
