"""Levels as arrays: sliced like numpy's, read no more than shown, and on a cluster."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsiweb import Level, ReadOptions, RegionError, Slide

if TYPE_CHECKING:
    from conftest import Opener, SlideMaker
    from synthetic import SyntheticSlide

INDICES = st.one_of(
    st.integers(-300, 300),
    st.builds(
        slice,
        st.none() | st.integers(-300, 300),
        st.none() | st.integers(-300, 300),
        st.none() | st.integers(-90, 90).filter(bool),
    ),
)


@pytest.fixture(scope="module")
def truth(synthetic: SlideMaker) -> SyntheticSlide:
    return synthetic("rgb")


@pytest.fixture(scope="module")
def slide(truth: SyntheticSlide) -> Slide:
    return Slide.open(truth.folder)


@pytest.fixture(scope="module")
def whole(truth: SyntheticSlide) -> np.ndarray[Any, Any]:
    return np.asarray(truth.truth(2, 0, 0, 175, 132))


def outcome(array: Any, key: Any) -> Any:
    try:
        return array[key]
    except IndexError:
        return IndexError


@given(st.lists(INDICES, min_size=1, max_size=3), st.none() | st.integers(0, 3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_are_numpys(slide: Slide, whole: np.ndarray[Any, Any], keys: list[Any], dots: int | None) -> None:
    if dots is not None:
        keys.insert(min(dots, len(keys)), Ellipsis)
    key = tuple(keys)
    found, expected = outcome(slide.levels[2], key), outcome(whole, key)
    if expected is IndexError:
        assert found is IndexError
    else:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        assert found.flags.c_contiguous
        assert found.base is None or found.base.nbytes == found.nbytes  # a few pixels keep no more in memory


def test_what_a_level_tells(slide: Slide, whole: np.ndarray[Any, Any]) -> None:
    level = slide.levels[2]
    assert isinstance(level, Level)
    assert (level.shape, level.dtype, level.ndim, len(level)) == (whole.shape, whole.dtype, 3, 132)
    assert level.chunks == (43 * 48, 32 * 64, 3)
    assert level == slide.levels[2] != slide.levels[1]
    np.testing.assert_array_equal(np.asarray(level), whole)
    np.testing.assert_array_equal(np.asarray(level, dtype=np.int32), whole)
    with pytest.raises(ValueError, match="copy"):
        level.__array__(copy=False)  # of np.array(level, copy=False): numpy 1 makes a copy all the same
    for key in ([1, 2], "a", None, 1.5, (0, 0, 0, 0), True, (0, False), np.True_):
        with pytest.raises(IndexError):
            level[key]


def test_a_level_of_another_slide_is_refused(slide: Slide, open_web: Opener, synthetic: SlideMaker) -> None:
    other = open_web(synthetic("rgb", sizes=((300, 200), (150, 100), (75, 50))))
    with pytest.raises(RegionError, match="another slide"):
        slide.read_region(other.levels[1], 0, 0, 5, 5)
    copy = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(slide.read_region(copy.levels[1], 0, 0, 5, 5), slide.read_region(1, 0, 0, 5, 5))
    copy.close()


def test_a_large_level_is_not_read_by_accident(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiweb.level.MAX_ARRAY_BYTES", 1000)
    with pytest.raises(RegionError, match="to_dask"):
        np.asarray(slide.levels[2])


def test_empty_slices_and_slices_cost_what_they_show(open_web: Opener, truth: SyntheticSlide) -> None:
    slide = open_web(truth)
    level = slide.levels[0]
    requests = slide.stats.requests
    assert level[0:0, 0:0].shape == (0, 0, 3)
    assert level[5:5].shape == (0, 700, 3)
    assert slide.stats.requests == requests
    level[0:40, 0:60]
    assert slide.stats.frames == 1


@pytest.mark.parametrize(
    ("rows", "columns", "frames"),
    [
        (slice(None, None, 144), slice(None), 4 * 11), (slice(500, 0, -144), slice(0, 100, 3), 4 * 2),
        (slice(None, None, 144), slice(10, None, -192), 4), (slice(0, 96, 2), slice(None, None, 192), 2 * 4),
    ],
)  # fmt: skip
def test_tiles_that_steps_leave_out_are_not_read(
    open_web: Opener, truth: SyntheticSlide, rows: slice, columns: slice, frames: int
) -> None:
    """Of 11 x 11 tiles of 64 x 48; and those that are read are not held all at once."""
    slide = open_web(truth)
    expected = truth.truth(0, 0, 0, *truth.levels[0].size)[rows, columns]
    np.testing.assert_array_equal(slide.levels[0][rows, columns], expected)
    assert slide.stats.frames == frames


def test_steps_do_not_make_a_result_that_is_too_large(truth: SyntheticSlide) -> None:
    with Slide.open(truth.folder, options=ReadOptions(max_region_bytes=100_000)) as slide:
        level = slide.levels[0]
        for step in (
            (slice(None), slice(None, None, 20)),
            (slice(None, None, 20), slice(None)),
            (slice(None, None, 5),) * 2,
        ):
            np.testing.assert_array_equal(level[step], truth.truth(0, 0, 0, *truth.levels[0].size)[step])
        with pytest.raises(RegionError, match="max_region_bytes"):
            level[::2, ::2]


def test_dask(open_web: Opener, truth: SyntheticSlide) -> None:
    da = pytest.importorskip("dask.array")
    tokenize = pytest.importorskip("dask.base").tokenize
    slide = open_web(truth)
    level = slide.levels[0]
    array = level.to_dask(chunks=200)
    assert slide.stats.frames == 0  # nothing is read to know what it is
    assert array.chunksize == (192, 192, 3)
    np.testing.assert_array_equal(array[100:110, 300:320].compute(), truth.truth(0, 300, 100, 20, 10))
    assert slide.stats.frames <= 2  # slices are pushed down
    everything = truth.truth(0, 0, 0, 700, 530)
    np.testing.assert_array_equal(array.compute(), everything)
    np.testing.assert_allclose(array.mean(axis=(0, 1)).compute(), everything.mean(axis=(0, 1)))
    np.testing.assert_array_equal(da.from_array(level)[::50, ::70].compute(), everything[::50, ::70])
    assert tokenize(level) == tokenize(open_web(truth).levels[0]) != tokenize(slide.levels[1])
    with pytest.raises(RegionError):
        level.to_dask(chunks=0)


def mean_of_patch(patches: Any, start: int, stop: int) -> Any:
    return np.concatenate([batch.images.mean(axis=(1, 2)) for batch in patches[start:stop].batches(16)])


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_processes(open_web: Opener, truth: SyntheticSlide) -> None:
    """The same plan and level run in other processes, without code of ours in between."""
    distributed = pytest.importorskip("distributed")
    slide = open_web(truth)
    patches = slide.patches(64)
    everything = truth.truth(0, 0, 0, 700, 530)
    truths = [everything[y : y + 64, x : x + 64].mean(axis=(0, 1)) for x, y in zip(patches.x, patches.y, strict=True)]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        mean = slide.levels[0].to_dask(chunks=256).mean(axis=(0, 1))
        np.testing.assert_allclose(client.compute(mean).result(timeout=60), everything.mean(axis=(0, 1)))
        shared = client.scatter(patches)
        starts = range(0, len(patches), 20)
        parts = [client.submit(mean_of_patch, shared, start, start + 20) for start in starts]
        np.testing.assert_allclose(np.concatenate(client.gather(parts)), truths)


def test_pickles_are_small(synthetic: SlideMaker) -> None:
    """100,000 frames: what says where they are is a rule."""
    truth = synthetic("jpeg-mono8", sizes=((160, 120),), tile_size=(16, 16))
    with Slide.open(truth.folder) as slide:
        assert len(pickle.dumps(slide)) < 100_000
        assert len(pickle.dumps(slide.patches(1, stride=(1, 1)))) < 100_000
        assert len(pickle.dumps(slide.levels[0])) < 100_000
