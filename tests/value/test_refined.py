"""Value seen through the pixels that a designer changes after rendering."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vpt_vision.designers import (
    AdversarialMasksDesigner,
    AdversarialMasksDesignerConfig,
    SoftMaskDesigner,
    SoftMaskDesignerConfig,
)
from vpt_vision.value import ValueStep, exact_value, finite_difference_value

PATCH = 8
TEMPERATURE = 0.07


@pytest.fixture
def soft_mask(recipe):
    def make(generator="unet", **settings):
        torch.manual_seed(1)
        config = SoftMaskDesignerConfig(
            kind="soft_mask", generator=generator, width=8, depth=1, blur_kernel=9, **settings
        )
        designer = SoftMaskDesigner(config, recipe, PATCH)
        nn.init.normal_(designer.generator.out.weight, 0, 0.3)
        return designer

    return make


@pytest.fixture
def adversarial(recipe):
    def make(**settings):
        torch.manual_seed(1)
        config = AdversarialMasksDesignerConfig(kind="adversarial_masks", masks=2, width=8, **settings)
        return AdversarialMasksDesigner(config, recipe, PATCH)

    return make


def refined(designer, setting, images, keys):
    task = designer(images, keys)
    with torch.no_grad():
        views = setting.renderer(images, task)
    return designer.refine(task, views, keys, setting.learner, TEMPERATURE)


def total(learner, values):
    return sum(learner.config.weights[term] * value for term, value in values.items())


def along(goal, designer):
    parts = torch.autograd.grad(goal, list(designer.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]).double()


@pytest.mark.parametrize("generator", ["unet", "transformer"])
def test_the_gradient_in_the_soft_mask_is_that_of_the_exact_value(
    make_learner, make_setting, soft_mask, direction, images, keys, generator
):
    learner, designer = make_learner(), soft_mask(generator)
    setting, u = make_setting(learner), direction(learner)
    task, views, *_ = refined(designer, setting, images, keys)
    exact = total(learner, exact_value(setting, task, views, u))
    close = total(learner, finite_difference_value(setting, task, views, u, rho=1e-3))
    torch.testing.assert_close(close, exact, rtol=0.03, atol=1e-3)
    found, expected = along(close, designer), along(exact, designer)
    assert expected.norm() > 0
    assert F.cosine_similarity(found, expected, dim=0) > 0.999
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_the_exact_gradient_in_the_soft_mask_is_that_of_central_differences(
    make_learner, make_setting, soft_mask, direction, images, keys
):
    """In fp64, through a shift of the mask's last bias; the teacher's targets are held, as in training."""
    learner, designer = make_learner(centring="ema").double(), soft_mask()
    designer.generator.double()
    setting = make_setting(learner)
    u = {name: value.double() for name, value in direction(learner).items()}
    bias = designer.generator.out.bias
    targets = learner.teacher_targets(
        refined(designer, setting, images, keys).views.global_views, designer(images, keys).masks, TEMPERATURE
    )
    learner.teacher_targets = lambda *_, **__: targets

    def value():
        task, views, *_ = refined(designer, setting, images, keys)
        return total(learner, exact_value(setting, task, views, u))

    (slope,) = torch.autograd.grad(value(), bias)
    steps = []
    for sign in (1, -1):
        with torch.no_grad():
            bias += sign * 1e-4
        steps.append(value().detach())
        with torch.no_grad():
            bias -= sign * 1e-4
    torch.testing.assert_close(slope[0], (steps[0] - steps[1]) / 2e-4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("forward", ["all", "one"])
def test_value_is_measured_on_what_the_adversary_lets_the_student_see(
    make_learner, make_setting, adversarial, direction, images, keys, forward
):
    learner = make_learner(koleo_weight=0.1)
    setting, u = make_setting(learner), direction(learner)
    with torch.no_grad():
        task, views, *_ = refined(adversarial(forward=forward), setting, images, keys)
        values = finite_difference_value(setting, task, views, u, rho=1e-3)
    for term, value in exact_value(setting, task, views, u).items():
        torch.testing.assert_close(values[term], value.detach(), rtol=0.03, atol=2e-3)


@pytest.fixture
def make_value_step(make_step):
    """A maker of value steps for a given designer."""

    def make(designer, **value):
        step = make_step()
        return ValueStep(
            step.config.model_copy(update=value),
            learner=step.learner,
            designer=designer,
            renderer=step.renderer,
            feedback=step.feedback_gradient.feedback,
        )

    return make


def run(step, images, keys, steps):
    return [step(images, keys._replace(step=number), TEMPERATURE) for number in range(steps)]


def test_the_soft_mask_climbs(make_value_step, soft_mask, images, keys):
    """Over and over on one batch of a learner that stands still, value rises."""
    free = {"sparsity_weight": 0.0, "tv_weight": 0.0}
    step = make_value_step(soft_mask(learning_rate=0.02, **free), normalise="none")
    values = torch.stack([step(images, keys, TEMPERATURE)["value"] for _ in range(10)])
    assert values[-3:].mean() > values[0] + 0.05 * values[0].abs()


def test_its_penalties_hold_the_soft_mask(make_value_step, soft_mask, images, keys):
    priced = {"keep": 0.3, "sparsity_weight": 1e4, "tv_weight": 1e4, "learning_rate": 0.02}
    reports = run(make_value_step(soft_mask(**priced)), images, keys, 12)
    assert reports[-1]["penalty/tv"] < 0.7 * reports[0]["penalty/tv"]
    assert (reports[-1]["policy/kept"] - 0.3).abs() < (reports[0]["policy/kept"] - 0.3).abs() + 0.02


def test_nothing_reaches_the_learner(make_value_step, soft_mask, images, keys, snapshot, assert_same):
    step = make_value_step(soft_mask())
    before, random = snapshot(step.learner), torch.get_rng_state()
    weights = [parameter.clone() for parameter in step.designer.parameters()]
    report = step(images, keys, TEMPERATURE)
    assert_same(before, snapshot(step.learner))
    assert torch.equal(random, torch.get_rng_state())
    assert not any(value.requires_grad for value in report.values())
    assert any(not torch.equal(a, b) for a, b in zip(weights, step.designer.parameters(), strict=True))


def test_an_adversary_is_measured_by_value_and_left_alone(make_value_step, adversarial, images, keys):
    step = make_value_step(adversarial())
    weights = [parameter.clone() for parameter in step.designer.parameters()]
    report = step(images, keys, TEMPERATURE)
    assert report["value"].isfinite() and "designer_gradient_norm" not in report
    assert all(torch.equal(a, b) for a, b in zip(weights, step.designer.parameters(), strict=True))
