import json
import sys
from types import ModuleType

import pytest

from vpt_vision.errors import UserError
from vpt_vision.training.log import Log, LogConfig


def record(step, loss=1.0, value=None):
    return {"step": step, "loss": loss, "value": value, "images_per_second": 10.0}


def write(output, steps, *, start=0, **settings):
    config = LogConfig(**{"tensorboard": False, **settings})
    with Log(config, output, start=start, steps=10, run_config={}) as log:
        for step in steps:
            log.write(record(step))


def steps_in(output):
    return [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_loses_what_came_after_its_start(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], start=2)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "\x00\x00"])
def test_a_line_that_a_kill_cut_short_goes(tmp_path, torn):
    write(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path, [3], start=2)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_what_is_not_finite_is_null(tmp_path):
    with Log(LogConfig(tensorboard=False), tmp_path, start=0, steps=1, run_config={}) as log:
        log.write(record(1, loss=float("nan"), value=float("inf")))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "loss": None, "value": None, "images_per_second": 10.0}


def test_tensorboard_has_the_same_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, [1, 2], tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0)]


def test_wandb_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("vpt_vision.training.log.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        write(tmp_path, [], wandb_project="p")


def test_wandb_goes_on_with_its_run_and_folders_of_one_name_are_two_runs(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, scalars, step):
            calls.append((step, scalars))

        def finish(self, exit_code):
            calls.append(exit_code)

    wandb = ModuleType("wandb")
    wandb.init = lambda **settings: calls.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("vpt_vision.training.log.find_spec", lambda name: True)
    for parent in ("a", "a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True, exist_ok=True)
        write(tmp_path / parent / "run", [1], wandb_project="p")
    first, again, other = (call["id"] for call in calls if isinstance(call, dict))
    assert first == again != other
    assert (1, {"loss": 1.0, "images_per_second": 10.0}) in calls
    assert calls[-1] == 0
