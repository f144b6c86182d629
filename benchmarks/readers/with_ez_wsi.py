"""ez-wsi-dicomweb: frames of all patches loaded ahead into its cache, which is as large as it likes.

``preload_patches_in_frame_cache`` runs in one thread, two requests at a time; called for several parts of the list it
runs in up to four. Where a service does not tell the transfer syntax as Google's does, the frames' own bytes tell it.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ez_wsi_dicomweb import credential_factory, dicom_store, dicom_web_interface, slide_level_map
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from benchmarks.readers import Place
    from benchmarks.slides import Region

    Pixels = npt.NDArray[np.uint8]

CACHE_BYTES = 4 << 30
JPEG, JPEG_2000, NATIVE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.1"


class Interface(dicom_web_interface.DicomWebInterface):  # type: ignore[misc]  # untyped
    """Finds out what only Google's service tells."""

    def get_instances(self, parent_path: Any, **keywords: Any) -> Any:
        found = super().get_instances(parent_path, **keywords)
        for item in found:
            if "00020010" not in item.dicom_tags:
                raw = dicom_web_interface.TranscodeDicomFrame.DO_NOT_TRANSCODE
                head = self.get_frame_image(item.path, 1, raw)[:4]
                uid = JPEG if head[:2] == b"\xff\xd8" else JPEG_2000 if head == b"\xff\x4f\xff\x51" else NATIVE
                item.dicom_tags["00020010"] = {"vr": "UI", "Value": [uid]}
        return found


class Reader:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._parts: int = settings.get("parts", 1)
        self._pool: int = settings.get("pool", 1)
        self._slide: Any = None
        self._levels: dict[int, Any] = {}
        logging.disable(logging.WARNING)

    def open(self, place: Place) -> tuple[int, int]:
        anonymous = credential_factory.NoAuthCredentialsFactory()
        store = dicom_store.DicomStore(place.url, credential_factory=anonymous)
        store.dicomweb = Interface(anonymous)
        self._slide = store.get_slide(place.study_uid, place.series_uid)
        self._slide.init_slide_frame_cache(
            max_cache_frame_memory_lru_cache_size_bytes=CACHE_BYTES,
            max_instance_number_of_frames_to_prefer_whole_instance_download=1,
        )
        levels = sorted(self._slide.levels, key=lambda level: -level.width)
        self._levels = {round(levels[0].width / level.width): level for level in levels}
        return levels[0].width, levels[0].height

    def _patches(self, level: int, regions: Sequence[Region]) -> list[Any]:
        return [self._slide.get_patch(self._levels[level], *region) for region in regions]

    def _preload(self, patches: list[Any]) -> None:
        size = -(-len(patches) // self._parts)
        for start in range(0, len(patches), size):
            self._slide.preload_patches_in_frame_cache(patches[start : start + size], blocking=self._parts == 1)
        if self._parts > 1:
            self._slide.slide_frame_cache.block_until_frames_are_loaded()

    def region(self, level: int, region: Region) -> Pixels:
        """Loading in parts goes by bands of rows."""
        x, y, w, h = region
        band = -(-h // self._parts)
        self._preload(self._patches(level, [(x, y + top, w, min(band, h - top)) for top in range(0, h, band)]))
        found: Pixels = self._patches(level, [region])[0].image_bytes()
        return found

    def regions(self, level: int, regions: Sequence[Region]) -> Iterator[Pixels]:
        return self._loaded(self._patches(level, regions))

    def reduced(self, level: int, regions: Sequence[Region], by: int) -> Iterator[Pixels]:
        source = self._levels[level]
        resized = source.resize(slide_level_map.ImageDimensions(source.width // by, source.height // by))
        return self._loaded(
            [self._slide.get_patch(resized, *(pixels // by for pixels in region)) for region in regions]
        )

    def _loaded(self, patches: list[Any]) -> Iterator[Pixels]:
        self._preload(patches)
        if self._pool == 1:
            for patch in patches:
                yield patch.image_bytes()
            return
        with ThreadPoolExecutor(self._pool) as pool:
            under_way: deque[Future[Pixels]] = deque()
            for patch in patches:
                under_way.append(pool.submit(patch.image_bytes))
                if len(under_way) >= 2 * self._pool:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def thumbnail(self, max_size: int) -> Pixels:
        widest = max(self._levels.items(), key=lambda item: -item[0])[1]
        factor = max_size / max(widest.width, widest.height)
        size = slide_level_map.ImageDimensions(round(widest.width * factor), round(widest.height * factor))
        fine = [level for level, found in self._levels.items() if max(found.width, found.height) >= max_size]
        level = self._levels[max(fine)]
        self._preload(self._patches(max(fine), [(0, 0, level.width, level.height)]))
        found: Pixels = self._slide.get_image(level.resize(size)).image_bytes()
        return found

    def png(self, path: str, level: int, region: Region) -> None:
        Image.fromarray(self.region(level, region)).save(path, compress_level=1)

    def close(self) -> None:
        self._slide = None
