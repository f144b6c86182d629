"""The verbs that are about a service, or how fast it is: doctor, bench."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer
from rich.table import Table

from wsiweb.cli.common import (
    AsJson,
    Header,
    SeriesUid,
    SlidePlace,
    StudyUid,
    Token,
    User,
    app,
    connection,
    echo_json,
    escaped,
    stderr,
    stdout,
)  # fmt: skip


def _number(value: float) -> float:
    """Refuse nan: it is not outside any range, says click."""
    if math.isnan(value):
        raise typer.BadParameter("nan is no number")
    return value


@app.command()
def doctor(
    place: Annotated[str, typer.Argument(metavar="URL", help="URL of a series, or of the root of a service.")],
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    megabytes: Annotated[
        float,
        typer.Option("--megabytes", min=0.1, max=1_000_000, callback=_number, help="To receive, beside metadata."),
    ] = 10.0,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Find out what works on a DICOMweb service and what it costs; exit code 1 where no slide can be read."""
    from wsiweb.addresses import web_url  # noqa: PLC0415
    from wsiweb.doctor import examine, screen  # noqa: PLC0415

    if web_url(place) is None:
        raise typer.BadParameter("URL begins with http:// or https://")
    with stderr.status("asking the service"):
        report = examine(
            place, study_uid=study, series_uid=series, megabytes=megabytes, **connection(token, user, header)
        )
    if as_json:
        echo_json(report.as_dict(), indent=2)
    else:
        screen.show(stdout, report)
    raise typer.Exit(0 if report.readable else 1)


@app.command()
def bench(
    place: SlidePlace,
    level: Annotated[int, typer.Option("--level", help="Level to read; 0 is the finest.")] = 0,
    patch_size: Annotated[int, typer.Option("--patch-size", min=1, help="Side of the patches in pixels.")] = 256,
    megabytes: Annotated[
        float,
        typer.Option("--megabytes", min=0.1, max=1_000_000, callback=_number, help="About what may be received."),
    ] = 200.0,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, max=86_400, callback=_number, help="About how long it may take.")
    ] = 60.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the places that are read.")] = 1,
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Measure how fast a slide reads from where it is, within a budget of bytes and seconds."""
    from wsiweb.bench import run_bench  # noqa: PLC0415

    with stderr.status("opening") as status:
        report = run_bench(
            place, level=level, patch_size=patch_size, megabytes=megabytes, seconds=seconds, seed=seed,
            on_step=lambda step: status.update(f"{step.name}: {step.seconds:.3f} s"),
            study_uid=study, series_uid=series, **connection(token, user, header),
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
    stdout.print(table)
    if report.stopped:
        stderr.print(f"[yellow]Not all was measured:[/yellow] {escaped(report.stopped)}", soft_wrap=True)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
