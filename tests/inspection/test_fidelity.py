import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import small_run

from vpt_vision import UserError, train
from vpt_vision.cli import main
from vpt_vision.designers import FixedDesigner
from vpt_vision.inspection.branch import Branch, branch_of
from vpt_vision.inspection.fidelity import (
    CARRIED,
    HERE,
    PERMUTED,
    READINGS,
    RUNS_OWN,
    WHOLE,
    Reading,
    measure_fidelity,
)
from vpt_vision.inspection.fidelity_report import FidelityReport
from vpt_vision.inspection.spread import Spread
from vpt_vision.task import Keys

SETTINGS = {"count": 6, "spread": 0.5, "examples": 1000, "permutations": 2}


@pytest.fixture(scope="module")
def tiny_steps(run):
    """Steps so small that the first order is all there is."""
    return measure_fidelity(branch_of(run, learning_rate=1e-4), **SETTINGS)


@pytest.mark.parametrize("task", ["classes", "layers"])
@pytest.mark.parametrize("moved", ["θ_S", "all"])
def test_small_steps_do_what_was_predicted(tiny_steps, task, moved):
    """SGD's change is -⟨P u, g⟩ itself; AdamW's differs from it by what momentum does to every step alike."""
    sgd = tiny_steps.of(task, Reading("SGD", moved, moved, HERE))
    assert np.abs(sgd.predicted).max() > 0
    rounding = 6e-7  # of a loss about 1 in fp32
    np.testing.assert_allclose(
        sgd.realised["meta"], sgd.predicted, atol=0.05 * np.abs(sgd.predicted).max() + rounding
    )
    adamw = tiny_steps.of(task, Reading("AdamW", moved, moved, HERE))
    gap = adamw.realised["meta"] - adamw.predicted
    assert gap.std() < 0.4 * adamw.predicted.std()
    assert adamw.pearson().value > 0.9


@pytest.mark.parametrize("task", ["classes", "layers"])
def test_at_the_runs_learning_rate_the_step_does_what_is_predicted_where_momentum_leads(run, task):
    fidelity = measure_fidelity(branch_of(run), **{**SETTINGS, "count": 10})
    for moved in ("θ_S", "all"):
        carried, here = (fidelity.of(task, Reading("AdamW", moved, moved, u)) for u in (CARRIED, HERE))
        assert carried.pearson().value > 0.9
        assert carried.pearson().value > here.pearson().value - 0.02
        assert np.array_equal(carried.realised["meta"], here.realised["meta"])


def test_what_is_left_out_of_the_prediction_is_missed(tiny_steps):
    whole = tiny_steps.of("classes", WHOLE)
    partial = tiny_steps.of("classes", Reading("AdamW", "all", "θ_S", CARRIED))
    assert whole.pearson().value > partial.pearson().value
    assert np.array_equal(whole.realised["meta"], partial.realised["meta"])
    of_tail, of_all = (tiny_steps.of("classes", Reading("AdamW", m, "θ_S", HERE)) for m in ("θ_S", "all"))
    assert np.array_equal(of_tail.predicted, of_all.predicted)


def test_all_series_are_there(tiny_steps):
    for task in ("classes", "layers"):
        readings = [series.reading for series in tiny_steps.series if series.task == task]
        assert readings[: len(READINGS)] == list(READINGS)
        assert [reading.u for reading in readings[len(READINGS) :]] == [RUNS_OWN, *[PERMUTED] * 2]
    assert all(
        len(series.predicted) == 6 and np.isfinite(series.predicted).all() for series in tiny_steps.series
    )


def test_measuring_changes_nothing_and_repeats_itself(run):
    branch = branch_of(run)
    before = {name: value.clone() for name, value in branch.learner.state_dict().items()}
    settings = {**SETTINGS, "count": 3, "permutations": 1}
    first, again = (measure_fidelity(branch, **settings) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in branch.learner.state_dict().items())
    for one, other in zip(first.series, again.series, strict=True):
        np.testing.assert_allclose(one.predicted, other.predicted, rtol=1e-3, atol=1e-9)


def test_value_through_the_heads_fit_is_not_held_against_held_heads(config):
    through = config.model_copy(update={"feedback": config.feedback.model_copy(update={"through_fit": True})})
    with pytest.raises(UserError, match="probe a run without it"):
        measure_fidelity(Branch(through), **SETTINGS)


def test_before_the_first_step_there_is_nothing_to_probe(config):
    with pytest.raises(UserError, match="no moments before the first step"):
        measure_fidelity(Branch(config), **SETTINGS)


def test_a_designer_without_outputs_is_probed_as_it_is(tmp_path, monkeypatch):
    """Its tasks are those of the run, blur and all, and not a learned designer's."""
    designer = {"kind": "soft_mask", "width": 8, "blur_kernel": 5, "blur_sigma": 2.0, "keep": 0.3}
    branch = branch_of(train(small_run(tmp_path / "run", designer=designer)).output)
    seen, forward = [], branch.learner.forward
    monkeypatch.setattr(branch.learner, "forward", lambda *args: seen.append(args[0]) or forward(*args))
    fidelity = measure_fidelity(branch, count=3, spread=0.5, examples=20, permutations=0)
    (batch, *_) = branch.batches(3)
    keys = Keys(branch.config.seed, branch.step, batch.index)
    with torch.no_grad():
        task = branch.designer(batch.images, keys)
        views = branch.trainer.renderer(batch.images, task)
        mixed = branch.designer.refine(task, views, keys, branch.learner, 0.05).views
    assert not torch.allclose(mixed.global_views, views.global_views, atol=0.1)
    torch.testing.assert_close(seen[0].global_views, mixed.global_views)
    report = FidelityReport(fidelity)
    assert report.summary()["policies_sampled"] == 1
    assert "3 steps from step 6, each on a batch of its own, under one policy" in report._note()


class TestSpread:
    def test_policies_differ_by_number_and_are_alike_for_all_images(self, branch):
        (batch,) = branch.batches(1)
        keys = Keys(0, 0, batch.index)
        outputs = {}
        for number in (0, 0, 1):
            designer = Spread(branch.designer, 0.5, seed=0, number=number)
            moved = designer.outputs(designer.features(batch.images))
            own = branch.designer.outputs(branch.designer.features(batch.images))
            added = {name: moved[name] - own[name] for name in own}
            for shift in added.values():
                torch.testing.assert_close(shift, shift[:1].expand_as(shift))
            spread = torch.cat([shift[0].flatten() for shift in added.values()]).square().mean().sqrt()
            assert spread.item() == pytest.approx(0.5, rel=0.3)
            outputs.setdefault(number, []).append(designer(batch.images, keys).global_views.boxes)
        assert torch.equal(*outputs[0]) and not torch.equal(outputs[0][0], outputs[1][0])

    def test_without_spread_it_is_the_designer(self, branch):
        (batch,) = branch.batches(1)
        keys = Keys(0, 0, batch.index)
        boxes = [
            d(batch.images, keys).global_views.boxes
            for d in (branch.designer, Spread(branch.designer, 0, 0, 3))
        ]
        assert torch.equal(*boxes)

    def test_a_designer_without_outputs_stays_as_it_is(self, branch):
        (batch,) = branch.batches(1)
        fixed = FixedDesigner(branch.config.recipe, 8)
        keys = Keys(0, 0, batch.index)
        assert torch.equal(
            fixed(batch.images, keys).global_views.boxes,
            Spread(fixed, 2.0, 0, 3)(batch.images, keys).global_views.boxes,
        )


def test_the_command(run, tmp_path, capsys):
    picture = tmp_path / "pairs.png"
    command = ["value", "probe", str(run), "--tasks", "4", "--permutations", "1", "--picture", str(picture)]
    assert main([*command, "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    for figure in ("pearson", "spearman", "pearson_heldout", "pearson_all_moved", "pearson_u_of_run"):
        assert told[figure].keys() == {"classes", "layers"}
        assert all(-1 <= value <= 1 for value in told[figure].values())
    assert min(told["pearson_sgd"].values()) > 0.9
    assert [len(values) for values in told["pearson_permuted"].values()] == [1, 1]
    assert told["learning_rate"] == 1e-3 and told["tasks_sampled"] == told["policies_sampled"] == 4
    assert any("AdamW, θ_S" in line for line in table)
    with Image.open(picture) as image:
        assert min(image.size) > 600
    assert main([*command[:4], "2"]) == 2
    assert "needs 3 tasks or more" in capsys.readouterr().err
