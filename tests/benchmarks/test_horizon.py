"""Falls of known tasks by three judges, against runs of the package taken by themselves."""

import copy
import json
import sys
from itertools import islice

import pytest
import torch

from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.training.trainer import Trainer

TINY = [
    "steps=8",
    "batch_size=16",
    "data.train.count=200",
    "learner.head={prototypes: 32, hidden: 32, bottleneck: 16}",
    "feedback.features=cls+mean_patch",
    "feedback.head_size=64",
    "feedback.meta_size=64",
    "feedback.heldout_size=16",
    "feedback.batch=128",
    "feedback.folds=2",
    "value.batch=8",
]


@pytest.fixture
def horizon(steering):
    return steering("horizon")


@pytest.fixture
def testbed(folder):
    return folder / "steering" / "scenes_class"


@pytest.fixture
def asked(horizon, testbed):
    """The testbed made small, its arms with it: the schedule is theirs too."""
    config, arms = horizon.read(testbed, 1, TINY)
    same = {"steps": 8, "batch_size": 16, "data": config.data, "learner": config.learner}
    return config, {name: arm.model_copy(update=same) for name, arm in arms.items()}


def test_arms_part_from_one_state_and_train_as_runs_do(horizon, asked):
    """Under the recipe nothing parts: what is judged is its run. Value is linear in the way gone."""
    config, arms = asked
    found = horizon.falls(config, arms, 2, [1, 3], 7)
    assert list(found) == ["recipe", "known good", "known bad"]
    assert {tuple(by_steps) for by_steps in found.values()} == {(1, 3)}
    assert found["known good"][1] != found["recipe"][1] != found["known bad"][1]

    run = Trainer(arms["recipe"].model_copy(update={"seed": 7}))
    judge = Trainer(config.model_copy(update={"seed": 7})).value_step.feedback_gradient
    losses = {}
    backbone = run.learner.student.backbone
    for number, batch in enumerate(islice(run.loader, 5), 1):
        run.train_step(batch)
        if number in (2, 3, 5):
            judge.fit(backbone)
            losses[number] = float(judge.meta_loss(backbone))
    for steps in (1, 3):
        anew = found["recipe"][steps]["heads fitted anew"]
        assert anew == pytest.approx(losses[2] - losses[2 + steps], abs=1e-3)  # a fit's tolerance


def test_value_foretells_the_fall_along_the_tail(horizon, asked):
    """For a step so small that the loss is straight, S alone moved by hand, heads held."""
    config, arms = asked
    slow = {"schedule": config.schedule.model_copy(update={"learning_rate": 1e-6, "warmup": 0.0}), "seed": 7}
    config = config.model_copy(
        update={**slow, "value": config.value.model_copy(update={"lead": False, "tail_blocks": 4})}
    )
    told = horizon.falls(config, arms, 1, [1], 7)["known good"][1]

    run = Trainer(arms["recipe"].model_copy(update=slow))
    judge = Trainer(config).value_step.feedback_gradient
    backbone = run.learner.student.backbone
    first, second = islice(run.loader, 2)
    run.train_step(first)
    judge.fit(backbone)
    before = judge.meta_loss(backbone)
    at_start = copy.deepcopy(backbone.state_dict())
    run.designer = FixedDesigner(arms["known good"].recipe, backbone.patch_size)
    run.train_step(second)
    moved = {name: value.clone() for name, value in backbone.tail_parameters(4).items()}
    backbone.load_state_dict(at_start)
    with torch.no_grad():
        for name, value in backbone.tail_parameters(4).items():
            value.copy_(moved[name])
    assert told["value"] == pytest.approx(float(before - judge.meta_loss(backbone)), rel=0.05)


def test_a_table_of_means_less_the_recipe(horizon, testbed, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "horizon.json"
    words = ["--setting", "1", "--step", "1", "--horizons", "2", "--seeds", "3", "4", "--json", str(kept)]
    monkeypatch.setattr(sys, "argv", ["horizon.py", str(testbed), *words, "--set", *TINY])
    assert horizon.main() == 0
    found = json.loads(kept.read_text())
    gains = [one["known bad"]["2"]["held heads"] - one["recipe"]["2"]["held heads"] for one in found.values()]
    mean, error = sum(gains) / 2, abs(gains[0] - gains[1]) / 2
    assert f"{1e4 * mean:+.1f} ± {1e4 * error:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--setting", "2"], "settings 0 to 1"), (["--step", "7"], "pass the run's 8 steps")],
)
def test_what_cannot_be_asked_is_said(horizon, testbed, words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["horizon.py", str(testbed), "--setting", "1", *words, "--set", *TINY])
    assert horizon.main() == 2
    assert said in capsys.readouterr().err


def test_no_feedback_is_refused(horizon, testbed):
    with pytest.raises(UserError, match="no 'feedback' part"):
        horizon.read(testbed, 1, ["feedback=null", "designer={kind: fixed}"])
