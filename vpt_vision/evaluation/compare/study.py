"""A comparison from beginning to end; whatever is done already is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare.runs import Measured, Runs, Stopped
from vpt_vision.evaluation.compare.spec import (
    FINE_TUNED,
    MATCHED,
    START,
    ArmConfig,
    ComparisonSpec,
    Match,
    run_config,
)
from vpt_vision.evaluation.result import KINDS, ProbeResult

MATCHED_FILE = "matched.json"


@dataclass(frozen=True)
class Row:
    """One line of the comparison's table: what all seeds measured."""

    name: str
    match: Match | None  # None for what no budget changes: the start and the control
    measured: tuple[Measured, ...]  # one for each seed, in the spec's order


@dataclass(frozen=True)
class Choice:
    """What validation said of one candidate of an arm's settings."""

    arm: str
    settings: tuple[str, ...]
    figures: tuple[float, ...]  # the primary metric on the validation images, one for each selection seed
    picked: bool


@dataclass(frozen=True, eq=False)  # known by identity, so that what is made of it can be kept
class Study:
    """All that a comparison measured."""

    spec: ComparisonSpec
    rows: tuple[Row, ...]
    starts: Mapping[str, str]  # the row of each arm's start, by the arm's name
    choices: tuple[Choice, ...]
    labels: int | None  # how many the control had to spend
    budget_seconds: float | None  # of training, where arms were matched by it

    def row(self, name: str, match: Match | None) -> Row:
        """The row of that name at that budget; the start's and the control's at any."""
        return next(row for row in self.rows if row.name == name and row.match in (match, None))


def run_comparison(spec: ComparisonSpec) -> Study | int:
    """Train, probe and read back all that `spec` asks for.

    A kill at any moment loses at most what is since the run's last checkpoint; the same call goes on. Seeds
    take turns, and arms within them, so that a machine that slows down slows all arms alike.

    Returns:
        The study, or the number of the signal that ended a run early.

    Raises:
        UserError: where a config, the data or the output folder cannot be used.
    """
    runs = Runs(spec)
    runs.check()
    runs.folder.mkdir(parents=True, exist_ok=True)
    described = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (runs.folder / "spec.yaml").write_text(described, encoding="utf-8")
    try:
        return _Comparison(spec, runs).study()
    except Stopped as stop:
        return stop.number


class _Comparison:
    def __init__(self, spec: ComparisonSpec, runs: Runs) -> None:
        self.spec = spec
        self.runs = runs
        self.choices: list[Choice] = []
        self.chosen: dict[str, tuple[str, ...]] = {}

    def study(self) -> Study:
        spec = self.spec
        start_of, starts = self._starts()
        for arm in spec.arms:
            self.chosen[arm.name] = self._choose(arm)
        rows: list[Row] = []
        for match in sorted(spec.match, key=list(MATCHED).index):  # seconds last: earlier runs tell speeds
            steps = self._steps(match)
            measured: dict[str, list[Measured]] = {arm.name: [] for arm in spec.arms}
            for seed in spec.seeds:
                for arm in spec.arms:
                    measured[arm.name].append(self._trained(arm, steps[arm.name], seed))
            rows += [Row(name, match, tuple(of_seeds)) for name, of_seeds in measured.items()]
        controls = self._controls()
        return Study(
            spec,
            (*starts, *rows, *controls),
            start_of,
            tuple(self.choices),
            labels=self.runs.labels() if controls else None,
            budget_seconds=_read(self.runs.folder / MATCHED_FILE).get("seconds"),
        )

    def _trained(self, arm: ArmConfig, steps: int, seed: int) -> Measured:
        return self.runs.trained(arm, self.chosen[arm.name], steps, seed)

    def _starts(self) -> tuple[dict[str, str], list[Row]]:
        """The rows of step 0, and which one each arm has: arms that begin alike share one."""
        spec, primary = self.spec, self.spec.primary.arm
        keys = {arm.name: tuple(self.runs.start_key(arm, seed) for seed in spec.seeds) for arm in spec.arms}
        names = {keys[primary]: START}
        rows: list[Row] = []
        for name in (primary, *keys):
            row = names.setdefault(keys[name], f"{START} of {name}")
            if row not in {known.name for known in rows}:
                measured = tuple(self.runs.start(spec.arm(name), seed) for seed in spec.seeds)
                rows.append(Row(row, None, measured))
        figure_of(rows[0].measured[0], spec.primary.metric)  # refuses a metric that there is not, in time
        return {name: names[key] for name, key in keys.items()}, rows

    def _controls(self) -> list[Row]:
        if self.spec.controls is None:
            return []
        measured = []
        for seed in self.spec.seeds:
            measured.append(self.runs.fine_tuned(self.chosen[self.spec.primary.arm], seed))
        return [Row(FINE_TUNED, None, tuple(measured))]

    def _choose(self, arm: ArmConfig) -> tuple[str, ...]:
        """The candidate whose mean primary figure over the selection seeds is best on validation images."""
        candidates = arm.candidates()
        if len(candidates) == 1:
            return candidates[0]
        selection = self.spec.selection
        assert selection is not None, "the spec asks for it where there is something to choose"
        steps = run_config(self.spec, self.spec.arm(self.spec.reference)).steps
        figures: dict[tuple[str, ...], tuple[float, ...]] = {}
        for seed in selection.seeds:
            for candidate in candidates:
                measured = self.runs.trained(arm, candidate, steps, seed, validation=True)
                figure = figure_of(measured, self.spec.primary.metric)
                figures[candidate] = (*figures.get(candidate, ()), figure)
        sign = -1 if is_higher_better(self.spec.primary.metric) else 1
        best = min(candidates, key=lambda candidate: sign * sum(figures[candidate]))
        self.choices += [
            Choice(arm.name, candidate, figures[candidate], candidate == best) for candidate in candidates
        ]
        return best

    def _steps(self, match: Match) -> dict[str, int]:
        """Learner updates of each arm at one budget."""
        spec = self.spec
        reference = run_config(spec, spec.arm(spec.reference))
        if match == "updates":
            return {arm.name: reference.steps for arm in spec.arms}
        if match == "images":
            images = reference.steps * reference.batch_size
            batches = {arm.name: run_config(spec, arm, self.chosen[arm.name]).batch_size for arm in spec.arms}
            return {name: max(1, round(images / batch)) for name, batch in batches.items()}
        return self._steps_in_equal_time(reference.steps)

    def _steps_in_equal_time(self, steps: int) -> dict[str, int]:
        """Steps that each arm takes in the seconds of training that the reference takes for `steps`.

        From the speed of its runs of `steps`: those of every seed where arms are matched by updates too,
        else one of the first seed. Once found they are kept, so that a comparison that goes on does not
        measure anew.
        """
        spec, path = self.spec, self.runs.folder / MATCHED_FILE
        kept = _read(path)
        if kept.get("reference_steps") == steps and kept["steps"].keys() >= {arm.name for arm in spec.arms}:
            return dict(kept["steps"])
        seeds = spec.seeds if "updates" in spec.match else spec.seeds[:1]
        seconds = {
            arm.name: sum(self._trained(arm, steps, seed).seconds for seed in seeds) / len(seeds)
            for arm in spec.arms
        }
        budget = seconds[spec.reference]
        matched = {name: max(1, round(steps * budget / taken)) for name, taken in seconds.items()}
        path.write_text(
            json.dumps({"reference_steps": steps, "seconds": budget, "steps": matched}), encoding="utf-8"
        )
        return matched


def result_of(measured: Measured, metric: str) -> ProbeResult:
    """The probe that a metric named probe.figure speaks of."""
    return measured.results[metric.partition(".")[0]]


def figure_of(measured: Measured, metric: str) -> float:
    """A metric over all test images; raises `UserError` where its probe has no such figure."""
    result, name = result_of(measured, metric), metric.partition(".")[2]
    if name not in result.figures:
        raise UserError(
            f"{metric}: the probe has no such figure; it has {', '.join(sorted(result.figures))}."
        )
    figure = result.figures[name]
    return float(figure.of(np.ones((1, len(figure))))[0])


def is_higher_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return KINDS[metric.partition(".")[2]].higher_is_better


def _read(path: Path) -> dict[str, Any]:
    """A small JSON file; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
