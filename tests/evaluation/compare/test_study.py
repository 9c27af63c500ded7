"""Comparisons as a whole, tiny: what is run, what is never run twice, and what is matched."""

import signal

import torch

from vpt_vision.cli import main
from vpt_vision.evaluation.compare import load_spec, run_comparison
from vpt_vision.evaluation.compare.study import figure_of
from vpt_vision.training.trainer import Trainer


def test_stopped_anywhere_it_goes_on_to_the_same_figures(write_spec, tmp_path, fitted, monkeypatch):
    path = write_spec()
    whole = run_comparison(load_spec(path, [f"output={tmp_path / 'whole'}"]))
    fitted.clear()

    step, taken = Trainer.train_step, []

    def interrupted(self, batch):
        taken.append(1)
        if len(taken) in (2, 9):  # in the first run, and in a later one
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    spec = load_spec(path)
    assert [run_comparison(spec) for _ in range(2)] == [signal.SIGTERM, signal.SIGTERM]
    resumed = run_comparison(spec)
    assert len(taken) == 2 * 2 * 4  # no step was taken twice
    for before, after in zip(whole.rows, resumed.rows, strict=True):
        assert (before.name, before.match) == (after.name, after.match)
        for first, second in zip(before.measured, after.measured, strict=True):
            for name, result in first.results.items():
                for figure, values in result.figures.items():
                    assert torch.equal(values.values, second.results[name].figures[figure].values)


def test_seeds_can_be_added(write_spec, fitted):
    path = write_spec()
    run_comparison(load_spec(path))
    before = list(fitted)
    run_comparison(load_spec(path, ["seeds=[3,5,8]"]))
    assert [run[-1] for run in fitted[len(before) :]] == ["seed-8", "seed-8"]


def test_a_changed_config_is_refused_where_runs_lie(write_spec, capsys):
    path = write_spec()
    run_comparison(load_spec(path))
    assert main(["compare", str(path), "overrides={batch_size: 10}"]) == 2
    assert "config differs at batch_size" in capsys.readouterr().err


def test_equal_images_are_fewer_steps_of_larger_batches(write_spec, fitted):
    arms = [
        {"name": "fixed", "overrides": {"designer": {"kind": "fixed"}}},
        {"name": "learned", "overrides": {"batch_size": 16}},
    ]
    primary = {"arm": "learned", "metric": "knn.accuracy", "match": "images"}
    study = run_comparison(load_spec(write_spec(arms=arms, match=["images"], primary=primary)))
    steps = {row.name: row.measured[0].steps for row in study.rows}
    images = {row.name: row.measured[0].images for row in study.rows}
    assert (steps["fixed"], steps["learned"]) == (4, 2)
    assert images["fixed"] == images["learned"] == 32


def test_equal_seconds_are_the_steps_that_fit(write_spec, fitted, monkeypatch):
    """An arm that takes twice as long for a step takes half as many in the reference's time."""
    cost = {"fixed": 1.0, "learned": 2.0}
    monkeypatch.setattr(
        "vpt_vision.evaluation.compare.runs._training_seconds",
        lambda run: cost[run.parts[-3]] * int(run.parts[-2].removeprefix("steps-")),
    )
    primary = {"arm": "learned", "metric": "knn.accuracy", "match": "seconds"}
    study = run_comparison(load_spec(write_spec(match=["seconds"], primary=primary)))
    assert {row.name: row.measured[0].steps for row in study.rows if row.match} == {"fixed": 4, "learned": 2}
    assert {row.name: row.measured[0].seconds for row in study.rows if row.match} == {
        "fixed": 4,
        "learned": 4,
    }
    assert fitted.count(("learned", "steps-4", "seed-3")) == 1  # the pilot, by the first seed alone
    assert ("learned", "steps-4", "seed-5") not in fitted


def test_settings_are_picked_on_validation_by_other_seeds(write_spec, fitted):
    arms = [
        {"name": "fixed", "overrides": {"designer": {"kind": "fixed"}, "feedback": None}},
        {"name": "learned", "choose": {"schedule.learning_rate": [1e-5, 0.3]}},
    ]
    selection = {
        "validation": {"kind": "fashion_scenes", "split": "feedback", "count": 70, "size": 32},
        "seeds": [9],
    }
    study = run_comparison(load_spec(write_spec(arms=arms, selection=selection)))
    figures = {choice.settings: choice.figures for choice in study.choices}
    picked = [choice for choice in study.choices if choice.picked]
    assert len(picked) == 1
    assert picked[0].figures[0] == min(figures[settings][0] for settings in figures)
    assert all(place[-1] == "seed-9" for place in fitted[:2])  # before anything is compared
    assert all(
        len(measured.results["logistic"].index) == 60 for row in study.rows for measured in row.measured
    )
    assert picked[0].settings[0].replace('"', "") in fitted[-1][0]


def test_arms_with_one_start_share_its_row(write_spec, tmp_path):
    study = run_comparison(load_spec(write_spec()))
    assert set(study.starts.values()) == {"start"}
    start = study.row("start", "updates")
    assert len(list((tmp_path / "compared" / "start").iterdir())) == 2  # at random: one for each seed
    assert figure_of(start.measured[0], "logistic.cross_entropy") > 0


def test_a_metric_that_there_is_not_is_refused_before_training(write_spec, fitted, capsys):
    primary = {"arm": "learned", "metric": "knn.cross_entropy", "match": "updates"}
    assert main(["compare", str(write_spec(primary=primary))]) == 2
    assert "it has accuracy" in capsys.readouterr().err
    assert not fitted
