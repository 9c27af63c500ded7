import copy
from dataclasses import replace

import pytest
import torch

from vpt_vision.task import RenderedViews
from vpt_vision.value import exact_value


def ssl_terms(setting, task, views=None):
    """The learner's loss terms by its ordinary forward pass on the packed task."""
    views = setting.renderer(setting.images, task)
    return setting.learner(views, task.detach().masks, setting.temperature).terms


@pytest.mark.parametrize("settings", [{}, {"centring": "ema", "gram_weight": 1.0}])
def test_value_is_the_fall_of_downstream_loss_along_the_step(
    make_learner, make_designer, make_setting, pixels, images, keys, settings
):
    """Sign and size: take the step θ_S - lr ∇L_k by .backward(), and watch L_down fall by lr V_k."""
    learner = make_learner(**settings).double()
    setting = make_setting(learner)
    with torch.no_grad():
        task = make_designer()(images, keys)
    names = learner.student.backbone.tail_parameters(2).keys()
    inputs = torch.randn(12, 3, 32, 32, dtype=torch.float64)
    head = torch.randn(3, learner.student.backbone.dim, dtype=torch.float64)

    def downstream(backbone):
        return torch.nn.functional.cross_entropy(backbone(inputs).cls @ head.T, torch.arange(12) % 3)

    reference = copy.deepcopy(learner.student.backbone)
    downstream(reference).backward()
    u = {name: parameter.grad for name, parameter in reference.tail_parameters(2).items()}
    values = exact_value(setting, task, pixels(setting, task), u)
    assert set(values) == set(learner.config.weights)

    for term, value in values.items():
        moved = copy.deepcopy(learner)
        ssl_terms(replace(setting, learner=moved), task)[term].backward()
        tail = moved.student.backbone.tail_parameters(2)
        assert tail.keys() == names

        def loss_after(rate, moved=moved, tail=tail):
            stepped = copy.deepcopy(moved.student.backbone)
            with torch.no_grad():
                for name, parameter in stepped.tail_parameters(2).items():
                    parameter -= rate * tail[name].grad
                return downstream(stepped)

        rate = 1e-6
        fall = (loss_after(-rate) - loss_after(rate)) / (2 * rate)
        torch.testing.assert_close(value.detach(), fall, rtol=1e-5, atol=1e-8)


def test_gradient_follows_the_relaxed_masks(
    make_learner, make_setting, pixels, make_designer, direction, images, keys
):
    """Against central differences in single entries of the relaxed mask, in fp64."""
    learner = make_learner(shared=True).double()
    setting = make_setting(learner)
    u = {name: value.double() for name, value in direction(learner).items()}
    with torch.no_grad():
        task = make_designer()(images, keys)
    views = pixels(setting, task)

    def value(relaxed):
        return exact_value(setting, replace(task, masks=replace(task.masks, relaxed=relaxed)), views, u)

    relaxed = (
        0.01 + 0.98 * task.masks.hidden.double()
    ).requires_grad_()  # the balance takes no share below 0
    slopes = {
        term: torch.autograd.grad(v, relaxed, retain_graph=True)[0] for term, v in value(relaxed).items()
    }
    masked = int(task.masks.hidden.flatten(0, 1).any(1).nonzero()[0])
    for entry in (0, 5, 11):
        bump = torch.zeros_like(relaxed).detach()
        bump.view(-1, bump.shape[-1])[masked, entry] = 1e-5
        above, below = value(relaxed.detach() + bump), value(relaxed.detach() - bump)
        for term in above:
            expected = ((above[term] - below[term]) / 2e-5).detach()
            found = slopes[term].view(-1, bump.shape[-1])[masked, entry]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"centring": "ema", "gram_weight": 1.0}, {"store_scores": False}])
def test_gradient_follows_the_views_through_student_and_teacher(
    make_learner, make_setting, pixels, make_designer, direction, images, keys, settings
):
    """Against central differences of the value itself along random changes of the pixels, in fp64."""
    learner = make_learner(**settings).double()
    setting = make_setting(learner)
    u = {name: value.double() for name, value in direction(learner).items()}
    with torch.no_grad():
        task = make_designer()(images, keys)
    views = pixels(setting, task)
    generator = torch.Generator().manual_seed(5)
    kinds = (views.global_views, views.local_views)
    turns = [torch.randn(view.shape, generator=generator, dtype=view.dtype) for view in kinds]

    def value(step, follow_targets=True):
        moved = RenderedViews(*(view + step * turn for view, turn in zip(kinds, turns, strict=True)))
        return exact_value(replace(setting, follow_targets=follow_targets), task, moved, u)

    for follow_targets in (True, False):
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        at, above, below = value(step, follow_targets), value(1e-5), value(-1e-5)
        for term in at:
            (found,) = torch.autograd.grad(at[term], step, retain_graph=True)
            expected = ((above[term] - below[term]) / 2e-5).detach()
            if follow_targets:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
            elif term != "koleo":  # the others have targets
                assert abs(found - expected) > 1e-3 * abs(expected)


def test_the_balance_of_patch_targets_moves_with_the_masks(
    make_learner, make_setting, pixels, make_designer, direction, images, keys
):
    """A token more is hidden by a small share: differences of the value with targets made anew."""
    learner = make_learner().double()
    setting = make_setting(learner)
    u = {name: value.double() for name, value in direction(learner).items()}
    with torch.no_grad():
        task = make_designer()(images, keys)
    views = pixels(setting, task)

    def value(relaxed):
        masks = replace(task.masks, relaxed=relaxed)
        return exact_value(setting, replace(task, masks=masks), views, u)["ibot"]

    relaxed = task.masks.hidden.double().requires_grad_()
    (slopes,) = torch.autograd.grad(value(relaxed), relaxed)
    for view, sample in task.masks.hidden.any(-1).nonzero()[:3].tolist():
        token = int(task.masks.hidden[view, sample].float().argmin())  # the first that is shown
        nudge = torch.zeros_like(slopes)
        nudge[view, sample, token] = 1e-6
        expected = (value(relaxed.detach() + nudge) - value(relaxed.detach())) / 1e-6
        torch.testing.assert_close(slopes[view, sample, token], expected.detach(), rtol=1e-3, atol=1e-6)
