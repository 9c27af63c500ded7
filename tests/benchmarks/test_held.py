"""A designer held: where it never learned, training again under it is the same run."""

import sys

import pytest
import torch

from vpt_vision import train
from vpt_vision.config import load_config
from vpt_vision.evaluation.probes import probe
from vpt_vision.loading import load_backbone_file
from vpt_vision.training.run_folder import BACKBONE_FILE


@pytest.fixture
def held(steering):
    return steering("held")


def test_one_that_never_learned_gives_the_run_again(held, tiny_settings, monkeypatch, capsys):
    tiny_settings["designer"]["learning_rate"] = 0.0
    run = train(tiny_settings).output
    config = load_config(tiny_settings)
    backbone = load_backbone_file(run / BACKBONE_FILE).eval()
    with torch.no_grad():
        (own,) = probe(backbone, config.evaluation, ("logistic",), renderer=config.renderer())["logistic"]
    accuracy, entropy = held.judge(run)
    assert accuracy == pytest.approx(own.interval("accuracy").mean)
    assert entropy == pytest.approx(own.interval("cross_entropy").mean, rel=1e-5)
    monkeypatch.setattr(sys, "argv", ["held.py", str(run / "elsewhere")])
    assert held.main() == 2
    assert "error: " in capsys.readouterr().err
