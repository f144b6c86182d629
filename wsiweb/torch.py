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
        shared: Any = torch.zeros((), dtype=torch.int64)
        self._epoch = shared.share_memory_()  # workers that persist see it change
        self._taken = 0
        self._skip = 0  # of the next iteration

    @property
    def epoch(self) -> int:
        """Of the order; the same in all workers of this process."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which changes the order where there is a seed, from the next iteration on."""
        self.epoch = epoch
        self._taken = self._skip = 0

    def state_dict(self) -> dict[str, int]:
        """Return where this process's (or worker's) stream is."""
        return {"epoch": self.epoch, "taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on where another stream of the same part was; those after it begin anew."""
        self.epoch = state["epoch"]
        self._taken = self._skip = state["taken"]

    def __len__(self) -> int:
        """Return how many patches this rank gets in all its workers."""
        return sum(len(plan) // self.world_size for plan in self.plans)

    def __iter__(self) -> Iterator[Sample]:
        parts = [self._part(plan) for plan in self.plans]
        skip = self._taken = self._skip
        self._skip = 0
        for number, part in enumerate(parts):
            parts[number] = part[min(skip, len(part)) :]
            skip -= min(skip, len(part))
        for number, batch in chained(parts, _READ_AHEAD_BATCH):
            for sample in _samples(batch, None, self.transform):
                self._taken += 1
                yield sample if len(parts) == 1 else {**sample, "slide": number}
        self._taken = 0

    def _part(self, plan: PatchPlan) -> PatchPlan:
        """Return what of a plan this rank's worker reads: a run of it, so that neighbours stay together."""
        if self.seed is not None:
            plan = plan.shuffle(self.seed + self.epoch)
        each = len(plan) // self.world_size
        mine = plan[self.rank * each : (self.rank + 1) * each]
        worker = get_worker_info()
        if worker is None:
            return mine
        start, stop = (len(mine) * (worker.id + step) // worker.num_workers for step in (0, 1))
        return mine[start:stop]


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
