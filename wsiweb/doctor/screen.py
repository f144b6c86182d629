"""A report as one screen of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from wsiweb.sources.quoting import printable

if TYPE_CHECKING:
    from rich.console import Console

    from wsiweb.doctor.report import Report, Status

_MARKS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "failed": ("failed", "red"),
    "skipped": ("skipped", "dim"),
}


def show(console: Console, report: Report) -> None:
    """Print the checks as a table, then the conclusion."""
    console.print(Text(printable(report.url), "bold"), soft_wrap=True)
    if report.series_uid:
        uids = f"study  {printable(str(report.study_uid))}\nseries {printable(report.series_uid)}"
        console.print(Text(uids, "dim"), soft_wrap=True)
    table = Table("check", "", "finding", box=None, header_style="bold", pad_edge=False)
    for check in report.checks:
        finding = Text(printable(check.finding), "dim" if check.status == "skipped" else "")
        if check.advice:
            finding.append(f"\n{printable(check.advice)}", "italic")
        table.add_row(check.name, Text(*_MARKS[check.status]), finding)
    console.print()
    console.print(table)
    console.print()
    console.print(Text(printable(report.conclusion), "bold" if report.readable else "bold red"))
    cost = f"{report.requests} requests, {report.bytes / 1e6:.1f} MB, {report.seconds:.1f} s"
    console.print(Text(cost, "dim"))
