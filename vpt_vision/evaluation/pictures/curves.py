"""Loss and value of one or more runs against the learner's step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures.style import FAINT, INK, PALETTE, SMALL, TEXT, TITLE, new_figure, save

_SMOOTHED_FROM = 20  # points below which a running mean would hide more than it shows
_MARKERS = "os^Dv"


class Curve(NamedTuple):
    """One run's logged figures; NaN where a line has none."""

    step: NDArray[np.float64]
    loss: NDArray[np.float64]
    value: NDArray[np.float64]


def curves(runs: Mapping[str, Path], path: Path) -> None:
    """Draw loss, and value where a run has it, from each run's `metrics.jsonl` (label → file) to a PNG.

    Raises `UserError` for a missing file, a line that is no JSON object, or a run with no logged step.
    """
    read = {label: read_curve(file) for label, file in runs.items()}
    panels = {"self-supervised loss": {label: (curve.step, curve.loss) for label, curve in read.items()}}
    with_value = {label: curve for label, curve in read.items() if np.isfinite(curve.value).any()}
    if with_value:
        panels["value of the task"] = {
            label: (curve.step, curve.value) for label, curve in with_value.items()
        }

    figure = new_figure(8.4, 0.9 + 2.6 * len(panels))
    columns = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, lines) in zip(columns, panels.items(), strict=True):
        for number, label in enumerate(read):
            if label in lines:
                _line(axes, *lines[label], label=label, number=number)
        axes.set_title(name, loc="left", fontsize=TEXT + 1, color=INK)
        _clean(axes)
    if with_value:
        columns[-1].axhline(0, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        columns[-1].annotate(
            "above 0: the task is predicted to lower the downstream loss",
            (0.995, 1.03),
            xycoords="axes fraction",
            horizontalalignment="right",
            fontsize=SMALL,
            color=FAINT,
        )
    columns[0].legend(loc="best", frameon=False, fontsize=TEXT)
    columns[-1].set_xlabel("learner step", fontsize=TEXT, color=INK)
    if any(len(curve.step) >= _SMOOTHED_FROM for curve in read.values()):
        figure.supxlabel("thin: as logged; thick: running mean", fontsize=SMALL, color=FAINT)
    figure.suptitle("Training", fontsize=TITLE, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)


def read_curve(file: Path) -> Curve:
    """Read step, loss and value from a run's `metrics.jsonl`; null and missing figures become NaN."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): name a run that has logged a step."
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            rows.append([float(record["step"]), _figure(record.get("loss")), _figure(record.get("value"))])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{file}, line {number} is not a JSON object with a step and figures: mend or delete it."
            ) from error
    if not rows:
        raise UserError(f"{file} holds no logged step: train for longer, or log more often.")
    step, loss, value = np.array(rows).T
    return Curve(step, loss, value)


def _figure(logged: float | None) -> float:
    return math.nan if logged is None else float(logged)


def _line(
    axes: Axes, step: NDArray[np.float64], figure: NDArray[np.float64], *, label: str, number: int
) -> None:
    finite = np.isfinite(figure)
    step, figure = step[finite], figure[finite]
    colour, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
    smooth = len(step) >= _SMOOTHED_FROM
    if smooth:
        axes.plot(step, figure, color=colour, alpha=0.25, linewidth=0.9)
    axes.plot(
        step,
        _running_mean(figure, max(3, len(figure) // 15)) if smooth else figure,
        color=colour,
        linewidth=1.9,
        marker=marker,
        markersize=5,
        markevery=max(1, len(step) // 8),
        label=label,
    )


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` points, over fewer at the ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, mode="same") / np.convolve(np.ones_like(values), ones, mode="same")


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL + 0.5, colors=INK)
