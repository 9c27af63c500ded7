"""The testbed's script on a few images: every row, the paired gains, and what it says of the conditions."""

import csv
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

TINY = {
    "steps": 2,
    "batch_size": 8,
    "data.train.count": 50,
    "learner.head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
    "evaluation.cache": None,
    "evaluation.logistic.l2_grid": [0.1],
    "evaluation.train.count": 120,
    "evaluation.test.count": 60,
}


@pytest.fixture
def testbed(steering):
    return steering("testbed")


@pytest.fixture
def small(folder, tmp_path):
    """The folder of scenes_colour with one setting, of a few images."""
    shutil.copy(folder / "steering" / "scenes_colour" / "spec.yaml", tmp_path / "spec.yaml")
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"tiny": TINY}))
    config = folder.parent / "configs" / "testbed" / "scenes_colour.yaml"
    return tmp_path, [f"config={config}", f"output={tmp_path / 'runs'}", "seeds=[0, 1]"]


def test_rows_and_gains(testbed, small):
    place, overrides = small
    assert testbed.measure(place, overrides) == 0
    with (place / "per_seed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["row"] for row in rows} == {"start", "recipe", "known good", "known bad"}
    entropies = {
        name: np.array([float(r["value"]) for r in rows if r["row"] == name and "entropy" in r["metric"]])
        for name in ("recipe", "known good")
    }
    gains = entropies["recipe"] - entropies["known good"]
    error = gains.std(ddof=1) / 2**0.5
    table = (place / "table.md").read_text()
    good = next(line for line in table.splitlines() if line.startswith("| known good"))
    assert f"{gains.mean():+.3f} ± {error:.3f}" in good
    beats = gains.mean() >= 5 * error
    assert f"at least 5 standard errors: {'yes' if beats else 'NO'}" in table
    assert "| raw pixels |" in table


def test_pixels_are_averaged_two_by_two(testbed):
    images = torch.rand(3, 3, 16, 16)
    vector, patches = testbed.Pixels()(images)
    expected = images.view(3, 3, 8, 2, 8, 2).mean((3, 5))
    torch.testing.assert_close(vector.view(3, 3, 8, 8), expected)
    assert patches.shape == (3, 4, 1)
    assert not patches.any()


def test_pixels_and_start_are_told_before_anything_is_trained(testbed, folder, monkeypatch, capsys):
    import pixels

    config = folder.parent / "configs" / "testbed" / "scenes_colour.yaml"
    few = [f"{key}={value}" for key, value in TINY.items() if key.startswith("evaluation") and value]
    monkeypatch.setattr(sys, "argv", ["pixels.py", str(config), *few])
    assert pixels.main() == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told] == ["raw pixels", "start"]
    monkeypatch.setattr(sys, "argv", ["pixels.py", str(config), "evaluation=null"])
    assert pixels.main() == 2 and "no 'evaluation' part" in capsys.readouterr().err
    sys.modules.pop("pixels")
