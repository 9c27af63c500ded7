"""Value in the task's targets: finite difference against exact, and exact against central differences."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.task import Targets
from vpt_vision.value import exact_value, finite_difference_value

FIELDS = ("token_weights", "sample_weights", "temperature", "mix")


def aimed(task, dtype=torch.float32):
    """The task with targets of every kind as leaves."""
    generator = torch.Generator().manual_seed(3)
    views, batch, tokens = task.masks.hidden.shape
    shapes = ((views, batch, tokens), (batch,), (batch,), (3, batch))
    values = [0.7 + 0.6 * torch.rand(shape, generator=generator).to(dtype) for shape in shapes]
    return replace(task, targets=Targets(*(value.requires_grad_() for value in values)))


CASES = [
    ({}, 2, True),
    ({"gram_weight": 0.5, "shared": True}, 1, False),
    ({"centring": "ema"}, 3, False),
    ({"store_scores": False, "gram_weight": 0.5}, 2, True),
    ({"store_scores": False, "centring": "ema"}, 2, False),
]


@pytest.mark.parametrize(("settings", "tail_blocks", "relaxed"), CASES)
def test_finite_difference_agrees_with_exact(
    make_learner, make_designer, make_setting, pixels, direction, images, keys, settings, tail_blocks, relaxed
):
    learner = make_learner(**settings)
    setting, u = make_setting(learner, tail_blocks), direction(learner, tail_blocks)
    task = make_designer()(images, keys)
    task = aimed(task if relaxed else task.detach())
    assert task.has_gradient
    views = pixels(setting, task)
    exact = exact_value(setting, task, views, u)
    close = finite_difference_value(setting, task, views, u, rho=1e-3)

    def gradients(values):
        total = sum(learner.config.weights[term] * value for term, value in values.items())
        return torch.autograd.grad(total, [getattr(task.targets, field) for field in FIELDS])

    for field, found, expected in zip(FIELDS, gradients(close), gradients(exact), strict=True):
        found, expected = found.flatten().double(), expected.flatten().double()
        assert expected.norm() > 0
        assert F.cosine_similarity(found, expected, dim=0) > 0.999, field
        assert (found - expected).norm() < 0.03 * expected.norm(), field


@pytest.mark.parametrize("store_scores", [True, False])
def test_exact_gradient_against_central_differences(
    make_learner, make_designer, make_setting, pixels, direction, images, keys, store_scores
):
    """In fp64, with a running centre: Sinkhorn's potentials, which the gradient holds, would move."""
    learner = make_learner(centring="ema", store_scores=store_scores, gram_weight=0.5).double()
    setting = make_setting(learner)
    u = {name: value.double() for name, value in direction(learner).items()}
    with torch.no_grad():
        task = make_designer()(images, keys)
    task = aimed(task, torch.float64)

    views = pixels(setting, task)

    def value(targets):
        values = exact_value(setting, replace(task, targets=targets), views, u)
        return sum(learner.config.weights[term] * value for term, value in values.items())

    leaves = [getattr(task.targets, field) for field in FIELDS]
    slopes = torch.autograd.grad(value(task.targets), leaves)
    hidden = int(task.masks.hidden.flatten().nonzero()[3])
    for field, leaf, slope in zip(FIELDS, leaves, slopes, strict=True):
        for place in (hidden,) if field == "token_weights" else (0, leaf.numel() - 1):
            bump = torch.zeros_like(leaf).detach()
            bump.view(-1)[place] = 1e-5
            above, below = (
                value(replace(task.targets, **{field: leaf.detach() + sign * bump})) for sign in (1, -1)
            )
            expected = ((above - below) / 2e-5).detach()
            torch.testing.assert_close(slope.view(-1)[place], expected, rtol=1e-4, atol=1e-7)


def test_the_trainers_task_leads_nowhere(make_designer, images, keys):
    task = aimed(make_designer()(images, keys))
    assert not task.detach().has_gradient
    assert all(torch.equal(getattr(task.targets, f), getattr(task.detach().targets, f)) for f in FIELDS)
    assert task.targets.requires_grad
