"""``Slide``: the face of the library. Checks what is asked, delegates, and owns lifetime and pickling."""

from __future__ import annotations

import contextlib
import operator
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from wsiweb import icc as icc_profiles
from wsiweb import opening, resolution
from wsiweb.cache import Keep
from wsiweb.content import SlideContent, load_content
from wsiweb.errors import RegionError, SlideNotFoundError, WsiWebError
from wsiweb.geometry import Rectangle
from wsiweb.level import SlideLevel
from wsiweb.options import ReadOptions, chosen
from wsiweb.plan import RegionPlanner, check_region
from wsiweb.pyramid import Level, Pyramid, single_image
from wsiweb.reader import Reader
from wsiweb.regions import Region, RegionArrays, integer, rectangle
from wsiweb.resolution import View

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt
    import requests
    from requests.auth import AuthBase

    from wsiweb.dicomjson import BinaryValue
    from wsiweb.images import Channel
    from wsiweb.patches import PatchPlan
    from wsiweb.sources.base import FrameSource
    from wsiweb.stats import ReadStats

    Pixels = npt.NDArray[Any]


class Slide:
    """A whole-slide image in a DICOMweb service or in local files. Made by ``Slide.open``.

    Safe to share between threads. Pickles without connections and caches; the copy reads without asking for the
    metadata again.
    """

    def __new__(cls, content: Any = None, *_: Any, **__: Any) -> Self:
        """Refuse what ``open`` takes."""
        if isinstance(content, (str, os.PathLike, list, tuple)):
            raise WsiWebError("A slide is opened by Slide.open(...), and not by Slide(...).")
        return super().__new__(cls)

    def __init__(self, content: SlideContent, source: FrameSource, options: ReadOptions, pyramid: int) -> None:
        self._content = content
        self._options = options
        self._pyramid_index = pyramid
        self._icc_profiles: dict[BinaryValue, bytes | None] = {}
        self._reader = Reader(source, content.instances, options)

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Any,
        *,
        study_uid: str | None = None,
        series_uid: str | Sequence[str] | None = None,
        auth: AuthBase | tuple[str, str] | None = None,
        token: str | Callable[[], str] | None = None,
        headers: dict[str, str] | None = None,
        session: requests.Session | None = None,
        verify: bool | str | None = None,
        cert: str | tuple[str, str] | None = None,
        qido_url_prefix: str | None = None,
        wado_url_prefix: str | None = None,
        pyramid: int | str | None = None,
        mpp: float | tuple[float, float] | None = None,
        photometric: str | None = None,
        options: ReadOptions | None = None,
    ) -> Self:
        """Open a slide.

        Parameters
        ----------
        place
            URL of a series (``https://host/dicomWeb/studies/1.2/series/3.4``); URL of a service, with ``series_uid``;
            a ``DICOMwebClient`` or ``DICOMfileClient``; a DICOM file, a folder, or a list of them.
        study_uid, series_uid
            Which slide, where ``place`` does not say. Without ``study_uid`` the study is looked up (QIDO-RS, one
            request). Several series of one study hold a slide's channels.
        auth
            A ``requests`` authentication object or ``(user, password)``.
        token
            A bearer token, or a callable that returns one and is called again when the service says 401.
        headers, session, verify, cert
            As ``requests`` takes them; of the session, headers and cookies are those that it has now.
        qido_url_prefix, wado_url_prefix
            Path below the service's root, where it differs for searching and retrieving.
        pyramid
            Index into ``pyramids``, or a Pyramid UID. None takes the one with the largest level 0.
        mpp
            The resolution of level 0 in µm a pixel, one number or (x, y), to state or correct it.
        photometric
            Photometric interpretation of the frames (``"RGB"``, ``"YBR_FULL"``...), to overrule what the slide, or its
            code streams, declare.
        options
            How to read.

        Raises
        ------
        SlideNotFoundError
            There is no whole-slide image at that place.
        MetadataError
            Its metadata lack what reading needs.
        SourceError
            The service did not deliver; ``AuthenticationError`` where it refused the credentials.
        """
        options = chosen(options, ReadOptions())
        connection = opening.Connection(
            auth=auth, token=token, headers=headers, session=session, verify=verify, cert=cert,
            qido_url_prefix=qido_url_prefix, wado_url_prefix=wado_url_prefix,
        )  # fmt: skip
        series_uids = _uids(series_uid)
        source = opening.open_source(place, study_uid, series_uids, connection, options)
        try:
            content = load_content(source, mpp=mpp, photometric=photometric)
            return cls(content, source, options, _chosen(content.pyramids, pyramid))
        except BaseException:
            source.close()
            raise

    # What the slide is ----------------------------------------------------------------------------

    @property
    def _pyramid(self) -> Pyramid:
        return self._content.pyramids[self._pyramid_index]

    @property
    def pyramids(self) -> tuple[Pyramid, ...]:
        """All pyramids of the series; the first is the default one."""
        return self._content.pyramids

    @property
    def levels(self) -> tuple[SlideLevel, ...]:
        """Levels of the pyramid that is open, by decreasing resolution. Each can be sliced like an array."""
        names = Level.__slots__
        return tuple(
            SlideLevel(**{name: getattr(level, name) for name in names}, slide=self) for level in self._pyramid.levels
        )

    @property
    def _base(self) -> Level:
        return self._pyramid.levels[0]

    @property
    def size(self) -> tuple[int, int]:
        """(w, h) of level 0 in pixels."""
        return self._base.size

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) of level 0 in µm a pixel, or None where the slide does not tell."""
        return self._base.mpp

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of level 0: uint8 or uint16."""
        return self._base.dtype

    @property
    def study_uid(self) -> str:
        """Study Instance UID."""
        return self._content.study_uid

    @property
    def series_uid(self) -> str:
        """Series Instance UID."""
        return self._content.series_uid

    @property
    def optical_paths(self) -> tuple[str, ...]:
        """Identifiers of the optical paths; the first is the default."""
        return self._pyramid.optical_paths

    @property
    def focal_planes(self) -> tuple[float, ...]:
        """Z offsets of the focal planes in µm, rising; the one nearest the middle is the default."""
        return self._pyramid.focal_planes

    @property
    def properties(self) -> dict[str, Any]:
        """What people look for: vendor, model, objective_power, stain, patient_id, ... where the slide has them."""
        return dict(self._content.properties[self._pyramid_index])

    @property
    def stats(self) -> ReadStats:
        """Counters since opening: requests, frames, bytes, retries, tile_hits, tile_misses, ..."""
        return self._running().stats

    @property
    def options(self) -> ReadOptions:
        """How this slide is read."""
        return self._options

    @property
    def associated_images(self) -> Mapping[str, Pixels]:
        """Mapping with any of "label", "overview", "thumbnail" to arrays, fetched when asked for."""
        return _AssociatedImages(self)

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of the default optical path, or None. May cost one request, once."""
        return self._icc_profile(None)

    def _icc_profile(self, optical_path: str | None, channel: Channel | None = None) -> bytes | None:
        """Return the profile of a channel; where it has none of its own, of the finest level that has one."""
        own = None if channel is None else channel.icc_profile
        value = own or self._pyramid.icc_profile(self.optical_paths[0] if optical_path is None else optical_path)
        if value is None:
            return None
        if value not in self._icc_profiles:
            profile = value.inline
            if profile is None:
                reader = self._running()
                reader.check_open()
                profile = reader.source.fetch_bulk(value.uri or "", icc_profiles.whole)
            self._icc_profiles[value] = icc_profiles.trimmed(profile) if profile else None
        return self._icc_profiles[value]

    # Reading --------------------------------------------------------------------------------------

    def read_region(
        self,
        level: int | Level,
        x: int,
        y: int,
        w: int,
        h: int,
        *,
        optical_path: str | None = None,
        focal_plane: float | None = None,
        icc: str | None = None,
    ) -> Pixels:
        """Return a rectangle of one level as an array.

        Parameters
        ----------
        level
            Index into ``levels``, or one of them; 0 is the finest.
        x, y, w, h
            Top left corner and size **in pixels of that level** (PS3.3 C.8.12.14). Parts outside are filled with the
            slide's background, as are tiles that a sparse level does not have.
        optical_path
            Identifier; None takes the first. "all" stacks monochrome paths along the last axis.
        focal_plane
            z offset in µm; None takes the plane nearest the middle.
        icc
            "srgb" converts colours by the ICC profile of what is read; None leaves them as stored.

        Returns
        -------
        ``(h, w, 3)`` uint8 RGB, ``(h, w)`` uint8 or uint16 for monochrome, or ``(h, w, c)`` for "all"; C-contiguous,
        and yours to write into.

        Raises
        ------
        RegionError
            The rectangle is empty, touches the level nowhere or is larger than ``max_region_bytes``; or there is no
            such level, optical path or focal plane. No request was made.
        SourceError, DecodeError, UnsupportedError
            A frame could not be had, or not be decoded; it is never replaced by blank pixels.
        """
        view = resolution.view_of_level(self._level(level))
        return self._read(view, [(x, y, w, h)], optical_path, focal_plane, icc).only()

    def read_regions(
        self,
        level: int | Level,
        regions: Iterable[Region],
        *,
        optical_path: str | None = None,
        focal_plane: float | None = None,
        icc: str | None = None,
    ) -> Iterator[Pixels]:
        """Return an iterator over many rectangles of one level, in order; see ``read_region``.

        Frames of all of them are fetched together, each once, ahead of the consumer within ``readahead_bytes``.
        All regions are checked before the first request. Closing the iterator stops the work.
        """
        view = resolution.view_of_level(self._level(level))
        return self._read(view, regions, optical_path, focal_plane, icc)

    def read_region_mpp(
        self,
        mpp: float,
        x: int,
        y: int,
        w: int,
        h: int,
        *,
        optical_path: str | None = None,
        focal_plane: float | None = None,
        icc: str | None = None,
        upsample: bool = False,
    ) -> Pixels:
        """Return a rectangle as if the pyramid had a level at exactly this resolution.

        Parameters
        ----------
        mpp
            Micrometres a pixel. Within 1 % of a level's, it is that level, unresampled; otherwise the next finer
            level is reduced by area weighting.
        x, y, w, h
            In pixels of that virtual level, whose size is floor(level-0 size x level-0 mpp / mpp).
        upsample
            Allow an mpp finer than level 0 (bilinear).
        optical_path, focal_plane, icc
            As for ``read_region``.

        Raises
        ------
        RegionError
            As for ``read_region``; also an mpp more than 1 % finer than level 0 without ``upsample``.
        MetadataError
            The slide does not tell its resolution.
        """
        view = resolution.view_at_mpp(self._pyramid.levels, mpp, upsample=upsample)
        return self._read(view, [(x, y, w, h)], optical_path, focal_plane, icc).only()

    def thumbnail(self, max_size: int = 1024) -> Pixels:
        """Return the whole slide, its longer side at most ``max_size`` pixels, never enlarged.

        The slide's own THUMBNAIL image serves where it is large enough, else the smallest sufficient level, reduced
        by area weighting.
        """
        max_size = integer(max_size, "max_size")
        if max_size < 1:
            raise RegionError(f"max_size is at least 1, not {max_size}.")
        base = self._base
        factor = min(max_size, max(base.size)) / max(base.size)
        width, height = (max(round(side * factor), 1) for side in base.size)
        level, channel = self._content.thumbnail(self._pyramid, width, height)
        scale = level.width / width, level.height / height
        return self._whole(View(level, width, height, scale, None), channel, "The thumbnail")

    def level_for_mpp(self, mpp: float) -> SlideLevel:
        """Return the coarsest level at least as fine as ``mpp`` µm a pixel in both axes, within 1 %.

        Level 0 where none is.

        Raises
        ------
        MetadataError
            The slide does not tell its resolution.
        """
        return self.levels[resolution.level_for_mpp(self._pyramid.levels, mpp).index]

    def level_for_downsample(self, downsample: float) -> SlideLevel:
        """Return the coarsest level whose downsample is at most this, within 1 %."""
        return self.levels[resolution.level_for_downsample(self._pyramid.levels, downsample).index]

    def patches(
        self,
        size: int | tuple[int, int],
        *,
        level: int | Level | None = None,
        mpp: float | None = None,
        magnification: float | None = None,
        stride: int | tuple[int, int] | None = None,
        mask: Any = None,
        min_tissue: float = 0.5,
        roi: Region | Sequence[Region] | None = None,
        edge: str = "drop",
        upsample: bool = False,
    ) -> PatchPlan:
        """Plan a grid of patches; nothing but a thumbnail for the mask is fetched until it is read.

        Parameters
        ----------
        size, stride
            In output pixels, an integer or (w, h); ``stride`` is ``size`` by default.
        level, mpp, magnification
            The resolution, one of them; level 0 by default. ``magnification`` is a downsample of objective power /
            magnification where the slide states its power, else an mpp of 10 / magnification.
        mask
            Where there is tissue: "otsu" (HSV saturation of the thumbnail after a median blur; ``patches.Otsu`` has a
            threshold to set), a boolean array ``(h, w)`` of any scale that spans level 0, a callable that makes one of
            the thumbnail, or polygons: ``(n, 2)`` points in level-0 pixels.
        min_tissue
            Fraction of a patch that the mask must cover.
        roi
            One or more ``(x, y, w, h)`` in level-0 pixels; each has a grid of its own.
        edge
            "drop" leaves out patches that do not fit, "pad" fills them with the background, "shift" moves them inward.
        upsample
            Allow a resolution finer than level 0.

        Raises
        ------
        RegionError
            The grid cannot exist: sizes below 1, more than one resolution, an ROI off the slide, a mask that is none.
        MetadataError
            ``mpp`` or ``magnification`` was asked for, and the slide does not tell its resolution.
        """
        from wsiweb.patches import plan_patches  # noqa: PLC0415

        view = self._view(level, mpp, magnification, upsample=upsample)
        return plan_patches(
            self, view, size, stride=stride, mask=mask, min_tissue=min_tissue, roi=roi, edge=edge
        )  # fmt: skip

    def export_png(
        self,
        path: str | os.PathLike[str],
        level: int | Level = 0,
        x: int = 0,
        y: int = 0,
        w: int | None = None,
        h: int | None = None,
        *,
        compression: int | None = None,
        optical_path: str | None = None,
        focal_plane: float | None = None,
        icc: str | None = None,
        progress: bool | Callable[[int, int], None] | None = None,
    ) -> None:
        """Write a rectangle of one level as PNG, with the ICC profile and the pixel density in it.

        Memory is bounded by bands of the region and by the budgets of the caches, whatever its size. The file appears
        under its name when it is whole.

        Parameters
        ----------
        path
            File to write.
        level, x, y, w, h
            As for ``read_region``; by default to the right and bottom edge of the level.
        compression
            1 (fast) to 9 (small); None favours speed.
        optical_path, focal_plane, icc
            As for ``read_region``.
        progress
            True shows a bar; a callable is given (rows done, rows in all).

        Raises
        ------
        RegionError
            As for ``read_region``, but for ``max_region_bytes``, which does not bind here.
        WsiWebError
            No file can be written there.
        """
        from wsiweb.export import export_png  # noqa: PLC0415

        level = self._level(level)
        x, y = integer(x, "x"), integer(y, "y")
        region = Rectangle(
            x,
            y,
            max(level.width - x, 1) if w is None else integer(w, "w"),  # of a corner beyond, it is told that it is
            max(level.height - y, 1) if h is None else integer(h, "h"),
        )
        _check_icc(icc)
        channels, _ = self._channels(level, optical_path, focal_plane)
        reader = self._running()
        reader.check_open()
        export_png(
            reader,
            path,
            level,
            region,
            channels,
            compression=compression,
            profile_of=lambda: self._icc_profile(optical_path, channels[0]),
            to_srgb=icc == "srgb",
            progress=progress,
        )

    # How it is done -------------------------------------------------------------------------------

    @property
    def _identity(self) -> tuple[str, ...]:
        """Study, series, the instance that leads the open pyramid, and what is stated of its colours.

        What tells its pixels from any others.
        """
        stated = () if self._content.photometric is None else (self._content.photometric,)
        return self.study_uid, self.series_uid, self._pyramid.lead_uid, *stated

    def _level(self, level: int | Level) -> Level:
        levels = self._pyramid.levels
        index = level.index if isinstance(level, Level) else integer(level, "level")
        if not 0 <= index < len(levels):
            raise RegionError(f"There is no level {index}; this slide has levels 0 to {len(levels) - 1}.")
        own = level.slide._identity == self._identity if isinstance(level, SlideLevel) else level is levels[index]  # noqa: SLF001
        if isinstance(level, Level) and not own:
            raise RegionError(
                "This is a level of another slide, or of a pyramid that is not open (Slide.open(pyramid=))."
            )
        return levels[index]

    def _view(
        self, level: int | Level | None, mpp: float | None, magnification: float | None, *, upsample: bool
    ) -> View:
        if sum(value is not None for value in (level, mpp, magnification)) > 1:
            raise RegionError("Give one of level=, mpp= and magnification=, not several.")
        if mpp is not None:
            return resolution.view_at_mpp(self._pyramid.levels, mpp, upsample=upsample)
        if magnification is not None:
            power = self.properties.get("objective_power")
            return resolution.view_at_magnification(self._pyramid.levels, magnification, power, upsample=upsample)
        return resolution.view_of_level(self._level(0 if level is None else level))

    def _channels(
        self, level: Level, optical_path: str | None, focal_plane: float | None
    ) -> tuple[list[Channel], bool]:
        """Return the channels to read, and whether they are to be stacked."""
        if not _is(optical_path, "all") or "all" in self.optical_paths:
            return [self._pyramid.channel(level.index, optical_path, focal_plane)], False
        channels = [self._pyramid.channel(level.index, path, focal_plane) for path in self.optical_paths]
        if any(channel.colour for channel in channels):
            raise RegionError('optical_path="all" stacks monochrome optical paths; this slide is in colour.')
        return channels, True

    def _planner(self, level: Level, optical_path: str | None, focal_plane: float | None) -> RegionPlanner:
        channels, stacked = self._channels(level, optical_path, focal_plane)
        return RegionPlanner(level, channels, stacked=stacked)

    def _whole(self, view: View, channel: Channel, name: str) -> Pixels:
        """Return all of a view as one array."""
        planner, limit = RegionPlanner(view.level, [channel], stacked=False), self._options.max_region_bytes
        check_region(view.bounds, view.bounds, where=name, itemsize=planner.pixel_bytes, max_region_bytes=limit)
        return RegionArrays(self._running(), view, [view.bounds], planner).only()

    def _read(
        self,
        view: View,
        regions: Iterable[Region],
        optical_path: str | None,
        focal_plane: float | None,
        icc: str | None,
    ) -> RegionArrays:
        """Check everything, then return the iterator that reads."""
        _check_icc(icc)
        planner = self._planner(view.level, optical_path, focal_plane)
        if not isinstance(regions, Iterable):
            raise RegionError(f"Regions are a sequence of (x, y, w, h), not {regions!r:.80}.")
        rectangles = [rectangle(region) for region in regions]
        itemsize, limit = planner.pixel_bytes, self._options.max_region_bytes
        for wish in rectangles:
            check_region(wish, view.bounds, where=view.name, itemsize=itemsize, max_region_bytes=limit)
        single = len(rectangles) == 1
        # What a pass over much leaves behind is seldom needed again.
        keep = Keep.YES if single and self._fits(view, rectangles[0], itemsize) else Keep.ON_TRIAL
        reader = self._running()
        reader.check_open()
        profile = None
        if icc == "srgb" and planner.lead.colour:
            profile = self._icc_profile(optical_path, planner.lead)
        return RegionArrays(reader, view, rectangles, planner, profile=profile, keep=keep, single=single)

    def _fits(self, view: View, region: Rectangle, itemsize: int) -> bool:
        """Whether the tile cache holds what a region shows: else all the rest would go, and its own beginning."""
        shown = view.source_of(region).intersection(view.level.bounds)
        return shown.w * shown.h * itemsize <= self._options.tile_cache_bytes

    def _running(self) -> Reader:
        """Return the reader of this process: no lock, pool or socket crosses a fork."""
        reader = self._reader
        if reader.process_id != os.getpid():
            reader = self._reader = _renewed(reader, self._content)
        return reader

    def close(self) -> None:
        """Stop all reading and release threads, sockets and files. Reading afterwards raises a ``WsiWebError``."""
        self._running().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        source = self._reader.source
        for name, value in source.credentials.items():
            try:
                pickle.dumps(value)
            except Exception as error:
                raise WsiWebError(
                    f"This slide cannot be pickled, because its {name}= cannot be ({type(error).__name__}). Pass "
                    f"something that pickles: a function of a module, say, and no lambda or local function."
                ) from error
        return {
            "content": self._content,
            "source": source,
            "options": self._options,
            "pyramid": self._pyramid_index,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        width, height = self.size
        resolution_ = f", {self.mpp[0]:g} µm/px" if self.mpp else ""
        return f"<Slide {self.series_uid}: {width} x {height} px{resolution_}, {len(self.levels)} levels>"


def _renewed(reader: Reader, content: SlideContent) -> Reader:
    """Return a reader for this process, made of what crosses a fork safely: plain values."""
    import copy  # noqa: PLC0415

    renewed = Reader(copy.copy(reader.source), content.instances, reader.options)
    if reader.closed:
        renewed.close()
    return renewed


class _AssociatedImages(Mapping[str, "Pixels"]):
    """Label, overview and thumbnail, each read when it is asked for."""

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._positions = slide._content.associated(slide._pyramid)  # noqa: SLF001

    def __getitem__(self, name: str) -> Pixels:
        if name not in self._positions:
            raise KeyError(f"{name}: this slide has {', '.join(self._positions) or 'no associated images'}")
        position = self._positions[name]
        level, channel = single_image(self._slide._content.instances[position], position)  # noqa: SLF001
        return self._slide._whole(resolution.view_of_level(level), channel, f"The {name}")  # noqa: SLF001

    def __contains__(self, name: object) -> bool:  # Mapping's would fetch the image
        return name in self._positions

    def __eq__(self, other: object) -> bool:  # Mapping's would fetch all of them, and cannot compare arrays
        return isinstance(other, _AssociatedImages) and other._slide is self._slide

    def __hash__(self) -> int:
        return hash(self._slide)

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"<associated images: {', '.join(self._positions) or 'none'}>"


def _chosen(pyramids: tuple[Pyramid, ...], wish: Any) -> int:
    if wish is None:
        return 0
    uids = [pyramid.uid for pyramid in pyramids]
    if isinstance(wish, str) and wish in uids:
        return uids.index(wish)
    with contextlib.suppress(TypeError):
        index = operator.index(wish)
        if 0 <= index < len(pyramids) and not isinstance(wish, bool):
            return index
    raise RegionError(f"There is no pyramid {wish!r}; this series has {len(pyramids)}, with Pyramid UIDs {uids}.")


def _uids(series_uid: Any) -> tuple[str, ...]:
    uids = (series_uid,) if isinstance(series_uid, str) else () if series_uid is None else series_uid
    if not isinstance(uids, (tuple, list)) or not all(isinstance(uid, str) for uid in uids):
        raise SlideNotFoundError(f"series_uid is a UID as text, or a sequence of them, not {series_uid!r}.")
    return tuple(uids)


def _check_icc(icc: str | None) -> None:
    if icc is not None and not _is(icc, "srgb"):
        raise RegionError(f'icc is None or "srgb", not {icc!r:.80}.')


def _is(value: Any, word: str) -> bool:
    """Whether a value is that word; an array is none, and would answer for each of its elements."""
    return isinstance(value, str) and value == word
