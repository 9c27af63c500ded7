"""The reduced form of the committed comparison, from the command line."""

import csv
import json
from pathlib import Path

from vpt_vision.cli import main

SMOKE = Path(__file__).parents[3] / "configs" / "compare_smoke.yaml"


def test_the_reduced_comparison_leaves_everything_and_repeats_nothing(tmp_path, fitted, capsys):
    command = ["compare", str(SMOKE), f"output={tmp_path / 'smoke'}"]
    assert main(command) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "smoke"
    first = (folder / "report.md").read_text().splitlines()[0]
    assert "This comparison shows nothing" in first and first.strip("*") in said
    assert {"report.md", "per_seed.csv", "differences.csv", "seeds.png", "differences.png", "index.html"} <= {
        path.name for path in folder.iterdir()
    }
    rows = list(csv.DictReader((folder / "per_seed.csv").open()))
    assert {row["row"] for row in rows} >= {"start", "fixed recipe", "learned designer"}
    assert {row["budget"] for row in rows} == {"", "updates", "seconds"}
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert "labels.cross_entropy" in {row["metric"] for row in rows}
    matched = json.loads((folder / "matched.json").read_text())
    assert matched["steps"]["fixed recipe"] == 6

    trained = list(fitted)
    assert len(set(trained)) == len(trained)
    outputs = {
        name: (folder / name).read_bytes() for name in ("report.md", "per_seed.csv", "differences.csv")
    }
    assert main(command) == 0
    assert fitted == trained
    assert outputs == {name: (folder / name).read_bytes() for name in outputs}
