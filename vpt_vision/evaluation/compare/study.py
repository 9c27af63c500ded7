"""A comparison from beginning to end; whatever is done already is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare.runs import Measured, Runs, Stopped
from vpt_vision.evaluation.compare.shared import Work, shared
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
from vpt_vision.files import writing

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
    take turns, and arms within them, so that a machine that slows down slows all arms alike. Several
    processes that call this for one spec share its runs among them, and all return the whole study; arms
    that are matched by seconds then want the same share of a machine for each process.

    Returns:
        The study, or the number of the signal that ended a run early.

    Raises:
        UserError: where a config, the data or the output folder cannot be used.
    """
    runs = Runs(spec)
    runs.check()
    runs.folder.mkdir(parents=True, exist_ok=True)
    described = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with writing(runs.folder / "spec.yaml") as part:
        part.write_text(described, encoding="utf-8")
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
        self.budget_seconds: float | None = None

    def study(self) -> Study:
        spec = self.spec
        start_of, starts = self._starts()
        for arm in spec.arms:
            self.chosen[arm.name] = self._choose(arm)
        rows: list[Row] = []
        for match in sorted(spec.match, key=list(MATCHED).index):  # seconds last: earlier runs tell speeds
            steps = self._steps(match)
            order = [(arm, seed) for seed in spec.seeds for arm in spec.arms]
            measured = self._trained([(arm, steps[arm.name], seed) for arm, seed in order])
            rows += [
                Row(arm.name, match, tuple(measured[number :: len(spec.arms)]))
                for number, arm in enumerate(spec.arms)
            ]
        controls = self._controls()
        return Study(
            spec,
            (*starts, *rows, *controls),
            start_of,
            tuple(self.choices),
            labels=self.runs.labels() if controls else None,
            budget_seconds=self.budget_seconds,
        )

    def _trained(self, asked: Sequence[tuple[ArmConfig, int, int]]) -> list[Measured]:
        """Train arms for so many steps by a seed each."""
        return self._shared([self.runs.trained(arm, self.chosen[arm.name], *rest) for arm, *rest in asked])

    def _shared(self, works: Sequence[Work[Measured]]) -> list[Measured]:
        return shared(works, self.runs.folder / "locks")

    def _starts(self) -> tuple[dict[str, str], list[Row]]:
        """The rows of step 0, and which one each arm has: arms that begin alike share one."""
        spec, primary = self.spec, self.spec.primary.arm
        keys = {arm.name: tuple(self.runs.start_key(arm, seed) for seed in spec.seeds) for arm in spec.arms}
        names = {keys[primary]: START}
        rows: list[Row] = []
        for name in (primary, *keys):
            row = names.setdefault(keys[name], f"{START} of {name}")
            if row not in {known.name for known in rows}:
                measured = self._shared([self.runs.start(spec.arm(name), seed) for seed in spec.seeds])
                rows.append(Row(row, None, tuple(measured)))
        figure_of(rows[0].measured[0], spec.primary.metric)  # refuses a metric that there is not, in time
        return {name: names[key] for name, key in keys.items()}, rows

    def _controls(self) -> list[Row]:
        if self.spec.controls is None:
            return []
        chosen = self.chosen[self.spec.primary.arm]
        measured = self._shared([self.runs.fine_tuned(chosen, seed) for seed in self.spec.seeds])
        return [Row(FINE_TUNED, None, tuple(measured))]

    def _choose(self, arm: ArmConfig) -> tuple[str, ...]:
        """The candidate whose mean primary figure over the selection seeds is best on validation images."""
        candidates = arm.candidates()
        if len(candidates) == 1:
            return candidates[0]
        selection = self.spec.selection
        assert selection is not None, "the spec asks for it where there is something to choose"
        steps = run_config(self.spec, self.spec.arm(self.spec.reference)).steps
        measured = self._shared(
            [
                self.runs.trained(arm, candidate, steps, seed, validation=True)
                for seed in selection.seeds
                for candidate in candidates
            ]
        )
        of_runs = [figure_of(run, self.spec.primary.metric) for run in measured]
        figures = {
            candidate: tuple(of_runs[number :: len(candidates)])
            for number, candidate in enumerate(candidates)
        }
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
        else one of the first seed. Once found they are kept while no arm's config changes, so that seeds
        can be added without training all others anew.
        """
        spec, path = self.spec, self.runs.folder / MATCHED_FILE
        arms = {arm.name: self.runs.fingerprint(arm, self.chosen[arm.name]) for arm in spec.arms}
        kept = _read(path)
        if (kept.get("reference"), kept.get("arms")) != ([spec.reference, steps], arms):
            seeds = spec.seeds if "updates" in spec.match else spec.seeds[:1]
            runs = self._trained([(arm, steps, seed) for arm in spec.arms for seed in seeds])
            seconds = {
                arm.name: sum(run.seconds for run in runs[number * len(seeds) :][: len(seeds)]) / len(seeds)
                for number, arm in enumerate(spec.arms)
            }
            budget = seconds[spec.reference]
            matched = {name: max(1, round(steps * budget / taken)) for name, taken in seconds.items()}
            kept = {"reference": [spec.reference, steps], "arms": arms, "seconds": budget, "steps": matched}
            with writing(path) as part:
                part.write_text(json.dumps(kept), encoding="utf-8")
        self.budget_seconds = kept["seconds"]
        return dict(kept["steps"])


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
    """What was kept in `path`; empty where there is nothing, or something damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
