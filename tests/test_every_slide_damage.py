"""Frames that are not what the metadata say, damaged or hostile: a ``DecodeError``, no crash, no unbounded memory."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom.uid as syntaxes
import pytest
from dicomweb_server import DICOMwebServer
from kinds_hostile import CODECS, JPEG, changed_at_random, hostile, picture, strange
from kinds_pixels import (
    RGB,
    PixelKind,
    as_it_was,
    by_pillow,
    gray,
    jpeg,
    raw,
    write_kind,
)
from kinds_writer import KEY, SIZE, TILE, assert_image, blank, new_slide, store
from synthetic import _tiles

from wsiweb import DecodeError, Slide, WsiWebError

if TYPE_CHECKING:
    from conftest import Opener
    from synthetic import Array, SyntheticSlide

MEMORY_MIB = 200
"""What reading 64 x 48 tiles one by one may cost at the very most."""


def tiles_in_a_row(folder: Path, frames: list[bytes], syntax: syntaxes.UID) -> tuple[SyntheticSlide, str]:
    """Write a slide of one row of frames."""
    slide = new_slide(folder)
    return slide, store(slide, blank(slide, (TILE[0] * len(frames), TILE[1])), frames, syntax=syntax)


def read_tile(opened: Slide, column: int = 0) -> Array:
    return np.asarray(opened.read_region(0, column * TILE[0], 0, *TILE))


@pytest.mark.parametrize("codec", CODECS)
def test_frames_of_another_size(tmp_path: Path, open_slide: Opener, codec: str) -> None:
    """The right column of a level may be cropped: the last frame here is the right one."""
    syntax, encode = CODECS[codec]
    sizes = [(32, 48), (64, 47), (65, 48), (128, 96), (1, 1)]
    slide, uid = tiles_in_a_row(tmp_path, [*(encode(picture(*size)) for size in sizes), encode(picture(*TILE))], syntax)
    opened = open_slide(slide)
    for column in range(len(sizes)):
        with pytest.raises(DecodeError, match=rf"(?s)(?i)(?=.*frame {column + 1}\b)(?=.*{uid})"):
            read_tile(opened, column)
    assert read_tile(opened, len(sizes)).shape == (48, 64, 3)


@pytest.mark.parametrize("codec", ["JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K", "JPEG XL"])
@pytest.mark.parametrize("missing", [(0, 0), (1, 0), (0, 1)])
def test_edge_tiles_may_be_cropped(tmp_path: Path, open_slide: Opener, codec: str, missing: tuple[int, int]) -> None:
    """At the right and bottom edge, where the frame covers all of its tile inside the matrix; else it is an error."""
    syntax, encode = CODECS[codec]
    slide = new_slide(tmp_path)
    frames, shown = [], RGB.copy()
    for x, y, tile in _tiles(RGB, TILE):
        w, h = min(TILE[0], SIZE[0] - x), min(TILE[1], SIZE[1] - y)
        corner = (x + w, y + h) == SIZE
        cropped = np.ascontiguousarray(tile[: h - corner * missing[1], : w - corner * missing[0]])
        frames.append(encode(cropped))
        if codec == "JPEG":
            shown[y : y + h, x : x + w][: cropped.shape[0], : cropped.shape[1]] = by_pillow(cropped, frames[-1])
    store(slide, blank(slide), frames, syntax=syntax)
    opened = open_slide(slide)
    if missing == (0, 0):
        assert_image(opened, 0, shown)
        return
    np.testing.assert_array_equal(opened.read_region(0, 0, 0, 128, 96), shown[:96, :128])
    with pytest.raises(DecodeError):
        opened.read_region(0, 0, 0, *SIZE)


@pytest.mark.parametrize("codec", CODECS)
def test_truncated(tmp_path: Path, open_slide: Opener, codec: str) -> None:
    """Some decoders fill the rest with grey, and say nothing. A service is asked once more."""
    syntax, encode = CODECS[codec]
    data = encode(picture(*TILE))
    slide, _ = tiles_in_a_row(tmp_path, [data[: int(len(data) * kept)] for kept in (0.99, 0.5, 0.05)], syntax)
    opened = open_slide(slide)
    for column in range(3):
        with pytest.raises(DecodeError):
            read_tile(opened, column)
    if open_slide.source == "web":
        frames = [request for request in open_slide.servers[0].requests if request.kind == "frames"]
        assert len(frames) == 6


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_image(tmp_path: Path, open_slide: Opener, codec: str) -> None:
    raw_bytes = 64 * 48 * 3
    frames = [
        *(bytes(10), b"<html>Internal error</html>", bytes(range(256)) * 8, b"\0"),
        *(bytes(raw_bytes - 2), bytes(raw_bytes + 10)),
    ]
    slide, _ = tiles_in_a_row(tmp_path, frames, CODECS[codec][0])
    opened = open_slide(slide)
    for column in range(len(frames)):
        with pytest.raises(WsiWebError):
            read_tile(opened, column)


def test_a_bad_frame_costs_only_itself(tmp_path: Path, open_slide: Opener) -> None:
    """It is named by number and instance; what does not touch it reads, before and after."""
    kind = PixelKind(JPEG, RGB, jpeg, by_pillow)
    slide = write_kind(tmp_path / "good", kind)
    frames = [jpeg(tile) for _, _, tile in _tiles(RGB, TILE)]
    frames[4] = frames[4][:200]
    bad = new_slide(tmp_path / "bad")
    uid = store(bad, blank(bad), frames, syntax=JPEG)
    opened, truth = open_slide(bad), slide.levels[0].pixels[KEY]
    np.testing.assert_array_equal(opened.read_region(0, 0, 0, 150, 48), truth[:48])
    with pytest.raises(DecodeError, match=rf"(?s)(?i)(?=.*frame 5\b)(?=.*{uid})"):
        opened.read_region(0, 0, 0, *SIZE)
    np.testing.assert_array_equal(opened.read_region(0, 0, 96, 150, 14), truth[96:])


def test_monochrome_declared_over_colour(tmp_path: Path, open_slide: Opener) -> None:
    slide = write_kind(tmp_path / "gray", PixelKind(JPEG, gray(8), jpeg, by_pillow))
    other = new_slide(tmp_path / "other")
    ds = blank(other, content="mono8")
    store(other, ds, [jpeg(tile) for _, _, tile in _tiles(RGB, TILE)], syntax=JPEG)
    with pytest.raises(DecodeError):
        read_tile(open_slide(other))
    assert read_tile(open_slide(slide)).ndim == 2


@pytest.mark.parametrize("padding", [b"\0", b"\0\0\0\0\0\0"])
@pytest.mark.parametrize("codec", ["JPEG", "JPEG-LS", "JPEG 2000", "HTJ2K", "JPEG lossless", "RLE"])
def test_padding_after_a_code_stream(tmp_path: Path, open_slide: Opener, codec: str, padding: bytes) -> None:
    syntax, encode = CODECS[codec]

    def padded(tile: Array) -> bytes:
        return encode(tile) + padding

    def shown(tile: Array, data: bytes) -> Array:
        return by_pillow(tile, jpeg(tile)) if codec == "JPEG" else as_it_was(tile, data)

    kind = PixelKind(syntax, RGB, padded, shown)
    slide = write_kind(tmp_path, kind)
    assert_image(open_slide(slide), 0, slide.levels[0].pixels[KEY])


def test_native_pixels_cut_short(tmp_path: Path) -> None:
    """Only the frames that are not there are missed."""
    slide = write_kind(tmp_path, PixelKind(syntaxes.ExplicitVRLittleEndian, RGB, raw))
    (file,) = slide.files
    file.write_bytes(file.read_bytes()[: -64 * 48 * 3 - 100])
    with Slide.open(slide.folder) as opened:
        np.testing.assert_array_equal(opened.read_region(0, 0, 0, 150, 90), RGB[:90])
        with pytest.raises(WsiWebError):
            opened.read_region(0, 0, 0, *SIZE)


FUZZED = 50


def hostile_slide(folder: Path, codec: str) -> tuple[SyntheticSlide, int]:
    frames = hostile(codec) + strange(codec) + changed_at_random(codec, FUZZED)
    return tiles_in_a_row(folder, frames, CODECS[codec][0])[0], len(frames)


def read_elsewhere(*places: tuple[str, int]) -> str:
    """Read slides in a process of its own; returns what it printed."""
    program = Path(__file__).with_name("kinds_hostile.py")
    arguments = [str(argument) for place in places for argument in place]
    done = subprocess.run(
        [sys.executable, "-W", "error", program, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, f"{done.returncode} after {done.stdout[-200:]!r}: {done.stderr[-2000:]}"
    for place, count in places:
        assert done.stdout.count(f"{place} frame ") == count
        taken = re.search(rf"{place} took (\d+) MiB", done.stdout)
        assert taken is not None
        assert int(taken[1]) < MEMORY_MIB, done.stdout
    return done.stdout


@pytest.mark.parametrize("codec", CODECS)
def test_hostile_frames(tmp_path: Path, codec: str) -> None:
    """Each raises an error of ours, in little memory; some that were changed at random are pictures still."""
    slide, count = hostile_slide(tmp_path, codec)
    said = read_elsewhere((str(slide.folder), count)).splitlines()
    made_to_hurt = said[: len(hostile(codec))]
    assert not [line for line in made_to_hurt if line.endswith("read")]


def test_hostile_frames_over_http(tmp_path: Path) -> None:
    with ExitStack() as stack:
        places = []
        for codec in CODECS:
            slide, count = hostile_slide(tmp_path / codec, codec)
            server = stack.enter_context(DICOMwebServer(slide.folder))
            places.append((server.series_url(slide.study_uid, slide.series_uid), count))
        read_elsewhere(*places)
