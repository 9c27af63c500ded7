import pytest
import torch

from vpt_vision import UserError
from vpt_vision.designers import FixedDesigner
from vpt_vision.inspection.branch import Branch, branch_of
from vpt_vision.training.trainer import Trainer


def state(branch):
    optimiser = branch.trainer.optimiser.adamw.state_dict()["state"]
    moments = [value for of_it in optimiser.values() for value in of_it.values()]
    return [*branch.learner.state_dict().values(), *map(torch.as_tensor, moments)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_steps_are_those_that_training_takes(config):
    """From the start, at the learning rate of training's first steps."""
    trainer = Trainer(config)
    branch = Branch(config, learning_rate=1e-3)
    trainer.config = branch.config  # the same constant learning rate
    batches = branch.batches(2)
    for batch in batches:
        trainer.value_step = None
        expected, found = trainer.train_step(batch), branch.take(batch, branch.designer)
        assert expected["loss"] == found["loss"]
    assert same(trainer.learner.state_dict().values(), branch.learner.state_dict().values())
    assert branch.step == 2


def test_steps_are_taken_back(branch):
    before, step = [value.clone() for value in state(branch)], branch.step
    batches = branch.batches(3)
    losses = []
    for _ in range(2):
        with branch.undone():
            losses.append([branch.take(batch, branch.designer)["loss"] for batch in batches])
            assert branch.step == step + 3 and not same(before, state(branch))
        assert branch.step == step and same(before, state(branch))
    assert losses[0] == losses[1]
    assert all(parameter.grad is None for parameter in branch.learner.parameters())


def test_without_a_gradient_momentum_and_decay_lead_on(branch):
    """AdamW by hand (Loshchilov & Hutter 2019, algorithm 2) with g = 0, on a parameter with decay."""
    adamw = branch.trainer.optimiser.adamw
    parameter = dict(branch.backbone.vit.named_parameters())["blocks.2.mlp.fc1.weight"]
    before, past = parameter.detach().clone(), {k: v.clone() for k, v in adamw.state[parameter].items()}
    with branch.carried():
        group = next(g for g in adamw.param_groups if any(p is parameter for p in g["params"]))
        (beta1, beta2), t = group["betas"], past["step"] + 1
        first = beta1 * past["exp_avg"] / (1 - beta1**t)
        second = (beta2 * past["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
        assert group["weight_decay"] > 0
        expected = before - group["lr"] * (first / second + group["weight_decay"] * before)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(parameter, before)
    assert torch.equal(parameter, before) and torch.equal(adamw.state[parameter]["step"], past["step"])


def test_batches_are_the_next_ones_at_every_call(branch):
    first, again = (branch.batches(3) for _ in range(2))
    assert all(torch.equal(a.index, b.index) for a, b in zip(first, again, strict=True))


def test_another_designer_for_a_step(branch):
    designer = FixedDesigner(branch.config.recipe, 8)
    (batch,) = branch.batches(1)
    with branch.undone():
        own = branch.take(batch, branch.designer)["loss"]
    with branch.undone():
        other = branch.take(batch, designer)["loss"]
    assert own != other and branch.trainer.designer is branch.designer


def test_feedback_may_be_another_than_the_runs(run):
    other = branch_of(
        run,
        [
            "feedback={source: {kind: fashion_scenes, split: test, count: 100, size: 32}, "
            "head_size: 40, meta_size: 20, heldout_size: 10, batch: 10}"
        ],
    )
    assert list(other.feedback_gradient.feedback.tasks) == ["classification"]
    assert other.feedback_gradient.count == 0 and branch_of(run).feedback_gradient.count > 0
    assert same(state(other), state(branch_of(run)))


def test_bad_input_is_told(run, tmp_path, config):
    with pytest.raises(UserError, match="holds no checkpoint"):
        branch_of(tmp_path)
    with pytest.raises(UserError, match="give the config a 'feedback' part"):
        branch_of(run, ["feedback=null", "designer={kind: fixed}"])
    torch.save({"step": 1}, tmp_path / "step_00000001.pt")
    with pytest.raises(UserError, match="has no 'config' entry"):
        branch_of(tmp_path / "step_00000001.pt")
