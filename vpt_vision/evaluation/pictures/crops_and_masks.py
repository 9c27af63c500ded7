"""What a designer asks of the learner: where it crops, and which patches it hides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers import Refined
from vpt_vision.evaluation.pictures.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    SMALL,
    TEXT,
    TITLE,
    new_figure,
    picture_only,
    save,
)
from vpt_vision.task import Renderer, Task

# A hidden patch is hatched as well as grey, so that it stands out from a grey picture too.
_HIDDEN: dict[str, Any] = {
    "facecolor": "#B4B4B4",
    "edgecolor": "#6E6E6E",
    "hatch": "//////",
    "linewidth": 0.0,
}


class _Pen(NamedTuple):
    """How the boxes of one kind of view are drawn; the halo keeps them legible on any ground."""

    colour: str
    width: float  # points
    halo: str

    def effects(self, extra: float = 1.3) -> list[withStroke]:
        return [withStroke(linewidth=self.width + extra, foreground=self.halo)]


_GLOBAL = _Pen(BLUE, 2.0, "white")
_LOCAL = _Pen(ORANGE, 1.1, INK)


def crops_and_masks(
    images: PackedImages, tasks: Mapping[str, Refined], path: Path, *, renderer: Renderer
) -> None:
    """Draw each source image with its crop boxes, and its global views with hidden patches greyed.

    A row for each image, and side by side a block of columns for each entry of `tasks`, so that one
    designer's tasks at two moments can be compared. Global views are as the student is shown them: with their
    photometric change, and with what a designer does to pixels.

    Args:
        images: B of them, on the CPU.
        tasks: title (such as "early") → task of these B images with its views, on the CPU; of several
            versions of the global views the first is drawn.
        path: the PNG file.
        renderer: that of the views.
    """
    rendered = {title: _global_views(refined, renderer) for title, refined in tasks.items()}
    widest = max(len(views) for views in rendered.values())
    cell = 1.55
    figure = new_figure(len(tasks) * ((1 + widest) * cell + 0.3), 1.1 + len(images) * (cell + 0.2))
    blocks = figure.subfigures(1, len(tasks), squeeze=False, wspace=0.04)[0]
    for block, (title, refined) in zip(blocks, tasks.items(), strict=True):
        views, task = rendered[title], refined.task
        block.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
        rows = block.subplots(len(images), 1 + len(views), squeeze=False)
        for row, (axes, image) in enumerate(zip(rows, images, strict=True)):
            _source(axes[0], image, task, row)
            for view, axis in enumerate(axes[1:]):
                _view(axis, views[view, row], task, view, row)
        rows[0][0].set_title("source", fontsize=TEXT, color=INK)
        for view, axis in enumerate(rows[0][1:]):
            axis.set_title(f"global view {view + 1}", fontsize=TEXT, color=BLUE)
    figure.legend(
        handles=[
            _key("global crop", _GLOBAL),
            _key("local crop", _LOCAL),
            Patch(**_HIDDEN, label="patch hidden from the student"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=TEXT,
    )
    save(figure, path)


def _global_views(refined: Refined, renderer: Renderer) -> NDArray[np.float32]:
    """Global views as pictures [G, B, S, S, 3] in [0, 1]."""
    views = refined.views.global_views[: len(refined.task.global_views.boxes)].detach()
    mean, std = (torch.tensor(of)[:, None, None] for of in (renderer.mean, renderer.std))
    return (views * std + mean).clamp(0, 1).permute(0, 1, 3, 4, 2).numpy()


def _source(axis: Axes, image: Tensor, task: Task, row: int) -> None:
    height, width = image.shape[:2]
    axis.imshow(image.numpy(), interpolation="bicubic", extent=(0, width, height, 0))
    for box in task.local_views.boxes[:, row].tolist():
        _box(axis, box, _LOCAL)
    for number, box in enumerate(task.global_views.boxes[:, row].tolist(), start=1):
        _box(axis, box, _GLOBAL)
        top, left, box_height, box_width = box
        at_right = number % 2 == 0  # numbers of two like boxes do not cover each other
        axis.annotate(
            str(number),
            (left + box_width * at_right, top + box_height),
            xytext=(-3 if at_right else 3, 3),
            textcoords="offset points",
            horizontalalignment="right" if at_right else "left",
            fontsize=SMALL,
            fontweight="bold",
            color=BLUE,
            path_effects=_GLOBAL.effects(),
        )
    margin = 0.015 * width  # room for the outline of a box on the image's edge
    axis.set_xlim(-margin, width + margin)
    axis.set_ylim(height + margin, -margin)
    picture_only(axis)


def _box(axis: Axes, box: list[float], pen: _Pen) -> None:
    top, left, height, width = box
    axis.add_patch(
        Rectangle(
            (left, top),
            width,
            height,
            fill=False,
            edgecolor=pen.colour,
            linewidth=pen.width,
            path_effects=pen.effects(),
        )
    )


def _key(label: str, pen: _Pen) -> Line2D:
    return Line2D([], [], color=pen.colour, linewidth=pen.width, path_effects=pen.effects(), label=label)


def _view(axis: Axes, view: NDArray[np.float32], task: Task, number: int, row: int) -> None:
    axis.imshow(view, interpolation="bicubic")
    picture_only(axis)
    hidden = task.masks.hidden[number, row]
    side = math.isqrt(len(hidden))
    patch = len(view) / side
    places = hidden.nonzero().flatten().tolist()
    for place in places:
        top, left = place // side * patch, place % side * patch
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), patch, patch, **_HIDDEN))  # pixel 0 is centred on 0
    words = [f"{len(places)} of {len(hidden)} hidden" if places else "nothing hidden"]
    if task.global_views.flips[number, row]:
        words.append("mirrored")
    axis.set_xlabel(", ".join(words), fontsize=SMALL - 1, color=FAINT, labelpad=2)
