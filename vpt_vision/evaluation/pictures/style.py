"""How every picture looks: one palette, one type size, one way to a file."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vpt_vision.files import writing

# Okabe & Ito's palette (2008), told apart under every common colour blindness; yellow is left out because
# it does not stand out from a white page.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, FAINT = "#222222", "#8A8A8A"
TITLE, TEXT, SMALL = 13, 10, 8.5  # points


def new_figure(width: float, height: float) -> Figure:
    """Make a white figure of `width` × `height` inches, drawn by Agg whatever the machine's display."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def wide_enough(title: str, least: float) -> float:
    """Width in inches of a figure that is at least as wide as its title."""
    return max(least, 0.4 + 0.118 * len(title))


def picture_only(axes: Axes) -> None:
    """Take ticks and frame off `axes` that show an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as a PNG, making its folder; raises `UserError` where it cannot."""
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=150)
