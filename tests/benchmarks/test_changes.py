"""The script of single changes on a few images: no change, no value, and the whole is the sum of terms."""

import json
import sys

import pytest


@pytest.fixture
def changes(steering):
    return steering("changes")


def test_every_change_is_compared_with_the_recipe(changes, folder, tmp_path, monkeypatch, capsys):
    config, kept = folder.parent / "configs" / "testbed" / "scenes_colour.yaml", tmp_path / "changes.json"
    tiny = [
        "batch_size=16",
        "data.train.count=50",
        "learner.head={prototypes: 32, hidden: 32, bottleneck: 16}",
        "recipe.photometrics.grey_p=0.5",
        "feedback.head_size=64",
        "feedback.meta_size=64",
        "feedback.heldout_size=16",
        "feedback.batch=32",
    ]
    asked = ["--steps", "0", "1", "--batches", "2", "--permutations", "3", "--json", str(kept)]
    monkeypatch.setattr(sys, "argv", ["changes.py", str(config), *asked, "--set", *tiny])
    assert changes.main() == 0
    found = json.loads(kept.read_text())
    assert found.keys() == {"0", "1"} and found["0"].keys() == {"dino", "ibot", "koleo", "whole"}
    for terms in found.values():
        assert all(of_term.keys() == changes.CHANGES.keys() for of_term in terms.values())
        # Grey views are as many as the recipe's already.
        assert all(of_term["half grey"]["gain"] == 0 for of_term in terms.values())
        assert terms["dino"]["all grey"]["gain"] != 0
        gains = {term: of_term["no hue"]["gain"] for term, of_term in terms.items()}
        parts = gains["dino"] + 0.3 * gains["ibot"] + 0.1 * gains["koleo"]
        assert gains["whole"] == pytest.approx(parts, rel=1e-4, abs=1e-9)
    assert found["0"]["dino"]["no grey"] != found["1"]["dino"]["no grey"]
    assert "| all grey |" in capsys.readouterr().out


def test_a_mistake_is_told_in_a_sentence(changes, folder, monkeypatch, capsys):
    config = folder.parent / "configs" / "testbed" / "scenes_colour.yaml"
    monkeypatch.setattr(
        sys, "argv", ["changes.py", str(config), "--set", "feedback=null", "designer={kind: fixed}"]
    )
    assert changes.main() == 2
    assert "feedback" in capsys.readouterr().err
