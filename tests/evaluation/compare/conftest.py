from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vpt_vision.evaluation.compare import load_spec
from vpt_vision.evaluation.compare.runs import Measured
from vpt_vision.evaluation.compare.study import Row, Study
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.training.trainer import Trainer


@pytest.fixture
def write_spec(tiny_settings, tmp_path):
    """Write a spec of two arms of tiny runs, changed by keywords; returns its path."""

    def write(**changes):
        tiny_settings["steps"] = 4
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_settings))
        spec = {
            "output": str(tmp_path / "compared"),
            "config": "run.yaml",
            "seeds": [3, 5],
            "reference": "fixed",
            "arms": [
                {"name": "fixed", "overrides": {"designer": {"kind": "fixed"}, "feedback": None}},
                {"name": "learned"},
            ],
            "primary": {"arm": "learned", "metric": "logistic.cross_entropy", "match": "updates"},
            "controls": None,
            **changes,
        }
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


@pytest.fixture
def study(write_spec):
    """Make a study of made-up figures: the learned arm's cross-entropy is `effect` above the fixed one's."""

    def make(effect, *, seeds=6, images=400, by_seed=0.01, seconds=(10.0, 10.0), match="updates"):
        rng = np.random.default_rng(0)
        primary = {"arm": "learned", "metric": "logistic.cross_entropy", "match": match}
        spec = load_spec(write_spec(seeds=list(range(seeds)), match=[match], primary=primary))
        difficulty = rng.exponential(1, images) + 1

        def row(name, match, change, seconds):
            measured = []
            for _ in range(seeds):
                losses = torch.tensor(
                    difficulty + change + by_seed * rng.standard_normal() + 0.05 * rng.standard_normal(images)
                )
                linear = ProbeResult.of_classes(
                    "logistic regression", losses < 1.5, losses, torch.arange(images)
                )
                knn = replace(linear, probe="kNN, k = 10", figures={"accuracy": linear.figures["accuracy"]})
                measured.append(Measured({"logistic": linear, "knn": knn}, 100, 800, seconds))
            return Row(name, match, tuple(measured))

        rows = (
            row("start", None, 0.2, 0.0),
            row("fixed", match, 0.0, seconds[0]),
            row("learned", match, effect, seconds[1]),
        )
        return Study(spec, rows, dict.fromkeys(("fixed", "learned"), "start"), (), None, None)

    return make


@pytest.fixture
def fitted(monkeypatch):
    """Names and steps of the runs that are trained, in order."""
    trained, fit = [], Trainer.fit

    def note(self):
        trained.append(tuple(Path(self.config.output).parts[-3:]))
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", note)
    return trained
