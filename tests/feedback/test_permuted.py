import pytest
import torch
import torch.nn.functional as F

from vpt_vision.feedback import Feedback, FeedbackGradient, PermutedLabels, WeightedTask, all_features, cosine
from vpt_vision.learner.backbone import Features
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import fit_logistic


def test_labels_are_dealt_anew_and_the_head_is_fitted_to_them(make_feedback, backbone, fit, splits):
    task = make_feedback()
    fit(task, backbone)
    before = task.heads.weight.clone()
    permuted = PermutedLabels(task, seed=1)
    features = all_features(task, backbone, "head")
    permuted.fit(features)
    assert torch.equal(task.heads.weight, before)

    # What label each image got is read off the loss, which is that of one of the three classes.
    labels = torch.empty(48, dtype=torch.long)
    head = permuted.task.heads
    for i in range(48):
        one = type(features)(features.cls[[i]], features.patches[[i]])
        loss = permuted.loss(one, "head", torch.tensor([i]))
        each = -(features.cls[i] @ head.weight[0].T + head.bias[0]).log_softmax(0)
        labels[i] = (each - loss).abs().argmin()
        assert (each - loss).abs().min() < 1e-5
    assert torch.equal(labels.bincount(), splits.head.labels.bincount())
    assert not torch.equal(labels, splits.head.labels)
    expected = fit_logistic(features.cls, labels, 3, l2=0.1)
    torch.testing.assert_close(head.weight[0], expected.weight, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("folds", [1, 2])
def test_a_head_knows_nothing_of_permuted_examples_it_has_not_seen(make_feedback, backbone, folds):
    losses = []
    for seed in range(6):
        permuted = PermutedLabels(make_feedback(folds=folds), seed)
        permuted.fit(all_features(permuted, backbone, "head"))
        features = all_features(permuted, backbone, "meta")
        losses.append(permuted.loss(features, "meta", torch.arange(permuted.count("meta"))))
    assert torch.stack(losses).mean() > 0.97 * torch.tensor(3.0).log()


def test_directions_of_other_permutations_are_others(make_feedback, backbone, keys):
    def u(task):
        gradient = FeedbackGradient(Feedback({"a": WeightedTask(task, batch=40)}), 2)
        gradient.update(backbone, keys)
        return gradient.u

    true, one, again, other = (
        u(task) for task in (make_feedback(), *(PermutedLabels(make_feedback(), seed) for seed in (1, 1, 2)))
    )
    assert F.mse_loss(one["norm.weight"], again["norm.weight"]) == 0
    assert abs(cosine(one, other)) < 0.9 and abs(cosine(one, true)) < 0.9


def test_the_state_is_the_tasks(make_feedback, backbone):
    permuted, fresh = (PermutedLabels(make_feedback(), 3) for _ in range(2))
    features = all_features(permuted, backbone, "head")
    permuted.fit(features)
    fresh.load_state_dict(permuted.state_dict())
    index = torch.arange(48)
    assert torch.equal(permuted.loss(features, "head", index), fresh.loss(features, "head", index))


def test_halves_of_meta_stay_halves_and_share_no_head(make_feedback, backbone):
    """With two folds each half is judged by a head that never saw it, whatever labels it was dealt."""
    task = make_feedback(folds=2)
    numbers = torch.arange(task.count("meta"))
    permuted = PermutedLabels(task, 4)
    dealt = permuted._permutation("meta")
    assert torch.equal(dealt.sort().values, numbers)
    assert torch.equal(dealt % 2, numbers % 2) and not torch.equal(dealt, numbers)
    features = all_features(permuted, backbone, "head")
    permuted.fit(features)
    before = [permuted.loss(half_of(features, half), "meta", numbers[half::2]) for half in (0, 1)]
    weight, bias = permuted.task.heads
    poisoned = weight.clone()
    poisoned[1, 0] += 1.0  # one class of the head of the odd numbers, fitted to the even ones
    permuted.task.heads = LinearMap(poisoned, bias)
    after = [permuted.loss(half_of(features, half), "meta", numbers[half::2]) for half in (0, 1)]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def half_of(features, half):
    return Features(features.cls[half::2], features.patches[half::2])
