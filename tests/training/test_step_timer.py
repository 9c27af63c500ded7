import json

import pytest
import torch

from vpt_vision import train
from vpt_vision.training import step_timer
from vpt_vision.training.step_timer import PHASES, StepTimer


def test_times_are_means_over_steps_and_begin_anew(monkeypatch):
    class Wall:
        now = 0.0

        def perf_counter(self):
            return self.now

    wall = Wall()
    monkeypatch.setattr(step_timer, "time", wall)
    timer = StepTimer(torch.device("cpu"))

    def phase(name, seconds):
        with timer(name):
            wall.now += seconds

    for step in range(4):
        phase("task", 1)
        phase("forward", 2 + step)
        if step == 0:
            phase("value", 8)
        wall.now += 100  # in no phase
    assert timer.read() == {"seconds/task": 1, "seconds/forward": 3.5, "seconds/value": 2}
    phase("forward", 5)
    assert timer.read() == {"seconds/forward": 5}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_devices_time_counts():
    timer = StepTimer(torch.device("cuda"))
    with timer("forward"):
        torch.cuda._sleep(200_000_000)
    assert timer.read()["seconds/forward"] > 0.01


def test_every_line_of_a_run_tells_all_phases(tiny_settings):
    output = train(tiny_settings).output
    for line in (output / "metrics.jsonl").read_text().splitlines():
        assert {f"seconds/{name}" for name in PHASES} <= json.loads(line).keys()
