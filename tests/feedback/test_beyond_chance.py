import copy

import pytest
import torch

from vpt_vision.feedback import (
    BeyondChance,
    Feedback,
    FeedbackGradient,
    PermutedLabels,
    WeightedTask,
    all_features,
    feedback_gradient,
)

EVERYONE = torch.arange(40)  # of the meta split


@pytest.mark.parametrize("folds", [1, 3])
def test_gradient_is_the_tasks_less_the_mean_of_dealt_labels(make_feedback, backbone, fit, folds):
    task = BeyondChance(make_feedback(folds=folds), 3, seed=7)
    fit(task, backbone)
    null = [PermutedLabels(make_feedback(folds=folds), 8 + k) for k in range(3)]
    found = feedback_gradient(task, backbone, "meta", EVERYONE, 2)
    parts = [make_feedback(folds=folds), *null]
    for part in parts:
        fit(part, backbone)
    own, *null = (feedback_gradient(part, backbone, "meta", EVERYONE, 2) for part in parts)
    assert float(found.loss) == pytest.approx(float(own.loss - sum(each.loss for each in null) / 3), abs=1e-5)
    for name, gradient in found.gradient.items():
        mean = sum(each.gradient[name] for each in null) / 3
        torch.testing.assert_close(gradient, own.gradient[name] - mean, atol=1e-5, rtol=1e-3)


def test_labels_that_say_nothing_are_worth_nothing_on_average(make_feedback, backbone, fit):
    lost, beyond = [], []
    for seed in range(12):
        task = BeyondChance(PermutedLabels(make_feedback(), 100 * seed), 8, 100 * seed)
        fit(task, backbone)
        features = all_features(task, backbone, "meta")
        beyond.append(task.loss(features, "meta", EVERYONE))
        lost.append(task.task.loss(features, "meta", EVERYONE) - torch.tensor(3.0).log())
    error = torch.stack(beyond).std() / len(beyond) ** 0.5
    assert torch.stack(beyond).mean().abs() < 3 * error
    assert torch.stack(lost).mean() > 3 * error  # what such labels lose to overfitting is what was taken off


def test_a_copy_has_heads_of_its_own(make_feedback, backbone, fit):
    task = BeyondChance(make_feedback(), 2, seed=0)
    fit(task, backbone)
    features = all_features(task, backbone, "meta")
    before = task.loss(features, "meta", EVERYONE)
    fit(PermutedLabels(task, 5), backbone)  # as the oracle deals the labels of a task anew
    other = copy.copy(task)
    other.fit(type(features)(*(-part for part in all_features(task, backbone, "head"))))
    assert torch.equal(task.loss(features, "meta", EVERYONE), before)
    assert not torch.equal(other.loss(features, "meta", EVERYONE), before)


def test_the_state_is_all_heads(make_feedback, backbone, keys):
    def gradient():
        return FeedbackGradient(
            Feedback({"a": WeightedTask(BeyondChance(make_feedback(), 2, 3), batch=16)}), 2
        )

    first, second = gradient(), gradient()
    first.update(backbone, keys)
    second.load_state_dict(first.state_dict())
    first.update(backbone, keys)
    second.update(backbone, keys)
    assert all(torch.equal(value, second.u[name]) for name, value in first.u.items())
