"""From the bytes of an image file to upright RGB pixels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TypeAlias

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vpt_vision.data.source import UnreadableSample

FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow knows some forty more, each a way in for hostile bytes
SCAN, APP1 = 0xDA, 0xE1  # JPEG markers (ITU-T T.81, table B.1): of the pixels, and of EXIF and XMP
SEGMENTS = range(0xC0, 0xFF)  # of those that say how long they are; others before the pixels are rare
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of sizes; the three are tables and reserved
SCALES = (8, 4, 2)  # a JPEG's blocks of 8 x 8 come out this much smaller at no cost: less is computed

# What simplejpeg refuses though no pixel is in doubt: JPEGs of some Samsung phones, and chroma sampled as in
# none of the common layouts. Pillow reads both.
ODDITIES = ("Invalid SOS parameters", "Could not determine subsampling")

Pixels: TypeAlias = NDArray[np.uint8]

# EXIF 2.32, tag 274: what brings the stored pixels [H, W, ...] upright
UPRIGHT: dict[int, Callable[[NDArray[np.generic]], NDArray[np.generic]]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def decode_image(
    name: str,
    data: bytes,
    at_least: int | None = None,
    room: Callable[[int, int], Pixels] | None = None,
) -> Pixels:
    """Decode a JPEG, PNG or WebP file to upright 8-bit RGB, with no crop and no resize.

    Grey is repeated, a palette is looked up, alpha is dropped, of 16 bits the upper 8 are kept, CMYK is
    converted as Pillow does, and the EXIF orientation is applied.

    Args:
        name: what an error calls the sample.
        data: the file's bytes.
        at_least: the shorter side in pixels that is enough. A JPEG comes out at 1/2, 1/4 or 1/8 of its size
            (both sides rounded up), the smallest whose shorter side is no less. None for the full size. Where
            a side was rounded, its last pixels show less than the others, and all are less than one pixel
            away from where an exact resize would put them.
        room: given height and width, returns the contiguous uint8 [H, W, 3] to write to; it may be called
            twice, and the last place counts. None for new memory.

    Returns:
        Pixels [H, W, 3] uint8, contiguous and writable.

    Raises:
        UnreadableSample: broken or foreign bytes, or more pixels than Pillow's limit against
            decompression bombs.
    """
    with readable(name):
        if (plain := _read_plain_jpeg(data, at_least, room)) is not None:
            return plain
        stored = open_image(data)
        pixels = upright(read_pixels(stored, data, jpeg_scale(stored, at_least)), stored)
        if room is None:
            return np.ascontiguousarray(pixels)
        out = room(pixels.shape[0], pixels.shape[1])
        out[...] = pixels
        return out


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside into `UnreadableSample`, and silence its remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, once for every such image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UnreadableSample(name, " ".join(str(error).split()) or type(error).__name__) from error


def open_image(data: bytes) -> Image.Image:
    """Read the header alone; raises where the file is no image that we know, or claims too many pixels."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG or WebP image") from None  # Pillow's sentence holds an address


def jpeg_scale(stored: Image.Image, at_least: int | None) -> int:
    """How many times smaller the image may be decoded, so that no side falls below `at_least` pixels."""
    return _scale(min(stored.size), at_least) if _is_jpeg(stored) else 1


def read_pixels(stored: Image.Image, data: bytes, scale: int) -> Pixels:
    """Decode the pixels [H, W, 3] of the opened `stored`, as they lie in its file `data`.

    A `scale` of 2, 4 or 8, for a JPEG only, makes both sides that much smaller, rounded up.
    """
    if _is_jpeg(stored):
        try:
            return _read_jpeg(stored, data, scale)
        except ValueError as error:
            if not _is_oddity(error):
                raise
        stored = open_image(data)  # anew: what is drafted forgets its size
        stored.draft(stored.mode, (stored.width // scale, stored.height // scale))
    if stored.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it at 255
        stored = Image.fromarray((np.asarray(stored) >> 8).astype(np.uint8))
    return np.array(stored.convert("RGB"))


def upright(pixels: NDArray[np.generic], stored: Image.Image) -> NDArray[np.generic]:
    """Return a view of `pixels` [H, W, ...] turned as the EXIF orientation of `stored` says."""
    turn = UPRIGHT.get(_orientation(stored))
    return pixels if turn is None else turn(pixels)


def _orientation(stored: Image.Image) -> int:
    """The EXIF orientation of an image."""
    try:
        orientation: int = stored.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata do not make the pixels unreadable
        return 1
    return orientation


def _is_jpeg(stored: Image.Image) -> bool:
    return stored.format in ("JPEG", "MPO")  # MPO: a JPEG with another behind it


def _scale(shorter: int, at_least: int | None) -> int:
    if at_least is None:
        return 1
    return next((scale for scale in SCALES if -(-shorter // scale) >= at_least), 1)


def _is_oddity(error: ValueError) -> bool:
    return any(oddity in str(error) for oddity in ODDITIES)


def _read_plain_jpeg(
    data: bytes, at_least: int | None, room: Callable[[int, int], Pixels] | None
) -> Pixels | None:
    """Decode what nearly all photos are, a JPEG that is upright and of no odd kind; None for any other.

    Pillow is left out: to open a file takes it a thirtieth of the time that decoding takes.
    """
    if not _is_plain(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        limit = Image.MAX_IMAGE_PIXELS
        if colours not in ("YCbCr", "Gray", "RGB") or (limit is not None and height * width > limit):
            return None
        scale = _scale(min(height, width), at_least)
        height, width = -(-height // scale), -(-width // scale)
        out = None if room is None else room(height, width)
        return simplejpeg.decode_jpeg(data, "RGB", buffer=out, min_height=height, min_width=width)
    except ValueError as error:
        if not _is_oddity(error):
            raise
        return None


def _is_plain(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG does, with one size and nothing that may tell an orientation."""
    if not data.startswith(b"\xff\xd8"):
        return False
    place, frames = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == SCAN:
            return frames == 1
        if marker == APP1 or marker not in SEGMENTS:
            return False
        frames += marker in FRAMES
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _read_jpeg(stored: Image.Image, data: bytes, scale: int) -> Pixels:
    # Pillow and torchvision let most damage inside a JPEG pass, as grey or shifted blocks; simplejpeg's
    # strict mode, its default, raises wherever libjpeg-turbo complains.
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if (width, height) != stored.size:  # a file made so that Pillow's limit on pixels is passed by
        raise ValueError(f"its header holds two sizes: {stored.width}×{stored.height} and {width}×{height}")
    least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    if colours in ("CMYK", "YCCK"):
        inks = simplejpeg.decode_jpeg(data, "CMYK", **least)  # 255 for no ink, as Adobe writes them
        return np.array(Image.fromarray(255 - inks, "CMYK").convert("RGB"))
    return simplejpeg.decode_jpeg(data, "RGB", **least)
