"""From results to a table in Markdown."""

from __future__ import annotations

import re
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.readers import NO_PEERS
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path

    Json = dict[str, Any]

BEGIN, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"


def medians(run: Json) -> dict[tuple[str, str], dict[str, Json]]:
    """Return medians by workload and profile, then reader; a reader that only failed has its ``error``.

    Workloads come in the order in which they are listed, whatever the order they were measured in.
    """
    groups: dict[tuple[str, str], dict[str, list[Json]]] = {}
    place = list(WORKLOADS).index
    for result in sorted(run["results"], key=lambda result: place(result["workload"])):
        key = result["workload"], result["profile"]
        groups.setdefault(key, {}).setdefault(result["reader"], []).append(result)
    return {key: {reader: _median(results) for reader, results in readers.items()} for key, readers in groups.items()}


def _median(results: list[Json]) -> Json:
    good = [one for one in results if "seconds" in one and "error" not in one]
    timed = [one for one in good if one["round"]] or good
    if not timed:
        return {"error": results[0]["error"]}
    found: Json = {}
    for name in dict.fromkeys(name for one in timed for name in one):
        values = [one[name] for one in timed if isinstance(one.get(name), (int, float))]
        if values and name != "round":
            found[name] = statistics.median(values)
    seconds = [one["seconds"] for one in timed]
    return {
        **found,
        "lowest": min(seconds),
        "highest": max(seconds),
        "rounds": len(seconds),
        "settings": timed[0]["settings"],
    }


def table(run: Json, reader: str = "wsiweb") -> str:
    """Return the table: seconds of each reader, and the ratios that say how ``reader`` stands."""
    rows = medians(run)
    readers = list(dict.fromkeys(name for row in rows.values() for name in row if name != "floor"))
    others = [name for name in readers if name != reader and name in run["machine"]["checkouts"]]
    peers = [name for name in readers if name != reader and name not in (*others, *NO_PEERS)]
    ratios = [f"best peer / {reader}", *(f"{other} / {reader}" for other in others)]
    limits = [name for name in NO_PEERS if any(name in row for row in rows.values())]
    head = ["workload", "network", *readers, *ratios, "floor", *(f"{reader} / {name}" for name in limits)]
    head += ["requests", "peak MB"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for (name, profile), row in rows.items():
        seconds = {one: cell["seconds"] for one, cell in row.items() if "seconds" in cell}
        own = seconds.get(reader)
        best = min((seconds[peer] for peer in peers if peer in seconds), default=None)
        lines.append(
            [
                WORKLOADS[name].title,
                profile,
                *(_seconds(row.get(one)) for one in readers),
                _ratio(best, own),
                *(_ratio(seconds.get(other), own) for other in others),
                _seconds(row.get("floor")),
                *(_ratio(own, seconds.get(limit)) for limit in limits),
                " / ".join(_whole(row.get(one, {}).get("requests")) for one in readers),
                " / ".join(_whole(row.get(one, {}).get("peak_bytes"), 1e6) for one in readers),
            ]
        )
    return _markdown(lines)


def detail(run: Json) -> str:
    """Return everything else that is known of each reader and workload, a row for each."""
    head = [
        "workload",
        "network",
        "reader",
        "settings",
        "median",
        "lowest",
        "highest",
        "first",
        "CPU s",
        "server CPU s",
    ]
    head += ["others CPU s", "requests", "connections", "frames", "MB", "peak MB", "grown by MB", "import s"]
    lines = [head, ["---"] * 4 + ["---:"] * (len(head) - 4)]
    for (name, profile), row in medians(run).items():
        for reader, cell in row.items():
            if "seconds" not in cell:
                lines.append([name, profile, reader, cell["error"], *[""] * (len(head) - 4)])
                continue
            settings = ", ".join(f"{key}={value}" for key, value in cell["settings"].items())
            grown = cell["peak_bytes"] - cell["base_bytes"]
            lines.append(
                [
                    *(name, profile, reader, settings),
                    *(_number(cell.get(key), 4) for key in ("seconds", "lowest", "highest", "first_seconds")),
                    *(_number(cell.get(f"{key}cpu_seconds"), 2) for key in ("", "server_", "others_")),
                    *(_whole(cell.get(key)) for key in ("requests", "connections", "frames")),
                    _number(cell.get("bytes"), 1, 1e6),
                    _whole(cell["peak_bytes"], 1e6),
                    _whole(grown, 1e6),
                    _number(cell.get("import_seconds"), 2),
                ]
            )
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _seconds(cell: Json | None) -> str:
    if cell is None:
        return "-"
    if "seconds" not in cell:
        return "wrong" if "wrong pixels" in cell["error"] else "too slow" if "longer than" in cell["error"] else "fails"
    return f"{cell['seconds']:.3g} s" if cell["seconds"] >= 0.0995 else f"{cell['seconds'] * 1000:.3g} ms"


def _ratio(above: float | None, below: float | None) -> str:
    return "-" if above is None or not below else f"{above / below:.2f}"


def _whole(value: float | None, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:,.0f}"


def summary(run: Json) -> str:
    """Return a line that says on what the table was measured."""
    machine = run["machine"]
    versions = ", ".join(
        f"{name} {found.get(package, '?')}"
        for name, package in (("wsidicom", "wsidicom"), ("ez-wsi", "ez-wsi-dicomweb"))
        if (found := machine["versions"].get(name))
    )
    return (
        f"Medians of {run['repeats']} fresh processes each, taken in turn, seed {run['seed']}; "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; "
        f"{versions + '; ' if versions else ''}{machine['time'][:10]}."
    )


def insert(readme: Path, text: str) -> None:
    """Put a table between the markers of a Markdown file."""
    page = readme.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{readme} lacks the lines {BEGIN!r} and {END!r}.")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page))
