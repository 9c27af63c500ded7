"""Slopes of value against differences of value taken by hand, and what they are told beside."""

import json
import sys

import pytest

TINY = [
    "batch_size=16",
    "data.train.count=50",
    "learner.head={prototypes: 32, hidden: 32, bottleneck: 16}",
    "designer={kind: learned, surfaces: [photometrics], reads: nothing}",
    "designer.photometrics={strengths: false, shared: true}",
    "feedback.head_size=64",
    "feedback.meta_size=64",
    "feedback.heldout_size=16",
    "feedback.batch=64",
    "feedback.folds=2",
    "value.batch=8",
]


@pytest.fixture
def slopes(steering):
    return steering("slopes")


@pytest.fixture
def config(folder):
    return str(folder.parent / "configs" / "testbed" / "scenes_colour.yaml")


def test_slopes_of_each_number_for_given_and_random_labels(slopes, config, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "slopes.json"
    asked = ["--step", "1", "--batches", "3", "--random", "2", "--json", str(kept)]
    monkeypatch.setattr(sys, "argv", ["slopes.py", config, *asked, "--set", *TINY])
    assert slopes.main() == 0
    found = json.loads(kept.read_text())
    assert list(found) == ["given", "random 0", "random 1"]
    events = ["flip_p", "jitter_p", "grey_p", "blur_p", "solarize_p"]
    for told in found.values():
        assert [name.split("/")[1] for name in told] == events
        assert all(row["error"] > 0 for row in told.values())
    assert found["random 0"] != found["random 1"] != found["given"]
    assert "| random 1 |" in capsys.readouterr().out


def test_a_slope_is_that_of_value_between_the_two_policies(slopes, config, monkeypatch):
    """Taken by hand from the gradients on either side."""
    load = slopes.load_config(config, TINY)
    seen = {}
    taken = slopes.pretraining_gradients

    def first(setting, task, views):
        gradients = taken(setting, task, views)
        seen.setdefault("gradients", []).append({term: dict(of) for term, of in gradients.items()})
        return gradients

    monkeypatch.setattr(slopes, "pretraining_gradients", first)
    kept = []
    of = slopes.values
    monkeypatch.setattr(slopes, "values", lambda gradients, along: kept.append(along) or of(gradients, along))
    found = slopes.measure(load, 0, 2, 0)["given"]
    weights = load.learner.weights
    halves = kept[0]

    def whole(gradients):
        return sum(
            weights[term] * (half[name] * gradients[term][name]).sum() / 2
            for half in halves
            for term in weights
            for name in half
        )

    gradients, count = seen["gradients"], 2 * len(found)
    assert len(gradients) == 2 * count
    for number, row in enumerate(found.values()):
        first, second = (
            float((whole(gradients[start]) - whole(gradients[start + 1])) / 2)
            for start in (2 * number, count + 2 * number)
        )
        assert row["slope"] == pytest.approx((first + second) / 2, rel=1e-3, abs=1e-8)
        assert row["error"] == pytest.approx(abs(first - second) / 2, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize(
    ("asked", "changes", "says"),
    [
        ([], ["feedback=null", "designer={kind: fixed}"], "feedback"),
        ([], ["designer={kind: learned, surfaces: [crops]}"], "reads: nothing"),
        (["--batches", "1"], [], "raise --batches"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(slopes, config, monkeypatch, capsys, asked, changes, says):
    monkeypatch.setattr(sys, "argv", ["slopes.py", config, *asked, "--set", *TINY, *changes])
    assert slopes.main() == 2
    assert says in capsys.readouterr().err
