"""The page's plots: a small one for each figure of the log, and where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from vpt_vision.evaluation.html import inline_svg
from vpt_vision.evaluation.pictures.curves import (
    COLLAPSE,
    LOSS,
    PROGRESS,
    TASK,
    TERMS,
    Panel,
    Records,
    designer_panels,
    draw,
    online_panels,
    series,
    there,
)
from vpt_vision.evaluation.pictures.style import FAINT, INK, PALETTE, SMALL, new_figure
from vpt_vision.evaluation.run_report.history import History
from vpt_vision.training.step_timer import PHASES


def groups(logs: Mapping[str, Records]) -> dict[str, list[Markup]]:
    """A title and small plots for each group of figures that any of the runs' logs (name → lines) has."""
    records = list(logs.values())
    found = {
        "Losses": there([LOSS, *TERMS], records),
        "Collapse": there(COLLAPSE, records),
        "Task": there(TASK, records),
        "Designer and feedback": designer_panels(records),
        "Probes during training": online_panels(records),
        "Progress": there(PROGRESS, records),
    }
    return {title: [_plot(panel, logs) for panel in panels] for title, panels in found.items() if panels}


def _plot(panel: Panel, logs: Mapping[str, Records]) -> Markup:
    figure = new_figure(4.2, 2.2)
    draw(figure.subplots(), panel, logs)
    return inline_svg(figure, in_words(panel, logs))


def in_words(panel: Panel, logs: Mapping[str, Records]) -> str:
    """What a plot shows: where each line begins and ends."""
    told = []
    for name, records in logs.items():
        for number, key in enumerate(panel.figures):
            _, values = series(records, key)
            if len(values):
                which = f", {panel.labels[number]}" if panel.labels else ""
                told.append(f"{name}{which} from {values[0]:.4g} to {values[-1]:.4g}")
    return f"{panel.title}: {'; '.join(told)}."


def breakdown(histories: Sequence[History]) -> Markup | None:
    """Bars of the mean milliseconds of a step by phase, a bar for each run; None where none is timed."""
    means = {
        phase: np.nan_to_num([1000 * history.phase_seconds(phase) for history in histories])
        for phase in PHASES
    }
    if not any(times.any() for times in means.values()):
        return None
    figure = new_figure(4.8, 1.5 + 0.4 * len(histories))
    axes = figure.subplots()
    left = np.zeros(len(histories))
    for number, (phase, meaning) in enumerate(PHASES.items()):
        if means[phase].any():
            axes.barh(
                range(len(histories)),
                means[phase],
                left=left,
                height=0.6,
                color=PALETTE[number],
                label=meaning,
            )
            left = left + means[phase]
    axes.set_yticks(range(len(histories)), [history.name for history in histories])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a step", fontsize=SMALL, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(labelsize=SMALL, colors=INK)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    return inline_svg(figure, "Milliseconds of a step by phase and run, as the table below has them.")
