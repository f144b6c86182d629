"""The verb that finds slides: search."""

from __future__ import annotations

import json
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

import wsiweb
from wsiweb.cli.common import AsJson, Header, Token, User, app, connection, stderr, stdout


@app.command()
def search(
    place: Annotated[str, typer.Argument(metavar="URL", help="URL of a DICOMweb service.")],
    filters: Annotated[
        list[str] | None, typer.Argument(metavar="[KEYWORD=VALUE]...", help="Such as PatientID='C3L-*'.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Slides to list at most.")] = 100,
    token: Token = None,
    user: User = None,
    header: Header = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """List the slides of a service."""
    pairs = [one.partition("=") for one in filters or []]
    if not all(equals and name for name, equals, _ in pairs):
        raise typer.BadParameter("a filter is KEYWORD=VALUE, such as PatientID='C3L-*'")
    named: dict[str, Any] = {name: value for name, _, value in pairs}
    with stderr.status("searching"):
        slides = wsiweb.search(place, limit=limit + 1, **connection(token, user, header), **named)
        found = list(islice(slides, limit + 1))
    more, found = len(found) > limit, found[:limit]
    columns = {
        "patient_id": "patient", "study_date": "date", "series_description": "series", "study_description": "study",
        "number_of_instances": "instances", "study_uid": "study UID", "series_uid": "series UID",
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps([{name: getattr(one, name) for name in columns} for one in found], indent=2))
        return
    shown = {name: title for name, title in columns.items() if any(getattr(one, name) for one in found)}
    table = Table(*shown.values(), box=None, header_style="bold", pad_edge=False)
    for one in found:
        table.add_row(*(str(getattr(one, name) or "") for name in shown))
    stdout.print(table)
    stderr.print(f"{len(found)} slide{'' if len(found) == 1 else 's'}{', and more: raise --limit' if more else ''}")
