"""Patches as PyTorch datasets. Needs the extra ``wsiweb[torch]``.

Images are uint8 tensors, channels first: workers move a quarter of the bytes of floats. A slide that travels to a
worker, however that is started, reads without asking for the metadata again; one or two workers with many requests in
flight beat many workers, since each has caches of its own.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiweb.errors import RegionError
from wsiweb.patches import PatchPlan
from wsiweb.patches.batches import chained, together
from wsiweb.regions import integer

try:
    import torch
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
except ImportError as missing:
    raise ImportError("wsiweb.torch needs PyTorch: pip install 'wsiweb[torch]'.") from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from wsiweb.patches import PatchBatch

    Sample = dict[str, Any]

_READ_AHEAD_BATCH = 32
"""Patches that an iterable dataset takes from the reader at a time."""
_MOST_WORKERS = 1024
"""Of a loader, of which it is known whether they have gone on with a stream."""


def _samples(
    batch: PatchBatch, labels: Sequence[Any] | None, transform: Callable[[torch.Tensor], Any] | None
) -> list[Sample]:
    """Return one dict a patch; tensors share the batch's memory."""
    images = torch.from_numpy(batch.images)
    images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    samples = []
    rows = zip(images, batch.index.tolist(), batch.x_base.tolist(), batch.y_base.tolist(), strict=True)
    for row, (image, index, x_base, y_base) in enumerate(rows):
        sample = {"image": image if transform is None else transform(image), "index": index, "x_base": x_base,
                  "y_base": y_base}  # fmt: skip
        if labels is not None:
            sample["label"] = labels[row]
        samples.append(sample)
    return samples


class PatchSet(Dataset[Any]):
    """Patches of several slides as one map-style dataset (``ConcatDataset`` would read them one at a time).

    Parameters
    ----------
    plans
        One or more for each slide.
    labels
        For each plan one label of all its patches, or a sequence of one a patch; None has no labels.
    transform
        Gets an image, a uint8 tensor ``(3, h, w)`` or ``(1, h, w)``, and returns what stands for it.

    Raises
    ------
    RegionError
        There are not as many labels as plans or patches.
    """

    def __init__(
        self,
        plans: PatchPlan | Sequence[PatchPlan],
        *,
        labels: Sequence[Any] | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self.plans = _several(plans)
        self.transform = transform
        self.labels = (
            None if labels is None else [_spread(plan, one) for plan, one in _paired(self.plans, list(labels))]
        )
        self._starts = np.cumsum([0, *(len(plan) for plan in self.plans)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, key: Any) -> Any:
        """Return a sample; for a list of places a list of samples, whose frames are fetched together."""
        if isinstance(key, (list, tuple, np.ndarray)):
            return self.__getitems__(list(key))
        return self.__getitems__([operator.index(key)])[0]

    def __getitems__(self, places: Sequence[int]) -> list[Sample]:
        """Return the samples at these places; what ``DataLoader`` calls for a batch."""
        wanted = np.array([operator.index(place) for place in places], np.int64)
        if ((wanted < -len(self)) | (wanted >= len(self))).any():
            raise IndexError(f"There are {len(self)} patches; {wanted.tolist()} were asked for.")
        wanted %= max(len(self), 1)
        plan_of = np.searchsorted(self._starts, wanted, side="right") - 1
        samples: list[Sample] = [{}] * len(wanted)
        rows_of = {number: np.flatnonzero(plan_of == number) for number in np.unique(plan_of).tolist()}
        local_of = {number: wanted[rows] - self._starts[number] for number, rows in rows_of.items()}
        for number, batch in together([(number, self.plans[number].take(local)) for number, local in local_of.items()]):
            places = local_of[number].tolist()
            labels = None if self.labels is None else [self.labels[number][place] for place in places]
            found = _samples(batch, labels, self.transform)
            for row, sample in zip(rows_of[number].tolist(), found, strict=True):
                samples[row] = sample if len(self.plans) == 1 else {**sample, "slide": number}
        return samples

    def weights(self) -> torch.Tensor:
        """Return a weight for each patch with which every slide is drawn equally often (``WeightedRandomSampler``)."""
        counts = np.array([len(plan) for plan in self.plans], np.int64)
        return torch.from_numpy(np.repeat(1.0 / np.maximum(counts, 1), counts))


class PatchDataset(PatchSet):
    """The patches of one plan as a map-style dataset.

    Each sample is a dict of ``image``, ``index``, ``x_base``, ``y_base``, and ``label`` where there are labels.

    Parameters
    ----------
    patches
        The plan.
    labels
        One a patch, or one for all.
    transform
        As for ``PatchSet``.
    """

    def __init__(
        self, patches: PatchPlan, *, labels: Any = None, transform: Callable[[torch.Tensor], Any] | None = None
    ) -> None:
        super().__init__([patches], labels=None if labels is None else [labels], transform=transform)


class PatchIterableDataset(IterableDataset[Any]):
    """Patches as a stream, read ahead; each rank and each worker gets a part, all ranks equally many.

    Parameters
    ----------
    plans
        One, or several; one follows the other, and the next is fetched before one ends.
    seed
        Shuffles by blocks of neighbours, for every ``set_epoch`` anew; None keeps the order.
    rank, world_size
        Of this process; what is left over when patches are shared out is left out.
    transform
        As for ``PatchSet``.
    """

    def __init__(
        self,
        plans: PatchPlan | Sequence[PatchPlan],
        *,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        if not 0 <= integer(rank, "rank") < integer(world_size, "world_size"):
            raise RegionError(f"There is no rank {rank} of {world_size}.")
        self.plans = _several(plans)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.transform = transform
        self._start = _Start()
        self._before = self._taken = 0  # of the present iteration: of all workers, and by this one
        self._loaded: dict[str, int] | None = None  # in a worker

    @property
    def epoch(self) -> int:
        """Of the order; the same in all workers of this process."""
        return self._start.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._start.set(epoch, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which changes the order where there is a seed, from the next iteration on.

        Another epoch than the present one begins anew, whatever was loaded.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self._taken = 0

    def state_dict(self) -> dict[str, int]:
        """Return where this process's stream is, or this worker's.

        The main process counts what it reads itself. How far workers are, whose samples wait in queues, their loader
        alone can tell: ``StatefulDataLoader`` of torchdata keeps the state of each.
        """
        worker = get_worker_info()
        if worker is None:
            return {"epoch": self.epoch, "taken": self._start.taken or self._taken}
        if self._loaded is not None:
            return dict(self._loaded)
        return {"epoch": self.epoch, "taken": self._taken, "before": self._before, "worker": worker.id,
                "workers": worker.num_workers}  # fmt: skip

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on where another stream of the same part was; those after it begin anew.

        In the main process workers, however many, share out what is left. What counts as taken is the beginning of the
        order in which one process reads: a count of what workers delivered, who take turns, is no such state.

        Raises
        ------
        RegionError
            The state is of another worker than this one, or of one among more or fewer.
        """
        worker = get_worker_info()
        here = (None, None) if worker is None else (worker.id, worker.num_workers)
        saved = state.get("worker"), state.get("workers")
        if saved != here:
            raise RegionError(
                f"This state was saved in {_place(*saved)} and is loaded in {_place(*here)}, which reads another part. "
                f"Load it where it was saved, with as many workers."
            )
        if worker is None:
            self._start.set(state["epoch"], state["taken"])
            self._taken = 0
        else:
            self.epoch = state["epoch"]
            self._loaded = dict(state)

    def __len__(self) -> int:
        """Return how many patches this rank gets in all its workers."""
        return sum(len(plan) // self.world_size for plan in self.plans)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        loaded, self._loaded = self._loaded, None
        self._before = self._start.use(worker) if loaded is None else loaded["before"]
        self._taken = 0 if loaded is None else loaded["taken"]
        parts = _without(self._before, [self._part(plan) for plan in self.plans])
        if worker is None:
            self._before, self._taken = 0, self._before
        else:  # a run of each, so that neighbours stay together
            bounds = [[len(part) * (worker.id + step) // worker.num_workers for step in (0, 1)] for part in parts]
            parts = [part[start:stop] for part, (start, stop) in zip(parts, bounds, strict=True)]
            parts = _without(self._taken, parts)
        return self._stream(parts)

    def _stream(self, parts: list[PatchPlan]) -> Iterator[Sample]:
        for number, batch in chained(parts, _READ_AHEAD_BATCH):
            for sample in _samples(batch, None, self.transform):
                self._taken += 1
                yield sample if len(parts) == 1 else {**sample, "slide": number}
        if get_worker_info() is None:  # a worker whose part is read waits for the others
            self._taken = 0

    def _part(self, plan: PatchPlan) -> PatchPlan:
        """Return what of a plan this rank reads."""
        if self.seed is not None:
            plan = plan.shuffle(self.seed + self.epoch)
        each = len(plan) // self.world_size
        return plan[self.rank * each : (self.rank + 1) * each]


class _Start:
    """Where the next iteration starts, in memory that workers share: they see it change, and use it up together."""

    def __init__(self) -> None:
        fields: Any = torch.zeros(3 + _MOST_WORKERS, dtype=torch.int64)
        self._fields = fields.share_memory_()  # epoch, taken, the loader whose workers go on, and which of them do

    @property
    def epoch(self) -> int:
        return int(self._fields[0])

    @property
    def taken(self) -> int:
        """Of the epoch, before; 0 once the next iteration has begun."""
        return 0 if self._fields[2] else int(self._fields[1])

    def set(self, epoch: int, taken: int) -> None:
        self._fields[1:] = 0
        self._fields[0] = epoch
        self._fields[1] = taken

    def use(self, worker: Any) -> int:
        """Return what was taken before: once to this process, or once to each worker of the first loader that asks."""
        if worker is None:
            taken = self.taken
            self._fields[1:] = 0
            return taken
        # All workers of a pass have one base seed. Another pass may be seeded alike.
        loader = hash((worker.seed - worker.id, worker.num_workers)) | 1
        if not self._fields[2]:
            self._fields[2] = loader
        if self._fields[2] != loader or self._fields[3 + worker.id]:
            return 0
        self._fields[3 + worker.id] = 1
        return int(self._fields[1])


def _without(taken: int, parts: Iterable[PatchPlan]) -> list[PatchPlan]:
    """Return what is left of plans, one after the other, when so much was taken."""
    left = []
    for part in parts:
        skip = min(taken, len(part))
        left.append(part[skip:])
        taken -= skip
    return left


def _place(worker: int | None, workers: int | None) -> str:
    return "the main process" if worker is None else f"worker {worker} of {workers}"


def _several(plans: PatchPlan | Iterable[PatchPlan]) -> tuple[PatchPlan, ...]:
    """Return one plan, or several, as a tuple: a plan is iterable as well, and would be read."""
    found = (plans,) if isinstance(plans, PatchPlan) else tuple(plans)
    if not all(isinstance(plan, PatchPlan) for plan in found):
        raise RegionError("Plans are what Slide.patches returns, one or several; something else is among them.")
    return found


def _paired(plans: Sequence[PatchPlan], labels: Sequence[Any]) -> Iterator[tuple[PatchPlan, Any]]:
    """Pair plans with labels, or raise ``RegionError``."""
    if len(plans) != len(labels):
        raise RegionError(f"There are {len(plans)} plans and {len(labels)} labels for them.")
    return zip(plans, labels, strict=True)


def _spread(plan: PatchPlan, labels: Any) -> Any:
    """Return one label a patch: of a sequence, an array (pandas has some, too), or the same for all."""
    if hasattr(labels, "__array__") and not isinstance(labels, torch.Tensor) and np.ndim(labels):
        labels = np.asarray(labels)
    if isinstance(labels, (list, tuple, range)) or (isinstance(labels, (np.ndarray, torch.Tensor)) and labels.ndim):
        if len(labels) != len(plan):
            raise RegionError(f"There are {len(plan)} patches and {len(labels)} labels for them.")
        return labels
    return _Constant(labels)


class _Constant:
    """One label for all patches of a slide."""

    def __init__(self, label: Any) -> None:
        self._label = label

    def __getitem__(self, place: int) -> Any:
        return self._label
