"""From the bytes of a file and of its maps to square tensors."""

from __future__ import annotations

from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpt_vision.data.image import jpeg_scale, open_image, read_pixels, readable, upright

NPY = b"\x93NUMPY"  # how a file of numpy's begins


class Decoded(NamedTuple):
    """An image and its maps in one frame."""

    image: Tensor  # [3, size, size] uint8 RGB
    segmentation: Tensor | None  # [size, size] int64
    depth: Tensor | None  # [size, size] fp32: metres


def decode(
    name: str, size: int, image: bytes, segmentation: bytes | None = None, depth: bytes | None = None
) -> Decoded:
    """Decode an image and the maps that belong to it.

    The image becomes upright 8-bit RGB as by `decode_image`, and its largest centred square is resized to
    `size` pixels (bicubic, antialiased). A map lies in the frame of the image's stored pixels
    and goes through the same geometry, with the nearest neighbour in place of bicubic. A large JPEG is
    decoded at 1/2, 1/4 or 1/8 of its size, but not below twice `size`: the last halving is bicubic's.

    Args:
        name: what an error calls the sample.
        size: side of the result, pixels.
        image: a JPEG, PNG or WebP file.
        segmentation: an 8-bit grey or palette PNG: the class of each pixel.
        depth: a 16-bit grey PNG in millimetres, 0 where unknown, or a floating-point array of numpy's
            (`.npy`) in metres, 0 or not finite where unknown. Pickled objects are refused.

    Raises:
        UnreadableSample: broken or foreign bytes, more pixels than Pillow's limit against decompression
            bombs, or a map whose size or kind is wrong.
    """
    with readable(name):
        stored = open_image(image)
        scale = jpeg_scale(stored, 2 * size)
        pixels = Image.fromarray(read_pixels(stored, image, scale))
        square = _square(pixels, stored, size, Image.Resampling.BICUBIC, scale)
        return Decoded(
            torch.from_numpy(square).permute(2, 0, 1).contiguous(),
            None if segmentation is None else _segmentation(segmentation, stored, size),
            None if depth is None else _depth(depth, stored, size),
        )


def _square(
    image: Image.Image, stored: Image.Image, size: int, resampling: Image.Resampling, scale: int = 1
) -> NDArray[Any]:
    """Resize the centred square of `stored` out of `image`, its pixels `scale` times smaller, and turn it."""
    width, height = stored.width / scale, stored.height / scale  # `image` rounds them up
    left, top = (width - min(width, height)) / 2, (height - min(width, height)) / 2
    square = image.resize((size, size), resampling, box=(left, top, width - left, height - top))
    return np.array(upright(np.asarray(square), stored))


def _segmentation(data: bytes, image: Image.Image, size: int) -> Tensor:
    stored = _map("segmentation map", data, image, {"1", "L", "P"}, "an 8-bit grey or palette PNG")
    return torch.from_numpy(_square(stored, image, size, Image.Resampling.NEAREST).astype(np.int64))


def _depth(data: bytes, image: Image.Image, size: int) -> Tensor:
    if data.startswith(NPY):
        return torch.from_numpy(_square(_metres(data, image), image, size, Image.Resampling.NEAREST))
    stored = _map("depth map", data, image, {"I;16", "I"}, "a 16-bit grey PNG")
    return torch.from_numpy(_square(stored, image, size, Image.Resampling.NEAREST).astype(np.float32) / 1000)


def _metres(data: bytes, image: Image.Image) -> Image.Image:
    """Read a depth map of numpy's; what is not finite becomes 0."""
    try:
        stored = np.load(BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"its depth map: {error}") from error
    if not np.issubdtype(stored.dtype, np.floating) or stored.shape != (image.height, image.width):
        raise ValueError(
            f"its depth map is an array {list(stored.shape)} of {stored.dtype}, not a floating-point one of "
            f"the image's [{image.height}, {image.width}]"
        )
    return Image.fromarray(np.nan_to_num(stored.astype(np.float32), nan=0, posinf=0, neginf=0))


def _map(kind: str, data: bytes, image: Image.Image, modes: set[str], expected: str) -> Image.Image:
    try:
        stored = open_image(data)
        stored.load()
    except Exception as error:
        raise ValueError(f"its {kind}: {error}") from error
    if stored.format != "PNG" or stored.mode not in modes:
        raise ValueError(f"its {kind} is a {stored.format} of mode {stored.mode}, not {expected}")
    if stored.size != image.size:
        sizes = "{}×{}, the image {}×{}".format(*stored.size, *image.size)
        raise ValueError(f"its {kind} has another size than the image: {sizes}")
    return stored
