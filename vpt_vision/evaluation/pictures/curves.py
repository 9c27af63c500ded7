"""What runs logged, against the learner's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vpt_vision.evaluation.pictures.style import FAINT, INK, PALETTE, SMALL, TEXT, TITLE, new_figure, save
from vpt_vision.training.log import read_log

_SMOOTHED_FROM = 20  # points below which a running mean would hide more than it shows
_MOST = 600  # points of a line: a picture shows no more, and a page need not hold them
_DASHES: tuple[str, str] = ("-", "--")  # of the first and the second figure of a panel

Records = Sequence[Mapping[str, Any]]  # lines of a log, in order
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One plot: one figure of the log, or two that are read beside each other."""

    title: str
    figures: tuple[str, ...]  # keys of the log
    labels: tuple[str, ...] = ()  # what tells two figures apart
    zero: bool = False  # whether 0 means something and is marked
    note: str = ""


LOSS = Panel("self-supervised loss", ("loss",))
TERMS = (
    Panel("DINO", ("dino",)),
    Panel("iBOT", ("ibot",)),
    Panel("KoLeo", ("koleo",)),
    Panel("Gram", ("gram",)),
    Panel("gradient norm before clipping", ("gradient_norm",)),
)
COLLAPSE = (
    Panel("information in targets, nats", ("collapse/information",), zero=True),
    Panel("RankMe of class tokens", ("collapse/rankme",)),
    Panel("deviation per dimension (1: spread evenly)", ("collapse/deviation",), zero=True),
    Panel("teacher entropy, nats", ("collapse/teacher_entropy",), zero=True),
    Panel("prototypes in use", ("collapse/prototypes",)),
)
PROGRESS = (
    Panel("images per second", ("images_per_second",)),
    Panel("share of time waiting for images", ("data_wait",), zero=True),
    Panel("learning rate", ("learning_rate",)),
    Panel("teacher's momentum", ("momentum",)),
    Panel("teacher's temperature", ("teacher_temperature",)),
    Panel("peak memory of the process, MB", ("peak_host_memory_mb",)),
)
TASK = (
    Panel(
        "share of the image in a crop, mean", ("task/global_scale", "task/local_scale"), ("global", "local")
    ),
    Panel("share of a masked view's patches that are hidden, mean", ("task/mask_ratio",), zero=True),
)
_MEASURED = ("meta", "held-out")


def designer_panels(logs: Sequence[Records]) -> list[Panel]:
    """What is logged of designer and feedback, as far as any of `logs` has figures for it."""
    logged = {key for records in logs for record in records for key in record}

    def each(prefix: str, make: Callable[[str], Panel]) -> list[Panel]:
        return [make(key.removeprefix(prefix)) for key in sorted(logged) if key.startswith(prefix)]

    panels = [
        Panel(
            "value of the task",
            ("value", "heldout/value"),
            _MEASURED,
            zero=True,
            note="above 0: predicted to lower the downstream loss",
        ),
        Panel("cosine of u and the learner's gradient", ("cosine", "heldout/cosine"), _MEASURED, zero=True),
        *each(
            "meta_loss",
            lambda task: Panel(
                f"feedback loss{task.replace('/', ', ')}",
                (f"meta_loss{task}", f"heldout_loss{task}"),
                _MEASURED,
            ),
        ),
        Panel("u's reliability: cosine of two halves", ("u_reliability",), zero=True),
        *each(
            "kl/", lambda surface: Panel(f"KL to the recipe, {surface}, nats", (f"kl/{surface}",), zero=True)
        ),
        *each(
            "entropy/",
            lambda surface: Panel(
                f"entropy less the recipe's, {surface}, nats", (f"entropy/{surface}",), zero=True
            ),
        ),
        Panel("the guard's interventions so far", ("guard/interventions",), zero=True),
        Panel("share of the designer's step that is taken", ("pace",), zero=True),
        Panel("designer's gradient norm", ("designer_gradient_norm",)),
    ]
    if "meta_loss" in logged and sum(key.startswith("meta_loss/") for key in logged) == 1:
        panels = [
            panel for panel in panels if not panel.figures[0].startswith("meta_loss/")
        ]  # the same again
    return there(panels, logs)


def online_panels(logs: Sequence[Records]) -> list[Panel]:
    """The probes during training, as far as any of `logs` has them."""
    logged = sorted({key for records in logs for record in records for key in record})
    shown = (key for key in logged if key.startswith("online/") and key != "online/seconds")
    panels = [Panel(key.removeprefix("online/").replace("_", " "), (key,)) for key in shown]
    return there(panels, logs)


def there(panels: Sequence[Panel], logs: Sequence[Records]) -> list[Panel]:
    """Those of `panels` that any of `logs` has figures for."""
    return [
        panel for panel in panels if any(len(series(log, key)[0]) for log in logs for key in panel.figures)
    ]


def series(records: Records, figure: str) -> tuple[Floats, Floats]:
    """Steps and values [n] of the lines in which `figure` stands and is a finite number."""
    found = [
        (record["step"], record[figure])
        for record in records
        if isinstance(record.get(figure), (int, float)) and math.isfinite(record[figure])
    ]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def curves(runs: Mapping[str, Path], path: Path) -> None:
    """Draw loss, task and what there is of designer and feedback of runs (label → `metrics.jsonl`) to a PNG.

    Raises `UserError` as `read_log`.
    """
    logs = {label: read_log(file) for label, file in runs.items()}
    records = list(logs.values())
    panels = [LOSS, *there(TASK, records), *designer_panels(records)]
    columns = 1 if len(panels) <= 2 else 2
    rows = len(panels) if columns == 1 else 1 + math.ceil((len(panels) - 1) / 2)
    figure = new_figure(8.4 if columns == 1 else 10.0, 0.9 + (2.6 if columns == 1 else 2.1) * rows)
    grid = figure.add_gridspec(rows, columns)
    places = [
        grid[0, :],
        *(grid[1 + number // columns, number % columns] for number in range(len(panels) - 1)),
    ]
    drawn = [figure.add_subplot(place) for place in places]
    for axes, panel in zip(drawn, panels, strict=True):
        draw(axes, panel, logs)
    if len(logs) > 1:
        drawn[0].legend(handles=[_key(*each) for each in enumerate(logs)], frameon=False, fontsize=TEXT)
    for axes in drawn[-columns:]:
        axes.set_xlabel("learner step", fontsize=TEXT, color=INK)
    if any(len(log) >= _SMOOTHED_FROM for log in logs.values()):
        figure.supxlabel("thin: as logged; thick: running mean", fontsize=SMALL, color=FAINT)
    title = "Training" if len(logs) > 1 else f"Training: {next(iter(logs))}"
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK, x=0.01, ha="left")
    save(figure, path)


def draw(axes: Axes, panel: Panel, logs: Mapping[str, Records]) -> None:
    """Draw `panel` for each of `logs`, in the colour of its number."""
    shown = [key for key in panel.figures if any(len(series(log, key)[0]) for log in logs.values())]
    for number, log in enumerate(logs.values()):
        for key in shown:
            _line(axes, *series(log, key), PALETTE[number % len(PALETTE)], panel.figures.index(key))
    axes.set_title(panel.title, loc="left", fontsize=TEXT, color=INK)
    if panel.zero:
        axes.axhline(0, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    if len(shown) > 1:
        handles = [
            Line2D([], [], color=INK if len(logs) > 1 else PALETTE[0], linestyle=dash, label=label)  # type: ignore[arg-type]
            for dash, label in zip(_DASHES, panel.labels, strict=True)
        ]
        axes.legend(handles=handles, frameon=False, fontsize=SMALL, labelcolor=INK)
    if panel.note:
        axes.set_xlabel(panel.note, fontsize=SMALL, color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, alpha=0.2, linewidth=0.8)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(SMALL)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6, integer=True)


def _key(number: int, label: str) -> Line2D:
    return Line2D([], [], color=PALETTE[number % len(PALETTE)], linewidth=1.9, label=label)


def _line(axes: Axes, steps: Floats, values: Floats, colour: str, number: int) -> None:
    """A thin line as logged and, where there are many points, a thick one of their running mean."""
    if len(values) < _SMOOTHED_FROM:
        axes.plot(
            steps,
            values,
            color=colour,
            linestyle=_DASHES[number],
            linewidth=1.6,
            marker="os"[number],
            markersize=3,
        )
        return
    mean = _running_mean(values, max(3, len(values) // 15))
    some = np.unique(np.linspace(0, len(values) - 1, _MOST).round().astype(int))
    axes.plot(steps[some], values[some], color=colour, linewidth=0.8, alpha=0.25)
    axes.plot(steps[some], mean[some], color=colour, linestyle=_DASHES[number], linewidth=1.8)


def _running_mean(values: Floats, window: int) -> Floats:
    """Centred mean over `window` points, over fewer at the ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, mode="same") / np.convolve(np.ones_like(values), ones, mode="same")
