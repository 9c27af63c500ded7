"""A contact sheet: some samples of a source side by side, with their labels and maps."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from vpt_vision.data.order import Order
from vpt_vision.data.source import Sample, Source, UnreadableSample
from vpt_vision.errors import UserError

CAPTION = 18  # pixels below each picture
GAP = 4
MIXED = 0.5  # share of a segmentation map's colours over the image
GROUND, INK, WARNING = (255, 255, 255), (30, 30, 30), (200, 30, 30)


def contact_sheet(
    source: Source, size: int, *, count: int = 48, seed: int = 0, columns: int = 8
) -> Image.Image:
    """Draw `count` samples, drawn by `seed`, each whole in a square of its own.

    Where a sample has a segmentation map, the image follows with the map's colours over it; where it has a
    depth map, the map follows, near dark and far light. An unreadable sample leaves an empty square.

    Args:
        source: what to draw from.
        size: side of a square, pixels.
        count: samples to draw; fewer where the source has fewer.
        seed: of the draw.
        columns: pictures in a row; a sample with maps takes several.
    """
    indices = Order(seed, len(source)).samples(0, min(count, len(source))).tolist()
    rows: list[list[Image.Image]] = [[]]
    for index in indices:
        strip = _strip(source, index, size)
        if rows[-1] and sum(other.width for other in rows[-1]) + strip.width > columns * size:
            rows.append([])
        rows[-1].append(strip)
    width = max(sum(strip.width + GAP for strip in row) for row in rows)
    height = size + CAPTION + GAP
    sheet = Image.new("RGB", (width + GAP, len(rows) * height + GAP), GROUND)
    for number, row in enumerate(rows):
        left = GAP
        for strip in row:
            sheet.paste(strip, (left, GAP + number * height))
            left += strip.width + GAP
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet; raises `UserError` where it cannot."""
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"{path} cannot be written ({reason}): name a .png file in a folder that exists."
        ) from None


def _strip(source: Source, index: int, size: int) -> Image.Image:
    """One sample: its pictures beside one another over a caption."""
    try:
        sample = source[index]
    except UnreadableSample as error:
        return _captioned([Image.new("RGB", (size, size), (230, 230, 230))], error.reason, WARNING)
    return _captioned(_pictures(sample, size), _caption(sample, source.classes), INK)


def _pictures(sample: Sample, size: int) -> list[Image.Image]:
    image = _fitted(Image.fromarray(sample.image.numpy()), size, Image.Resampling.BICUBIC)
    pictures = [image]
    if sample.segmentation is not None:
        colours = np.array(matplotlib.colormaps["tab20"].colors) * 255  # type: ignore[attr-defined]
        over = colours[sample.segmentation.numpy() % len(colours)].astype(np.uint8)
        over = _fitted(Image.fromarray(over), size, Image.Resampling.NEAREST)
        pictures.append(Image.blend(image, over, MIXED))
    if sample.depth is not None:
        pictures.append(_fitted(_depth_picture(sample.depth), size, Image.Resampling.NEAREST))
    return pictures


def _fitted(picture: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Bring the longer side to `size` pixels, and centre the picture on a square."""
    return ImageOps.pad(picture, (size, size), resampling, color=GROUND)


def _depth_picture(depth: Tensor) -> Image.Image:
    metres = depth.numpy()
    picture = matplotlib.colormaps["magma"](metres / max(float(metres.max()), 1e-6))[..., :3] * 255
    picture[metres == 0] = GROUND  # unknown
    return Image.fromarray(picture.astype(np.uint8))


def _caption(sample: Sample, classes: list[str] | None) -> str:
    if sample.label is None:
        return f"{sample.index}"
    named = classes[sample.label] if classes is not None else str(sample.label)
    return f"{sample.index}: {named}"


def _captioned(pictures: list[Image.Image], caption: str, ink: tuple[int, int, int]) -> Image.Image:
    width, height = sum(picture.width for picture in pictures), pictures[0].height
    strip = Image.new("RGB", (width, height + CAPTION), GROUND)
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * picture.width, 0))
    font = ImageFont.load_default(12)
    while caption and font.getlength(caption) > width:
        caption = caption[:-2].removesuffix("…") + "…" if len(caption) > 2 else ""
    ImageDraw.Draw(strip).text((0, height + 2), caption, ink, font)
    return strip
