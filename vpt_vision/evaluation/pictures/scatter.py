"""Scatter plots of pairs: what was foretold against what came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vpt_vision.evaluation.pictures.style import BLUE, FAINT, INK, SMALL, TEXT, TITLE, new_figure, save


class Panel(NamedTuple):
    """One plot of N pairs."""

    title: str
    x: NDArray[np.float64]  # [N]
    y: NDArray[np.float64]  # [N]
    note: str


def scatter(rows: Sequence[Sequence[Panel]], path: Path, *, title: str, x: str, y: str) -> None:
    """Draw rows of equally many panels to a PNG, axes named `x` and `y`.

    A broken line of slope 1 runs through each panel's mean: there points lie that were foretold but for a
    common amount.
    """
    figure = new_figure(3.4 * len(rows[0]), 0.8 + 3.0 * len(rows))
    for line, axes_of_line in zip(rows, figure.subplots(len(rows), len(rows[0]), squeeze=False), strict=True):
        for panel, axes in zip(line, axes_of_line, strict=True):
            _draw(axes, panel)
        axes_of_line[0].set_ylabel(y, fontsize=TEXT, color=INK)
    figure.supxlabel(f"{x}; broken: slope 1", fontsize=TEXT, color=INK)
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    centre = (panel.x.mean(), panel.y.mean())
    axes.axline(centre, slope=1, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.scatter(panel.x, panel.y, s=18, color=BLUE, alpha=0.7, linewidths=0)
    for axis, values in (("x", panel.x), ("y", panel.y)):
        low, high = values.min(), values.max()
        room = 0.06 * (high - low) or 1.0
        getattr(axes, f"set_{axis}lim")(low - room, high + room)
    axes.set_title(panel.title, loc="left", fontsize=TEXT, color=INK)
    axes.annotate(
        panel.note, (0.03, 0.95), xycoords="axes fraction", verticalalignment="top", fontsize=SMALL, color=INK
    )
    axes.ticklabel_format(style="sci", scilimits=(-2, 3), useMathText=True)
    axes.locator_params(nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, colors=INK)
