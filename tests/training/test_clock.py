import json

import pytest
import torch

from vpt_vision import train
from vpt_vision.training import clock as clock_module
from vpt_vision.training.clock import TrainingClock
from vpt_vision.training.run_folder import newest_state
from vpt_vision.training.trainer import Trainer


@pytest.fixture
def time_of_day(monkeypatch):
    """A clock on the wall that moves only when a test says so."""

    class Wall:
        now = 100.0

        def perf_counter(self):
            return self.now

    wall = Wall()
    monkeypatch.setattr(clock_module, "time", wall)
    return wall


def test_pauses_do_not_count(time_of_day):
    clock = TrainingClock(torch.device("cpu"))
    time_of_day.now += 50  # before the start
    clock.start()
    time_of_day.now += 3
    assert clock.seconds == 3
    with clock.paused():
        assert clock.seconds == 3
        time_of_day.now += 10
    time_of_day.now += 4
    clock.stop()
    time_of_day.now += 100
    assert clock.seconds == 7


def test_it_goes_on_from_what_was_saved(time_of_day):
    clock = TrainingClock(torch.device("cpu"))
    clock.load(12.5)
    clock.start()
    time_of_day.now += 2
    assert clock.seconds == 14.5


def test_a_run_counts_its_steps_but_neither_saving_nor_lost_steps(tiny_settings, time_of_day, monkeypatch):
    """Each step takes 2 s, each checkpoint 1000 s; the last checkpoint is lost and its steps taken again."""
    tiny_settings |= {"steps": 7, "designer": {"kind": "fixed"}}
    del tiny_settings["feedback"]
    step, save = Trainer.train_step, torch.save

    def slow_step(self, batch):
        time_of_day.now += 2
        return step(self, batch)

    def slow_save(*arguments):
        time_of_day.now += 1000
        save(*arguments)

    monkeypatch.setattr(Trainer, "train_step", slow_step)
    monkeypatch.setattr(torch, "save", slow_save)
    output = train(tiny_settings).output
    assert newest_state(output)["training_seconds"] == 14
    (output / "checkpoints/step_00000007.pt").unlink()
    train(tiny_settings)
    assert newest_state(output)["training_seconds"] == 14
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["training_seconds"] for record in records] == [4, 8, 12, 14]
