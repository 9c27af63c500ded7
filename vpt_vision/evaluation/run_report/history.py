"""What a run's folder tells of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpt_vision.config import RunConfig, load_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures.curves import Floats, series
from vpt_vision.training.collapse import CollapseVerdict
from vpt_vision.training.environment import read_environment
from vpt_vision.training.log import METRICS_FILE, read_log
from vpt_vision.training.run_folder import CONFIG_FILE


@dataclass(frozen=True)
class History:
    """One run as its files tell it."""

    name: str  # as the page calls it: different for each run
    folder: Path
    config: RunConfig
    records: tuple[dict[str, Any], ...]  # lines of the log, in order; at least one
    starts: tuple[dict[str, Any], ...]  # lines of environment.jsonl

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of the log."""
        return self.records[-1]

    @property
    def is_finished(self) -> bool:
        """Whether the log reaches the last step."""
        return bool(self.last["step"] >= self.config.steps)

    def median(self, figure: str) -> float:
        """Of a figure's values but the first line's, which hold what happens once; NaN for none."""
        values = self._typical(figure)
        return float(np.median(values)) if len(values) else math.nan

    def phase_seconds(self, phase: str) -> float:
        """Mean seconds of a step that a phase takes, likewise; NaN where it never came.

        A line without the phase had none of it: a value step comes but every few steps.
        """
        timed = [record for record in self.records if "seconds/forward" in record]
        seconds = [record.get(f"seconds/{phase}") or 0.0 for record in (timed[1:] or timed)]
        return sum(seconds) / len(seconds) if any(seconds) else math.nan

    def step_seconds(self) -> float:
        """Of a whole step, the mean; NaN where it was not timed."""
        rates = self._typical("images_per_second")
        return float((self.config.batch_size / rates).mean()) if len(rates) else math.nan

    def _typical(self, figure: str) -> Floats:
        _, values = series(self.records, figure)
        return values[1:] if len(values) > 1 else values

    def collapses(self) -> list[str]:
        """What was said of collapse, with the step at which it was, in order."""
        verdict = CollapseVerdict(self.config.steps)
        said = ((record["step"], verdict.take(record)) for record in self.records)
        return [f"step {step:,}: {sentence}" for step, sentence in said if sentence is not None]

    @property
    def is_collapsed(self) -> bool:
        """Whether the learner is collapsed as of the last line."""
        verdict = CollapseVerdict(self.config.steps)
        for record in self.records:
            verdict.take(record)
        return verdict.collapsed


def read_histories(folders: Sequence[Path]) -> list[History]:
    """Read runs, and give each a name: the part of its path that tells it from the others.

    Raises:
        UserError: a folder holds no run or no logged step, or is named twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice: name each once.")
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _read(folder: Path, name: str) -> History:
    stored = folder / CONFIG_FILE
    if not stored.is_file():
        raise UserError(f"{folder} holds no run: name a run's output folder.")
    records = read_log(folder / METRICS_FILE)
    return History(name, folder, load_config(stored), tuple(records), tuple(read_environment(folder)))


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell all apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names
