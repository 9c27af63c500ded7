"""Where the class token looks: its attention to patches, head by head."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import device_of
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
from vpt_vision.learner import Backbone
from vpt_vision.task import Renderer

_ACROSS = 6  # heads side by side
_CELL, _BAR = 1.5, 0.75  # inches
_HEAT = colormaps["inferno"]


@torch.no_grad()
def attention(encoder: nn.Module, pictured: Pictured, *, renderer: Renderer, size: int) -> Tensor:
    """How much the last block's class token attends to each patch, in multiples of an even share.

    1 is 1 / T of what all T patches get together: what registers and the class token itself get is left out.

    Returns:
        [B, heads, h, w] fp32 on the CPU, of images seen whole at `size` pixels; each map's mean is 1.

    Raises:
        UserError: the encoder has no attention of a class token, or `size` is none of whole patches.
    """
    if not isinstance(encoder, Backbone):
        raise UserError(
            f"{getattr(encoder, 'name', type(encoder).__name__)} has no class token whose attention could be "
            "drawn: name a ViT, or see vpt viz pca."
        )
    side = encoder.grid(size)
    with evaluating(encoder):
        images = renderer.whole(pictured.images, size).to(device_of(encoder))
        weights = encoder.attend_by_head(images)[1].cpu()
    return (weights / weights.mean(-1, keepdim=True)).view(*weights.shape[:2], side, side)


def attention_maps(attended: Tensor, pictured: Pictured, path: Path, *, title: str) -> None:
    """Draw `attention`'s maps: a row of maps for each image, the mean over heads first.

    Every map runs from 0 to its own highest patch, whose share stands below it: heads differ much in that.
    """
    heads = attended.shape[1]
    lines, across = math.ceil(heads / _ACROSS), min(heads, _ACROSS)
    rows = lines * len(attended)
    width = wide_enough(title, 0.2 + (2 + across) * (_CELL + 0.03))
    figure = new_figure(width, 0.8 + rows * (_CELL + 0.25) + _BAR)
    upper, lower = figure.subfigures(
        2, 1, squeeze=False, height_ratios=[0.8 + rows * (_CELL + 0.25), _BAR]
    ).flat
    grid = upper.subplots(rows, 2 + across, squeeze=False)
    for axis in grid.flat:
        picture_only(axis)
    for number, picture in enumerate(whole_pictures(pictured.images)):
        first = grid[number * lines]
        first[0].imshow(picture.numpy(), interpolation="bicubic")
        first[0].set_xlabel(short(pictured.names[number]), fontsize=SMALL - 1, color=FAINT, labelpad=2)
        _map(first[1], attended[number].mean(0))
        for head, shares in enumerate(attended[number]):
            _map(grid[number * lines + head // across][2 + head % across], shares)
    for axis, words in zip(grid[0], ["source", "mean of heads"], strict=False):
        axis.set_title(words, fontsize=TEXT, color=INK)
    for number in range(len(attended) if lines > 1 else 1):
        for head in range(heads):
            axis = grid[number * lines + head // across][2 + head % across]
            axis.set_title(f"head {head + 1}", fontsize=TEXT, color=INK)
    for axis in grid.flat:
        if not axis.has_data():
            axis.remove()
    bar = lower.colorbar(
        ScalarMappable(Normalize(0, 1), _HEAT),
        cax=lower.add_axes((0.3, 0.7, 0.4, 0.17)),
        orientation="horizontal",
        ticks=[0, 1],
    )
    bar.ax.set_xticklabels(["0", "the map's highest"])
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.set_label(
        "below each map: its highest patch, in multiples of an even share", fontsize=SMALL, color=FAINT
    )
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
    save(figure, path)


def _map(axis: Axes, shares: Tensor) -> None:
    highest = float(shares.max())
    axis.imshow(shares.numpy(), cmap=_HEAT, vmin=0, vmax=highest or 1.0, interpolation="nearest")
    axis.set_xlabel(f"× {highest:.3g}", fontsize=SMALL - 1, color=FAINT, labelpad=2)
