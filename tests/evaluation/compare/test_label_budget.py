import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vpt_vision import UserError, load_config
from vpt_vision.evaluation.compare.label_budget import (
    Classifier,
    LabelBudget,
    _epochs,
    fine_tune_on_labels,
    linear_on_labels,
)
from vpt_vision.evaluation.compare.spec import FineTuneConfig
from vpt_vision.learner import Backbone
from vpt_vision.linear_fit import LinearMap
from vpt_vision.training.trainer import Trainer


@pytest.fixture
def config(tiny_settings):
    return load_config(tiny_settings)


@pytest.fixture
def start(config):
    torch.manual_seed(0)
    return Backbone(config.learner.backbone).eval()


def test_the_labels_are_the_very_ones_of_the_feedback(config):
    budget = LabelBudget.of(config)
    task = next(iter(Trainer(config).value_step.feedback_gradient.feedback.tasks.values())).task
    splits = task.splits
    assert torch.equal(budget.fitted.labels, torch.cat([splits.head.labels, splits.meta.labels]))
    assert torch.equal(budget.heldout.labels, splits.heldout.labels)
    assert torch.equal(budget.heldout.images.pixels, splits.heldout.images.pixels)
    assert budget.labels == 200


def test_the_linear_control_is_the_logistic_regression_that_heldout_picks(config, start):
    budget = LabelBudget.of(config)
    result = linear_on_labels(start, budget)
    fitted, heldout = (budget.features(start, part).numpy() for part in (budget.fitted, budget.heldout))
    test = budget.test(start)
    inputs = torch.cat([test.cls, test.mean_patch], dim=1).numpy()
    scaler = StandardScaler().fit(fitted)
    best = None
    for l2 in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        reference = LogisticRegression(C=1 / (l2 * len(fitted)), max_iter=5000, tol=1e-8)
        reference.fit(scaler.transform(fitted), budget.fitted.labels)
        logs = reference.predict_log_proba(scaler.transform(heldout))
        loss = -logs[range(len(logs)), budget.heldout.labels].mean()
        if best is None or loss < best[0]:
            best = loss, l2, reference
    assert result.settings["l2"] == best[1]
    logs = best[2].predict_log_proba(scaler.transform(inputs))
    losses = -logs[range(len(logs)), test.labels]
    assert result.figures["cross_entropy"].values.numpy() == pytest.approx(losses, abs=2e-3)


def test_fine_tuning_learns_and_leaves_the_start_alone(config, start, snapshot):
    budget = LabelBudget.of(config)
    before = snapshot(start)
    head = LinearMap(torch.zeros(10, 64), torch.zeros(10))
    classifier = Classifier(copy.deepcopy(start), head)

    def loss():
        logits = classifier.linear_map()(budget.features(classifier.backbone, budget.fitted))
        return F.cross_entropy(logits, budget.fitted.labels).item()

    losses = [loss()]
    for _ in _epochs(classifier, budget, FineTuneConfig(epochs=6, batch_size=20), 3e-3):
        losses.append(loss())
    assert losses[0] == pytest.approx(math.log(10), abs=1e-5)
    assert losses[-1] < losses[0] - 0.03
    assert any(
        not torch.equal(value, start.state_dict()[name])
        for name, value in classifier.backbone.state_dict().items()
    )
    fine_tune_on_labels(start, budget, FineTuneConfig(learning_rates=(1e-3,), epochs=1, batch_size=20))
    after = snapshot(start)
    assert all(
        torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        for name, value in before.items()
    )


def test_fine_tuning_repeats_itself(config, start):
    settings = FineTuneConfig(learning_rates=(1e-3,), epochs=2, batch_size=20)
    first, second = (fine_tune_on_labels(start, LabelBudget.of(config), settings)[1] for _ in range(2))
    assert torch.equal(first.figures["cross_entropy"].values, second.figures["cross_entropy"].values)


def test_where_training_only_harms_the_frozen_features_are_kept(config, start):
    settings = FineTuneConfig(learning_rates=(10.0,), epochs=1, batch_size=20)
    backbone, result = fine_tune_on_labels(start, LabelBudget.of(config), settings)
    assert result.settings == {"learning_rate": 0.0, "epoch": 0}
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in backbone.state_dict().items())


def test_feedback_without_classes_has_no_labels_to_spend(tiny_settings):
    with pytest.raises(UserError, match="set controls to null"):
        LabelBudget.of(load_config({**tiny_settings, "feedback": None, "designer": {"kind": "fixed"}}))
