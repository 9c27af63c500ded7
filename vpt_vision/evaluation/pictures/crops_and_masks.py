"""What a designer asks of the learner: where it crops, and which patches it hides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
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
# Weights of hidden patches: blue below 1, white at 1, red above, by their logarithm.
_COLOURS = colormaps["RdBu_r"]
_WEIGHTS = LogNorm(0.5, 2.0)
_BAR = 0.6  # height of their key, inches


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
    """Draw each source image with its crop boxes, and its views, with hidden patches of global ones greyed.

    A row for each image, and side by side a block of columns for each entry of `tasks`, so that one
    designer's tasks at two moments can be compared. Views are as the student is shown them: with their
    photometric change, and with what a designer does to pixels. Where the task weighs tokens, a hidden
    patch has the colour of its weight in place of grey; what else it says of the targets stands below the
    source.

    Args:
        images: B of them, on the CPU.
        tasks: title (such as "early") → task of these B images with its views, on the CPU; of several
            versions of the global views the first is drawn.
        path: the PNG file.
        renderer: that of the views.
    """
    rendered = {title: _Pictures.of(refined, renderer) for title, refined in tasks.items()}
    columns = 1 + max(pictures.columns for pictures in rendered.values())
    weighed = any(refined.task.targets.token_weights is not None for refined in tasks.values())
    cell = 1.55
    height = 1.1 + len(images) * (cell + _caption(tasks))
    figure = new_figure(len(tasks) * (columns * cell + 0.3), height + _BAR * weighed)
    parts = figure.subfigures(1 + weighed, 1, squeeze=False, height_ratios=[height, *[_BAR] * weighed])[:, 0]
    blocks = parts[0].subfigures(1, len(tasks), squeeze=False, wspace=0.04)[0]
    for block, (title, refined) in zip(blocks, tasks.items(), strict=True):
        pictures, task = rendered[title], refined.task
        block.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
        rows = block.subplots(len(images), 1 + pictures.columns, squeeze=False)
        for row, (axes, image) in enumerate(zip(rows, images, strict=True)):
            _source(axes[0], image, task, row)
            for view, axis in enumerate(axes[1 : 1 + len(pictures.global_views)]):
                _view(axis, pictures.global_views[view, row], task, view, row)
            if len(pictures.local_views):
                axes[-1].imshow(_tiled(pictures.local_views[:, row]), interpolation="bicubic")
                picture_only(axes[-1])
        rows[0][0].set_title("source", fontsize=TEXT, color=INK)
        for view in range(len(pictures.global_views)):
            rows[0][1 + view].set_title(f"global view {view + 1}", fontsize=TEXT, color=BLUE)
        if len(pictures.local_views):
            rows[0][-1].set_title("local views", fontsize=TEXT, color=ORANGE)
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
    if weighed:
        bar = figure.colorbar(
            ScalarMappable(_WEIGHTS, _COLOURS),
            cax=parts[1].add_axes((0.3, 0.75, 0.4, 0.2)),
            orientation="horizontal",
            ticks=[0.5, 0.7, 1, 1.4, 2],
            format="{x:g}",
        )
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=SMALL - 1)
        bar.set_label("weight of a hidden patch in iBOT's loss", fontsize=SMALL, color=INK)
    save(figure, path)


class _Pictures(NamedTuple):
    """The views of a task as pictures in [0, 1]."""

    global_views: NDArray[np.float32]  # [G, B, S, S, 3]
    local_views: NDArray[np.float32]  # [L, B, s, s, 3]

    @classmethod
    def of(cls, refined: Refined, renderer: Renderer) -> _Pictures:
        views, task = refined.views, refined.task
        mean, std = (torch.tensor(of)[:, None, None] for of in (renderer.mean, renderer.std))
        kinds = (views.global_views[: len(task.global_views.boxes)], views.local_views)
        shown = [(kind.detach() * std + mean).clamp(0, 1).permute(0, 1, 3, 4, 2).numpy() for kind in kinds]
        return cls(*shown)

    @property
    def columns(self) -> int:
        return len(self.global_views) + (len(self.local_views) > 0)


def _tiled(views: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay square views [L, s, s, 3] out in a square of white ground, row by row."""
    count, size = views.shape[:2]
    side = math.ceil(math.sqrt(count))
    gap = max(1, size // 16)
    sheet = np.ones((side * (size + gap) - gap, side * (size + gap) - gap, 3), dtype=views.dtype)
    for number, view in enumerate(views):
        top, left = number // side * (size + gap), number % side * (size + gap)
        sheet[top : top + size, left : left + size] = view
    return sheet


def _caption(tasks: Mapping[str, Refined]) -> float:
    """Height in inches of the words below a source or view."""
    return 0.2 + 0.11 * max(len(_words(refined.task, 0)) for refined in tasks.values())


def _words(task: Task, row: int) -> list[str]:
    """Lines that say what the task's targets ask of one image."""
    targets, lines = task.targets, []
    if targets.sample_weights is not None:
        lines.append(f"image's weight {targets.sample_weights[row]:.2f}")
    if targets.temperature is not None:
        lines.append(f"temperature × {targets.temperature[row]:.2f}")
    if targets.mix is not None:
        dino, ibot, gram = (targets.mix[:, row] / targets.mix[:, row].mean()).tolist()
        # Ratios: by what a term is multiplied hangs on the learner's weights, of which a task knows nothing.
        lines += [f"DINO {dino:.2f} : iBOT {ibot:.2f}", f": Gram {gram:.2f}"]
    return lines


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
    if lines := _words(task, row):
        axis.set_xlabel("\n".join(lines), fontsize=SMALL - 2, color=INK, labelpad=2)


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
    weights = task.targets.token_weights
    for place in places:
        top, left = place // side * patch, place % side * patch
        look = dict(_HIDDEN)
        if weights is not None:
            look["facecolor"] = _COLOURS(_WEIGHTS(weights[number, row, place].item()))
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), patch, patch, **look))  # pixel 0 is centred on 0
    words = [f"{len(places)} of {len(hidden)} hidden" if places else "nothing hidden"]
    if task.global_views.flips[number, row]:
        words.append("mirrored")
    axis.set_xlabel(", ".join(words), fontsize=SMALL - 1, color=FAINT, labelpad=2)
