"""Where a designer's crops and masks fall in an image, over many tasks: heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers import Designer
from vpt_vision.evaluation.pictures.images import Pictured, short
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
from vpt_vision.task import Keys, Task, Views

CELLS = 48  # along each side of an image
_AT_ONCE = 64  # tasks of single images that are drawn together
KINDS = {  # what is counted: in short, and in full
    "global": ("global crops", "share of global crops that show a place"),
    "local": ("local crops", "share of local crops that show a place"),
    "hidden": ("masks", "share of global views of a place that hide it"),
}
_CELL, _GAP, _BARS = 1.5, 0.12, 1.75  # inches: width of a map, space between images, height of the bars
_HEAT: Colormap = colormaps["viridis"]
_CHANGE: Colormap = colormaps["RdBu_r"]
_NOWHERE = "#DDDDDD"  # places that no view has shown


@dataclass(frozen=True)
class Coverage:
    """Shares in [0, 1] at `CELLS` × `CELLS` places of each of B images, [B, R, C] fp32."""

    global_: Tensor  # of global crops that show the place
    local: Tensor | None  # of local crops; None where the recipe has none
    hidden: Tensor  # of global views showing the place, those that hide it; NaN where none shows it

    def maps(self) -> dict[str, Tensor]:
        """By the kinds of `KINDS`."""
        maps = {"global": self.global_, "local": self.local, "hidden": self.hidden}
        return {kind: shares for kind, shares in maps.items() if shares is not None}


@torch.no_grad()
def coverage(designer: Designer, pictured: Pictured, draws: int, seed: int) -> Coverage:
    """Average over `draws` tasks drawn from the designer's policy for each image.

    Their keys depend on nothing but `seed`, the draw and the image's number: designers of one recipe see the
    same random numbers. A share is exact for the tasks drawn, a cell that a box covers in part counting by
    that part.
    """
    count = len(pictured.names)
    copies = min(draws, max(1, _AT_ONCE // count))  # of each image, that are set a task at once
    images = pictured.images[torch.arange(count).repeat_interleave(copies)]
    samples = (pictured.numbers[:, None] * copies + torch.arange(copies)).flatten()
    policy = designer.policy(images)
    kinds: dict[str, list[Tensor]] = {}
    views: tuple[int, int] = (0, 0)
    for step in range(math.ceil(draws / copies)):
        task = policy.sample(Keys(seed, step, samples))
        views = len(task.global_views.boxes), len(task.local_views.boxes)
        wanted = min(copies, draws - step * copies)
        for kind, each in _covered(task, images).items():
            kinds.setdefault(kind, []).append(each.view(count, copies, CELLS, CELLS)[:, :wanted].sum(1))
    shown, local, hidden = (torch.stack(kinds[kind]).sum(0) for kind in ("shown", "local", "hidden"))
    return Coverage(
        shown / (draws * views[0]),
        local / (draws * views[1]) if views[1] else None,
        hidden / shown.where(shown > 0, torch.nan),
    )


def coverage_maps(
    pictured: Pictured,
    moments: Mapping[str, Coverage],
    path: Path,
    *,
    title: str,
    kinds: Sequence[str],
) -> None:
    """Draw heat maps of each image: rows for the `kinds`, columns for the `moments`, the recipe's first.

    A kind has one scale of colours throughout, whose bar stands below. The last column is the change from the
    first moment to the last, blue where a place is shown or hidden less, red where more, on a scale of its
    kind too. The highest 1 in 200 of a scale are clipped.

    Args:
        pictured: B images.
        moments: title → coverage of these images; two or more.
        path: the PNG file.
        title: of the picture.
        kinds: of `KINDS`, what to show, as far as there is any.
    """
    maps = {moment: shares.maps() for moment, shares in moments.items()}
    first, *_, last = maps.values()
    kinds = [kind for kind in kinds if kind in first]
    scales = {kind: _scale([shares[kind] for shares in maps.values()]) for kind in kinds}
    changes = {kind: last[kind] - first[kind] for kind in kinds}
    change_scales = {kind: _even_scale(change) for kind, change in changes.items()}

    columns = len(maps) + 2
    heights = [
        height for image in pictured.images for height in [*[_CELL * _aspect(image)] * len(kinds), _GAP]
    ]
    upper_height = 0.75 + sum(heights) + 0.04 * len(heights)
    figure_width = wide_enough(title, 0.3 + columns * (_CELL + 0.05))
    figure = new_figure(figure_width, upper_height + _BARS)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[upper_height, _BARS]).flat
    grid = upper.add_gridspec(len(heights), columns, height_ratios=heights)
    for number, (image, name) in enumerate(zip(pictured.images, pictured.names, strict=True)):
        extent = (0.0, float(image.shape[1]), float(image.shape[0]), 0.0)
        above = number * (len(kinds) + 1)
        source = upper.add_subplot(grid[above : above + len(kinds), 0])
        source.imshow(image.numpy(), interpolation="bicubic", extent=extent)
        source.set_anchor("N")
        source.set_xlabel(short(name), fontsize=SMALL - 1, color=FAINT, labelpad=2)
        picture_only(source)
        for row, kind in enumerate(kinds, start=above):
            axes = [upper.add_subplot(grid[row, column]) for column in range(1, columns)]
            for axis, shares in zip(axes, maps.values(), strict=False):
                _heat(axis, shares[kind][number], scales[kind], _HEAT, extent)
            _heat(axes[-1], changes[kind][number], change_scales[kind], _CHANGE, extent)
            axes[0].set_ylabel(KINDS[kind][0], fontsize=SMALL, color=INK)
            if row == 0:
                for axis, words in zip([source, *axes], ["source", *maps, "change"], strict=True):
                    axis.set_title(words, fontsize=TEXT - 0.5, color=INK)
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
    for number, kind in enumerate(kinds):
        left, width = (number + 0.1) / len(kinds), 0.8 / len(kinds)
        counted = fill(KINDS[kind][1], int(15 * figure_width / len(kinds)))  # letters an inch
        _bar(lower, (left, 0.84, width, 0.08), counted, scales[kind], _HEAT)
        _bar(
            lower,
            (left, 0.38, width, 0.08),
            f"{KINDS[kind][0]}: change, first to last",
            change_scales[kind],
            _CHANGE,
        )
    save(figure, path)


def _covered(task: Task, images: PackedImages) -> dict[str, Tensor]:
    """How often the views of one task show, and the global ones hide, each place: [B, CELLS, CELLS]."""
    covered = {}
    for kind, views in (("shown", task.global_views), ("local", task.local_views)):
        rows, columns = _spans(views, images, parts=1)
        covered[kind] = torch.einsum("vbpr,vbqc->brc", rows, columns)
    hidden = task.masks.hidden
    side = math.isqrt(hidden.shape[-1])
    hidden = hidden.view(*hidden.shape[:2], side, side).float()
    seen = torch.where(task.global_views.flips[..., None, None], hidden.flip(-1), hidden)  # as in the source
    rows, columns = _spans(task.global_views, images, parts=side)
    covered["hidden"] = torch.einsum("vbpq,vbpr,vbqc->brc", seen, rows, columns)
    return covered


def _spans(views: Views, images: PackedImages, parts: int) -> tuple[Tensor, Tensor]:
    """By how much each of `parts` equal strips of a box covers each row, and each column, of cells.

    Shares in [0, 1], [V, B, parts, CELLS] each.
    """
    top, left, height, width = views.boxes.cpu().unbind(-1)
    spans = []
    for start, length, whole in ((top, height, images.heights), (left, width, images.widths)):
        edges = start[..., None] + length[..., None] * torch.linspace(0, 1, parts + 1)
        edges = edges / whole[:, None] * CELLS
        cells = torch.arange(CELLS)
        low = torch.maximum(edges[..., :-1, None], cells)
        high = torch.minimum(edges[..., 1:, None], cells + 1)
        spans.append((high - low).clamp(min=0))
    return spans[0], spans[1]


def _scale(shares: Sequence[Tensor]) -> Normalize:
    """From 0 to nearly the largest share of all."""
    return Normalize(0, _largest(torch.stack(list(shares))) or 1.0)


def _even_scale(change: Tensor) -> Normalize:
    """As far below 0 as above."""
    largest = max(_largest(change.abs()), 0.01)
    return Normalize(-largest, largest)


def _largest(values: Tensor) -> float:
    """That which 1 in 200 exceed: a place at the edge, which few views show, may have any share."""
    return float(np.nanquantile(values.numpy(), 0.995))


def _heat(
    axis: Axes, shares: Tensor, scale: Normalize, colours: Colormap, extent: tuple[float, float, float, float]
) -> None:
    axis.set_facecolor(_NOWHERE)
    axis.imshow(
        np.ma.masked_invalid(shares.numpy()), norm=scale, cmap=colours, extent=extent, interpolation="nearest"
    )
    picture_only(axis)


def _bar(
    figure: SubFigure,
    place: tuple[float, float, float, float],
    words: str,
    scale: Normalize,
    colours: Colormap,
) -> None:
    bar = figure.colorbar(
        ScalarMappable(scale, colours), cax=figure.add_axes(place), orientation="horizontal"
    )
    bar.locator = MaxNLocator(4)
    bar.ax.tick_params(labelsize=SMALL - 1, colors=INK)
    bar.set_label(words, fontsize=SMALL - 0.5, color=INK)


def _aspect(image: Tensor) -> float:
    """Height over width, as far as a picture can show it."""
    return min(max(image.shape[0] / image.shape[1], 0.4), 2.0)
