"""From the bytes of a file and of its maps to tensors."""

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
    """An image and its maps, each at its own size; all show the same, upright."""

    image: Tensor  # [H, W, 3] uint8 RGB
    segmentation: Tensor | None  # [H', W'] uint8
    depth: Tensor | None  # [H', W'] fp32: metres


def decode(
    name: str,
    image: bytes,
    segmentation: bytes | None = None,
    depth: bytes | None = None,
    *,
    at_least: int | None = None,
) -> Decoded:
    """Decode an image, as by `decode_image`, and the maps that belong to it.

    A map lies in the frame of the image's stored pixels and is turned with them. It keeps its size where
    the image is decoded to a half of its own or less.

    Args:
        name: what an error calls the sample.
        image: a JPEG, PNG or WebP file.
        segmentation: an 8-bit grey or palette PNG: the class of each pixel.
        depth: a 16-bit grey PNG in millimetres, 0 where unknown, or a floating-point array of numpy's
            (`.npy`) in metres, 0 or not finite where unknown. Pickled objects are refused.
        at_least: the image's shorter side in pixels that is enough; None for the full size.

    Raises:
        UnreadableSample: broken or foreign bytes, more pixels than Pillow's limit against decompression
            bombs, or a map whose size or kind is wrong.
    """
    with readable(name):
        stored = open_image(image)
        pixels = read_pixels(stored, image, jpeg_scale(stored, at_least))
        return Decoded(
            torch.from_numpy(np.ascontiguousarray(upright(pixels, stored))),
            None if segmentation is None else _turned(_segmentation(segmentation, stored), stored),
            None if depth is None else _turned(_depth(depth, stored), stored),
        )


def _turned(values: NDArray[Any], image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(upright(values, image)))  # a copy: torch wants positive strides


def _segmentation(data: bytes, image: Image.Image) -> NDArray[np.uint8]:
    stored = _map("segmentation map", data, image, {"1", "L", "P"}, "an 8-bit grey or palette PNG")
    return np.asarray(stored).astype(np.uint8)


def _depth(data: bytes, image: Image.Image) -> NDArray[np.float32]:
    if data.startswith(NPY):
        return _metres(data, image)
    stored = _map("depth map", data, image, {"I;16", "I"}, "a 16-bit grey PNG")
    return np.asarray(stored).astype(np.float32) / np.float32(1000)


def _metres(data: bytes, image: Image.Image) -> NDArray[np.float32]:
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
    return np.nan_to_num(stored.astype(np.float32), nan=0, posinf=0, neginf=0)


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
