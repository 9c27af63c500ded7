"""What patch features see: their first three principal components as red, green and blue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_kernels import PackedImages
from vpt_vision.evaluation.encoder import device_of, encode
from vpt_vision.evaluation.pictures.images import whole_pictures
from vpt_vision.evaluation.pictures.style import (
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
from vpt_vision.task import Renderer


class Projection(NamedTuple):
    """Patch features on their first three principal components."""

    components: Tensor  # [B, h, w, 3] fp64, signs settled
    explained: float  # share of the variance that the three hold


def patch_pca(
    encoders: Mapping[str, nn.Module],
    images: PackedImages,
    path: Path,
    *,
    renderer: Renderer,
    size: int,
) -> None:
    """Draw the patch PCA of B `images` seen whole at `size` pixels, a row for each encoder.

    One PCA for each encoder over the patches of all images, as in DINOv2's figures, so that a colour
    means the same in every image of a row. A component's sign is arbitrary; it is settled so that rows
    resemble the first one. The brightest and darkest 1 % of each component are clipped.
    """
    rows: dict[str, Projection] = {}
    for label, encoder in encoders.items():
        projection = project(_patch_grids(encoder, renderer.whole(images, size)))
        first = next(iter(rows.values()), projection).components
        rows[label] = projection._replace(components=_align(projection.components, first))

    count, cell = len(images), 1.45
    title = "Patch features: first three principal components"
    named = 0.1 * max(map(len, [*rows, "(00 % of variance)"]))  # inches that the names take at the left
    figure = new_figure(wide_enough(title, named + count * cell), 0.75 + (1 + len(rows)) * (cell + 0.05))
    grid = figure.subplots(1 + len(rows), count, squeeze=False)
    for column, picture in enumerate(whole_pictures(images)):
        grid[0][column].imshow(picture.numpy(), interpolation="bicubic")
        for axes, projection in zip(grid[1:], rows.values(), strict=True):
            axes[column].imshow(_colours(projection.components)[column].numpy(), interpolation="nearest")
    for axis in grid.flat:
        picture_only(axis)
    labels = ["source"] + [
        f"{label}\n({100 * projection.explained:.0f} % of variance)" for label, projection in rows.items()
    ]
    for axes, label in zip(grid, labels, strict=True):
        axes[0].set_ylabel(label, fontsize=TEXT, color=INK, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
    figure.supxlabel("like colours: like features, within one row", fontsize=SMALL, color=INK)
    save(figure, path)


def project(patches: Tensor) -> Projection:
    """Project patch features [B, h, w, D] on the first three principal components of all of them.

    From the eigenvectors of their covariance in fp64. Where D < 3 the missing components are 0.
    """
    rows = patches.double().flatten(0, 2)
    rows = rows - rows.mean(0)
    variances, axes = torch.linalg.eigh(rows.T @ rows)  # ascending
    axes = axes[:, -3:].flip(1)
    components = F.pad(rows @ axes, (0, 3 - axes.shape[1]))
    explained = variances[-3:].sum() / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return Projection(components.view(*patches.shape[:3], 3), float(explained))


def _patch_grids(encoder: nn.Module, images: Tensor) -> Tensor:
    """Patch features [B, h, w, D] of normalised images, on the CPU."""
    with evaluating(encoder), torch.no_grad():
        patches = encode(encoder, images.to(device_of(encoder)))[0].patches.float().cpu()
    side = math.isqrt(patches.shape[1])
    return patches.view(len(patches), side, side, -1)


def _align(components: Tensor, first: Tensor) -> Tensor:
    """Flip signs [B, h, w, 3] so that each component correlates with that of `first`, whatever its grid."""
    channels_first = F.interpolate(first.permute(0, 3, 1, 2), components.shape[1:3], mode="bilinear")
    signs = (components * channels_first.permute(0, 2, 3, 1)).sum((0, 1, 2)).sign()
    return components * torch.where(signs == 0, 1.0, signs)


def _colours(components: Tensor) -> Tensor:
    """Components [B, h, w, 3] stretched to [0, 1], one stretch for all images."""
    low, high = (components.flatten(0, 2).quantile(share, dim=0) for share in (0.01, 0.99))
    return ((components - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
