"""From the bytes of a file to square tensors."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vpt_vision.data.source import UnreadableSample

FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow knows some forty more, each a way in for hostile bytes

# EXIF 2.32, tag 274: what brings the stored pixels upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """An image and its maps in one frame."""

    image: Tensor  # [3, size, size] uint8 RGB
    segmentation: Tensor | None  # [size, size] int64
    depth: Tensor | None  # [size, size] fp32: metres


def decode(
    name: str, size: int, image: bytes, segmentation: bytes | None = None, depth: bytes | None = None
) -> Decoded:
    """Decode an image and the maps that belong to it.

    The image becomes 8-bit RGB whatever it is stored as: grey is repeated, alpha is dropped, of 16 bits
    the upper 8 are kept. It is turned upright by its EXIF orientation, then the largest centred square is
    resized to `size` pixels (bicubic, antialiased). A map lies in the frame of the image's stored pixels
    and goes through the same geometry, with the nearest neighbour in place of bicubic.

    Args:
        name: what an error calls the sample.
        size: side of the result, pixels.
        image: a JPEG, PNG or WebP file.
        segmentation: an 8-bit grey or palette PNG: the class of each pixel.
        depth: a 16-bit grey PNG in millimetres, 0 where unknown.

    Raises:
        UnreadableSample: broken or foreign bytes, more pixels than Pillow's limit against decompression
            bombs, or a map whose size or kind is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, once for every such image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            stored = _open(image)
            turn = _turn(stored)
            return Decoded(
                _tensor(_square(_rgb(stored), turn, size, Image.Resampling.BICUBIC)),
                None if segmentation is None else _segmentation(segmentation, stored, turn, size),
                None if depth is None else _depth(depth, stored, turn, size),
            )
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            raise UnreadableSample(name, " ".join(str(error).split()) or type(error).__name__) from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG or WebP image") from None  # Pillow's sentence holds an address


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata do not make the pixels unreadable
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _square(
    image: Image.Image, turn: Image.Transpose | None, size: int, resampling: Image.Resampling
) -> Image.Image:
    upright = image if turn is None else image.transpose(turn)
    return ImageOps.fit(upright, (size, size), resampling)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _segmentation(data: bytes, image: Image.Image, turn: Image.Transpose | None, size: int) -> Tensor:
    stored = _map("segmentation map", data, image, {"1", "L", "P"}, "an 8-bit grey or palette PNG")
    return torch.from_numpy(np.array(_square(stored, turn, size, Image.Resampling.NEAREST), np.int64))


def _depth(data: bytes, image: Image.Image, turn: Image.Transpose | None, size: int) -> Tensor:
    stored = _map("depth map", data, image, {"I;16", "I"}, "a 16-bit grey PNG")
    millimetres = np.array(_square(stored, turn, size, Image.Resampling.NEAREST), np.float32)
    return torch.from_numpy(millimetres / 1000)


def _map(kind: str, data: bytes, image: Image.Image, modes: set[str], expected: str) -> Image.Image:
    try:
        stored = _open(data)
        stored.load()
    except Exception as error:
        raise ValueError(f"its {kind}: {error}") from error
    if stored.format != "PNG" or stored.mode not in modes:
        raise ValueError(f"its {kind} is a {stored.format} of mode {stored.mode}, not {expected}")
    if stored.size != image.size:
        sizes = "{}×{}, the image {}×{}".format(*stored.size, *image.size)
        raise ValueError(f"its {kind} has another size than the image: {sizes}")
    return stored
