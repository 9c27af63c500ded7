"""The images that a picture shows: those named on a command line, or the first of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.data import Sample, Source, UnreadableSample
from vpt_vision.data.decode import decode
from vpt_vision.errors import UserError
from vpt_vision.task import Renderer

_SHOWN = 224  # side of a picture in a figure, pixels


@dataclass(frozen=True)
class Pictured:
    """B images, each with its name and the number that its random numbers are keyed by."""

    images: PackedImages
    names: tuple[str, ...]
    numbers: Tensor  # [B] int64 on the CPU


def read_images(paths: Sequence[Path], *, at_least: int | None = None) -> Pictured:
    """Read image files; they are numbered in their order.

    `at_least` is the shorter side in pixels that is enough, as for `decode`. Raises `UserError` for the first
    that is missing or cannot be read.
    """
    decoded = []
    for path in paths:
        try:
            decoded.append(decode(str(path), path.read_bytes(), at_least=at_least).image)
        except OSError as error:
            what = "is a folder" if path.is_dir() else f"cannot be read ({error.strerror})"
            raise UserError(f"{path} {what}: name JPEG, PNG or WebP files.") from None
        except UnreadableSample as error:
            raise UserError(f"{error}: name JPEG, PNG or WebP files that are whole.") from None
    names = tuple(path.name for path in paths)
    return Pictured(PackedImages.pack(decoded), names, torch.arange(len(decoded)))


def first_images(source: Source, count: int) -> Pictured:
    """Read the first `count` images of a source that can be read, or all where it has fewer.

    Raises `UserError` where none can be.
    """
    samples = list(islice(_readable(source), count))
    if not samples:
        raise UserError(f"no image of the data can be read; the first is {source.name(0)}.")
    return Pictured(
        PackedImages.pack([sample.image for sample in samples]),
        tuple(Path(source.name(sample.index)).name for sample in samples),
        torch.tensor([sample.index for sample in samples]),
    )


def whole_pictures(images: PackedImages) -> Tensor:
    """The largest centred square of each image, which an encoder sees: [B, S, S, 3] in [0, 1]."""
    plain = Renderer(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return plain.whole(images, _SHOWN).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def short(name: str, most: int = 24) -> str:
    """The end of a long name."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _readable(source: Source) -> Iterator[Sample]:
    for index in range(len(source)):
        with suppress(UnreadableSample):
            yield source[index]
