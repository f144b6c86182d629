"""The verb that writes patches: patches."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wsiweb.cli.common import (
    AsJson,
    Header,
    SeriesUid,
    SlidePlace,
    StudyUid,
    Token,
    Upsample,
    User,
    app,
    escaped,
    open_slide,
    stderr,
    stdout,
)  # fmt: skip
from wsiweb.errors import RegionError
from wsiweb.sources.quoting import counted


@app.command()
def patches(
    place: SlidePlace,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder of image files, or shards-%06d.tar (WebDataset).")
    ] = "patches",
    size: Annotated[int, typer.Option("--size", min=1, help="Side in output pixels.")] = 256,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="As --size by default.")] = None,
    level: Annotated[int | None, typer.Option("--level", help="Level to read.")] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="Resolution in µm a pixel.")] = None,
    magnification: Annotated[float | None, typer.Option("--magnification", help="20 for 20x, say.")] = None,
    upsample: Upsample = False,  # noqa: FBT002
    mask: Annotated[str, typer.Option("--mask", help="otsu or none.")] = "otsu",
    min_tissue: Annotated[float, typer.Option("--min-tissue", min=0, max=1, help="Fraction of tissue.")] = 0.5,
    edge: Annotated[str, typer.Option("--edge", help="drop, pad or shift.")] = "drop",
    shard: Annotated[
        str | None, typer.Option("--shard", help="Part i of n, from 0: 3/16. Its tar files are numbered 3, 19, 35...")
    ] = None,
    image_format: Annotated[str, typer.Option("--format", help="jpeg or png.")] = "jpeg",
    quality: Annotated[int, typer.Option("--quality", min=1, max=100, help="Of JPEG.")] = 90,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Patches in a tar file.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")] = False,  # noqa: FBT002
    study: StudyUid = None,
    series: SeriesUid = None,
    token: Token = None,
    user: User = None,
    header: Header = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Write the patches of a slide; run again, it writes what is missing. A JPEG that is one frame keeps its bytes."""
    from wsiweb.export import progress_of  # noqa: PLC0415
    from wsiweb.patches.layout import EDGES  # noqa: PLC0415
    from wsiweb.patches.writing import FORMATS, shard_path, write_folder, write_shards  # noqa: PLC0415

    choices = (("mask", mask, ("otsu", "none")), ("edge", edge, EDGES), ("format", image_format, FORMATS))
    for name, choice, allowed in choices:
        if choice not in allowed:
            raise typer.BadParameter(f"--{name} is {' or '.join(allowed)}, not {choice!r}")
    if sum(given is not None for given in (level, mpp, magnification)) > 1:
        raise typer.BadParameter("give one of --level, --mpp and --magnification")
    if output.endswith(".tar"):
        try:
            shard_path(output, 0)
        except RegionError as error:
            raise typer.BadParameter(str(error)) from error
    with open_slide(place, study, series, token, user, header) as slide:
        plan = slide.patches(
            size, level=level, mpp=mpp, magnification=magnification, stride=stride, edge=edge, min_tissue=min_tissue,
            mask=None if mask == "none" else mask, upsample=upsample,
        )  # fmt: skip
        part = (0, 1) if shard is None else _part(shard)
        if shard is not None:
            plan = plan.shard(*part)
        if not len(plan):
            stderr.print(
                f"[yellow]no patch of {size} px:[/yellow] it does not fit, or shows too little (--mask {mask})."
            )
        cost = plan.cost()
        facts = {**asdict(cost), "output": output}
        if not dry_run:
            with progress_of(stderr.is_terminal, len(plan), "patches") as report:
                if output.endswith(".tar"):
                    facts["written"] = write_shards(
                        plan,
                        output,
                        form=image_format,
                        quality=quality,
                        shard_size=shard_size,
                        report=report,
                        part=part,
                    )
                else:
                    facts["written"] = write_folder(
                        plan, Path(output), form=image_format, quality=quality, report=report
                    )
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        did = "would be" if dry_run else "is" if cost.patches == 1 else "are"
        known, frames = counted(cost.patches, "patch", "patches"), counted(cost.frames, "frame")
        stdout.print(f"{known} {did} in {escaped(output)}: {frames}, about {cost.bytes / 1e6:.1f} MB")


def _part(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise typer.BadParameter("--shard is i/n with i below n, such as 3/16")
    return int(number), int(count)
