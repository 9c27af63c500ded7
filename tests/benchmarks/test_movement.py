"""The table of where designers ended."""

import json
import sys

import pytest


@pytest.fixture
def movement(steering):
    return steering("movement")


def test_the_last_value_of_every_run_and_their_mean(movement, tmp_path, monkeypatch, capsys):
    for arm, seed, values in (
        ("learned", 0, [0.2, None, 0.1]),
        ("learned", 1, [0.2, 0.3]),
        ("fixed", 0, [None]),
    ):
        run = tmp_path / "runs" / arm / "steps-9" / f"seed-{seed}"
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(
            "\n".join(json.dumps({"step": 1, "grey": value}) for value in values)
        )
    monkeypatch.setattr(sys, "argv", ["movement.py", str(tmp_path), "grey"])
    assert movement.main() == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["learned", "seed-0", "0.100"],
        ["learned", "seed-1", "0.300"],
        ["learned", "mean", "0.200"],
    ]


def test_a_figure_that_no_run_logs_is_told(movement, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["movement.py", str(tmp_path), "policy/gray"])
    assert movement.main() == 2
    assert "logs policy/gray" in capsys.readouterr().err
