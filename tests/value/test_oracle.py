"""u and its null, gradients of the loss terms, and how a task is ranked by them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vpt_vision.feedback import FeedbackGradient, inner
from vpt_vision.value import exact_value
from vpt_vision.value.oracle import directions, rank, term_gradients, values


@pytest.fixture
def step(make_step):
    return make_step()


@pytest.mark.parametrize("through_fit", [False, True])
def test_u_is_that_of_the_whole_meta_split(step, keys, through_fit):
    feedback = step.feedback_gradient.feedback
    backbone = step.learner.student.backbone
    entry = feedback.tasks["classes"]
    task = entry.task
    if through_fit:
        config = task.config.model_copy(update={"folds": 2})
        task = type(task)(config, task.splits, task.classes, renderer=task.renderer, size=task.size)
    found = directions(task, backbone, 2, permutations=3, through_fit=through_fit)
    # All meta examples are one batch.
    asked = {"classes": type(entry)(task, batch=task.count("meta"))}
    whole = FeedbackGradient(type(feedback)(asked, through_fit=through_fit), 2)
    report = whole.update(backbone, keys)
    for name, value in whole.u.items():
        torch.testing.assert_close(found.u[name], value, atol=1e-5, rtol=1e-3)
    assert found.reliability == pytest.approx(report["u_reliability"].item(), abs=1e-3)
    assert len(found.permuted) == len(found.permuted_reliability) == 3


def test_permuted_directions_have_us_length(step):
    found = directions(
        step.feedback_gradient.feedback.tasks["classes"].task,
        step.learner.student.backbone,
        1,
        permutations=4,
    )
    lengths = [inner(u, u).sqrt().item() for u in found.all]
    assert lengths == pytest.approx([lengths[0]] * 5, rel=1e-4)
    assert found.all[0] is found.u


def test_one_gradient_serves_every_u(
    make_learner, make_designer, make_setting, direction, keys, snapshot, assert_same
):
    learner, designer = make_learner(koleo_weight=0.1), make_designer()
    setting = make_setting(learner)
    before = snapshot(learner)
    gradients = term_gradients(setting, designer, keys)
    assert_same(before, snapshot(learner))
    some = [direction(learner), {name: -2 * value for name, value in direction(learner).items()}]
    found = values(gradients, some)
    with torch.no_grad():
        task = designer(setting.images, keys)
        views = setting.renderer(setting.images, task)
    expected = exact_value(setting, task, views, some[0])
    assert found.keys() == expected.keys() == {"dino", "ibot", "koleo"}
    for term, value in expected.items():
        torch.testing.assert_close(found[term][0], value.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[term][1], -2 * found[term][0], rtol=1e-4, atol=1e-6)


def test_in_a_bf16_run_the_last_blocks_stay_fp32(make_learner, make_designer, make_setting, direction, keys):
    """As in the value step, so that rounding is the trunk's and the teacher's alone."""
    learner, designer = make_learner(), make_designer()
    setting, u = make_setting(learner), [direction(learner)]
    seen = {number: set() for number in (0, 3)}
    for number, dtypes in seen.items():
        learner.student.backbone.vit.blocks[number].mlp.register_forward_hook(
            lambda *call, dtypes=dtypes: dtypes.add(call[-1].dtype)
        )
    exact = values(term_gradients(setting, designer, keys), u)
    close = values(term_gradients(replace(setting, bf16=True), designer, keys), u)
    assert seen == {0: {torch.float32, torch.bfloat16}, 3: {torch.float32}}
    for term, value in exact.items():
        torch.testing.assert_close(close[term], value, rtol=0.1, atol=0.05 * value.abs().max().item() + 0.05)


def test_a_task_is_ranked_against_what_permuted_labels_make_of_it():
    generator = np.random.default_rng(0)
    recipe = generator.normal(size=(5, 41))
    gains = np.concatenate([[4.0], generator.normal(1.0, 0.5, size=40)])
    task = recipe + gains + generator.normal(size=(5, 1)) * 0  # the batches' own values cancel
    found = rank(task, recipe)
    assert found.gain == pytest.approx(4.0)
    assert found.null_mean == pytest.approx(gains[1:].mean())
    assert found.z == pytest.approx((4 - gains[1:].mean()) / gains[1:].std(ddof=1))


def test_a_term_that_differs_by_rounding_alone_has_no_rank():
    recipe = np.ones((3, 9))
    assert rank(recipe * (1 + 1e-7 * np.arange(9)), recipe).z == 0
