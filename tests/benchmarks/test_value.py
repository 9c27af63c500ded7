"""The cost benchmark on a few images: what it takes in turns, and what it makes of the seconds."""

import json
import sys

import pytest

TINY = [
    "batch_size=8",
    "data.train.count=200",
    "learner.head={prototypes: 32, hidden: 32, bottleneck: 16}",
    "feedback.head_size=40",
    "feedback.meta_size=40",
    "feedback.heldout_size=20",
    "feedback.batch=8",
    "feedback.every=1",
    "feedback.heldout_every=2",
    "value.batch=4",
    "value.guard.every=1",
    "value.pairs=1",
    "value.rollout.pairs=1",
    "value.rollout.steps=1",
]


@pytest.fixture
def benchmark(folder, monkeypatch):
    import value

    monkeypatch.setattr(value, "peak_memory", lambda *args: 200.0 if value.FIXED[0] in args[1] else 210.0)
    yield value
    sys.modules.pop("value")


def test_what_value_steps_cost(benchmark, folder, monkeypatch, capsys):
    taken = []
    costs = {"fixed": 1.0, "designed": 1.1, "value": 2.0}

    def seconds_of(trainer, call):
        call()
        kind = "fixed" if trainer.value_step is None else "designed"
        taken.append(kind if call.func.__name__ == "train_step" else "value")
        return costs[taken[-1]]

    monkeypatch.setattr(benchmark, "seconds_of", seconds_of)
    config = str(folder.parent / "configs" / "demo.yaml")
    changes = [part for change in TINY for part in ("--set", change)]
    arguments = ["--config", config, *changes, "--steps", "3", "--json"]
    monkeypatch.setattr(sys, "argv", ["value.py", *arguments, "--estimators", "as configured", "rollout"])
    assert benchmark.main() == 0

    assert taken == ["fixed", "designed", "value"] * 6 * 2  # a period of 2 first, and 3 turns are 2 periods
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["estimators"].keys() == {"as configured", "rollout"}
    for row in found["estimators"].values():
        assert row["fixed_step_seconds"] == pytest.approx(1.0)
        assert row["time_over_fixed"]["8"] == pytest.approx(1.1 + 2 / 8 - 1)
        assert row["memory_over_fixed"] == pytest.approx(0.05)
    assert found["breakdown"]["value step"].keys() >= {"designer", "render", "teacher", "feedback", "value"}


def test_every_estimator_can_be_timed_on_the_demo(benchmark, folder):
    for overrides in benchmark.ESTIMATORS.values():
        assert benchmark.load_config(str(folder.parent / "configs" / "demo.yaml"), overrides).feedback


def test_what_cannot_be_is_told_before_anything_is_timed(benchmark, folder, monkeypatch, capsys):
    config = str(folder.parent / "configs" / "demo.yaml")
    arguments = ["--config", config, "--set", "value.score=3", "--estimators", "as configured"]
    monkeypatch.setattr(sys, "argv", ["value.py", *arguments])
    monkeypatch.setattr(benchmark, "make", None)
    assert benchmark.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
