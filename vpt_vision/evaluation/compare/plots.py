"""The two pictures of a comparison: what every seed gave, and every difference with its interval."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vpt_vision.evaluation.compare.contrasts import per_image, primary, secondary, title_of
from vpt_vision.evaluation.compare.spec import MATCHED
from vpt_vision.evaluation.compare.study import Study, is_higher_better
from vpt_vision.evaluation.pictures.style import BLUE, FAINT, INK, PALETTE, SMALL, new_figure
from vpt_vision.evaluation.result import KINDS


def seeds_plot(study: Study) -> Figure:
    """The primary metric of every row by seed, a line for each seed, at the primary budget."""
    question = study.spec.primary
    rows = [row for row in study.rows if row.match in (question.match, None)]
    values = {row.name: _scale(question.metric) * per_image(row, question.metric).mean(1) for row in rows}
    figure = new_figure(7.0, 1.2 + 0.45 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(values))
    for number, seed in enumerate(study.spec.seeds):
        of_seed = [figures[number] for figures in values.values()]
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(of_seed, places, color=colour, alpha=0.35, linewidth=1)
        axes.plot(of_seed, places, "o", color=colour, markersize=5, label=f"seed {seed}")
    means = [figures.mean() for figures in values.values()]
    axes.plot(means, places, "|", color=INK, markersize=16, markeredgewidth=2)
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    better = "right" if is_higher_better(question.metric) else "left"
    label = f"{title_of(study, question.metric)}{_unit(question.metric)}"
    axes.set_xlabel(f"{label}\n(better to the {better})", fontsize=SMALL, color=INK)
    _clean(axes)
    return figure


def seeds_alt(study: Study) -> str:
    """What `seeds_plot` shows, in words."""
    question = study.spec.primary
    parts = []
    for row in study.rows:
        if row.match in (question.match, None):
            values = _scale(question.metric) * per_image(row, question.metric).mean(1)
            parts.append(f"{row.name} {values.mean():.4g} (seeds {values.min():.4g} to {values.max():.4g})")
    return f"{title_of(study, question.metric)} by row and seed: {'; '.join(parts)}."


def differences_plot(study: Study) -> Figure:
    """Every difference in the primary metric with its 95 % interval; the primary one in blue."""
    metric = study.spec.primary.metric
    first = primary(study)
    contrasts = [first, *(each for each in secondary(study) if each.metric == metric)]
    figure = new_figure(7.0, 1.0 + 0.42 * len(contrasts))
    axes = figure.subplots()
    for place, each in enumerate(contrasts):
        mean, low, high = (_scale(metric) * bound for bound in each.difference.interval)
        colour = BLUE if each is first else INK
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(mean, place, "o", color=colour, markersize=6)
    axes.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    labels = [f"{each.arm} − {each.against}\n{MATCHED[each.match]}" for each in contrasts]
    axes.set_yticks(range(len(contrasts)), labels)
    axes.invert_yaxis()
    better = "right" if is_higher_better(metric) else "left"
    unit = " (points)" if KINDS[metric.partition(".")[2]].unit == "%" else _unit(metric)
    label = f"difference in {title_of(study, metric)}{unit}".replace(": ", ":\n")  # the plot is narrow
    axes.set_xlabel(f"{label}\n(better to the {better})", fontsize=SMALL, color=INK)
    _clean(axes)
    return figure


def differences_alt(study: Study) -> str:
    """What `differences_plot` shows, in words."""
    first = primary(study)
    return (
        f"Differences in {title_of(study, first.metric)} with 95 % intervals, the primary one ({first.arm} − "
        f"{first.against}) first; the tables hold the same numbers."
    )


def _scale(metric: str) -> float:
    return 100.0 if KINDS[metric.partition(".")[2]].unit == "%" else 1.0


def _unit(metric: str) -> str:
    unit = KINDS[metric.partition(".")[2]].unit
    return f", {unit}" if unit else ""


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.8)
    axes.tick_params(axis="y", length=0, labelsize=SMALL, colors=INK)
    axes.tick_params(axis="x", labelsize=SMALL, colors=INK)
    axes.margins(y=0.08)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            fontsize=SMALL - 1, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
