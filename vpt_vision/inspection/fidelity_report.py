"""How a measured fidelity is told: tables, JSON, a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vpt_vision.evaluation.pictures.scatter import Panel, scatter
from vpt_vision.feedback import Split
from vpt_vision.inspection.fidelity import (
    CONTROL,
    HEADLINE,
    HERE,
    PLAIN,
    RUNS_READING,
    WHOLE,
    Fidelity,
    Reading,
    Series,
)
from vpt_vision.value.correlation import Correlation, Numbers, pearson, spearman


@dataclass(frozen=True)
class FidelityReport:
    """What is printed of a `Fidelity`: a table for each feedback task, and what it means."""

    fidelity: Fidelity

    def summary(self) -> dict[str, object]:
        """What `--json` prints; null where predictions or changes did not vary."""
        fidelity = self.fidelity
        headline = {name: fidelity.of(name, HEADLINE) for name in fidelity.tasks}
        return {
            "step": fidelity.step,
            "learning_rate": fidelity.learning_rate,
            "tasks_sampled": len(fidelity.series[0].predicted),
            "policies_sampled": fidelity.policies,
            "pearson": {name: _number(series.pearson().value) for name, series in headline.items()},
            "spearman": {name: _number(series.spearman().value) for name, series in headline.items()},
            "pearson_heldout": {
                name: _number(series.pearson("heldout").value) for name, series in headline.items()
            },
            "pearson_all_moved": self._pearson(WHOLE),
            "pearson_u_here": self._pearson(HEADLINE._replace(u=HERE)),
            "pearson_u_of_run": self._pearson(RUNS_READING),
            "pearson_sgd": self._pearson(PLAIN),
            "pearson_permuted": {
                task: [_number(series.pearson().value) for series in self._of(task, CONTROL)]
                for task in fidelity.tasks
            },
            "readings": [
                {
                    "task": series.task,
                    **series.reading._asdict(),
                    **{
                        f"{statistic.__name__}_{split}": [
                            _number(x) for x in statistic(series.predicted, change)
                        ]
                        for statistic in (pearson, spearman)
                        for split, change in series.realised.items()
                    },
                }
                for series in fidelity.series
            ],
        }

    def _pearson(self, reading: Reading) -> dict[str, float | None]:
        """Each task's correlation on meta; tasks without that reading are left out."""
        return {
            task: _number(series.pearson().value)
            for task in self.fidelity.tasks
            for series in self._of(task, reading)
        }

    def _of(self, task: str, reading: Reading) -> list[Series]:
        """One of most readings, none where it was not taken, one for each permutation of the control."""
        return [series for series in self.fidelity.series if (series.task, series.reading) == (task, reading)]

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        for task in self.fidelity.tasks:
            table = Table(title=f"{task}: predicted and realised change of L_down", header_style="bold")
            table.add_column("step and prediction")
            for name in ("Pearson, meta", "Spearman, meta", "Pearson, held out", "slope"):
                table.add_column(name, justify="right")
            of_task = [series for series in self.fidelity.series if series.task == task]
            for series in of_task:
                if series.reading != CONTROL:
                    table.add_row(*_row(series))
            if controls := self._of(task, CONTROL):
                table.add_row(*_control_row(controls))
            parts.append(table)
        return Group(*parts, Text(self._note(), style="dim"))

    def draw(self, path: Path) -> None:
        """Draw scatter plots for each feedback task, on meta and on held-out examples, to a PNG."""
        rows = []
        for task in self.fidelity.tasks:
            partial, whole = self.fidelity.of(task, HEADLINE), self.fidelity.of(task, WHOLE)
            rows.append(
                [
                    _panel(f"{task}: θ_S moved, meta", partial, "meta"),
                    _panel(f"{task}: θ_S moved, held out", partial, "heldout"),
                    _panel(f"{task}: all moved, meta", whole, "meta"),
                ]
            )
        scatter(
            rows,
            path,
            title=f"Change of L_down over one AdamW step, from step {self.fidelity.step}",
            x="predicted: -⟨P u, g⟩",
            y="realised",
        )

    def _note(self) -> str:
        fidelity = self.fidelity
        policy = "of its own, under one policy" if fidelity.policies == 1 else "and under a policy of its own"
        return (
            f"{len(fidelity.series[0].predicted)} steps from step {fidelity.step}, each on a batch {policy}, "
            f"at learning rate {fidelity.learning_rate:g}. Predicted is -⟨P u, g⟩ over the parameters that "
            f"are moved unless said otherwise; θ_S are the last {fidelity.tail_blocks} blocks and the final "
            "norm. Momentum and weight decay move every step alike and are left out of the prediction; u is "
            "taken where they lead, or here, where the learner stands. Brackets hold bootstrap 95 % "
            "intervals over the steps. Slope is realised change per unit of predicted change, 1 where the "
            "first order is all there is."
        )


def _panel(title: str, series: Series, split: Split) -> Panel:
    return Panel(title, series.predicted, series.realised[split], f"Pearson {series.pearson(split)}")


def _name(reading: Reading) -> str:
    over = "" if reading.moved == reading.predicted_over else f" over {reading.predicted_over}"
    return f"{reading.optimiser}, {reading.moved} moved; u{over}: {reading.u}"


def _row(series: Series) -> list[str]:
    correlations = (series.pearson(), series.spearman(), series.pearson("heldout"))
    return [
        _name(series.reading),
        *(str(correlation).replace(" [", "\n[") for correlation in correlations),
        f"{_slope(series.predicted, series.realised['meta']):.2f}",
    ]


def _control_row(controls: list[Series]) -> list[str]:
    """Means over permuted-label u's, with their deviations."""

    def over(statistic: Callable[[Series], Correlation]) -> str:
        values = np.array([statistic(series).value for series in controls])
        return f"{values.mean():+.2f} ± {values.std(ddof=1) if len(values) > 1 else math.nan:.2f}"

    return [
        f"{_name(controls[0].reading)}, {len(controls)} times",
        over(Series.pearson),
        over(Series.spearman),
        over(lambda series: series.pearson("heldout")),
        "",
    ]


def _slope(predicted: Numbers, realised: Numbers) -> float:
    """Of realised on predicted, by least squares; NaN where predictions do not vary."""
    centred = predicted - predicted.mean()
    square = float((centred**2).sum())
    return float((centred * realised).sum()) / square if square else math.nan


def _number(value: float) -> float | None:
    """A number as JSON has it: no NaN."""
    return value if math.isfinite(value) else None
