"""Online probes in the loop: they cost the learner nothing, and a resumed run finds the same figures."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from vpt_vision import UserError, load_config, train
from vpt_vision.training.run_folder import newest_state
from vpt_vision.training.trainer import Trainer

ONLINE = {"every": 3, "images": 90, "neighbours": 5}
FIGURES = {"online/knn_accuracy", "online/linear_accuracy", "online/linear_cross_entropy"}


@pytest.fixture
def watched(tiny_settings):
    tiny_settings["evaluation"]["online"] = ONLINE
    return tiny_settings


def figures(output):
    """Step → online figures of each logged line that has some, without times."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {
        record["step"]: {name: record[name] for name in sorted(FIGURES)}
        for record in records
        if "online/seconds" in record
    }


def test_figures_stand_in_the_next_line_of_the_log_and_at_the_end(watched):
    result = train(watched, ["steps=8"])  # probed after 3, 6 and 8 steps, logged every 2
    found = figures(result.output)
    assert list(found) == [4, 6, 8]
    for record in found.values():
        assert 0 <= record["online/knn_accuracy"] <= 1
        assert record["online/linear_cross_entropy"] > 0
    assert len({json.dumps(record) for record in found.values()}) > 1


def test_a_run_that_is_watched_trains_as_one_that_is_not(tiny_settings, tmp_path):
    blind = train(tiny_settings, [f"output={tmp_path / 'blind'}"])
    tiny_settings["evaluation"]["online"] = ONLINE
    watched = train(tiny_settings, [f"output={tmp_path / 'watched'}"])
    states = [newest_state(result.output) for result in (blind, watched)]
    for part in ("learner", "designer"):
        first, second = (state[part] for state in states)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first if torch.is_tensor(first[name]))
    losses = [
        [json.loads(line)["loss"] for line in (result.output / "metrics.jsonl").read_text().splitlines()]
        for result in (blind, watched)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stop_at", [2, 3, 4])  # before, right after and one step after a probe
def test_a_run_resumed_at_any_step_finds_the_same_figures(watched, tmp_path, stop_at, monkeypatch):
    undisturbed = train(watched, [f"output={tmp_path / 'undisturbed'}"])
    whole = Trainer.train_step

    def interrupted(self, batch):
        found = whole(self, batch)
        if self.steps_done == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return found

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert train(watched).step == stop_at
    monkeypatch.undo()
    result = train(watched)
    assert result.step == 6
    assert figures(result.output) == figures(undisturbed.output)


def test_a_killed_run_finds_the_same_figures(watched, tmp_path):
    watched["steps"] = 18
    undisturbed = train(watched, [f"output={tmp_path / 'undisturbed'}"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(watched))
    process = subprocess.Popen(
        [sys.executable, "-m", "vpt_vision.cli", "train", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    result = train(watched)
    assert figures(result.output) == figures(undisturbed.output)
    assert len(figures(result.output)) == 6


def test_neither_the_clock_nor_the_meter_run_meanwhile(watched, monkeypatch):
    now = [0.0]

    def ticking():
        now[0] += 1e-6
        return now[0]

    monkeypatch.setattr("time.perf_counter", ticking)
    trainer = Trainer(load_config(watched, ["evaluation.online.every=1"]))

    def slow(encoder):
        now[0] += 100.0
        return {}

    whole = trainer.train_step

    def timed(batch):
        now[0] += 1.0
        return whole(batch)

    monkeypatch.setattr(trainer, "train_step", timed)
    monkeypatch.setattr(
        "vpt_vision.evaluation.online.OnlineProbe.__call__", lambda self, encoder: slow(encoder)
    )
    output = trainer.fit().output
    assert now[0] == pytest.approx(606.0, rel=1e-3)
    record = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["training_seconds"] == pytest.approx(6.0, rel=1e-3)
    assert record["images_per_second"] == pytest.approx(8.0, rel=1e-3)


def test_what_cannot_be_probed_is_refused_at_once(watched):
    with pytest.raises(UserError, match="has 63 images to look among"):
        Trainer(load_config(watched, ["evaluation.online.neighbours=70"]))
    with pytest.raises(UserError, match="whole number of the backbone's patches"):
        Trainer(load_config(watched, ["evaluation.image_size=25"]))
