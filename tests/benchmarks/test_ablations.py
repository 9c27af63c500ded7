"""The ablations' script on a few images: a row for every arm, its figures those of the runs' logs."""

import csv
import json
import sys

import numpy as np
import pytest
import yaml

SCENES = {"kind": "fashion_scenes", "split": "feedback", "size": 48}
FEEDBACK = {
    "source": {**SCENES, "count": 400},
    "head_size": 64,
    "meta_size": 64,
    "heldout_size": 32,
    "batch": 32,
}
SPEC = {
    "seeds": [0, 1],
    "match": ["updates"],
    "reference": "fixed recipe",
    "overrides": {
        "steps": 5,
        "batch_size": 8,
        "data.train.count": 50,
        "learner.head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
        "log.every": 1,
        "feedback": FEEDBACK,
        "value": {"every": 2, "burn_in": 3, "batch": 4, "pairs": 1, "guard": {"every": 1, "looks": 3}},
        "evaluation.cache": None,
        "evaluation.logistic.l2_grid": [0.1],
        "evaluation.train.count": 120,
        "evaluation.test.count": 60,
    },
    "arms": [
        {"name": "fixed recipe", "overrides": {"designer": {"kind": "fixed"}, "feedback": None}},
        {"name": "all of it", "overrides": {"value.pace": "full", "value.leash.kl_bound": 1e-6}},
    ],
    "primary": {"arm": "all of it", "metric": "logistic.cross_entropy", "match": "updates"},
    "probes": ["logistic"],
    "controls": None,
}


@pytest.fixture
def ablations():
    import ablations

    yield ablations
    sys.modules.pop("ablations")


def test_a_row_for_every_arm(ablations, folder, tmp_path, monkeypatch, capsys):
    spec, out = tmp_path / "spec.yaml", tmp_path / "new" / "table.md"
    place = {"output": str(tmp_path / "runs"), "config": str(folder.parent / "configs" / "demo.yaml")}
    spec.write_text(yaml.safe_dump({**place, **SPEC}))
    monkeypatch.setattr(sys, "argv", ["ablations.py", str(spec), "--markdown", str(out)])
    assert ablations.main() == 0
    assert out.read_text() in capsys.readouterr().out
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines()
    ]
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(cells) == ["fixed recipe", "all of it"]
    fixed, whole = cells.values()
    assert set(list(fixed.values())[2:]) == {""}
    assert whole["pace"] == "1.00 (1.00 to 1.00)"
    assert whole["held back by the bound"] == "100% (100% to 100%)"
    assert whole["largest KL"] == "0.0 (0.0 to 0.0)"
    last = []
    for log in sorted((tmp_path / "runs" / "runs" / "all-of-it").rglob("metrics.jsonl")):
        last.append(json.loads(log.read_text().splitlines()[-1])["u_reliability"])
    told = whole["reliability of u"]
    assert told.endswith(f"({min(last):.2f} to {max(last):.2f})")  # one value step after the burn-in
    gain = fixed["cross-entropy over `all of it`'s, nats"]
    entropies = {name: [] for name in cells}
    for row in csv.DictReader((tmp_path / "runs" / "per_seed.csv").open()):
        if row["metric"] == "logistic.cross_entropy" and row["row"] in cells:
            entropies[row["row"]].append(float(row["value"]))
    expected = np.mean(entropies["fixed recipe"]) - np.mean(entropies["all of it"])
    assert gain.startswith(f"{expected:+.3f} [")


def test_a_spec_that_is_missing_is_one_sentence(ablations, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablations.py", str(tmp_path / "none.yaml")])
    assert ablations.main() == 2
    assert "none.yaml" in capsys.readouterr().err
