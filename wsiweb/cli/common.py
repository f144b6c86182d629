"""What the verbs share: the app, the options, the consoles."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import markup
from rich.console import Console
from rich.text import Text

import wsiweb
from wsiweb.sources.quoting import printable

if TYPE_CHECKING:
    from pathlib import Path

    from wsiweb.slide import Slide

app = typer.Typer(
    name="wsiweb",
    help="Read whole-slide images over DICOMweb, or from DICOM files, without downloading the slide.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
if os.environ.get("COLUMNS") == "0":  # which says that nobody knows, and is no width
    del os.environ["COLUMNS"]
stdout = Console(highlight=False, emoji=False)
stderr = Console(stderr=True, highlight=False, emoji=False)

SlidePlace = Annotated[
    str,
    typer.Argument(
        metavar="SLIDE", help="URL of a series (https://host/dicomWeb/studies/1.2/series/3.4), folder or file."
    ),
]
StudyUid = Annotated[str | None, typer.Option("--study", help="Study UID, where the URL does not say it.")]
SeriesUid = Annotated[str | None, typer.Option("--series", help="Series UID, where neither URL nor folder says it.")]


def _unless_typed(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    """Leave out what the environment says where another way to log in was typed: that has been seen before."""
    other = "user" if option.name == "token" else "token"
    sources = [getattr(context.get_parameter_source(name), "name", None) for name in (option.name or "", other)]
    return None if sources == ["ENVIRONMENT", "COMMANDLINE"] else value


Token = Annotated[
    str | None,
    typer.Option("--token", envvar="WSIWEB_TOKEN", help="Bearer token.", show_envvar=True, callback=_unless_typed),
]
User = Annotated[
    str | None,
    typer.Option(
        "--user", envvar="WSIWEB_USER", help="USER:PASSWORD for basic authentication.", callback=_unless_typed
    ),
]
Header = Annotated[list[str] | None, typer.Option("--header", help="'Name: value' to send along; repeatable.")]
Upsample = Annotated[bool, typer.Option("--upsample", help="Allow a resolution finer than level 0.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Overwrite = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]

_NO_PNG = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".tif", ".tiff", ".webp"})


def connection(token: str | None, user: str | None, headers: list[str] | None) -> dict[str, Any]:
    """Return what ``Slide.open`` takes of the options."""
    arguments: dict[str, Any] = {}
    if token:
        arguments["token"] = token
    if user:
        name, colon, password = user.partition(":")
        if not colon:
            raise typer.BadParameter("--user is USER:PASSWORD")
        arguments["auth"] = name, password
    if headers:
        pairs = [header.partition(":") for header in headers]
        if not all(colon and name.strip() for name, colon, _ in pairs):
            raise typer.BadParameter("--header is 'Name: value'")
        arguments["headers"] = {name.strip(): value.strip() for name, _, value in pairs}
    return arguments


def open_slide(
    place: str, study: str | None, series: str | None, token: str | None, user: str | None, header: list[str] | None
) -> Slide:
    """Open the slide that the options name."""
    return wsiweb.Slide.open(place, study_uid=study, series_uid=series, **connection(token, user, header))


def check_output(output: Path, *, force: bool) -> None:
    """Refuse to overwrite a file unasked, and to give a PNG the name of something else."""
    if str(output) == "-":
        raise typer.BadParameter("a PNG is written to a file, and not to stdout")
    if output.suffix.lower() in _NO_PNG:
        raise typer.BadParameter(f"what is written is a PNG; {output.name} would be taken for something else")
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} exists; --force overwrites it")


def echo_json(facts: Any, *, indent: int | None = None) -> None:
    """Print JSON; what stdout cannot encode, or a terminal obeys, as JSON escapes it."""
    text = json.dumps(facts, indent=indent, ensure_ascii=False)
    text = re.sub("[\x7f-\x9f]", lambda control: f"\\u{ord(control[0]):04x}", text)  # the others are escaped already
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")  # there is none where stdout was closed
    except UnicodeEncodeError:
        text = json.dumps(facts, indent=indent)
    typer.echo(text)


def cell(value: object) -> Text:
    """Return what a service tells as text of a table: no markup, nothing that the terminal obeys."""
    return Text("" if value is None else printable(str(value)))


def escaped(text: str) -> str:
    """Return text in which rich sees no markup, and the terminal nothing to obey."""
    return markup.escape(printable(text))
