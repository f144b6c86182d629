"""The verb that finds slides: search."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import wsiweb
from wsiweb.cli.common import AsJson, Header, Token, User, app, cell, connection, stderr, stdout
from wsiweb.errors import SearchError
from wsiweb.matching import Filter
from wsiweb.sources.quoting import counted

if TYPE_CHECKING:
    from wsiweb.finding import FoundSlide

TABLE_ROWS = 100
_COLUMNS = {
    "patient_id": "patient", "study_date": "date", "study_description": "study", "series_description": "series",
    "number_of_instances": "instances", "study_uid": "study UID", "series_uid": "series UID",
}  # fmt: skip


@app.command()
def search(
    place: Annotated[str, typer.Argument(metavar="URL", help="URL of a DICOMweb service, or of a study in it.")],
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEYWORD=VALUE]...", help="Such as PatientID='C3L-*' or StudyDate=20200101-20201231."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help=f"Slides to list at most; {TABLE_ROWS} by default, all with --json."),
    ] = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """List the slides of a service."""
    named = _named(filters or [])
    most = limit if as_json else limit or TABLE_ROWS
    with stderr.status("searching"):
        slides = wsiweb.search(place, limit=most and most + 1, **connection(token, user, header), **named)
        found = list(islice(slides, most and most + 1))
    more, found = len(found) > (most or len(found)), found[:most]
    if as_json:
        fields = [field.name for field in dataclasses.fields(wsiweb.FoundSlide) if field.repr]
        typer.echo(json.dumps([{name: getattr(one, name) for name in fields} for one in found], indent=2))
    elif found:
        # For a file or a pipe no line is folded, however long the UIDs make it.
        console = stdout if stdout.is_terminal else Console(width=10_000, emoji=False)
        console.print(_table(found))
    stderr.print(f"{counted(len(found), 'slide')}{', and more: raise --limit' if more else ''}")


def _named(filters: list[str]) -> dict[str, Any]:
    """Return the filters by keyword, checked, so that none is taken for another argument of the search."""
    pairs = [one.partition("=") for one in filters]
    if not all(equals and name for name, equals, _ in pairs):
        raise typer.BadParameter("a filter is KEYWORD=VALUE, such as PatientID='C3L-*'")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter("each keyword is given once; several UIDs are KEYWORD=UID,UID")
    try:
        for name, _, value in pairs:
            Filter(name, value)
    except SearchError as error:
        raise typer.BadParameter(str(error)) from error
    return {name: value for name, _, value in pairs}


def _table(found: list[FoundSlide]) -> Table:
    """Return the slides as a table, of the columns in which anything is told."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    shown = [name for name in _COLUMNS if any(getattr(one, name) is not None for one in found)]
    for name in shown:
        table.add_column(_COLUMNS[name], overflow="fold")
    for one in found:
        table.add_row(*(cell(getattr(one, name)) for name in shown))
    return table
