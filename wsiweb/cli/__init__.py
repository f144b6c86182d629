"""The command ``wsiweb``: verbs over the library, tables and progress bars; no logic of its own.

Exit codes: 0, 1 where something failed, 2 for wrong usage.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated, TextIO

import typer

import wsiweb
from wsiweb.cli import measuring, patching, reading, searching
from wsiweb.cli.common import app, escaped, stderr
from wsiweb.errors import WsiWebError

__all__ = ["app", "main", "measuring", "patching", "reading", "searching"]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,  # noqa: FBT002
) -> None:
    if version:
        typer.echo(wsiweb.__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; what fails becomes one line on stderr and exit code 1."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # rather than fail at a µ, where the locale has none
    try:
        app()
    except (WsiWebError, OSError) as error:
        stderr.print(f"[red]error:[/red] {escaped(str(error))}", soft_wrap=True)
        sys.exit(1)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001  (what warnings passes)
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if issubclass(category, wsiweb.MetadataWarning):
        stderr.print(f"[yellow]warning:[/yellow] {escaped(str(message))}", soft_wrap=True)
