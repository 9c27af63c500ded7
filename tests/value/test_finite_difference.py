from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.learner import Learner
from vpt_vision.value import exact_value, finite_difference_value, opened

CASES = [
    ({}, 2),
    ({"shared": True}, 1),
    ({"centring": "ema"}, 3),
    ({"gram_weight": 0.5}, 4),
    ({"store_scores": False}, 2),
]


@pytest.mark.parametrize(("settings", "tail_blocks"), CASES)
def test_agrees_with_the_exact_value_and_gradient(
    make_learner, make_designer, make_setting, pixels, direction, images, keys, settings, tail_blocks
):
    learner = make_learner(**settings)
    setting, u = make_setting(learner, tail_blocks), direction(learner, tail_blocks)
    designer = make_designer()
    task = designer(images, keys)
    exact = exact_value(setting, task, pixels(setting, task), u)
    close = finite_difference_value(setting, task, pixels(setting, task), u, rho=1e-3)
    for term, value in exact.items():
        assert close[term].item() == pytest.approx(value.item(), rel=0.03, abs=1e-3)

    def gradient(values, wanted):
        total = sum(learner.config.weights[term] * value for term, value in values.items())
        parts = torch.autograd.grad(total, wanted, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts]).double()

    for wanted in ([task.masks.relaxed], list(designer.parameters())):
        found, expected = gradient(close, wanted), gradient(exact, wanted)
        assert expected.norm() > 0
        assert F.cosine_similarity(found, expected, dim=0) > 0.999
        assert (found - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("surface", ["crops", "photometrics", "masks"])
@pytest.mark.parametrize("settings", [{}, {"centring": "ema", "gram_weight": 0.5}, {"store_scores": False}])
def test_agrees_with_the_exact_gradient_by_every_surface(
    make_learner, make_designer, make_setting, direction, images, keys, settings, surface
):
    learner = make_learner(**settings)
    setting, u = make_setting(learner), direction(learner)
    designer = make_designer()
    task = opened(designer(images, keys), frozenset({surface}))
    views = setting.renderer(images, task)
    parameters = [value for name, value in designer.named_parameters() if "heads" in name]

    def gradient(values):
        found = {}
        for term, value in values.items():
            parts = torch.autograd.grad(
                value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            found[term] = torch.cat([part.flatten() for part in parts]).double()
        return found

    exact = gradient(exact_value(setting, task, views, u))
    close = gradient(finite_difference_value(setting, task, views, u, rho=1e-3))
    for term, expected in exact.items():
        assert expected.norm() > 0, term
        assert F.cosine_similarity(close[term], expected, dim=0) > 0.999, term


@pytest.mark.parametrize("surface", ["crops", "photometrics", "masks", "targets"])
def test_in_a_bf16_run_it_still_agrees_with_the_exact_gradient_in_fp32(
    make_learner, make_designer, make_setting, direction, images, keys, surface
):
    learner = make_learner()
    setting, u = make_setting(learner), direction(learner)
    designer = make_designer(surfaces=["crops", "photometrics", "masks", "targets"])
    task = opened(designer(images, keys), frozenset({surface}))
    views = setting.renderer(images, task)
    seen = set()
    hook = lambda *call: seen.add(call[-1].dtype)  # noqa: E731
    learner.student.backbone.vit.blocks[0].mlp.register_forward_hook(hook)

    def gradient(values):
        total = sum(learner.config.weights[term] * value for term, value in values.items())
        parts = torch.autograd.grad(
            total, list(designer.parameters()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts]).double()

    expected = gradient(exact_value(setting, task, views, u))
    assert seen == {torch.float32}
    found = gradient(finite_difference_value(replace(setting, bf16=True), task, views, u, rho=1e-3))
    assert torch.bfloat16 in seen
    assert F.cosine_similarity(found, expected, dim=0) > 0.98


def test_relaxed_masks_have_the_value_of_the_masks(
    make_learner, make_designer, make_setting, pixels, direction, images, keys
):
    learner = make_learner()
    setting, u = make_setting(learner), direction(learner)
    task = make_designer()(images, keys)
    assert task.masks.relaxed is not None
    dense = finite_difference_value(setting, task, pixels(setting, task), u, rho=1e-3)
    packed = finite_difference_value(setting, task.detach(), pixels(setting, task), u, rho=1e-3)
    for term, value in dense.items():
        torch.testing.assert_close(value, packed[term], rtol=5e-3, atol=5e-3)


def test_value_does_not_depend_on_the_scale_of_the_step(
    make_learner, make_designer, make_setting, pixels, direction, images, keys
):
    """ε shrinks as u grows: V is linear in u, and 0 without one."""
    learner = make_learner()
    setting, u = make_setting(learner), direction(learner)
    with torch.no_grad():
        task = make_designer()(images, keys)
        once = finite_difference_value(setting, task, pixels(setting, task), u, rho=1e-3)
        thrice = finite_difference_value(
            setting, task, pixels(setting, task), {k: 3 * v for k, v in u.items()}, rho=1e-3
        )
        none = finite_difference_value(
            setting, task, pixels(setting, task), {k: 0 * v for k, v in u.items()}, rho=1e-3
        )
    for term in once:
        torch.testing.assert_close(thrice[term], 3 * once[term], rtol=1e-2, atol=1e-2)
        assert none[term] == 0


def test_the_trunk_runs_once_and_the_tail_twice(
    make_learner, make_designer, make_setting, pixels, direction, images, keys
):
    learner: Learner = make_learner()
    calls = [0] * learner.student.backbone.depth

    def count(number):
        def hook(*_):
            calls[number] += 1

        return hook

    for number, block in enumerate(learner.student.backbone.vit.blocks):
        block.register_forward_hook(count(number))
    with torch.no_grad():
        task = make_designer()(images, keys)
        setting = make_setting(learner)
        finite_difference_value(setting, task, pixels(setting, task), direction(learner), rho=1e-3)
    assert calls == [2, 2, 4, 4]  # global and local views are one call each


def test_the_learner_is_left_as_it_was(
    make_learner, make_designer, make_setting, pixels, direction, images, keys, snapshot, assert_same
):
    learner = make_learner(centring="ema")
    for number, parameter in enumerate(learner.parameters()):
        parameter.grad = None if number % 2 else torch.ones_like(parameter)
    designer = make_designer()
    before, random = snapshot(learner), torch.get_rng_state()
    task = designer(images, keys)
    for estimate in (exact_value, lambda *args: finite_difference_value(*args, rho=1e-3)):
        setting = make_setting(learner)
        values = estimate(setting, task, pixels(setting, task), direction(learner))
        torch.autograd.grad(sum(values.values()), task.masks.relaxed)
    assert_same(before, snapshot(learner))
    assert torch.equal(random, torch.get_rng_state())
