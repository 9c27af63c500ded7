"""Losses at moved parameters, and AdamW's step per unit of gradient."""

import pytest
import torch
from torch import nn

from vpt_vision.feedback import whole_loss
from vpt_vision.value.fidelity import Downstream, first_share
from vpt_vision.value.preconditioner import adamw_step


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_the_first_share_of_adamws_whole_step(steps):
    """Against the step itself, its slope around a gradient of 0: there v̂ is the past's and a zero's mean."""
    generator = torch.Generator().manual_seed(steps)
    start = torch.randn(5, dtype=torch.float64, generator=generator)

    def moved(size):
        parameter = nn.Parameter(start.clone())
        adamw = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.8, 0.9), eps=1e-12)
        past = torch.Generator().manual_seed(steps)
        for _ in range(steps):
            parameter.grad = torch.randn(5, dtype=torch.float64, generator=past)
            adamw.step()
        u = {"w": torch.ones(5, dtype=torch.float64)}
        predicted = 1e-2 * first_share(adamw) * adamw_step(u, {"w": parameter}, adamw)["w"]
        parameter.grad = torch.full((5,), size, dtype=torch.float64)
        adamw.step()
        return parameter.detach(), predicted

    (above, predicted), (below, _) = moved(1e-6), moved(-1e-6)
    joined = (0.9 * (1 - 0.9**steps) / (1 - 0.9 ** (steps + 1))) ** 0.5
    torch.testing.assert_close(predicted, -(above - below) / 2e-6 * joined, rtol=1e-4, atol=0)


def test_before_any_step_the_first_share_is_the_whole():
    assert first_share(torch.optim.AdamW([nn.Parameter(torch.ones(2))])) == 1.0


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
