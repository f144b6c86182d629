"""Plans of patches: tissue, order, points, cost, pickles."""

from __future__ import annotations

import pickle
import tracemalloc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiweb import ReadOptions, RegionError, Slide
from wsiweb.patches import Otsu, load
from wsiweb.patches.tissue import TissueMask, make_mask, otsu_threshold

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Opener, SlideMaker


@pytest.fixture
def slide(open_slide: Opener, synthetic: SlideMaker) -> Slide:
    """700 x 530, 350 x 265 and 175 x 132 pixels."""
    return open_slide(synthetic("rgb"))


# Tissue ---------------------------------------------------------------------------------------------


def fraction_by_counting(mask: np.ndarray[Any, Any], base: tuple[int, int], box: tuple[int, int, int, int]) -> float:
    """Blow the mask up until both its pixels and the box's edges are whole, and count."""
    h, w = mask.shape
    big = np.kron(mask, np.ones((base[1], base[0])))  # every mask pixel base[1] x base[0] large
    x, y, bw, bh = box
    left, right, top, bottom = x * w, (x + bw) * w, y * h, (y + bh) * h
    part = big[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return float(part.sum() / ((right - left) * (bottom - top)))


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.data(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_fractions_are_exact(mask_w: int, mask_h: int, base_w: int, base_h: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=mask_w * mask_h, max_size=mask_w * mask_h))
    mask = np.array(bits).reshape(mask_h, mask_w)
    x, y = data.draw(st.integers(-3, base_w)), data.draw(st.integers(-3, base_h))
    w, h = data.draw(st.integers(1, base_w + 3)), data.draw(st.integers(1, base_h + 3))
    found = TissueMask(mask, (base_w, base_h)).fractions(np.array([float(x)]), np.array([float(y)]), w, h)
    assert found[0] == pytest.approx(fraction_by_counting(mask, (base_w, base_h), (x, y, w, h)), abs=1e-9)


def test_a_mask_selects_and_measures(slide: Slide) -> None:
    mask = np.zeros((53, 70), bool)
    mask[:, 35:] = True  # the right half
    patches = slide.patches(100, mask=mask, min_tissue=0.5)
    every = slide.patches(100)
    assert len(every) == 35
    assert sorted(set(patches.x.tolist())) == [300, 400, 500, 600]
    np.testing.assert_allclose(patches.tissue, np.where(patches.x == 300, 0.5, 1.0))
    assert len(slide.patches(100, mask=mask, min_tissue=0.6)) == 15
    assert len(slide.patches(100, mask=mask, min_tissue=0)) == 35
    first = next(iter(patches))
    assert (first.x, first.index) == (300, 3)
    assert first.tissue == pytest.approx(0.5)
    assert np.isnan(every.tissue).all()
    assert np.isnan(next(iter(every)).tissue)


def test_a_mask_may_change_afterwards(slide: Slide) -> None:
    mask = np.random.default_rng(3).random((20, 30)) > 0.3
    plan = slide.patches(50, mask=mask, min_tissue=0)
    before = plan.tissue.copy()
    mask[:] = ~mask
    for one in (plan, pickle.loads(pickle.dumps(plan))):
        np.testing.assert_array_equal(one.tissue, before)
        np.testing.assert_array_equal(one.at([(0, 0)]).tissue, before[:1])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_masks_are_the_same_for_every_level(slide: Slide, level: int) -> None:
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    patches = slide.patches(32, level=level, mask=mask, min_tissue=0.99)
    assert len(patches) > 0
    assert (patches.y_base + 32 * slide.levels[level].downsample <= 530 / 2 + 3).all()


def test_polygons_and_callables(slide: Slide) -> None:
    box = [(100, 100), (300, 100), (300, 300), (100, 300)]
    patches = slide.patches(50, mask=[np.array(box, float)], min_tissue=0.99)
    assert {(x, y) for x, y in zip(patches.x.tolist(), patches.y.tolist(), strict=True)} == {
        (x, y) for x in range(100, 300, 50) for y in range(100, 300, 50)
    }
    two = slide.patches(50, mask=[np.array(box, float), np.array(box, float) + 300], min_tissue=0.99)
    assert len(two) > len(patches)
    seen = []

    def everywhere(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen.append(image.shape)
        return np.ones(image.shape[:2], bool)

    assert len(slide.patches(50, mask=everywhere)) == len(slide.patches(50))
    assert seen == [slide.thumbnail(1024).shape]


def holds(ring: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a ray from a point to the right crosses a ring an odd number of times."""
    inside = False
    for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


def polygon_mask(mask: Any, base_size: tuple[int, int]) -> TissueMask:
    return make_mask(mask, base_size, lambda: np.zeros((1, 1, 3), np.uint8))


coordinates = st.integers(-20, 100).map(lambda value: value / 4)


@given(st.lists(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_a_pixel_is_in_polygons_where_its_centre_is(polygons: list[list[tuple[float, float]]]) -> None:
    # In steps of a quarter, many edges run through centres; those are not asked for.
    moved = [[(x + 0.0625, y + 0.03125) for x, y in ring] for ring in polygons]
    found = polygon_mask([np.array(ring) for ring in moved], (20, 15)).mask
    truth = np.array([[any(holds(ring, x + 0.5, y + 0.5) for ring in moved) for x in range(20)] for y in range(15)])
    assert found[truth].all()
    assert found.sum() - truth.sum() <= len(polygons)  # those that hold no centre


def test_polygons_are_drawn_in_bands_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = np.random.default_rng(5).uniform(-100, 900, (200, 2))
    whole = polygon_mask(ring, (800, 700)).mask
    monkeypatch.setattr("wsiweb.patches.polygons._CROSSINGS", 1000)
    np.testing.assert_array_equal(polygon_mask(ring, (800, 700)).mask, whole)


def test_a_polygon_ends_at_its_edges(slide: Slide) -> None:
    """Its neighbours show nothing of it, and what it fills is full."""
    triangle = np.array([[200, 200], [300, 200], [300, 300], [200, 200]])
    plan = slide.patches(100, mask=[triangle], min_tissue=0.0)
    tissue = dict(zip(zip(plan.x.tolist(), plan.y.tolist(), strict=True), plan.tissue.tolist(), strict=True))
    assert tissue.pop((200, 200)) == pytest.approx(0.5, abs=0.006)
    assert set(tissue.values()) == {0.0}
    square = np.array([[1000, 1000], [5000, 1000], [5000, 4000], [1000, 4000]])
    x, y = (axis.reshape(-1) for axis in np.meshgrid(np.arange(0, 14000, 250.0), np.arange(0, 11000, 250.0)))
    for size in ((14000, 11000), (13997, 10999)):
        mask = polygon_mask([square], size)
        for one in (mask, pickle.loads(pickle.dumps(mask))):
            fractions = one.fractions(x, y, 250, 250)
            assert (fractions == 1).sum() == (fractions > 0).sum() == 16 * 12


def test_what_polygons_show_ends_with_the_slide() -> None:
    mask = polygon_mask([(-9e3, -9e3), (9e4, -9e3), (9e4, 9e4), (-9e3, 9e4)], (13997, 10999))
    edge = np.array([13900.0]), np.array([10900.0])
    assert mask.fractions(*edge, 97, 99)[0] == pytest.approx(1, abs=1e-9)
    assert mask.fractions(*edge, 200, 200)[0] == pytest.approx(97 * 99 / 200**2)


def test_tiny_polygons_leave_a_trace() -> None:
    """Of a pixel of the mask, which is 4 x 4 of level 0 here."""
    ring = np.array([[1001, 2001], [1002, 2001], [1002, 2002]])
    assert np.argwhere(polygon_mask([ring], (14000, 11000)).mask).tolist() == [[500, 250]]
    for nothing in (ring - 50_000, ring * (1, 0)):
        assert not polygon_mask([nothing], (14000, 11000)).mask.any()


@pytest.mark.parametrize("mask", [
    "triangle", 5, np.zeros((3, 3)), np.zeros(4, bool), [], [(1, 2), (3, 4)], np.zeros((2, 2, 2), bool), "otsu ",
    [(float("nan"), 0), (5, 5), (0, 9)], [(-1e12, -1e12), (1e12, -1e12), (1e12, 1e12), (-1e12, 1e12)],
    Otsu, lambda image: image, lambda _image: None,
])  # fmt: skip
def test_what_is_no_mask(slide: Slide, mask: Any) -> None:
    with pytest.raises(RegionError, match=r"Otsu\(\)" if mask is Otsu else "."):  # the brackets were forgotten
        slide.patches(50, mask=mask)


@pytest.mark.parametrize("field", [
    *({"threshold": value} for value in (0.1, 40.0, -1, 256, "40", float("nan"))), {"blur": 4}, {"blur": 0},
    {"blur": 7.0},
])  # fmt: skip
def test_fields_of_otsu_are_checked(field: Any) -> None:
    with pytest.raises(RegionError, match=f"{next(iter(field))} is an"):
        Otsu(**field)


def test_holes_of_polygons_are_no_tissue(slide: Slide) -> None:
    """As shapely has them; what another polygon shows in a hole is tissue."""

    def ring(x: int, y: int, side: int) -> Any:
        return SimpleNamespace(coords=[(x, y), (x + side, y), (x + side, y + side), (x, y + side)])

    holed = SimpleNamespace(exterior=ring(100, 100, 300), interiors=[ring(150, 150, 200)])
    island = SimpleNamespace(exterior=ring(200, 200, 100), interiors=[])
    for several in ([holed], [holed, island], [island, holed]):
        truth = np.zeros((530, 700), bool)
        truth[100:400, 100:400] = True
        truth[150:350, 150:350] = False
        truth[200:300, 200:300] = len(several) == 2
        drawn = slide.patches(50, mask=SimpleNamespace(geoms=several), min_tissue=0)
        np.testing.assert_allclose(drawn.tissue, slide.patches(50, mask=truth, min_tissue=0).tissue)


def test_polygons_may_reach_far_out(slide: Slide) -> None:
    far = 9e7
    around = slide.patches(50, mask=[(-far, -far), (far, -far), (far, far), (-far, far)], min_tissue=1)
    assert len(around) == len(slide.patches(50))
    assert not len(slide.patches(50, mask=[(800, 800), (far, 800), (far, far)], min_tissue=0.01))


@pytest.mark.parametrize("min_tissue", [-0.1, 1.1, float("nan"), "0.5", None])
def test_min_tissue_is_a_fraction(slide: Slide, min_tissue: Any) -> None:
    with pytest.raises(RegionError, match="min_tissue"):
        slide.patches(50, mask=np.ones((2, 2), bool), min_tissue=min_tissue)


def test_otsu_splits_two_humps() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(30, 8, 4000), rng.normal(150, 20, 1000)]).clip(0, 255).astype(np.uint8)
    assert 60 < otsu_threshold(values) < 110
    assert otsu_threshold(np.full(100, 7, np.uint8)) == 255  # nothing is above it


def test_otsu_finds_what_is_coloured() -> None:
    image = np.full((200, 300, 3), 240, np.uint8)
    image[50:150, 100:250] = (200, 90, 160)
    image[5, 5] = (255, 0, 0)  # dust, which the median takes away
    found = Otsu()(image)
    truth = np.zeros((200, 300), bool)
    truth[50:150, 100:250] = True
    assert (found != truth).mean() < 0.002
    assert not Otsu(threshold=254)(image).any()


def test_planning_with_otsu_fetches_a_thumbnail_only(open_web: Opener, synthetic: SlideMaker) -> None:
    slide, other = open_web(synthetic("rgb")), open_web(synthetic("rgb"))
    slide.patches(64, mask="otsu", min_tissue=0.1)
    other.thumbnail(1024)
    mine, its = open_web.servers
    assert mine.frames_asked() == its.frames_asked()
    assert mine.count() - mine.count("frames") == its.count() - its.count("frames")


# Order ------------------------------------------------------------------------------------------------


def test_shuffles_are_permutations_that_seeds_reproduce(slide: Slide) -> None:
    patches = slide.patches(20)
    for locality in ("auto", 4, None):
        one, same, other = (patches.shuffle(seed, locality=locality) for seed in (1, 1, 2))
        assert one.index.tolist() == same.index.tolist() != other.index.tolist()
        assert sorted(one.index.tolist()) == patches.index.tolist()
        assert one.index.tolist() != patches.index.tolist()
        np.testing.assert_array_equal(one.x, patches.x[one.index])
        np.testing.assert_array_equal(one.y_base, patches.y_base[one.index])


def test_a_shuffle_keeps_neighbours_together(slide: Slide) -> None:
    patches = slide.patches(10).shuffle(0, locality=8)
    blocks = (patches.x // 80) * 1000 + patches.y // 80
    group = blocks[: 4 * 64]
    assert len(set(group.tolist())) <= 8  # four whole blocks, where those at the edge are smaller
    assert len(set(blocks[:30].tolist())) > 1  # and they are mixed


def test_no_locality_is_no_side(slide: Slide) -> None:
    with pytest.raises(RegionError):
        slide.patches(10).shuffle(0, locality=0)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_share_all_patches_out(slide: Slide, count: int) -> None:
    patches = slide.patches(20)
    shards = [patches.shard(number, count) for number in range(count)]
    assert sorted(index for shard in shards for index in shard.index.tolist()) == patches.index.tolist()
    sizes = [len(shard) for shard in shards]
    assert max(sizes) <= 2.5 * len(patches) / count + 4
    assert min(sizes) > 0


@pytest.mark.parametrize(("tile", "patch", "stride"), [(30, 32, 32), (128, 28, 28), (64, 28, 28), (32, 32, 16)])
def test_parts_share_no_tile_where_patches_fill_whole_ones(
    open_slide: Opener, synthetic: SlideMaker, tile: int, patch: int, stride: int
) -> None:
    """As 15 patches of 256 pixels do, which are 16 tiles of 240; none of overlapping ones."""
    slide = open_slide(synthetic("mono8", sizes=((3584, 3584),), tile_size=(tile, tile)))
    plan = slide.patches(patch, stride=stride)
    shards = [plan.shard(number, 4) for number in range(4)]
    shared = sum(shard.cost().frames for shard in shards) - plan.cost().frames
    assert shared == 0 if patch == stride else 0 < shared < 0.05 * plan.cost().frames


def test_shards_keep_the_order_and_hardly_share_frames(slide: Slide) -> None:
    patches = slide.patches(8)
    frames = [patches.shard(number, 2).cost().frames for number in range(2)]
    assert sum(frames) <= patches.cost().frames * 1.35
    shuffled = patches.shuffle(3)
    shard = shuffled.shard(1, 3)
    place = {index: n for n, index in enumerate(shuffled.index.tolist())}
    assert [place[index] for index in shard.index.tolist()] == sorted(place[index] for index in shard.index.tolist())
    for number, count in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(RegionError):
            patches.shard(number, count)


# Points -----------------------------------------------------------------------------------------------


def test_points(slide: Slide) -> None:
    plan = slide.patches(32, level=1)
    points = plan.at([(100, 60), (400, 300), (690, 520)])
    assert points.x.tolist() == [50, 200, 345]
    assert points.y.tolist() == [30, 150, 260]
    for patch in points:
        np.testing.assert_array_equal(patch.image, slide.read_region(1, patch.x, patch.y, 32, 32))
    centred = plan.at([(400, 300)], centre=True)
    assert (centred.x.tolist(), centred.y.tolist()) == ([184], [134])
    for bad in ([(1, 2, 3)], [(5000, 0)], [1, 2], [(float("nan"), 0)]):
        with pytest.raises(RegionError):
            plan.at(bad)


def test_points_of_another_size(slide: Slide) -> None:
    plan = slide.patches(32, level=1)
    wide = plan.at([(100, 60), (400, 300)], (48, 20))
    assert wide.size == (48, 20)
    np.testing.assert_array_equal(wide[1].image, slide.read_region(1, 200, 150, 48, 20))
    assert plan.at([(400, 300)], 64, centre=True).x.tolist() == [168]
    large = plan.random(20, 3, size=200)
    assert large[4].image.shape == (200, 200, 3)
    assert (large.x + 200 <= 350).all()
    for bad in (0, "a", (1, 2, 3)):
        with pytest.raises(RegionError):
            plan.at([(1, 2)], bad)  # type: ignore[arg-type]


def test_random_places(slide: Slide) -> None:
    mask = np.zeros((53, 70), bool)
    mask[10:40, 20:50] = True
    plan = slide.patches(40, mask=mask, min_tissue=0.8, roi=(0, 0, 600, 500))
    one, same = plan.random(50, seed=4), plan.random(50, seed=4)
    assert one.x.tolist() == same.x.tolist() != plan.random(50, seed=5).x.tolist()
    assert len(one) == 50
    assert (one.tissue >= 0.8 - 1e-9).all()
    assert (one.x >= 0).all()
    assert (one.x + 40 <= 600).all()
    with pytest.raises(RegionError):
        slide.patches(40, mask=np.zeros((5, 5), bool), min_tissue=1).random(5)
    with pytest.raises(RegionError, match=r"n is at least 0, not -1\."):
        slide.patches(40).random(-1)
    with pytest.raises(RegionError):
        slide.patches(40, roi=(0, 0, 30, 30)).random(5)


# What cannot be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    lambda plan: plan.shuffle("1"), lambda plan: plan.shuffle(1.5), lambda plan: plan.shuffle(-1),
    lambda plan: plan.shuffle(1, locality="auto "), lambda plan: plan.shuffle(1, locality=2.5),
    lambda plan: plan.shard("0", 4), lambda plan: plan.shard(0, 4.0), lambda plan: plan.shard(0, 0),
    lambda plan: plan.random("3"), lambda plan: plan.random(3, -1), lambda plan: plan.random(3, "a"),
    lambda plan: plan.at("abc"), lambda plan: plan.at([("a", "b")]), lambda plan: plan.at([(1e300, 0)]),
    lambda plan: plan.at([(10**400, 0)]), lambda plan: plan.slide.patches(32, roi=(10**400, 0, 5, 5)),
    lambda plan: plan.slide.patches(32, edge=np.array(["drop", "pad"])),
    lambda plan: plan.batches("8"), lambda plan: plan.batches(1.5), lambda plan: plan.batches(8, on_error="ignore"),
    lambda plan: plan.slide.patches(32, roi=5), lambda plan: plan.slide.patches(32, stride=10**30),
    lambda plan: plan.slide.patches(32, magnification="20"), lambda plan: plan.slide.patches(32, magnification=(1, 1)),
    lambda plan: plan.slide.patches(32, mpp=10**400), lambda plan: plan.slide.patches(32, magnification=0),
    lambda plan: plan.slide.levels[0].to_dask("auto"),
])  # fmt: skip
def test_wrong_arguments_are_region_errors(slide: Slide, wrong: Any) -> None:
    with pytest.raises(RegionError):
        wrong(slide.patches(32))


def test_an_roi_beyond_floats_ends_where_the_slide_ends(slide: Slide) -> None:
    plan = slide.patches(32, roi=(-(10**400), 100, 2 * 10**400, 10**400))
    assert plan.x_base.max() == 20 * 32
    assert (plan.x_base.min(), plan.y_base.min()) == (0, 100)


def test_sides_beyond_every_slide_are_no_overflow(slide: Slide) -> None:
    for stride in (1 << 31, (16, (1 << 32) - 1)):
        plan = slide.patches(32, stride=stride)
        others = plan.shuffle(1), plan.shard(0, 1), plan.shuffle(1, locality=10**40)
        assert {len(part) for part in others} == {len(plan)}


def test_a_patch_that_is_too_large_is_refused_before_it_is_read(open_web: Opener, synthetic: SlideMaker) -> None:
    slide = open_web(synthetic("rgb"), options=ReadOptions(max_region_bytes=3_000_000))
    before = open_web.requests()
    for size, mpp in ((1001, None), (100_000, None), (1001, 0.7)):
        plan = slide.patches(size, mpp=mpp, edge="pad")
        with pytest.raises(RegionError, match="max_region_bytes"):
            plan[0]
        with pytest.raises(RegionError, match="max_region_bytes"):
            plan.batches(1)
        with pytest.raises(RegionError, match="max_region_bytes"):
            next(iter(plan))
    assert open_web.requests() == before
    assert slide.patches(1000, edge="pad")[0].image.shape == (1000, 1000, 3)


# Cost, size, pickles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["drop", "pad", "shift"])
@pytest.mark.parametrize(("size", "stride", "level"), [(64, None, 0), (50, 37, 0), (33, 90, 1), (30, None, 2)])
def test_frames_are_known_before(
    open_slide: Opener, synthetic: SlideMaker, edge: Any, size: int, stride: int | None, level: int
) -> None:
    """And of how many bytes, once some were read: raw ones have all the same."""
    slide = open_slide(synthetic("rgb"))
    patches = slide.patches(size, level=level, stride=stride, edge=edge)
    before = open_slide.requests()
    cost = patches.cost()
    assert open_slide.requests() == before
    for _ in patches:
        pass
    assert cost.frames == slide.stats.frames
    assert cost.patches == len(patches)
    assert patches.cost().bytes == cost.frames * 64 * 48 * 3


@pytest.mark.parametrize(("mpp", "size"), [(0.3, 30), (0.45, 64), (0.7, 33), (1.9, 20)])
def test_frames_of_a_virtual_level_are_known_before(
    open_web: Opener, synthetic: SlideMaker, mpp: float, size: int
) -> None:
    """Bilinear pixels look at their neighbours, which may be in the next tile."""
    slide = open_web(synthetic("rgb", sizes=((703, 517), (176, 129)), tile_size=(56, 24)))
    patches = slide.patches(size, mpp=mpp, upsample=True)
    cost = patches.cost()
    for _ in patches:
        pass
    assert cost.frames == sum(open_web.servers[0].frames_asked().values())


def test_a_million_patches_are_little(slide: Slide) -> None:
    tracemalloc.start()
    plan = slide.patches(1, stride=1, edge="drop")[:]  # 371,000
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(plan) == 371_000
    assert before < 37_100_000
    data = pickle.dumps(plan)
    assert len(data) < 100_000


def test_plans_pickle(slide: Slide) -> None:
    mask = np.ones((53, 70), bool)
    plan = slide.patches(64, mask=mask).shuffle(1)[3:20]
    with pickle.loads(pickle.dumps(plan)).slide as copy:
        restored = pickle.loads(pickle.dumps(plan))
        assert restored.index.tolist() == plan.index.tolist()
        assert restored.fingerprint() == plan.fingerprint()
        np.testing.assert_array_equal(restored.x, plan.x)
        np.testing.assert_array_equal(restored[0].image, plan[0].image)
        restored.slide.close()
        del copy


def test_pickles_keep_what_is_known(slide: Slide, tmp_path: Path) -> None:
    """Tissue too, of a mask or of a file; and the same plan has the same fingerprint wherever it comes from."""
    mask = np.zeros((53, 70), bool)
    mask[7:40, 13:50] = True
    plan = slide.patches(16, mask=mask, min_tissue=0.1).shuffle(1)
    plan.save(tmp_path / "plan.npz")
    loaded = load(tmp_path / "plan.npz", slide)
    points = plan.random(500, 2)
    for one in (plan, loaded, points, points[30:40], loaded[5:9], plan.at(np.array([[200.0, 100.0]])), plan[:0]):
        copy = pickle.loads(pickle.dumps(one))
        for name in ("index", "x", "y", "tissue"):
            np.testing.assert_array_equal(getattr(copy, name), getattr(one, name))
        assert copy.fingerprint() == one.fingerprint()
        copy.slide.close()
    assert loaded.fingerprint() == plan.fingerprint()
    assert len({one.fingerprint() for one in (plan, plan[1:], points, points[1:], slide.patches(16))}) == 5


def test_what_goes_to_a_worker_is_little(open_web: Opener, synthetic: SlideMaker) -> None:
    """Less than 100 kB, of 100,000 frames and as many patches; points that are sliced away stay here."""
    slide = open_web(synthetic("jpeg-mono8", sizes=((3170, 3170),), tile_size=(10, 10)))
    y, x = np.mgrid[:700, :1000]
    mask = ((x - 500) / 400) ** 2 + ((y - 350) / 250) ** 2 + np.sin(x / 9) * np.sin(y / 7) / 10 < 1
    plan = slide.patches(10, mask=mask)
    assert len(slide.patches(10)) == 317 * 317
    assert 40_000 < len(plan) < 50_000
    for one in (
        slide,
        slide.levels[0],
        slide.patches(10),
        plan,
        plan.shard(3, 8),
        slide.patches(10).random(100_000)[:100],
    ):
        assert len(pickle.dumps(one)) < 100_000
