"""What is measured: slides, workloads, and the floor that the network sets for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.profiles import PROFILES, Profile
from benchmarks.slides import JPEG_2000, Region, SlideSpec

if TYPE_CHECKING:
    from benchmarks.slides import StoredSlide

CONNECTIONS = 8
"""Over which the network's floor spreads the bytes of frames; metadata come over one."""
FACTORS = (1, 4, 16, 32)
WAYS = ("lan", "wan", "far")
ALL_WAYS = (*WAYS, "chunked", "https")

SLIDES = {
    spec.name: spec
    for spec in (
        SlideSpec("tiny", (2048, 1536), 256, (1, 4), 1024),
        SlideSpec("jpeg-256", (60_000, 45_000), 256, FACTORS, 8192),
        SlideSpec("jpeg-240", (30_000, 22_500), 240, FACTORS, 7680),
        SlideSpec("jpeg-512", (30_000, 22_500), 512, FACTORS, 8192),
        SlideSpec("jpeg-1024", (30_000, 22_500), 1024, FACTORS, 8192),
        SlideSpec("jpeg2000-256", (30_000, 22_500), 256, (1, 4, 16), 4096, syntax=JPEG_2000),
        SlideSpec("frames-200000", (131_072, 102_400), 256, (1, 4, 16, 64), 8192),
        *(SlideSpec(f"scale-{n * n}", (n * 256, n * 256), 256, (1, 4, 16), 4096) for n in (32, 100, 316, 1000)),
        SlideSpec("orthanc-256", (8192, 6144), 256, (1, 4), 4096),
        SlideSpec("sparse-20000", (38_400, 38_400), 256, (1, 16), 4096, sparse_frames=20_000, associated=False),
    )
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    kind: str
    """``open``; ``first``: open, and the region; ``region``; ``regions``: many, in order; ``reduced``: the same at a
    resolution that no level has; ``threads``: many, each by itself in one of 16 threads; ``warm``: a region that was
    read just before; ``thumbnail``; ``png``; ``start``: import, open, and the region."""
    slide: str = "jpeg-256"
    profiles: tuple[str, ...] = WAYS
    side: int = 0
    """Of the region, or of each."""
    count: int = 1
    columns: int | None = None
    """Of a grid; None places regions at random."""
    aligned: bool = False
    """Whether regions begin where tiles do."""
    shuffled: bool = False
    factor: int = 1
    """Downsample of the level that is read."""
    reduced_by: int = 1
    """By how much what is read of the level is reduced in width and height; ``side`` is that of the level's pixels."""
    options: tuple[tuple[str, int], ...] = ()
    """``ReadOptions`` to set; where there are any, only wsiweb is measured."""
    extra: bool = False
    """Whether it is measured only when it is named."""

    def regions(self, spec: SlideSpec, seed: int) -> list[Region]:
        """Return what is read, the same for every reader."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        if self.kind in ("open", "thumbnail"):
            return []
        if spec.sparse_frames is not None:  # somewhere where there is a frame
            column, row = spec.levels()[0].places[int(rng.integers(spec.sparse_frames))].tolist()
            return [(column * spec.tile, row * spec.tile, self.side, self.side)]
        level = next(found for found in spec.levels() if found.factor == self.factor)
        if self.columns is None:
            free = np.array(level.size) - self.side
            corners = rng.integers(0, free + 1, (self.count, 2))
            if self.aligned:
                corners = corners // spec.tile * spec.tile
            else:
                corners += (corners % spec.tile == 0) & (corners < free)
        else:
            rows = -(-self.count // self.columns)
            step = np.arange(self.count)
            free = np.array(level.size) - self.side * np.array([self.columns, rows])
            corner = rng.integers(0, free + 1) // spec.tile * spec.tile
            if not self.aligned:
                corner = np.minimum(corner + np.array([self.side * 2 // 5, self.side * 3 // 5]), free)
            corners = corner + self.side * np.stack([step % self.columns, step // self.columns], axis=1)
        if self.shuffled:
            corners = rng.permutation(corners)
        corners = corners // self.reduced_by * self.reduced_by
        return [(x, y, self.side, self.side) for x, y in corners.tolist()]


def _grids() -> list[Workload]:
    found = []
    for count, columns, profiles in ((400, 20, WAYS), (4000, 80, ("lan", "wan"))):
        for way in ("aligned", "unaligned", "shuffled"):
            workload = Workload(
                f"grid{count}-{way}",
                f"grid of {count:,} patches 256², {way}",
                "regions",
                profiles=profiles,
                side=256,
                count=count,
                columns=columns,
                aligned=way == "aligned",
                shuffled=way == "shuffled",
            )
            found.append(workload)
    return found


def _other_slides() -> list[Workload]:
    found = []
    for slide, what in (
        ("jpeg-240", "240 px tiles"),
        ("jpeg-512", "512 px tiles"),
        ("jpeg-1024", "1024 px tiles"),
        ("jpeg2000-256", "JPEG 2000"),
    ):
        near = ("lan", "wan", "https")
        found.append(Workload(f"{slide}-cold4096", f"{what}: cold 4096²", "region", slide, near, side=4096))
        if slide != "jpeg2000-256":
            title = f"{what}: 200 random patches 512²"
            found.append(Workload(f"{slide}-patches200", title, "regions", slide, near, side=512, count=200))
    return found


def _scale() -> list[Workload]:
    """What must grow with the frames that are touched, and with nothing else."""
    found = []
    for n in (32, 100, 316, 1000):
        title = f"a slide of {n * n:,} frames: open and first 1024²"
        found.append(Workload(f"scale-frames-{n * n}", title, "first", f"scale-{n * n}", ("lan",), 1024, extra=True))
    for n in (1, 4, 10, 32, 100):
        title = f"a region of {n * n:,} frames"
        name = f"scale-region-{n * n}"
        found.append(Workload(name, title, "region", "scale-99856", ("lan",), side=n * 256, aligned=True, extra=True))
    for n in (1, 2, 4, 8, 16, 32, 64):
        title = f"cold 4096² over {n} connections at most"
        options = (("max_connections", n),)
        name = f"scale-connections-{n}"
        found.append(Workload(name, title, "region", side=4096, options=options, extra=True))
        title = f"200 random patches 512² over {n} connections at most"
        name = f"scale-patches-connections-{n}"
        found.append(Workload(name, title, "regions", side=512, count=200, options=options, extra=True))
    return found


def _tiny() -> list[Workload]:
    """What takes no time, to see that the harness works."""
    near = ("lan", "wan", "https")
    return [
        Workload("tiny-open", "tiny: open", "open", "tiny", near, extra=True),
        Workload("tiny-region", "tiny: cold 700²", "region", "tiny", near, side=700, extra=True),
        Workload("tiny-warm", "tiny: 700² read again", "warm", "tiny", near, side=700, extra=True),
        Workload("tiny-grid", "tiny: grid of 12", "regions", "tiny", near, 256, 12, 4, shuffled=True, extra=True),
        Workload(
            "tiny-reduced", "tiny: grid of 12, reduced", "reduced", "tiny", near, 256, 12, 4, reduced_by=2, extra=True
        ),
        Workload(
            "tiny-threads", "tiny: 12 regions, by threads", "threads", "tiny", near, side=256, count=12, extra=True
        ),
        Workload("tiny-thumbnail", "tiny: thumbnail", "thumbnail", "tiny", near, extra=True),
    ]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("start", "new process: import, open, first 512²", "start", profiles=("lan",), side=512),
        Workload("open", "open", "open", profiles=(*WAYS, "https")),
        Workload("first512", "open and first 512²", "first", profiles=(*WAYS, "https"), side=512),
        Workload("cold1024", "cold 1024², unaligned", "region", side=1024),
        Workload("cold4096", "cold 4096², unaligned", "region", profiles=ALL_WAYS, side=4096),
        Workload("patches200", "200 random patches 512²", "regions", profiles=ALL_WAYS, side=512, count=200),
        Workload(
            "threads200", "200 random regions 512², each read by one of 16 threads", "threads", side=512, count=200
        ),
        *_grids(),
        Workload(
            "grid400-reduced", "grid of 400 patches 256² at half of level 0's resolution", "reduced", side=512,
            count=400, columns=20, reduced_by=2,
        ),
        Workload("warm4096", "4096² read again", "warm", profiles=("lan",), side=4096),
        Workload("thumbnail", "thumbnail of 1024 px", "thumbnail"),
        Workload("png16384", "16384² to PNG", "png", profiles=("lan", "wan"), side=16_384),
        Workload("open200000", "open a level of 200,000 frames", "open", "frames-200000", ("lan", "wan")),
        Workload(
            "sparse20000", "open a sparse level of 20,000 frames, first pixel", "first", "sparse-20000",
            ("lan", "wan"), side=1,
        ),
        *_other_slides(),
        Workload("orthanc-open", "Debian's Orthanc: open", "open", "orthanc-256", ("orthanc",)),
        Workload("orthanc-cold4096", "Debian's Orthanc: cold 4096²", "region", "orthanc-256", ("orthanc",), side=4096),
        Workload(
            "orthanc-patches100", "Debian's Orthanc: 100 random patches 512²", "regions", "orthanc-256", ("orthanc",),
            side=512, count=100,
        ),
        *_scale(),
        *_tiny(),
    )
}  # fmt: skip

DEFAULT = tuple(name for name, workload in WORKLOADS.items() if not workload.extra)
QUICK = ("first512", "cold4096", "grid400-unaligned")
"""What quick mode runs, on ``QUICK_PROFILES``."""
QUICK_PROFILES = ("wan",)
THUMBNAIL_SIDE = 1024


def level_index(workload: Workload, spec: SlideSpec) -> int:
    """Return the level that is read; for a thumbnail the coarsest that is fine enough."""
    if workload.kind == "thumbnail":
        levels = spec.levels()
        return max(i for i, level in enumerate(levels) if i == 0 or max(level.size) >= THUMBNAIL_SIDE)
    return spec.factors.index(workload.factor)


def network_floor(workload: Workload, slide: StoredSlide, regions: list[Region], profile_name: str) -> dict[str, Any]:
    """Return the least that the network takes: a latency for each step that needs the answer of another, and bytes.

    Opening costs a latency, and the metadata over one connection; reading costs a latency, and the encoded bytes of the
    distinct frames, spread evenly over ``CONNECTIONS`` (or as many as there are frames). Nothing else is counted, and
    nothing at all for Orthanc, whose own work is what takes time.
    """
    profile = PROFILES.get(profile_name, Profile(0.0, None))
    opening = reading = 0.0
    metadata_bytes = frame_bytes = frame_count = 0
    if workload.kind in ("open", "first", "start"):
        metadata_bytes = (slide.folder / "metadata.json").stat().st_size
        opening = profile.latency_seconds + profile.transfer_seconds(metadata_bytes, 1)
    if workload.kind not in ("open", "warm"):
        index = level_index(workload, slide.spec)
        palette, level = slide.palette(index), slide.spec.levels()[index]
        frames = level.palette_indices_of(regions or [(0, 0, *level.size)])
        frame_bytes, frame_count = sum(len(palette[i]) for i in frames), len(frames)
        transfer = profile.transfer_seconds(frame_bytes, min(CONNECTIONS, frame_count))
        reading = profile.latency_seconds + transfer
    return {
        "network_seconds": opening + reading,
        "metadata_bytes": metadata_bytes,
        "frame_bytes": frame_bytes,
        "frames": frame_count,
    }
