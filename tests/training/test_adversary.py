import copy

import pytest
import torch

from vpt_vision.config import load_config
from vpt_vision.task import Keys
from vpt_vision.training.trainer import Trainer

TEMPERATURE = 0.07


@pytest.fixture
def make(tiny_settings):
    """A maker of trainers with an adversarial designer, and of one batch for it."""

    def build(**settings):
        designer = {"kind": "adversarial_masks", "masks": 2, "width": 8, **settings}
        trainer = Trainer(load_config({**tiny_settings, "designer": designer}))
        torch.nn.init.normal_(trainer.designer.generator.out.weight, 0, 0.3)
        return trainer, next(iter(trainer.loader))

    return build


@pytest.fixture
def occasion(make):
    """A maker of an adversarial step and what it is called with."""

    def build(**settings):
        trainer, batch = make(**settings)
        return trainer.adversary, (batch.images, Keys(0, 0, batch.index), TEMPERATURE)

    return build


def goal(step, images, keys, temperature):
    """The learner's loss in eval mode, less the price."""
    step.learner.eval()
    task = step.designer(images, keys)
    views = step.renderer(images, task)
    refined = step.designer.refine(task, views, keys, step.learner, temperature)
    loss = step.learner(refined.views, refined.task.masks, temperature).total
    step.learner.train()
    return loss - refined.penalties["sparsity"], loss


@pytest.mark.parametrize("forward", ["all", "one"])
def test_takes_a_step_up_the_learners_loss_less_the_price(occasion, forward):
    """AdamW's first step is as long as the learning rate, along the gradient's sign."""
    step, arguments = occasion(forward=forward, learning_rate=1e-3)
    reference = copy.deepcopy(step)
    wanted, loss = goal(reference, *arguments)
    wanted.backward()
    before = [parameter.detach().clone() for parameter in step.designer.parameters()]
    report = step(*arguments)
    assert report["adversary_loss"] == pytest.approx(loss.item(), rel=1e-5)
    moved = torch.cat([(p - b).flatten() for p, b in zip(step.designer.parameters(), before, strict=True)])
    slope = torch.cat([p.grad.flatten() for p in reference.designer.parameters()])
    clear = slope.abs() > 1e-4 * slope.abs().max()
    assert clear.float().mean() > 0.3
    assert torch.equal(moved[clear].sign(), slope[clear].sign())
    torch.testing.assert_close(report["designer_gradient_norm"], slope.norm(), rtol=1e-4, atol=0)


def test_over_and_over_the_goal_rises(occasion):
    step, arguments = occasion(learning_rate=3e-3)
    start = goal(step, *arguments)[0].item()
    reports = [step(*arguments) for _ in range(15)]
    assert goal(step, *arguments)[0].item() > start + 0.01
    assert all(report["designer_skipped"] == 0 for report in reports)


def test_nothing_reaches_the_learner(occasion, snapshot):
    step, arguments = occasion()
    for number, parameter in enumerate(step.learner.parameters()):
        parameter.grad = None if number % 2 else torch.ones_like(parameter)
    before, random = snapshot(step.learner), torch.get_rng_state()
    step(*arguments)
    after = snapshot(step.learner)
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in step.designer.parameters())


def test_a_loss_that_is_not_finite_moves_nothing(occasion):
    step, arguments = occasion()
    with torch.no_grad():
        next(step.learner.student.parameters()).fill_(float("nan"))
    before = [parameter.detach().clone() for parameter in step.designer.parameters()]
    assert step(*arguments)["designer_skipped"] == 1
    assert all(torch.equal(p, b) for p, b in zip(step.designer.parameters(), before, strict=True))


def test_no_label_is_read(make, tiny_settings):
    """The designer moves as it does with and without feedback."""
    weights = []
    for feedback in (True, False):
        if not feedback:
            del tiny_settings["feedback"]
        trainer, batch = make()
        assert (trainer.value_step is not None) == feedback
        torch.manual_seed(0)
        torch.nn.init.normal_(trainer.designer.generator.out.weight, 0, 0.3)
        trainer.train_step(batch)
        weights.append([parameter.detach().clone() for parameter in trainer.designer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
