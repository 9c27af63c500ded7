"""Gradients through the heads' fit, against losses of heads fitted anew to features moved by hand."""

import copy

import pytest
import torch

from vpt_vision.data import FashionScenes, FashionScenesConfig
from vpt_vision.errors import UserError
from vpt_vision.feedback import (
    BeyondChance,
    DepthConfig,
    DepthFeedback,
    Feedback,
    FeedbackGradient,
    PermutedLabels,
    SegmentationConfig,
    SegmentationFeedback,
    WeightedTask,
    all_features,
    gradients_through_fit,
)
from vpt_vision.learner.backbone import Features
from vpt_vision.task import Renderer

SOURCE = FashionScenesConfig(kind="fashion_scenes", split="feedback", count=100, size=40)
SIZES = {"head_size": 30, "meta_size": 24, "heldout_size": 16, "batch": 24, "l2": 0.1}
KINDS = {
    "classes": {"folds": 2},
    "classes, thirds": {"folds": 3},
    "classes, a null taken off": {"folds": 2},
    "labels dealt anew": {"folds": 2},
    "segmentation": {"folds": 2},
    "silog": {"folds": 2},
    "l1": {"folds": 2},
}


@pytest.fixture
def make(make_feedback):
    def make(kind):
        if kind in ("silog", "l1"):
            config = DepthConfig(kind="depth", loss=kind, source=SOURCE, **SIZES, **KINDS[kind])
            of = DepthFeedback
        elif kind == "segmentation":
            config = SegmentationConfig(kind="segmentation", source=SOURCE, **SIZES, **KINDS[kind])
            of = SegmentationFeedback
        else:
            task = make_feedback(**KINDS[kind])
            if "null" in kind:
                return BeyondChance(task, 2, seed=3)
            return PermutedLabels(task, 3) if "dealt" in kind else task
        made = FashionScenes(SOURCE)
        return of.from_source(config, made, renderer=Renderer(), size=16, patch_size=8, seed=0)

    return make


@pytest.mark.parametrize("part", [None, 0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_the_slope_of_refitted_heads(make, backbone, kind, part):
    """Heads fitted from scratch on either side of features moved along a random direction."""
    task = make(kind)
    features = all_features(task, backbone, "meta")
    task.fit(features)  # in folds head and meta examples are the same
    index = torch.arange(task.count("meta"))
    judged = torch.ones(len(index), dtype=torch.bool) if part is None else index % 2 == part
    read = Features(*(each.clone().requires_grad_() for each in features))
    loss = task.loss_through_fit(read, index, judged)
    held = task.loss(Features(*(each[judged] for each in features)), "meta", index[judged])
    assert float(loss.detach()) == pytest.approx(float(held), rel=1e-5)
    slopes = torch.autograd.grad(loss, list(read), allow_unused=True, materialize_grads=True)

    generator = torch.Generator().manual_seed(1)
    way = [torch.randn(each.shape, generator=generator) * each.std() for each in features]
    far = 0.0005 if kind == "l1" else 0.005  # its curvature has steps
    losses = []
    for sign in (1, -1):
        moved = Features(*(each + sign * far * along for each, along in zip(features, way, strict=True)))
        other = copy.copy(task)
        other.fit(moved)
        losses.append(other.loss(Features(*(each[judged] for each in moved)), "meta", index[judged]))
    numeric = float(losses[0] - losses[1]) / (2 * far)
    told = float(sum((slope * along).sum() for slope, along in zip(slopes, way, strict=True)))
    assert told == pytest.approx(numeric, rel=0.03, abs=2e-3)


def test_heads_held_tell_another_slope(make, backbone):
    """Features moved towards one class, which a bias makes good: a loss to held heads, none to new ones."""
    task = make("classes")
    features = all_features(task, backbone, "meta")
    task.fit(features)
    index = torch.arange(task.count("meta"))
    along = task.heads.weight[-1][0] / task.heads.weight[-1][0].norm()
    slopes = []
    for through in (False, True):
        read = Features(*(each.clone().requires_grad_() for each in features))
        everyone = torch.ones(len(index), dtype=torch.bool)
        loss = task.loss_through_fit(read, index, everyone) if through else task.loss(read, "meta", index)
        (slope,) = torch.autograd.grad(loss, read.cls)
        slopes.append(abs(float((slope.sum(0) * along).sum())))
    assert slopes[1] < 1e-4 < 1e-2 < slopes[0] + 1e-2
    assert slopes[1] < slopes[0] / 10


def test_u_is_the_mean_of_either_halfs_gradient(make, backbone, keys):
    """Taken by the task's own loss over all examples at once, and left on no parameter."""
    task = make("classes")
    count = task.count("meta")
    feedback = Feedback({"a": WeightedTask(task, batch=count)}, ema=0.0, through_fit=True)
    gradient = FeedbackGradient(feedback, 2)
    report = gradient.update(backbone, keys)
    index = torch.arange(count)
    ((loss, whole),) = gradients_through_fit(task, backbone, [index], 2)
    assert float(report["meta_loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(loss) == pytest.approx(float(task.loss(all_features(task, backbone, "meta"), "meta", index)))
    for name, value in gradient.u.items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_without_folds_there_is_nothing_to_follow(make_feedback, backbone, keys):
    feedback = Feedback({"a": WeightedTask(make_feedback(), batch=16)}, through_fit=True)
    with pytest.raises(UserError, match="set folds to 2 or more"):
        FeedbackGradient(feedback, 2).update(backbone, keys)


def test_a_task_of_ones_own_without_the_method_is_told(make_feedback, backbone, keys):
    class Own:
        """A task that holds its head."""

        def __init__(self, task):
            self.count, self.images, self.fit, self.loss = task.count, task.images, task.fit, task.loss

    feedback = Feedback({"a": WeightedTask(Own(make_feedback()), batch=16)}, through_fit=True)
    with pytest.raises(UserError, match="a method loss_through_fit, and Own has none"):
        FeedbackGradient(feedback, 2).update(backbone, keys)
