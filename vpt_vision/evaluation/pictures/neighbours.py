"""Which images of a gallery an encoder finds most like one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.data import Source
from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import device_of, encode
from vpt_vision.evaluation.extraction import Extractor
from vpt_vision.evaluation.pictures.images import Pictured, short, whole_pictures
from vpt_vision.evaluation.pictures.style import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    TITLE,
    new_figure,
    picture_only,
    save,
    wide_enough,
)
from vpt_vision.feedback.evaluating import evaluating

_CELL = 1.45  # inches


@dataclass(frozen=True)
class Neighbours:
    """The K images of a gallery that are most like each of B, the most alike first."""

    index: Tensor  # [B, K] int64: their numbers in the gallery
    similarity: Tensor  # [B, K] fp32: cosine of class features


@torch.no_grad()
def neighbours(
    extractor: Extractor, gallery: Source, pictured: Pictured, *, count: int, size: int
) -> Neighbours:
    """Rank the gallery's readable images by cosine similarity of CLS features, as the kNN probe does.

    All are seen whole at `size` pixels. Raises `UserError` as `Extractor.pooled`, and where the gallery holds
    fewer than `count` images.
    """
    features = extractor.pooled(gallery, size, blocks=1, labelled=False).features
    if len(features) < count:
        raise UserError(
            f"the gallery holds {len(features)} readable images, fewer than the {count} neighbours asked for."
        )
    encoder = extractor.encoder
    with evaluating(encoder):
        views = extractor.renderer.whole(pictured.images, size).to(device_of(encoder))
        queries = encode(encoder, views)[0].cls.float().cpu()
    similarity = F.normalize(queries, dim=1) @ F.normalize(features.cls, dim=1).T
    top = similarity.topk(count, dim=1)
    return Neighbours(features.index[top.indices], top.values)


def neighbours_sheet(
    found: Neighbours, gallery: Source, pictured: Pictured, path: Path, *, title: str
) -> None:
    """Draw each image and its neighbours in a row, with their similarities and, if they have one, classes."""
    rows, columns = found.index.shape
    figure = new_figure(wide_enough(title, 0.4 + (1 + columns) * (_CELL + 0.03)), 0.8 + rows * (_CELL + 0.35))
    grid = figure.subplots(rows, 1 + columns, squeeze=False)
    for number, picture in enumerate(whole_pictures(pictured.images)):
        _show(grid[number][0], picture, short(pictured.names[number]))
        samples = [gallery[int(index)] for index in found.index[number]]
        pictures = whole_pictures(PackedImages.pack([sample.image for sample in samples]))
        for axis, sample, near, share in zip(
            grid[number][1:], samples, pictures, found.similarity[number].tolist(), strict=True
        ):
            classes = gallery.classes
            named = sample.label is not None and classes is not None
            words = classes[sample.label] if named else gallery.name(sample.index)  # type: ignore[index]
            _show(axis, near, f"{share:.3f}\n{short(Path(words).name, 18)}")
    grid[0][0].set_title("asked", fontsize=TEXT, color=INK)
    for place, axis in enumerate(grid[0][1:], start=1):
        axis.set_title(f"{place}", fontsize=TEXT, color=INK)
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
    figure.supxlabel("below each: cosine similarity of class features", fontsize=SMALL, color=FAINT)
    save(figure, path)


def _show(axis: Axes, picture: Tensor, words: str) -> None:
    axis.imshow(picture.numpy(), interpolation="bicubic")
    axis.set_xlabel(words, fontsize=SMALL - 1, color=INK, labelpad=2)
    picture_only(axis)
