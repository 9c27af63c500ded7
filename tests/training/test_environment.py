import json

import torch

from vpt_vision import train
from vpt_vision.training.environment import ENVIRONMENT_FILE


def test_each_start_of_a_run_is_told(tiny_settings):
    tiny_settings |= {"designer": {"kind": "fixed"}, "steps": 4, "checkpoint": {"every": 2}}
    del tiny_settings["feedback"]
    output = train(tiny_settings).output
    (output / "checkpoints/step_00000004.pt").unlink()
    train(tiny_settings)
    starts = [json.loads(line) for line in (output / ENVIRONMENT_FILE).read_text().splitlines()]
    assert [start["from_step"] for start in starts] == [0, 2]
    for start in starts:
        assert start["torch"] == torch.__version__
        assert start["device"] == "cpu"
        assert start["cpu"] and start["cores"] >= 1 and start["vpt-vision"]
