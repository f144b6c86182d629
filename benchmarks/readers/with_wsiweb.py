"""wsiweb with its defaults, unless a workload sets options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsiweb import ReadOptions, Slide

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from benchmarks.readers import Place
    from benchmarks.slides import Region

    Pixels = npt.NDArray[np.uint8]


class Reader:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._options = ReadOptions(**settings)
        self._slide: Slide | None = None

    @property
    def slide(self) -> Slide:
        assert self._slide is not None
        return self._slide

    def open(self, place: Place) -> tuple[int, int]:
        self._slide = Slide.open(
            place.url, study_uid=place.study_uid, series_uid=place.series_uid, options=self._options
        )
        return self._slide.size

    def _level(self, level: int) -> int:
        return next(found.index for found in self.slide.levels if round(found.downsample) == level)

    def region(self, level: int, region: Region) -> Pixels:
        return self.slide.read_region(self._level(level), *region)

    def regions(self, level: int, regions: Sequence[Region]) -> Iterator[Pixels]:
        return self.slide.read_regions(self._level(level), regions)

    def reduced(self, level: int, regions: Sequence[Region], by: int) -> Iterator[Pixels]:
        (_, _, w, h), mpp = regions[0], self.slide.mpp
        assert mpp is not None
        plan = self.slide.patches((w // by, h // by), mpp=mpp[0] * level * by)
        return (patch.image for patch in plan.at([(x * level, y * level) for x, y, _, _ in regions]))

    def thumbnail(self, max_size: int) -> Pixels:
        return self.slide.thumbnail(max_size)

    def png(self, path: str, level: int, region: Region) -> None:
        self.slide.export_png(path, self._level(level), *region)

    def close(self) -> None:
        self.slide.close()
