"""Run a function over the batches of a plan, into a file that survives being killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import WsiWebError
from wsiweb.files import writable
from wsiweb.patches.rows import row_format
from wsiweb.regions import integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    file, so that a later run for another plan does not take it for its own. It knows the plan and not the function:
    what another function has written is returned as it is.

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
        Whether to go on with what a run before has left, or return it, where it is whole; False begins anew.
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
        What is there belongs to another plan, or is being written by another run; or the function does not return
        rows as promised.
    """
    from wsiweb.export import progress_of  # noqa: PLC0415

    path, batch_size = Path(out), integer(batch_size, "batch_size")
    form = row_format(path)
    part, journal = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.journal")
    ticket = {"plan": plan.fingerprint(), "batch_size": batch_size, "patches": len(plan)}
    with writable(path):
        there, noted = path.exists(), journal.exists()
    if resume and there and _done(journal, ticket) == len(plan) and not part.exists():
        return form.read(path)
    if there and path.is_dir() != (path.suffix == ".zarr"):
        raise WsiWebError(f"{path} is a {'folder' if path.is_dir() else 'file'}, which is not replaced by the other.")
    if resume and there and not noted:
        raise WsiWebError(
            f"{path} is there, and nothing tells that it is of this plan ({journal.name}). Write to another place, or "
            f"pass resume=False to replace it."
        )
    with _alone(path):
        done = (_done(journal, ticket) or 0) if resume and part.exists() else 0
        with writable(path):
            rows = form.reopen(part) if done else None
        with progress_of(progress, len(plan), "patches") as report:
            for batch in plan[done:].batches(batch_size):
                values = _values(function, batch)
                if rows is None:
                    with writable(path):
                        _note(journal, {**ticket, "done": 0})  # what it says of an earlier file is not of this one
                        rows = form.create(part, (len(plan), *values.shape[1:]), values.dtype, batch_size)
                if values.shape[1:] != rows.shape[1:] or values.dtype != rows.dtype:
                    raise WsiWebError(
                        f"The function returned {values.dtype} {values.shape[1:]} a patch, and before "
                        f"{rows.dtype} {rows.shape[1:]}."
                    )
                with writable(path):
                    rows[done : done + len(values)] = values
                    done += len(values)
                    _note(journal, {**ticket, "done": done})
                report(done, len(plan))
        with writable(path):
            if rows is None:  # of no patches
                form.create(part, (0,), np.dtype(np.float64), batch_size)
                _note(journal, {**ticket, "done": 0})
            form.publish(part, path)  # the journal stays, and tells what the file is about
    return form.read(path)


def _values(function: Callable[[PatchBatch], npt.ArrayLike], batch: PatchBatch) -> npt.NDArray[Any]:
    """Return one row a patch of the batch."""
    found = function(batch)
    try:
        values = np.asarray(found)
    except ValueError as error:
        raise WsiWebError(f"The function returned rows that are not of one length or shape: {error}") from error
    if values.ndim == 0 or len(values) != len(batch):
        raise WsiWebError(
            f"The function returned an array {values.shape} for a batch of {len(batch)} patches. What is wanted is one "
            f"row a patch: ({len(batch)}, ...)."
        )
    if values.dtype.hasobject:
        raise WsiWebError("The function returned Python objects; what is kept are arrays of numbers.")
    return values


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep others from writing the same file. A lock ends with its process, however that ends."""
    lock = path.with_name(f".{path.name}.lock")
    with writable(path):
        stream = lock.open("w")
    with stream:
        if not _locked(stream, lock):
            raise WsiWebError(f"{path} is being written by another run; wait for its end, or choose another file.")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(stream: IO[str], lock: Path) -> bool:
    """Take the lock, if nobody has it: of the file that has the name now, and has not just been taken away."""
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), lock.stat())
    return False


def _done(journal: Path, ticket: dict[str, Any]) -> int | None:
    """Return how many rows an earlier run has noted, or None."""
    try:
        found = json.loads(journal.read_text())
        done = int(found["done"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise WsiWebError(f"{journal} is damaged; delete it to begin anew.") from error
    if {name: found.get(name) for name in ticket} != ticket:
        raise WsiWebError(
            f"{journal} belongs to another plan or batch size. Choose another file, or pass resume=False to begin anew."
        )
    return done


def _note(journal: Path, state: dict[str, Any]) -> None:
    """Replace the journal at once: whoever reads it sees the old one or the new one."""
    name = hashlib.blake2b(str(journal).encode(), digest_size=4).hexdigest()
    temporary = journal.with_name(f"{journal.name}.{name}")
    temporary.write_text(json.dumps(state))
    temporary.replace(journal)
