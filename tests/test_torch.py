"""Patches in PyTorch: right pixels in every kind of worker, and a batch fetched together."""

from __future__ import annotations

import pickle
import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dicomweb_server import DICOMwebServer
from faults import Fault, Request

from wsiweb import RegionError, Slide

if TYPE_CHECKING:
    from conftest import Opener, SlideMaker

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
data = pytest.importorskip("torch.utils.data")
from wsiweb.torch import PatchDataset, PatchIterableDataset, PatchSet  # noqa: E402


@pytest.fixture
def slide(open_web: Opener, synthetic: SlideMaker) -> Slide:
    return open_web(synthetic("rgb"))


def check(slide: Slide, sample: dict[str, Any], size: int) -> None:
    image = sample["image"].numpy()
    assert image.dtype == np.uint8
    truth = slide.read_region(0, int(sample["x_base"]), int(sample["y_base"]), size, size)
    np.testing.assert_array_equal(np.moveaxis(image, 0, -1), truth)


def test_samples(slide: Slide) -> None:
    patches = slide.patches(64)
    dataset = PatchDataset(patches, labels=list(range(len(patches))))
    assert len(dataset) == len(patches)
    sample = dataset[17]
    assert set(sample) == {"image", "index", "x_base", "y_base", "label"}
    assert (sample["index"], sample["label"], tuple(sample["image"].shape)) == (17, 17, (3, 64, 64))
    check(slide, sample, 64)
    assert "label" not in PatchDataset(patches)[0]
    assert PatchDataset(patches, labels="tumour")[3]["label"] == "tumour"
    assert dataset[-1]["index"] == len(patches) - 1
    with pytest.raises(IndexError):
        dataset[len(patches)]
    with pytest.raises(RegionError):
        PatchDataset(patches, labels=[1, 2])
    halved = PatchDataset(patches, transform=lambda image: image.float() / 2)[2]
    torch.testing.assert_close(halved["image"], dataset[2]["image"].float() / 2)


def test_monochrome_has_one_channel(open_web: Opener, synthetic: SlideMaker) -> None:
    slide = open_web(synthetic("jpeg-mono8"))
    sample = PatchDataset(slide.patches(50))[1]
    assert tuple(sample["image"].shape) == (1, 50, 50)


def test_a_batch_is_fetched_together(open_web: Opener, synthetic: SlideMaker) -> None:
    truth = synthetic("rgb")
    slide = open_web(truth)
    dataset = PatchDataset(slide.patches(32))
    before = slide.stats.requests
    samples = dataset.__getitems__([0, 1, 2, 3])  # of the same few frames
    assert slide.stats.requests - before == 1
    assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
    assert [sample["index"] for sample in dataset[[5, 3]]] == [5, 3]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loaders(slide: Slide, open_web: Opener, workers: int, method: str) -> None:
    if workers == 0 and method != "fork":
        pytest.skip("no process is started")
    patches = slide.patches(64).shuffle(1)
    slide.read_region(0, 0, 0, 10, 10)  # the parent has threads and connections
    loader = data.DataLoader(
        PatchDataset(patches), batch_size=16, num_workers=workers,
        multiprocessing_context=method if workers else None,
    )  # fmt: skip
    seen = []
    for batch in loader:
        assert batch["image"].shape[1:] == (3, 64, 64)
        assert batch["image"].dtype == torch.uint8
        for row in range(len(batch["index"])):
            check(slide, {name: column[row] for name, column in batch.items()}, 64)
        seen += batch["index"].tolist()
    assert seen == patches.index.tolist()
    assert open_web.servers[0].count("metadata") == 1  # and the workers asked for none


def test_a_sampler_of_batches(slide: Slide) -> None:
    patches = slide.patches(64)
    sampler = data.BatchSampler(data.SequentialSampler(patches), 10, drop_last=False)
    loader = data.DataLoader(PatchDataset(patches), batch_size=None, sampler=sampler)
    assert [sample["index"] for batch in loader for sample in batch] == list(range(len(patches)))


def test_several_slides(slide: Slide, open_web: Opener, synthetic: SlideMaker) -> None:
    other = open_web(synthetic("rgb", sizes=((600, 400),)))
    plans = [slide.patches(64)[:5], other.patches(64)[:20]]
    dataset = PatchSet(plans, labels=["a", list(range(20))])
    assert len(dataset) == 25
    samples = dataset.__getitems__([24, 0, 7])
    assert [(sample["slide"], sample["index"], sample["label"]) for sample in samples] == [
        (1, 19, 19),
        (0, 0, "a"),
        (1, 2, 2),
    ]
    check(other, samples[0], 64)
    check(slide, samples[1], 64)
    weights = dataset.weights()
    assert weights[:5].sum() == pytest.approx(weights[5:].sum())
    with pytest.raises(RegionError):
        PatchSet(plans, labels=["a"])


def test_labels_of_every_kind(slide: Slide) -> None:
    pandas = pytest.importorskip("pandas")
    plan = slide.patches(64)
    each = [3 * n for n in range(len(plan))]
    shifted = pandas.Series(each, index=range(100, 100 + len(plan)))
    for labels in (each, tuple(each), range(0, 3 * len(plan), 3), np.array(each), torch.tensor(each), shifted):
        assert PatchDataset(plan, labels=labels)[7]["label"] == 21
    one: Any
    for one in ("tumour", 5, np.int64(5), np.array(5), torch.tensor(5), {"grade": 2}):
        assert PatchDataset(plan, labels=one)[7]["label"] == one
        assert type(PatchSet([plan, plan], labels=[0, one])[len(plan)]["label"]) is type(one)
    assert PatchSet([plan, plan], labels=torch.tensor([1, 0]))[len(plan)]["label"] == 0
    with pytest.raises(RegionError):
        PatchDataset(plan, labels=shifted[:5])


def test_a_plan_is_not_read_for_a_list_of_plans(slide: Slide) -> None:
    before = slide.stats.requests
    assert len(PatchSet(slide.patches(64))) == len(slide.patches(64))
    wrong: Any
    rank: Any = "0"
    for wrong in ([slide], slide.patches(64)[0], [slide.patches(64), None]):
        with pytest.raises((RegionError, TypeError)):
            PatchSet(wrong)
    assert slide.stats.requests <= before + 1
    assert (len(PatchSet([])), len(PatchSet([]).weights()), list(PatchIterableDataset([]))) == (0, 0, [])
    with pytest.raises(RegionError):
        PatchIterableDataset(slide.patches(64), rank=rank, world_size=2)


def test_slides_of_a_batch_are_read_at_once(synthetic: SlideMaker) -> None:
    """The frames of one are not held back until those of another have come."""
    truths = [synthetic("rgb", sizes=((300, 200),)) for _ in range(3)]
    asked, all_asked = set[str | None](), threading.Event()

    def hold(request: Request) -> Fault | None:
        if request.kind != "frames":
            return None
        asked.add(request.instance_uid)
        if len(asked) == len(truths):
            all_asked.set()
        return None if all_asked.wait(10) else Fault(status=400)

    with ExitStack() as stack:
        server = stack.enter_context(DICOMwebServer(*(truth.folder for truth in truths)))
        urls = [server.series_url(truth.study_uid, truth.series_uid) for truth in truths]
        slides = [stack.enter_context(Slide.open(url)) for url in urls]
        server.fault = hold
        dataset = PatchSet([slide.patches(50) for slide in slides])
        for sample in dataset.__getitems__([3, 30, 50, 4, 31]):
            x, y, image = sample["x_base"], sample["y_base"], np.moveaxis(sample["image"].numpy(), 0, -1)
            np.testing.assert_array_equal(image, truths[sample["slide"]].truth(0, x, y, 50, 50))


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (2, 3), (0, 2)])
def test_streams_share_patches_out(slide: Slide, workers: int, world: int) -> None:
    patches = slide.patches(50)
    seen: list[int] = []
    lengths = []
    for rank in range(world):
        dataset = PatchIterableDataset(patches, seed=3, rank=rank, world_size=world)
        context = "spawn" if workers else None
        loader = data.DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
        mine = [int(sample["index"]) for sample in loader]
        lengths.append(len(mine))
        assert len(dataset) == len(mine)
        seen += mine
    assert len(set(seen)) == len(seen)
    assert set(lengths) == {len(patches) // world}


def test_streams_of_several_slides_and_epochs(slide: Slide, open_web: Opener, synthetic: SlideMaker) -> None:
    other = open_web(synthetic("rgb", sizes=((600, 400),)))
    dataset = PatchIterableDataset([slide.patches(64), other.patches(64)], seed=1)
    first = [(sample["slide"], sample["index"]) for sample in dataset]
    assert [number for number, _ in first] == sorted(number for number, _ in first)
    assert first == [(sample["slide"], sample["index"]) for sample in dataset]
    dataset.set_epoch(1)
    assert sorted(first) == sorted((sample["slide"], sample["index"]) for sample in dataset)
    for sample in dataset:
        check((slide, other)[sample["slide"]], sample, 64)
        break


def test_workers_that_persist_learn_of_the_epoch(slide: Slide) -> None:
    patches = slide.patches(64)
    dataset = PatchIterableDataset(patches, seed=2)
    loader = data.DataLoader(
        dataset, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context="spawn"
    )
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        apart = PatchIterableDataset(patches, seed=2 + epoch)
        assert {sample["index"] for sample in loader} == set(range(len(patches)))
        # Workers take turns: one has the first half of the order, the other the second.
        order, half = [sample["index"] for sample in apart], len(patches) // 2
        assert [int(sample["index"]) for sample in loader][:6] == [
            place for pair in zip(order[:3], order[half : half + 3], strict=True) for place in pair
        ]
    assert pickle.loads(pickle.dumps(dataset)).epoch == 3


def test_streams_begin_anew(slide: Slide) -> None:
    """After a loop that was left, too: only what was loaded makes a stream go on."""
    patches = slide.patches(64)
    dataset = PatchIterableDataset(patches, seed=2)
    whole = [sample["index"] for sample in dataset]
    for _ in zip(range(13), dataset, strict=False):
        pass
    assert [sample["index"] for sample in dataset] == whole
    dataset.load_state_dict({"epoch": 0, "taken": 13})
    assert dataset.state_dict() == {"epoch": 0, "taken": 13}
    stream = iter(dataset)
    assert [next(stream)["index"] for _ in range(4)] == whole[13:17]
    assert dataset.state_dict() == {"epoch": 0, "taken": 17}
    assert [sample["index"] for sample in dataset] == whole


def test_streams_go_on(slide: Slide) -> None:
    patches = slide.patches(64)
    whole = [sample["index"] for sample in PatchIterableDataset(patches, seed=2)]
    dataset = PatchIterableDataset(patches, seed=2)
    stream = iter(dataset)
    begun = [next(stream)["index"] for _ in range(13)]
    state = pickle.loads(pickle.dumps(dataset.state_dict()))
    again = PatchIterableDataset(patches, seed=2)
    again.load_state_dict(state)
    assert begun + [sample["index"] for sample in again] == whole
    with pytest.raises(RegionError):
        PatchIterableDataset(patches, rank=2, world_size=2)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_streams_go_on_in_workers(slide: Slide, method: str, persistent: bool) -> None:
    """What is left is shared out among them; later epochs are whole, however often loaders are seeded alike."""
    plans = [slide.patches(64), slide.patches(100)]
    begun = PatchIterableDataset(plans, seed=2)
    whole = [(sample["slide"], sample["index"]) for sample in begun]
    taken = len(plans[0]) + 3
    for _ in zip(range(taken), begun, strict=False):
        pass
    dataset = PatchIterableDataset(plans, seed=2)
    dataset.load_state_dict(begun.state_dict())
    dataset.set_epoch(0)  # the present one
    assert dataset.state_dict() == {"epoch": 0, "taken": taken}
    loader = data.DataLoader(
        dataset, batch_size=None, num_workers=3, multiprocessing_context=method, persistent_workers=persistent
    )
    for expected in (whole[taken:], whole, whole):
        torch.manual_seed(5)
        seen = [(sample["slide"], sample["index"]) for sample in loader]
        assert sorted(seen) == sorted(expected)
        assert dataset.state_dict() == {"epoch": 0, "taken": 0}
    dataset.load_state_dict({"epoch": 0, "taken": taken})
    dataset.set_epoch(1)
    assert len(list(loader)) == len(whole)


def test_a_stream_that_went_on_in_one_place_begins_anew_in_others(slide: Slide) -> None:
    dataset = PatchIterableDataset(slide.patches(64), seed=2)
    for order in ((0, 2), (2, 0), (2, 3)):
        dataset.load_state_dict({"epoch": 0, "taken": 13})
        loaders = [data.DataLoader(dataset, batch_size=None, num_workers=workers) for workers in order]
        assert [len(list(loader)) for loader in loaders] == [len(dataset) - 13, len(dataset)]


def test_streams_of_workers_go_on(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each from its own state, as torchdata's StatefulDataLoader saves it; also where the epoch had been resumed."""

    def in_worker(number: int | None, workers: int = 2) -> None:
        info = None if number is None else SimpleNamespace(id=number, num_workers=workers, seed=77 + number)
        monkeypatch.setattr("wsiweb.torch.get_worker_info", lambda: info)

    patches = slide.patches(64)
    whole = [sample["index"] for sample in PatchIterableDataset(patches, seed=2)]
    first = PatchIterableDataset(patches, seed=2)
    first.load_state_dict({"epoch": 0, "taken": 5})
    seen, states = whole[:5], []
    for number, count in enumerate((4, 7)):
        in_worker(number)
        stream = iter(copy := pickle.loads(pickle.dumps(first)))
        seen += [next(stream)["index"] for _ in range(count)]
        states.append(copy.state_dict())
    for number, state in enumerate(states):
        in_worker(number)
        again = PatchIterableDataset(patches, seed=2)
        again.load_state_dict(state)
        assert again.state_dict() == state
        seen += [sample["index"] for sample in again]
        again.load_state_dict(again.state_dict())  # its part is read, and others' is not
        assert list(again) == []
        assert len(list(again)) == len(patches) // 2
        for other in ((1 - number, 2), (number, 3), (None,)):
            in_worker(*other)
            with pytest.raises(RegionError, match=f"worker {number} of 2"):
                again.load_state_dict(state)
    assert sorted(seen) == sorted(whole)
    in_worker(0)
    with pytest.raises(RegionError, match="main process"):
        first.load_state_dict({"epoch": 0, "taken": 5})
