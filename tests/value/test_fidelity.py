"""Losses at moved parameters, and AdamW's step per unit of gradient."""

import copy

import pytest
import torch
from torch import nn

from vpt_vision.feedback import whole_loss
from vpt_vision.value.fidelity import Downstream, adamw_scales, predicted_change


def dict_of(*tensors):
    return {str(number): tensor for number, tensor in enumerate(tensors)}


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_adamw_scales_are_the_slopes_of_its_step(steps):
    """Take the step that comes next under gradients a little apart, at several learning rates and decays."""
    generator = torch.Generator().manual_seed(steps)
    first, second = (nn.Parameter(torch.randn(5, dtype=torch.float64, generator=generator)) for _ in range(2))
    groups = [{"params": [first], "lr": 1e-2, "weight_decay": 0.3}, {"params": [second], "lr": 3e-3}]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6)
    for _ in range(steps):
        for parameter in (first, second):
            parameter.grad = torch.randn(5, dtype=torch.float64, generator=generator)
        adamw.step()
    moments = {
        parameter: {k: torch.as_tensor(v).clone() for k, v in state.items()}
        for parameter, state in adamw.state.items()
    }
    scales = adamw_scales(adamw, moments, dict_of(first, second))

    # Around a gradient of 0 its own part in v vanishes to first order; v̂ is then that of the past, but for
    # the zero that has joined the mean.
    joined = (0.9 * (1 - 0.9**steps) / (1 - 0.9 ** (steps + 1))) ** 0.5

    def moved(size):
        parameters = [copy.deepcopy(first), copy.deepcopy(second)]
        other = torch.optim.AdamW(
            [
                {**group, "params": [p]}
                for group, p in zip(
                    copy.deepcopy(adamw.state_dict())["param_groups"], parameters, strict=True
                )
            ]
        )
        other.load_state_dict(copy.deepcopy(adamw.state_dict()))
        for parameter in parameters:
            parameter.grad = torch.full((5,), size, dtype=torch.float64)
        other.step()
        return parameters

    for name, above, below in zip("01", moved(1e-6), moved(-1e-6), strict=True):
        slope = -(above.detach() - below.detach()) / 2e-6
        torch.testing.assert_close(scales[name], slope * joined, rtol=1e-3, atol=1e-9)


def test_a_parameter_without_moments_is_not_moved():
    parameter = nn.Parameter(torch.ones(3))
    adamw = torch.optim.AdamW([parameter])
    assert adamw_scales(adamw, {}, dict_of(parameter))["0"].sum() == 0


def test_prediction_is_the_inner_product_over_us_tensors():
    gradient, scales = (
        dict_of(torch.tensor([1.0, 2.0]), torch.tensor([5.0])),
        dict_of(torch.tensor([0.1, 0.2]), torch.tensor([0.3])),
    )
    assert predicted_change({"0": torch.tensor([3.0, -1.0])}, scales, gradient) == pytest.approx(-(0.3 - 0.4))


class TestDownstream:
    @pytest.fixture
    def parts(self, make_step):
        step = make_step()
        task = step.feedback_gradient.feedback.tasks["classes"].task
        backbone = step.learner.student.backbone
        step.feedback_gradient.fit(backbone)
        return task, backbone, Downstream({"classes": task, "again": task}, backbone, 2, examples=1000)

    def test_losses_are_those_of_whole_splits(self, parts):
        task, backbone, downstream = parts
        losses = downstream.losses()
        for split in ("meta", "heldout"):
            expected = whole_loss(task, backbone, split).item()
            assert losses["classes", split] == losses["again", split] == pytest.approx(expected, rel=1e-6)

    def test_losses_with_another_tail(self, parts):
        """The trunk stays what it was when this was made, whatever the backbone has become."""
        _, backbone, downstream = parts
        tail = backbone.tail_parameters(2)
        before = downstream.losses()
        moved = {name: p.detach() + 0.05 * torch.randn_like(p) for name, p in tail.items()}
        partly = downstream.losses_with(moved)
        assert downstream.losses() == before
        with torch.no_grad():
            for name, parameter in tail.items():
                parameter.copy_(moved[name])
        assert downstream.losses() == pytest.approx(partly, rel=1e-5)
        with torch.no_grad():
            for parameter in backbone.vit.patch_embed.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert downstream.losses() != pytest.approx(partly, rel=1e-5)
        assert downstream.losses_with(moved) == pytest.approx(partly, rel=1e-6)

    def test_fewer_examples(self, parts):
        task, backbone, _ = parts
        assert len(Downstream({"a": task}, backbone, 1, examples=5).index["a", "meta"]) == 5
