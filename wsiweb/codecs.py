"""``decode``: one encoded frame to one array. The only place that calls a decoder.

The bytes decide how they are decoded and what their colours are; the metadata are asked only where the bytes
are silent. Every array that leaves has the shape and dtype that the metadata promise, or there is an error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsiweb.codestream import Codestream, Coding, complete, inspect, jpeg_head
from wsiweb.colour import interleaved, ybr_full_to_rgb
from wsiweb.decoders import decoder
from wsiweb.errors import DecodeError, UnsupportedError
from wsiweb.transfer_syntaxes import EXPLICIT_BIG_ENDIAN, NATIVE, RLE, RLE_MEDIA_TYPE, lossless, name, readable

if TYPE_CHECKING:
    import numpy.typing as npt

    from wsiweb.memory import Empty
    from wsiweb.metadata import PixelFormat
    from wsiweb.sources.base import EncodedFrame

    Pixels = npt.NDArray[Any]

_RLE_PADDING_BYTES = 16
_NOT_OF_THE_FRAME = MemoryError, ImportError
"""What a decoder raises whatever the bytes are: the caller shall have it as it is."""


class TruncatedFrameError(DecodeError):
    """The bytes end too early or are damaged: asking for them again may help."""


class FrameDecoder:
    """Decodes the frames of one instance. Safe to share between threads.

    The frames of an instance mostly have one head, up to the start of their scan: what was found out about one JPEG
    holds for the next that begins alike.

    Parameters
    ----------
    pixels, transfer_syntax_uid, empty
        As for ``decode``.
    """

    def __init__(self, pixels: PixelFormat, transfer_syntax_uid: str | None, empty: Empty = np.empty) -> None:
        self._pixels = pixels
        self._transfer_syntax_uid = transfer_syntax_uid
        self._empty = empty
        self._known: _Known | None = None

    def decode(self, frame: EncodedFrame, visible: tuple[int, int]) -> Pixels:
        """Decode a frame; see ``decode``."""
        known, data = self._known, frame.data
        if (
            known is not None
            and data.startswith(known.head)
            and len(data) < known.raw_bytes
            and frame.transfer_syntax_uid == known.transfer_syntax_uid
            and frame.media_type == known.media_type
            and complete(data)
        ):
            try:
                return _decode_jpeg(data, known.space, self._empty(known.shape, np.uint8))
            except _NOT_OF_THE_FRAME:
                raise
            except Exception as error:  # imagecodecs' own classes
                raise _undecodable(Coding.JPEG, error) from error
        image = decode(
            frame, self._pixels, transfer_syntax_uid=self._transfer_syntax_uid, visible=visible, empty=self._empty
        )
        self._known = self._remember(frame)
        return image

    def _remember(self, frame: EncodedFrame) -> _Known | None:
        """Note what holds for all JPEGs like one that is as the metadata say; None where it is no such."""
        pixels, syntax = self._pixels, frame.transfer_syntax_uid or self._transfer_syntax_uid
        head = jpeg_head(frame.data)
        stream = inspect(frame.data) if head is not None else None
        if head is None or stream is None or (stream.coding, stream.bits, stream.components) != (Coding.JPEG, 8, 3):
            return None
        shape = (pixels.rows, pixels.columns, 3)
        plain = pixels.samples_per_pixel == 3 and pixels.palette is None
        if not plain or (stream.height, stream.width, 3) != shape or syntax in NATIVE:
            return None
        return _Known(
            head, frame.transfer_syntax_uid, frame.media_type, min(_raw_lengths(pixels)),
            _colour_space(stream, _as_sent(frame, pixels, self._transfer_syntax_uid)), shape,
        )  # fmt: skip


class _Known(NamedTuple):
    """What holds for all 8-bit RGB or YCbCr JPEGs of one instance that begin alike."""

    head: bytes
    transfer_syntax_uid: str | None
    """That came with the frame."""
    media_type: str | None
    raw_bytes: int
    """Frames as large as raw ones are looked at more closely."""
    space: str
    """Of their components."""
    shape: tuple[int, int, int]


def decode(
    frame: EncodedFrame,
    pixels: PixelFormat,
    *,
    transfer_syntax_uid: str | None,
    visible: tuple[int, int],
    empty: Empty = np.empty,
) -> Pixels:
    """Decode a frame.

    Parameters
    ----------
    frame
        The code stream, or raw pixels.
    pixels
        What the metadata promise.
    transfer_syntax_uid
        Of the instance as stored, where known; what came with the frame goes before it.
    visible
        (width, height) of the part of the tile that lies inside the level: an edge tile may be cropped to it.
    empty
        Makes the array, where the decoder does not bring its own.

    Returns
    -------
    ``(h, w, 3)`` uint8 RGB for colour, ``(h, w)`` uint8 or uint16 for monochrome, larger meaning brighter.

    Raises
    ------
    DecodeError
        The bytes are no such image.
    UnsupportedError
        The transfer syntax, or the kind of pixels, is not read.
    """
    _check_supported(pixels)
    syntax = frame.transfer_syntax_uid or transfer_syntax_uid
    pixels = _as_sent(frame, pixels, transfer_syntax_uid)
    raw_length = next((length for length in _raw_lengths(pixels) if 0 <= len(frame.data) - length <= 1), None)
    stream = None
    # Raw pixels may begin like a code stream by chance.
    if syntax not in NATIVE or raw_length is None:
        stream = inspect(frame.data)
    if stream is not None:
        decoded = _decode_stream(frame.data, stream, pixels, visible, empty)
    elif syntax == RLE or frame.media_type == RLE_MEDIA_TYPE:
        decoded = _decode_rle(frame.data, pixels)
    elif raw_length is not None:
        # On the web raw pixels are little endian, however they are stored (PS3.18 8.7.3.2).
        big_endian = frame.transfer_syntax_uid == EXPLICIT_BIG_ENDIAN
        decoded = _decode_raw(frame.data[:raw_length], pixels, big_endian=big_endian)
    else:
        raise _unknown_bytes(frame.data, syntax, _raw_lengths(pixels)[0])
    return _finish(decoded, pixels, visible)


class _Decoded(NamedTuple):
    """What a decoder returned."""

    image: Pixels
    ybr: bool
    """Whether three components are YBR_FULL still, and not RGB."""


def _as_sent(frame: EncodedFrame, pixels: PixelFormat, stored: str | None) -> PixelFormat:
    """Describe pixels as they come: what a server has decompressed is RGB."""
    doubtful = pixels.photometric.startswith("YBR") and not pixels.photometric_forced
    if doubtful and _transcoded(frame, pixels, stored):
        return replace(pixels, photometric="RGB", planar_configuration=0)
    return pixels


def _transcoded(frame: EncodedFrame, pixels: PixelFormat, stored: str | None) -> bool:
    """Whether a server has sent something else than what it stores: then YBR has become RGB on the way.

    Where the metadata do not tell what is stored, pixels that were compressed lossily and come without loss tell.
    """
    sent = frame.transfer_syntax_uid
    raw = 0 <= len(frame.data) - _raw_lengths(pixels)[0] <= 1
    if stored is None:
        return pixels.lossy and (raw if sent is None else lossless(sent))
    return stored not in NATIVE and (raw if sent is None else sent != stored)


def _check_supported(pixels: PixelFormat) -> None:
    if pixels.bits_allocated not in (8, 16) or pixels.samples_per_pixel not in (1, 3):
        raise UnsupportedError(
            f"Pixels of {pixels.samples_per_pixel} samples with {pixels.bits_allocated} bits are not read: "
            f"1 or 3 samples of 8 or 16 bits are."
        )
    if pixels.photometric.startswith("YBR_PARTIAL"):
        raise UnsupportedError(f"{pixels.photometric} pixels, which DICOM has retired, are not read.")


def _raw_lengths(pixels: PixelFormat) -> tuple[int, ...]:
    """Return the lengths that a raw frame may have, padding aside."""
    whole = pixels.rows * pixels.columns * pixels.samples_per_pixel * (pixels.bits_allocated // 8)
    if pixels.photometric == "YBR_FULL_422" and pixels.columns % 2 == 0:
        return whole, whole // 3 * 2  # RGB from who decompressed it; two chroma samples for two pixels
    return (whole,)


def _unknown_bytes(data: bytes, syntax: str | None, raw_length: int) -> Exception:
    if syntax is not None and syntax not in NATIVE and data[:2] != b"\xff\xd8" and not readable(syntax):
        return UnsupportedError(f"The transfer syntax {name(syntax)} is not read.")
    return TruncatedFrameError(
        f"{len(data)} bytes are neither a known code stream nor the {raw_length} bytes of the raw frame."
    )


def _decode_stream(
    data: bytes, stream: Codestream, pixels: PixelFormat, visible: tuple[int, int], empty: Empty
) -> _Decoded:
    """Check size and end before the decoder sees the bytes, so that a hostile header allocates nothing."""
    if stream.width is None or stream.height is None:
        raise TruncatedFrameError(f"The {stream.coding.value} code stream does not tell its size ({len(data)} bytes).")
    _check_size(stream.width, stream.height, pixels, visible)
    if not complete(data):
        raise TruncatedFrameError(f"The {stream.coding.value} code stream is cut short ({len(data)} bytes).")
    if stream.components is not None and stream.components not in (1, 3):
        raise UnsupportedError(f"A {stream.coding.value} frame of {stream.components} components is not read.")
    try:
        if not stream.holds_jpeg:
            return _call_decoder(data, stream, pixels, empty)
        jpeg = _jpeg_within(data)  # so that the pixels, and the rules of colour, are those of the JPEG
        inner = inspect(jpeg)
    except (DecodeError, UnsupportedError, *_NOT_OF_THE_FRAME):
        raise
    except Exception as error:  # every codec has exception classes of its own
        raise _undecodable(stream.coding, error) from error
    if inner is None or inner.holds_jpeg:
        raise DecodeError("The JPEG XL code stream claims to hold a JPEG, and does not.")
    return _decode_stream(jpeg, inner, pixels, visible, empty)


def _undecodable(coding: Coding, error: Exception) -> TruncatedFrameError:
    return TruncatedFrameError(f"The {coding.value} code stream does not decode: {error}")


def _jpeg_within(data: bytes) -> bytes:
    return bytes(decoder("jpegxl_decode_jpeg")(data, numthreads=1))


def _call_decoder(data: bytes, stream: Codestream, pixels: PixelFormat, empty: Empty) -> _Decoded:
    """Call the decoder for the coding."""
    image: Pixels
    ybr = False
    declared_ybr = pixels.photometric.startswith("YBR")
    match stream.coding:
        case Coding.JPEG if stream.components == 3:
            image = _decode_jpeg(data, _colour_space(stream, pixels), _target(stream, empty))
        case Coding.JPEG:
            image = decoder("jpeg8_decode")(data, out=_target(stream, empty))
        case Coding.JPEG_LOSSLESS:
            image = decoder("jpeg8_decode")(data)
            said = stream.colour_transformed
            ybr = declared_ybr if said is None or pixels.photometric_forced else said
        case Coding.JPEG_LS:
            image = decoder("jpegls_decode")(data)
            ybr = declared_ybr
        case Coding.JPEG_2000:
            image = decoder("jpeg2k_decode")(data)
            # With the multiple component transform the decoder has already returned RGB, whatever is declared.
            ybr = pixels.photometric in ("YBR_FULL", "YBR_FULL_422") and (
                not stream.colour_transformed or pixels.photometric_forced
            )
        case Coding.JPEG_XL:
            image = decoder("jpegxl_decode")(data)
    return _Decoded(image, ybr)


def _decode_jpeg(data: bytes, space: str, out: Pixels | None) -> Pixels:
    image: Pixels = decoder("jpeg8_decode")(data, colorspace=space, outcolorspace="RGB", out=out)
    return image


def _colour_space(stream: Codestream, pixels: PixelFormat) -> str:
    """Return that of the components of a JPEG, as its decoder calls it."""
    transformed = stream.colour_transformed
    if transformed is None or pixels.photometric_forced:
        transformed = pixels.photometric != "RGB"
    return "YCBCR" if transformed else "RGB"


def _target(stream: Codestream, empty: Empty) -> Pixels | None:
    """Return an array to decode a JPEG into; None where the decoder had better find out."""
    if stream.bits != 8 or not stream.width or not stream.height:
        return None
    return empty((stream.height, stream.width, *((3,) if stream.components == 3 else ())), np.uint8)


def _decode_rle(data: bytes, pixels: PixelFormat) -> _Decoded:
    """Decode segments, one for each byte of each sample, high bytes first (PS3.5 G).

    imagecodecs' own decoder of the whole trusts the header, and crashes the process where that lies.
    """
    sample_bytes = pixels.bits_allocated // 8
    count, area = pixels.samples_per_pixel * sample_bytes, pixels.rows * pixels.columns
    header = np.frombuffer(data[:64].ljust(64, b"\0"), "<u4").astype(np.int64)
    bounds = [*header[1 : count + 1].tolist(), len(data)]
    if header[0] != count or bounds[0] < 64 or sorted(bounds) != bounds:
        raise TruncatedFrameError(f"The header of the RLE code stream is broken; {count} segments were expected.")
    planes = np.empty((pixels.samples_per_pixel, sample_bytes, area), np.uint8)
    for plane, start, stop in zip(planes.reshape(count, area), bounds, bounds[1:], strict=False):
        try:
            segment = np.frombuffer(decoder("packbits_decode")(data[start:stop]), np.uint8)
        except _NOT_OF_THE_FRAME:
            raise
        except Exception as error:  # imagecodecs' own classes
            raise TruncatedFrameError(f"The RLE code stream does not decode: {error}") from error
        if not area <= len(segment) <= area + _RLE_PADDING_BYTES:
            raise TruncatedFrameError(f"A segment of the RLE code stream has {len(segment)} bytes, not {area}.")
        plane[:] = segment[:area]
    samples = planes[:, 0] if sample_bytes == 1 else planes[:, 0].astype(np.uint16) << 8 | planes[:, 1]
    image = interleaved(samples.reshape(pixels.samples_per_pixel, pixels.rows, pixels.columns))
    return _Decoded(_stored_bits(image, pixels), pixels.photometric == "YBR_FULL")


def _decode_raw(data: bytes, pixels: PixelFormat, *, big_endian: bool) -> _Decoded:
    dtype = np.dtype("u1") if pixels.bits_allocated == 8 else np.dtype(">u2" if big_endian else "<u2")
    flat = np.frombuffer(data, dtype)
    if pixels.samples_per_pixel == 1:
        return _Decoded(_stored_bits(flat.reshape(pixels.rows, pixels.columns), pixels), ybr=False)
    if len(flat) == pixels.rows * pixels.columns * 2:  # YBR_FULL_422: Y Y Cb Cr (PS3.3 C.7.6.3.1.2)
        quads = flat.reshape(pixels.rows, pixels.columns // 2, 4)
        chroma = np.repeat(quads[..., 2:], 2, axis=1)
        luma = quads[..., :2].reshape(pixels.rows, pixels.columns, 1)
        return _Decoded(np.concatenate([luma, chroma], axis=2), ybr=True)
    if pixels.planar_configuration == 1:
        image = interleaved(flat.reshape(3, pixels.rows, pixels.columns))
    else:
        image = flat.reshape(pixels.rows, pixels.columns, 3)
    return _Decoded(_stored_bits(image, pixels), pixels.photometric == "YBR_FULL")


def _stored_bits(samples: Pixels, pixels: PixelFormat) -> Pixels:
    """Take samples without the bits above BitsStored, which are none of theirs (PS3.5 8.1.1)."""
    if pixels.bits_stored == pixels.bits_allocated:
        return samples
    if pixels.shift:  # code streams carry their own depth
        raise UnsupportedError(
            f"Samples whose {pixels.bits_stored} bits begin at bit {pixels.shift} are not read (HighBit is "
            f"{pixels.bits_stored + pixels.shift - 1}): they have to be the lowest."
        )
    stored: Pixels = samples & samples.dtype.type((1 << pixels.bits_stored) - 1)
    return stored


def _check_size(width: int, height: int, pixels: PixelFormat, visible: tuple[int, int]) -> None:
    if (width, height) == (pixels.columns, pixels.rows):
        return
    if visible[0] <= width <= pixels.columns and visible[1] <= height <= pixels.rows:
        return
    raise DecodeError(
        f"The frame is {width} x {height} pixels, where the metadata say {pixels.columns} x {pixels.rows}."
    )


def _finish(decoded: _Decoded, pixels: PixelFormat, visible: tuple[int, int]) -> Pixels:
    """Make the array what the metadata promise, where that loses nothing."""
    image = decoded.image
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim not in (2, 3):
        raise DecodeError(f"The frame decoded to an array of shape {image.shape}.")
    _check_size(image.shape[1], image.shape[0], pixels, visible)
    if pixels.palette is not None and image.ndim == 2:
        return pixels.palette.apply(image)
    if not pixels.colour:
        return _finish_monochrome(image, pixels)
    if image.ndim == 2:  # a gray frame in a colour level
        return _finish_colour(np.repeat(image[..., None], 3, axis=2), pixels, ybr=False)
    return _finish_colour(image, pixels, ybr=decoded.ybr)


def _finish_colour(image: Pixels, pixels: PixelFormat, *, ybr: bool) -> Pixels:
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:  # colour is 8 bits here, whatever is stored
        image = image.astype(np.uint16) >> max(pixels.bits_stored - 8, 0)
        if image.max() > 255:
            raise DecodeError(f"The frame has values of more than the {pixels.bits_stored} bits that the metadata say.")
        image = image.astype(np.uint8)
    if image.shape[2] != 3 or image.dtype != np.uint8:
        raise DecodeError(f"The frame decoded to {image.dtype} of shape {image.shape}, which is no RGB.")
    return ybr_full_to_rgb(image) if ybr else image


def _finish_monochrome(image: Pixels, pixels: PixelFormat) -> Pixels:
    if image.ndim != 2:
        raise DecodeError(f"The frame has {image.shape[2]} components, where the metadata say it is monochrome.")
    too_wide = image.dtype.itemsize > pixels.dtype.itemsize and image.size and int(image.max()) > 255
    if image.dtype.kind not in "ui" or too_wide:
        raise DecodeError(f"The frame decoded to {image.dtype}, where the metadata say {pixels.dtype}.")
    if pixels.signed:  # shifted up, so that larger stays brighter: the lowest value becomes 0
        mask, sign = (1 << pixels.bits_stored) - 1, 1 << (pixels.bits_stored - 1)
        image = (image.astype(np.int32) & mask) ^ sign
    image = image.astype(pixels.dtype, copy=False)
    if pixels.photometric == "MONOCHROME1":
        white = pixels.dtype.type((1 << pixels.bits_stored) - 1)
        image = white - np.minimum(image, white)
    return image
