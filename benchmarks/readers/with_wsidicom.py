"""wsidicom: a pool of threads over patches, and its own threads within a region."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import requests
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom.uid import UID
from requests.adapters import HTTPAdapter
from wsidicom import WsiDicom, WsiDicomWebClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from benchmarks.readers import Place
    from benchmarks.slides import Region

    Pixels = npt.NDArray[np.uint8]

CONNECTIONS = 32


class Reader:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._threads: int | None = settings.get("threads")
        self._pool: int = settings.get("pool", 4)
        self._slide: Any = None

    def open(self, place: Place) -> tuple[int, int]:
        session = requests.Session()
        session.mount("http://", HTTPAdapter(pool_maxsize=CONNECTIONS))  # else it keeps no more than ten
        client = WsiDicomWebClient(DICOMwebClient(place.url, session=session))
        self._slide = WsiDicom.open_web(client, UID(place.study_uid), UID(place.series_uid))
        size = self._slide.levels.base_level.size
        return size.width, size.height

    def region(self, level: int, region: Region) -> Pixels:
        x, y, w, h = region
        found: Pixels = self._slide.read_region(
            (x, y), level.bit_length() - 1, (w, h), threads=self._threads, as_array=True
        )
        return found

    def regions(self, level: int, regions: Sequence[Region]) -> Iterator[Pixels]:
        return self._pooled(lambda region: self.region(level, region), regions)

    def reduced(self, level: int, regions: Sequence[Region], by: int) -> Iterator[Pixels]:
        """It takes millimetres, and rounds pixels down: a quarter of one is safe from what floating point loses."""
        spacing_mm = self._slide.levels.base_level.pixel_spacing.width * level

        def read(region: Region) -> Pixels:
            x, y, w, h = ((pixels + 0.25) * spacing_mm for pixels in region)
            found: Pixels = self._slide.read_region_mpp((x, y), 1000 * spacing_mm * by, (w, h), as_array=True)
            return found

        return self._pooled(read, regions)

    def _pooled(self, read: Callable[[Region], Pixels], regions: Sequence[Region]) -> Iterator[Pixels]:
        """Keep twice as many reads under way as there are threads."""
        with ThreadPoolExecutor(self._pool) as pool:
            under_way: deque[Future[Pixels]] = deque()
            for region in regions:
                under_way.append(pool.submit(read, region))
                if len(under_way) >= 2 * self._pool:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def thumbnail(self, max_size: int) -> Pixels:
        found: Pixels = self._slide.read_thumbnail(max_size, threads=self._threads, as_array=True)
        return found

    def png(self, path: str, level: int, region: Region) -> None:
        """Pillow cannot write in bands; its fastest compression."""
        Image.fromarray(self.region(level, region)).save(path, compress_level=1)

    def close(self) -> None:
        self._slide.close()
