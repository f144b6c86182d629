"""The command ``wsiweb``: verbs over the library, tables and progress bars; no logic of its own.

Exit codes: 0, 1 where something failed, 2 for wrong usage.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

import wsiweb
from wsiweb.errors import RegionError, WsiWebError

if TYPE_CHECKING:
    from wsiweb.slide import Slide

app = typer.Typer(
    name="wsiweb",
    help="Read whole-slide images over DICOMweb, or from DICOM files, without downloading the slide.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_stdout = Console(highlight=False)
_stderr = Console(stderr=True, highlight=False)

SlidePlace = Annotated[
    str,
    typer.Argument(
        metavar="SLIDE", help="URL of a series (https://host/dicomWeb/studies/1.2/series/3.4), folder or file."
    ),
]
StudyUid = Annotated[str | None, typer.Option("--study", help="Study UID, where SLIDE is the root of a service.")]
SeriesUid = Annotated[str | None, typer.Option("--series", help="Series UID, where SLIDE does not say it.")]
Token = Annotated[str | None, typer.Option("--token", envvar="WSIWEB_TOKEN", help="Bearer token.", show_envvar=True)]
User = Annotated[
    str | None, typer.Option("--user", envvar="WSIWEB_USER", help="USER:PASSWORD for basic authentication.")
]
Header = Annotated[list[str] | None, typer.Option("--header", help="'Name: value' to send along; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Overwrite = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,  # noqa: FBT002
) -> None:
    if version:
        typer.echo(wsiweb.__version__)
        raise typer.Exit


@app.command()
def demo(
    place: Annotated[
        str | None, typer.Argument(metavar="[SLIDE]", help="Another slide to tour; by default one is made.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the picture.")] = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
) -> None:
    """Make a slide, serve it over DICOMweb on this computer, and read it: the library in twenty seconds."""
    from wsiweb.demo.tour import run_demo  # noqa: PLC0415

    run_demo(_stdout, place, output, _connection(token, user, header), level_table)


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
    with _open(place, study, series, token, user, header) as slide:
        if as_json:
            typer.echo(json.dumps(describe(slide), indent=2, ensure_ascii=False))
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
    _check_output(output, force=force)
    with _open(place, study, series, token, user, header) as slide:
        image = slide.thumbnail(max_size)
        _write(output, image, None)
    _stderr.print(f"{output}: {image.shape[1]} x {image.shape[0]} px")


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
    srgb: Annotated[bool, typer.Option("--srgb", help="Convert by the slide's ICC profile.")] = False,  # noqa: FBT002
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    force: Overwrite = False,  # noqa: FBT002
) -> None:
    """Write a region as PNG, with its ICC profile and density; any size, in bounded memory."""
    if level is not None and mpp is not None:
        raise typer.BadParameter("give --level or --mpp, not both")
    _check_output(output, force=force)
    with _open(place, study, series, token, user, header) as slide:
        icc = "srgb" if srgb else None
        if mpp is None:
            slide.export_png(
                output, level or 0, x, y, w, h, optical_path=optical_path, focal_plane=focal_plane, icc=icc,
                progress=_stderr.is_terminal,
            )  # fmt: skip
        else:
            image = slide.read_region_mpp(mpp, x, y, w, h, optical_path=optical_path, focal_plane=focal_plane, icc=icc)
            _write(output, image, mpp)
        _stderr.print(f"{output}: {w} x {h} px, {slide.stats.frames} frames in {slide.stats.requests} requests")


@app.command()
def bench(
    place: SlidePlace,
    level: Annotated[int, typer.Option("--level", help="Level to read; 0 is the finest.")] = 0,
    patch_size: Annotated[int, typer.Option("--patch-size", min=1, help="Side of the patches in pixels.")] = 256,
    megabytes: Annotated[float, typer.Option("--megabytes", min=0.1, help="About what may be received.")] = 200.0,
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="About how long it may take.")] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the places that are read.")] = 1,
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Measure how fast a slide reads from where it is, within a budget of bytes and seconds."""
    from wsiweb.bench import run_bench  # noqa: PLC0415

    with _stderr.status("opening") as status:
        report = run_bench(
            place, level=level, patch_size=patch_size, megabytes=megabytes, seconds=seconds, seed=seed,
            on_step=lambda step: status.update(f"{step.name}: {step.seconds:.3f} s"),
            study_uid=study, series_uid=series, **_connection(token, user, header),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
        return
    columns = ("", "seconds", "patches/s", "first", "requests", "each", "MB", "x decoding")
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for step in report.steps:
        table.add_row(
            step.name,
            f"{step.seconds:.3f}",
            _figure(step.patches_per_second, ".0f"),
            _figure(step.first_seconds, ".3f"),
            str(step.requests),
            _figure(step.requests_per_patch, ".2f"),
            f"{step.bytes / 1e6:.1f}",
            _figure(step.decode_ratio, ".1f"),
        )
    _stdout.print(table)
    if report.stopped:
        _stderr.print(f"[yellow]Not all was measured:[/yellow] {_escaped(report.stopped)}", soft_wrap=True)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


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
    _stdout.print(f"study   {slide.study_uid}\nseries  {slide.series_uid}\n")
    _stdout.print(level_table(slide))
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
        table.add_row(name, value)
    _stdout.print()
    _stdout.print(table)


def _connection(token: str | None, user: str | None, headers: list[str] | None) -> dict[str, Any]:
    connection: dict[str, Any] = {}
    if token:
        connection["token"] = token
    if user:
        name, colon, password = user.partition(":")
        if not colon:
            raise typer.BadParameter("--user is USER:PASSWORD")
        connection["auth"] = name, password
    if headers:
        pairs = [header.partition(":") for header in headers]
        if not all(colon and name.strip() for name, colon, _ in pairs):
            raise typer.BadParameter("--header is 'Name: value'")
        connection["headers"] = {name.strip(): value.strip() for name, _, value in pairs}
    return connection


def _open(
    place: str, study: str | None, series: str | None, token: str | None, user: str | None, header: list[str] | None
) -> Slide:
    return wsiweb.Slide.open(place, study_uid=study, series_uid=series, **_connection(token, user, header))


def _check_output(output: Path, *, force: bool) -> None:
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} exists; --force overwrites it")


def _write(output: Path, image: Any, mpp: float | None) -> None:
    from wsiweb.export import write_png  # noqa: PLC0415

    write_png(output, image, mpp=(mpp, mpp) if mpp else None)


def main() -> None:
    """Run the command; what fails becomes one line on stderr and exit code 1."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (WsiWebError, RegionError, OSError) as error:
        _stderr.print(f"[red]error:[/red] {_escaped(str(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        _stderr.print("interrupted")
        sys.exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001  (what warnings passes)
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if issubclass(category, wsiweb.MetadataWarning):
        _stderr.print(f"[yellow]warning:[/yellow] {_escaped(str(message))}", soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
