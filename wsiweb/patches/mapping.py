"""Run a function over the batches of a plan, into a file that survives being killed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import WsiWebError
from wsiweb.patches.rows import row_format
from wsiweb.regions import integer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy.typing as npt

    from wsiweb.patches.plan import PatchPlan
    from wsiweb.patches.values import PatchBatch


def map_to_file(
    plan: PatchPlan,
    function: Callable[[PatchBatch], npt.ArrayLike],
    out: str | os.PathLike[str],
    *,
    batch_size: int,
    resume: bool,
    progress: bool | Callable[[int, int], None] | None,
) -> Any:
    """Write ``function(batch)``, one row a patch, for all batches.

    Rows go to a hidden file beside ``out``, and a journal notes how many are there; the final name appears with the
    whole. Run again after a kill, it goes on behind the last batch that the journal knows: the file is the same as
    that of one undisturbed run, where the function gives the same for the same batch. The journal stays beside the
    file, so that a later run for another plan does not take it for its own.

    Parameters
    ----------
    plan
        Its order is that of the rows.
    function
        Gets a ``PatchBatch`` of up to ``batch_size``, returns an array ``(n, ...)`` of the same shape and dtype each
        time.
    out
        Ends in ``.npy``, or in ``.zarr``: a folder with a chunk a batch. zarr is needed for that (``wsiweb[zarr]``).
    resume
        Whether to go on with what a run before has left; False begins anew.
    progress
        True shows a bar; a callable is given (patches done, patches in all).

    Returns
    -------
    The rows, read-only: an array mapped from the ``.npy`` file, or a ``zarr.Array``.

    Raises
    ------
    RegionError
        ``out`` has another suffix.
    UnsupportedError
        zarr is asked for, and not installed.
    WsiWebError
        What is there belongs to another plan, or the function does not return rows as promised.
    """
    from wsiweb.export import progress_of  # noqa: PLC0415

    path, batch_size = Path(out), integer(batch_size, "batch_size")
    form = row_format(path)
    part, journal = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.journal")
    ticket = {"plan": plan.fingerprint(), "batch_size": batch_size, "patches": len(plan)}
    state = _state(journal) if resume else None
    if state is not None and {name: state.get(name) for name in ticket} != ticket:
        raise WsiWebError(
            f"{journal} belongs to another plan or batch size. Choose another file, or pass resume=False to begin anew."
        )
    if state is not None and state["done"] == len(plan) and path.exists() and not part.exists():
        return form.read(path)
    done = 0 if state is None or not part.exists() else int(state["done"])
    rows = form.reopen(part) if done else None
    with progress_of(progress, len(plan), "patches") as report:
        for batch in plan[done:].batches(batch_size):
            values = np.asarray(function(batch))
            if values.ndim == 0 or len(values) != len(batch):
                raise WsiWebError(f"The function returned {values.shape} for a batch of {len(batch)} patches.")
            if rows is None:
                shape = (len(plan), *values.shape[1:])
                _note(journal, {**ticket, "done": 0})  # what it says of an earlier file is not of this one
                rows = form.create(part, shape, values.dtype, batch_size)
            if values.shape[1:] != rows.shape[1:] or values.dtype != rows.dtype:
                raise WsiWebError(
                    f"The function returned {values.dtype} {values.shape[1:]} a patch, and before "
                    f"{rows.dtype} {rows.shape[1:]}."
                )
            rows[done : done + len(values)] = values
            form.flush(rows)
            done += len(values)
            _note(journal, {**ticket, "done": done})
            report(done, len(plan))
    if rows is None:  # of no patches
        form.create(part, (0,), np.dtype(np.float64), batch_size)
        _note(journal, {**ticket, "done": 0})
    del rows
    form.publish(part, path)  # the journal stays, and tells what the file is about
    return form.read(path)


def _state(journal: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(journal.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise WsiWebError(f"{journal} is damaged; delete it to begin anew.") from error
    return found if isinstance(found, dict) else None


def _note(journal: Path, state: dict[str, Any]) -> None:
    """Replace the journal at once: whoever reads it sees the old one or the new one."""
    name = hashlib.blake2b(str(journal).encode(), digest_size=4).hexdigest()
    temporary = journal.with_name(f"{journal.name}.{name}")
    temporary.write_text(json.dumps(state))
    temporary.replace(journal)
