"""Feedback that means nothing, and a designer that takes huge steps by it: the run stays whole."""

import json

import pytest
import torch

from vpt_vision import load_config
from vpt_vision.designers import LearnedDesigner
from vpt_vision.training.trainer import Trainer

BOUND = 1.0
STEPS = 12
LEASH = {"kl_target": 0.5, "kl_bound": BOUND, "entropy_floor": 1.0}


@pytest.fixture
def hostile_settings(tiny_settings):
    """Labels dealt at random, eight of them to learn from, a huge learning rate, steps at full length."""
    tiny_settings["steps"] = STEPS
    tiny_settings["designer"] |= {
        "surfaces": ["crops", "photometrics", "masks", "mask_ratio", "targets"],
        "learning_rate": 10.0,
    }
    tiny_settings["feedback"] |= {"labels": "permuted", "meta_size": 8, "batch": 8}
    tiny_settings["value"] |= {"every": 1, "burn_in": 2, "pace": "full"}
    tiny_settings["log"] = {"every": 1, "tensorboard": False}
    return tiny_settings


def records_of(result):
    return [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]


def test_the_learner_goes_on_and_the_leash_holds(hostile_settings, monkeypatch):
    hostile_settings["value"] |= {"leash": LEASH, "guard": {"every": 0}}
    trainer = Trainer(load_config(hostile_settings))
    designer = trainer.designer
    right_counts = []

    def drawn(images, keys):
        task = LearnedDesigner.forward(designer, images, keys)
        policy = designer.policy(images)
        asked = designer.laws.mask_ratio.draw(keys, policy.ratio_bend, trainer.device).each
        right_counts.append(torch.equal(task.masks.hidden.sum(-1), asked))
        return task

    monkeypatch.setattr(designer, "forward", drawn)
    records = records_of(trainer.fit())
    assert len(records) == len(right_counts) == STEPS and all(right_counts)
    for record in records:
        assert record["loss"] is not None and record["skipped"] == 0
    learned = records[2:]
    assert all(0 <= record["leash/kl"] <= BOUND for record in learned)
    assert learned[-1]["leash/kl"] > 0.1 and learned[-1]["leash/share"] < 1  # it strains at it
    assert learned[-1]["leash/kl_weight"] > learned[0]["leash/kl_weight"]


def test_the_guard_speaks(hostile_settings, capfd):
    """A guard without patience: any gain on eight examples that others do not share is too much."""
    hostile_settings["steps"] = 2 * STEPS
    hostile_settings["feedback"]["l2"] = 0.1
    hostile_settings["designer"]["surfaces"] = ["crops", "photometrics"]
    hostile_settings["value"]["guard"] = {"every": 1, "looks": 4, "tolerance": 0.01, "confirmed": 0.5}
    records = records_of(Trainer(load_config(hostile_settings)).fit())
    assert records[-1]["guard/interventions"] > 0
    assert min(record.get("guard/factor", 1) for record in records) <= 0.5
    told = [
        line for line in capfd.readouterr().err.splitlines() if "held-out examples do not confirm" in line
    ]
    assert told and "the guard has shrunk the designer's steps to" in told[0]
    assert all(record["loss"] is not None for record in records)
