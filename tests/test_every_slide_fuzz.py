"""Metadata changed at random: a slide opens and reads, or there is an error of ours; nothing else comes out."""

from __future__ import annotations

import copy
import random
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dicomweb_server import DICOMwebServer
from synthetic import make_slide, srgb_profile

from wsiweb import MetadataWarning, ReadOptions, Slide, WsiWebError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from synthetic import SyntheticSlide, Tiling

    Json = dict[str, Any]

OPTIONS = ReadOptions(max_attempts=1, max_region_bytes=1 << 24, deadline_seconds=10)
VALUES: tuple[Any, ...] = (
    *(None, "", "\0", "x", "1", "-1", "1\\2\\3", "NaN", "1e999", "VOLUME", "YBR_FULL_422", "TILED_SPARSE"),
    *(0, -1, 1, 7, 2**31 - 1, 2**32, 2**70, 1e308, float("inf"), float("nan"), True, [], {}, [[1]], {"vr": 1}),
)
ROUNDS = 30


@pytest.fixture(scope="module", params=["full", "sparse", "raster"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    tiling: Tiling = request.param
    return make_slide(
        tmp_path_factory.mktemp("slide"),
        content="mono8" if tiling == "sparse" else "rgb",
        sizes=((100, 70), (50, 35)),
        tiling=tiling,
        optical_paths=("a", "b") if tiling == "sparse" else ("1",),
        associated=("label", "thumbnail"),
        icc_profile=srgb_profile(),
    )


def places_in(dataset: Any) -> Iterator[tuple[Json, str]]:
    """Yield every element of a dataset and its sequences, by what holds it and its tag."""
    for name, element in dataset.items() if isinstance(dataset, dict) else ():
        if isinstance(element, dict) and "vr" in element:
            yield dataset, name
            items = element.get("Value") if element["vr"] == "SQ" else None
            for item in items if isinstance(items, list) else ():
                yield from places_in(item)


def damage(dataset: Json, rng: random.Random) -> None:
    """Change one element in one of the ways in which JSON can be wrong."""
    holder, name = (dataset, rng.choice(list(dataset))) if rng.random() < 0.5 else rng.choice(list(places_in(dataset)))
    if not isinstance(holder[name], dict):
        return
    value = rng.choice(VALUES)
    match rng.randrange(8):
        case 0:
            del holder[name]
        case 1:
            holder[name] = value
        case 2:
            holder[name]["Value"] = value
        case 3:
            holder[name] = {"vr": holder[name]["vr"], "InlineBinary": value}
        case 4:
            holder[name] = {"vr": holder[name]["vr"], "BulkDataURI": value}
        case 5:
            holder[name]["vr"] = rng.choice(["SQ", "US", "OB", "", None, 3])
        case _:
            holder[name]["Value"] = [value] * rng.randrange(1, 4)


def use(slide: Slide) -> Iterator[Callable[[], object]]:
    """Yield ways to ask for all that a slide has."""
    yield lambda: [slide.properties, slide.size, slide.mpp, repr(slide)]
    yield lambda: slide.thumbnail(20)
    yield lambda: slide.icc_profile
    yield lambda: list(slide.associated_images.values())
    for level in slide.levels:
        yield partial(slide.read_region, level.index, 0, 0, 60, 40)
        yield partial(slide.read_region, level.index, 0, 0, 60, 40, optical_path="all")


def foreign_error(attempt: Callable[[], object]) -> str | None:
    """Return what came out that is not ours, and where it did."""
    try:
        attempt()
    except WsiWebError as error:
        return None if str(error) else f"{type(error).__name__} without a message"
    except Exception as error:  # noqa: BLE001  (these are what is looked for)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} in {where.name}, {Path(where.filename).name}:{where.lineno}"
    return None


NONSENSE: dict[str, Callable[[Json], object]] = {
    "an element is a number": lambda ds: ds.update({"00080018": 1.5}),
    "an element is null": lambda ds: ds.update({"00080018": None}),
    "an element is text": lambda ds: ds.update({"00280010": "x"}),
    "a value is an object": lambda ds: ds.update({"00080018": {"vr": "UI", "Value": {"a": 1}}}),
    "a position that no integer holds": lambda ds: placed(ds).update({"0048021E": {"vr": "SL", "Value": [2**70]}}),
    "a position of infinity": lambda ds: placed(ds).update({"0048021F": {"vr": "SL", "Value": ["Infinity"]}}),
    "an identifier is an object": lambda ds: identified(ds).update({"00480106": {"vr": "SH", "Value": [{"a": 1}]}}),
    "an identifier is a list": lambda ds: identified(ds).update({"00480106": {"vr": "SH", "Value": [[1]]}}),
    "a size that no integer holds": lambda ds: ds.update({"00480006": {"vr": "UL", "Value": [2**70]}}),
    "an offset that no integer holds": lambda ds: ds.update(
        {"00209161": {"vr": "UI", "Value": ["1.2"]}, "00209228": {"vr": "UL", "Value": [2**70]}}
    ),
    "a sequence of numbers": lambda ds: ds.update({"00480105": {"vr": "SQ", "Value": [1, 2]}}),
    "a sequence of sequences": lambda ds: ds.update({"52009229": {"vr": "SQ", "Value": [[[{}]]]}}),
}


def placed(dataset: Json) -> Json:
    item: Json = dataset["52009230"]["Value"][0]["0048021A"]["Value"][0]
    return item


def identified(dataset: Json) -> Json:
    item: Json = dataset["52009230"]["Value"][0]["00480207"]["Value"][0]
    return item


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.filterwarnings("ignore::wsiweb.MetadataWarning")
def test_nonsense(tmp_path: Path, name: str) -> None:
    """In one level of two: the other reads, whatever becomes of this one."""
    stored = make_slide(tmp_path, tiling="sparse", sizes=((100, 70), (50, 35)))
    with DICOMwebServer(stored.folder) as server:
        place = server.series_url(stored.study_uid, stored.series_uid)
        find, everything = server.find, list(server.instances)
        # The series' metadata hold all instances, whatever has become of their UIDs.
        server.find = lambda match: everything if len(match) == 2 else find(match)  # type: ignore[method-assign]
        NONSENSE[name](server.instances[0].metadata)
        with Slide.open(place, options=OPTIONS) as slide:
            assert slide.levels[-1].size == (50, 35)
            errors = [foreign_error(attempt) for attempt in use(slide)]
            expected = stored.truth(1, 0, 0, 50, 35)
            assert (slide.read_region(len(slide.levels) - 1, 0, 0, 50, 35) == expected).all()
        assert not [error for error in errors if error]


@pytest.mark.parametrize("seed", range(3))
def test_damaged_metadata(stored: SyntheticSlide, seed: int) -> None:
    rng = random.Random(seed)
    errors: list[str | None] = []
    slides: list[Slide] = []
    with DICOMwebServer(stored.folder) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", MetadataWarning)
        sound = [instance.metadata for instance in server.instances]
        place = server.series_url(stored.study_uid, stored.series_uid)
        find, everything = server.find, list(server.instances)
        server.find = lambda match: everything if len(match) == 2 else find(match)  # type: ignore[method-assign]
        for _ in range(ROUNDS):
            damaged = copy.deepcopy(sound)
            for _ in range(rng.randrange(1, 4)):
                damage(rng.choice(damaged), rng)
            for instance, metadata in zip(server.instances, damaged, strict=True):
                instance.metadata = metadata
            before = len(slides)
            errors.append(foreign_error(lambda: slides.append(Slide.open(place, options=OPTIONS))))
            for slide in slides[before:]:
                errors += [foreign_error(attempt) for attempt in use(slide)]
                slide.close()
    assert not sorted({error for error in errors if error})
    assert len(slides) > ROUNDS // 2, "most damage costs a part of a slide"
