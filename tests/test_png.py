"""PNGs written band by band, checked against Pillow, zlib and a literal reading of the PNG specification."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from wsiweb import png
from wsiweb.errors import RegionError, WsiWebError
from wsiweb.png import DEFAULT_COMPRESSION, OrderedMap, PngWriter, adler32_combine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Array = npt.NDArray[Any]
FORMATS = list(itertools.product((1, 3), (8, 16)))
REPEATABLE = 4
"""The first ``compression`` of zlib's, which always gives the same bytes. ISA-L's differ once in thousands of times:
it hashes the address of its state in the place of the third byte (isa-l 2.31, ``write_first_byte``)."""


def texture(height: int, width: int, channels: int, bits: int, *, seed: int = 0) -> Array:
    """Smooth hills with noise, a blank top and a flat patch: every filter is the best one somewhere."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :channels]
    hills = np.sin(x / 9 + c) + np.cos(y / 7) + np.sin((x + 2 * y) / 23)
    pixels = (hills + 3) / 6 * (2**bits - 1) * 0.9 + rng.integers(0, 2 ** (bits - 5), hills.shape)
    image = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    image[: height // 4] = 0
    image[height // 2 :, : width // 3] = 7
    return image if channels == 3 else np.ascontiguousarray(image[..., 0])


def write(
    image: Array,
    bands: Iterable[int] | None = None,
    *,
    compression: int = DEFAULT_COMPRESSION,
    icc_profile: bytes | None = None,
    pixels_per_metre: tuple[int, int] | None = None,
    map_ordered: OrderedMap | None = None,
) -> bytes:
    stream = io.BytesIO()
    writer = PngWriter(
        stream,
        image.shape[1],
        image.shape[0],
        channels=3 if image.ndim == 3 else 1,
        bits=8 * image.dtype.itemsize,
        compression=compression,
        icc_profile=icc_profile,
        pixels_per_metre=pixels_per_metre,
        map_ordered=map_ordered,
    )
    top = 0
    for count in bands if bands is not None else [len(image)]:
        writer.write_rows(image[top : top + count])
        top += count
    writer.close()
    return stream.getvalue()


def blank_writer(width: int = 4, height: int = 4, *, compression: int = DEFAULT_COMPRESSION) -> PngWriter:
    return PngWriter(
        io.BytesIO(),
        width,
        height,
        channels=3,
        bits=8,
        compression=compression,
        icc_profile=None,
        pixels_per_metre=None,
    )


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(kind + body)
        yield kind, body
        at += 12 + size


def decode(data: bytes) -> tuple[Array, set[int]]:
    """Decode as the specification reads (PNG 9.2), one byte at a time; also the filter types met."""
    found = list(chunks(data))
    width, height, bits, colour_type = struct.unpack(">IIBB", found[0][1][:10])
    channels = {0: 1, 2: 3}[colour_type]
    step, row_bytes = channels * bits // 8, width * channels * bits // 8
    stored = zlib.decompress(b"".join(body for kind, body in found if kind == b"IDAT"))
    assert len(stored) == height * (1 + row_bytes)
    rows, kinds, above = [], set(), bytearray(row_bytes)
    for top in range(0, len(stored), 1 + row_bytes):
        kind, row = stored[top], bytearray(stored[top + 1 : top + 1 + row_bytes])
        kinds.add(kind)
        for i in range(row_bytes):
            a, b = (row[i - step] if i >= step else 0), above[i]
            c = above[i - step] if i >= step else 0
            estimate = a + b - c
            paeth = min((a, b, c), key=lambda value: abs(estimate - value))
            row[i] = (row[i] + (0, a, b, (a + b) // 2, paeth)[kind]) % 256
        rows.append(bytes(row))
        above = row
    pixels = np.frombuffer(b"".join(rows), f">u{bits // 8}")
    return pixels.reshape((height, width, 3) if channels == 3 else (height, width)), kinds


def stored_by_pillow(image: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


@pytest.mark.parametrize("compression", range(1, 10))
@pytest.mark.parametrize(("channels", "bits"), FORMATS)
def test_every_format_and_compression_decodes_to_the_same_pixels(
    channels: int, bits: int, compression: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "_SEGMENT_BYTES", 3000)  # several segments in a small image
    image = texture(61, 47, channels, bits)
    decoded, kinds = decode(write(image, compression=compression))
    np.testing.assert_array_equal(decoded, image)
    assert kinds <= {0, 1, 2, 3, 4}
    assert 0 in kinds  # the blank rows


@pytest.mark.parametrize("compression", [1, DEFAULT_COMPRESSION, 3, 6, 9])
@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (3, 8)])  # Pillow has no 16-bit RGB
def test_pillow_reads_the_same_pixels(channels: int, bits: int, compression: int) -> None:
    image = texture(500, 700, channels, bits)
    with Image.open(io.BytesIO(write(image, compression=compression))) as opened:
        assert opened.size == (700, 500)
        assert opened.mode == {(1, 8): "L", (1, 16): "I;16", (3, 8): "RGB"}[channels, bits]
        np.testing.assert_array_equal(np.asarray(opened), image)


def test_every_filter_is_used_and_undone() -> None:
    """A row that a filter predicts better than the others do chooses that filter."""
    rng = np.random.default_rng(3)
    image = np.zeros((6, 60), np.uint8)  # two blank rows: none
    image[2] = np.arange(60) * 4  # sub
    image[3] = rng.integers(0, 256, 60)
    image[4] = image[3]  # up
    for x in range(60):  # average
        image[5, x] = (int(image[5, x - 1] if x else 0) + int(image[4, x])) // 2 + rng.integers(0, 2)
    image = np.concatenate([image, image[3:4], image[3:4]])
    image[6:, 30:] = [[50], [200]]  # Paeth: left half from above, right half from the left
    decoded, kinds = decode(write(image, compression=6))
    np.testing.assert_array_equal(decoded, image)
    assert kinds == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("kind", "left", "above", "above_left", "expected"),
    [
        (1, 7, 103, 13, 93),
        (2, 7, 103, 13, 253),
        (3, 7, 104, 13, 45),  # floor(111 / 2) = 55
        (4, 7, 103, 13, 253),  # the estimate 97 is nearest to above
        (4, 90, 10, 12, 10),  # 88: left
        (4, 10, 20, 15, 85),  # 15: above left
        (4, 255, 255, 0, 101),  # 510, a tie: left
        (4, 30, 10, 20, 80),  # 20: above left
        (4, 20, 30, 30, 80),  # 20: left
        (4, 10, 40, 20, 60),  # 30, a tie of above and above left: above
    ],
)
def test_residuals_of_100_follow_the_specification(
    kind: int, left: int, above: int, above_left: int, expected: int
) -> None:
    rows, before = np.array([[left, 100]], np.uint8), np.array([[above_left, above]], np.uint8)
    assert png._residual(kind, rows, before, 1)[0, 1] == expected


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    shape=st.sampled_from(FORMATS),
    seed=st.integers(0, 5),
)
def test_bands_of_any_height_make_the_same_file(
    data: st.DataObject, height: int, width: int, shape: tuple[int, int], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "_SEGMENT_BYTES", data.draw(st.sampled_from([1, 300, 1000, 1 << 19])))
        image = texture(height, width, *shape, seed=seed)
        cuts = sorted(data.draw(st.lists(st.integers(0, height), max_size=6)))
        bands = np.diff([0, *cuts, height]).tolist()
        same = write(image, bands, compression=REPEATABLE) == write(image, compression=REPEATABLE)
        assert same  # compared before: pytest would take minutes to show how they differ
        np.testing.assert_array_equal(decode(write(image, bands))[0], image)


def test_a_tall_image_in_bands_is_the_image_written_at_once() -> None:
    image = texture(3001, 301, 3, 8)
    bands = [1] * 7 + [996, 999, 999]
    same = write(image, bands, compression=REPEATABLE) == write(image, compression=REPEATABLE)
    assert same
    whole = write(image, bands)
    with Image.open(io.BytesIO(whole)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), image)
    idat = b"".join(body for kind, body in chunks(whole) if kind == b"IDAT")
    assert len(zlib.decompress(idat)) == 3001 * (1 + 3 * 301)  # which checks the Adler-32


def test_rows_may_be_reused_by_the_caller_and_need_not_be_contiguous() -> None:
    image = texture(200, 90, 3, 8)
    stream = io.BytesIO()
    writer = PngWriter(stream, 45, 200, channels=3, bits=8, compression=2, icc_profile=None, pixels_per_metre=None)
    buffer = np.empty((8, 90, 3), np.uint8)
    for top in range(0, 200, 8):
        buffer[:] = image[top : top + 8]
        writer.write_rows(buffer[:, ::2])
        buffer[:] = 255
    writer.close()
    np.testing.assert_array_equal(decode(stream.getvalue())[0], image[:, ::2])


def test_the_injected_map_compresses_segments_in_any_order() -> None:
    image = texture(1500, 700, 3, 8)
    sizes: list[int] = []

    def backwards(function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        listed = list(items)
        sizes.append(len(listed))
        return [function(item) for item in reversed(listed)][::-1]

    expected = write(image, compression=REPEATABLE)
    same = write(image, compression=REPEATABLE, map_ordered=backwards) == expected
    assert same
    assert max(sizes) > 1
    with ThreadPoolExecutor(2) as pool:
        same = write(image, [750, 750], compression=REPEATABLE, map_ordered=pool.map) == expected
        assert same
        np.testing.assert_array_equal(decode(write(image, map_ordered=pool.map))[0], image)


def test_memory_is_bounded_by_a_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_SEGMENT_BYTES", 1000)
    held = [0]

    def watch(function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        listed = list(items)
        held.append(sum(item.rows.nbytes for item in listed))
        return map(function, listed)

    write(texture(400, 30, 3, 8), [20] * 20, map_ordered=watch)
    assert max(held) <= 20 * 30 * 3 + 1000


@pytest.mark.parametrize("profile_of", ["RGB", "L"])
def test_pillow_reads_profile_and_density_back(profile_of: str) -> None:
    rgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = rgb if profile_of == "RGB" else rgb[:16] + b"GRAY" + rgb[20:]
    image = texture(20, 20, 3 if profile_of == "RGB" else 1, 8)
    data = write(image, icc_profile=profile, pixels_per_metre=(4_000_000, 2_000_000))
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.info["icc_profile"] == profile
        assert opened.info["dpi"] == pytest.approx((4_000_000 * 0.0254, 2_000_000 * 0.0254))
    kinds = [kind for kind, _ in chunks(data)]
    assert kinds == [b"IHDR", b"iCCP", b"pHYs", b"IDAT", b"IEND"]


def test_neither_profile_nor_density_is_invented() -> None:
    assert [kind for kind, _ in chunks(write(texture(9, 9, 1, 16)))] == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize(("channels", "colour_space"), [(1, b"RGB "), (3, b"GRAY")])
def test_a_profile_for_other_channels_is_left_out(channels: int, colour_space: bytes) -> None:
    data = write(texture(9, 9, channels, 8), icc_profile=bytes(16) + colour_space + bytes(108))
    assert b"iCCP" not in [kind for kind, _ in chunks(data)]


@settings(max_examples=100, deadline=None)
@given(first=st.binary(max_size=400), second=st.binary(max_size=400), repeats=st.integers(1, 400))
def test_adler32_of_parts_combines(first: bytes, second: bytes, repeats: int) -> None:
    second *= repeats
    combined = adler32_combine(zlib.adler32(first), zlib.adler32(second), len(second))
    assert combined == zlib.adler32(first + second)


def test_adler32_combines_beyond_its_modulus() -> None:
    first, second = b"\xff" * 5_000_001, b"\xfe" * 7_000_003
    combined = adler32_combine(zlib.adler32(first), zlib.adler32(second), len(second))
    assert combined == zlib.adler32(first + second)


def drawing() -> Array:
    """Return a pattern that repeats, but neither along rows nor from row to row."""
    tile = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    return np.tile(tile, (12, 16, 1))


@pytest.mark.parametrize(
    "image",
    [
        texture(900, 1200, 3, 8),
        texture(900, 1200, 1, 16),
        np.full((1000, 1000, 3), 255, np.uint8),
        np.zeros((1000, 1000), np.uint16),
        np.full((40, 40, 3), 240, np.uint8),
        drawing(),
    ],
    ids=["colour", "mono16", "white", "black16", "tiny", "drawing"],
)
def test_the_default_is_at_most_a_quarter_larger_than_level_6(image: Array) -> None:
    assert len(write(image)) <= 1.25 * len(stored_by_pillow(image))


def test_compression_goes_from_fast_to_small() -> None:
    image = texture(900, 1200, 3, 8)
    assert len(write(image, compression=9)) < len(write(image, compression=1))


@pytest.mark.parametrize("missing", [1, 3, 4])
def test_missing_rows_raise_on_close(missing: int) -> None:
    writer = blank_writer(height=4)
    writer.write_rows(np.zeros((4 - missing, 4, 3), np.uint8))
    with pytest.raises(WsiWebError, match=f"4 rows, but only {4 - missing} were written") as caught:
        writer.close()
    assert isinstance(caught.value, ValueError)


def test_surplus_rows_are_refused() -> None:
    writer = blank_writer(height=4)
    writer.write_rows(np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(RegionError, match="4 rows; 3 came and 2 more do not fit"):
        writer.write_rows(np.zeros((2, 4, 3), np.uint8))
    writer.write_rows(np.zeros((1, 4, 3), np.uint8))  # what was refused left no trace
    writer.close()


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((1, 5, 3), np.uint8),
        np.zeros((1, 4), np.uint8),
        np.zeros((4, 3), np.uint8),
        np.zeros((1, 4, 4), np.uint8),
        np.zeros((1, 4, 3), np.uint16),
        np.zeros((1, 4, 3), np.float32),
    ],
)
def test_rows_of_another_kind_are_refused(rows: Array) -> None:
    with pytest.raises(RegionError, match=r"\(n, 4, 3\) uint8"):
        blank_writer().write_rows(rows)


def test_nothing_follows_close_and_closing_twice_is_harmless() -> None:
    stream = io.BytesIO()
    writer = PngWriter(stream, 4, 1, channels=1, bits=8, compression=1, icc_profile=None, pixels_per_metre=None)
    writer.write_rows(np.zeros((1, 4), np.uint8))
    writer.close()
    size = len(stream.getvalue())
    writer.close()
    assert len(stream.getvalue()) == size
    with pytest.raises(RegionError, match="closed"):
        writer.write_rows(np.zeros((1, 4), np.uint8))


@pytest.mark.parametrize(("width", "height"), [(0, 4), (4, 0), (-1, 4), (2**31, 4)])
def test_impossible_sizes_are_refused(width: int, height: int) -> None:
    with pytest.raises(RegionError, match=f"{width} x {height}"):
        blank_writer(width, height)


@pytest.mark.parametrize("compression", [0, 10, -1])
def test_compression_out_of_range_is_refused(compression: int) -> None:
    with pytest.raises(RegionError, match="from 1"):
        blank_writer(compression=compression)
