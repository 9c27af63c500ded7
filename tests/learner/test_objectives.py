from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import probabilities

from vpt_vision.errors import UserError
from vpt_vision.learner.centring import Centre, sinkhorn_target
from vpt_vision.learner.objectives import dino_loss, ibot_loss, relaxed_weights
from vpt_vision.learner.scores import Scores, Target
from vpt_vision.task import Masks


def target_of(logits: torch.Tensor, temperature: float, balanced: bool) -> Target:
    if balanced:
        return sinkhorn_target(Scores(logits), temperature)
    centre = Centre(logits.shape[1], 0.9).to(logits.dtype)
    centre.value.copy_(torch.linspace(-1, 1, logits.shape[1]))
    return centre.target(Scores(logits), temperature, temperature)


def cross_entropy(q: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    exponentials = torch.exp(student.double() / temperature)
    return -sum(q[k] * torch.log(exponentials[k] / exponentials.sum()) for k in range(len(q)))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(2, 7),
    st.booleans(),
    st.integers(0, 99),
)
def test_dino_loss_is_the_mean_over_pairs_of_different_views(
    globals_: int, locals_: int, batch: int, prototypes: int, balanced: bool, seed: int
) -> None:
    if globals_ + locals_ == 1:
        return
    torch.manual_seed(seed)
    student = torch.randn(globals_ + locals_, batch, prototypes, dtype=torch.float64)
    target = target_of(torch.randn(globals_ * batch, prototypes, dtype=torch.float64), 0.3, balanced)
    q = probabilities(target).view(globals_, batch, prototypes)
    losses = dino_loss(Scores(student.flatten(0, 1)), target, batch, 0.1)
    for sample in range(batch):
        pairs = [
            cross_entropy(q[teacher_view, sample], student[student_view, sample], 0.1)
            for student_view in range(globals_ + locals_)
            for teacher_view in range(globals_)
            if student_view != teacher_view
        ]
        torch.testing.assert_close(losses[sample], sum(pairs) / len(pairs))


def test_dino_loss_needs_two_views() -> None:
    target = sinkhorn_target(Scores(torch.randn(3, 5)), 0.1)
    with pytest.raises(UserError, match="add a global or local view"):
        dino_loss(Scores(torch.randn(3, 5)), target, 3, 0.1)


def test_dino_loss_under_autocast_is_fp32() -> None:
    student, target = Scores(torch.randn(24, 32)), sinkhorn_target(Scores(torch.randn(12, 32)), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = dino_loss(student, target, 6, 0.1)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, dino_loss(student, target, 6, 0.1))


def test_dino_loss_has_the_gradient_of_finite_differences() -> None:
    target = sinkhorn_target(Scores(torch.randn(4, 5, dtype=torch.float64)), 0.3)
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: dino_loss(Scores(logits), target, 2, 0.4), student)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 9),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 99),
)
def test_ibot_loss_is_the_mean_over_views_of_the_mean_over_hidden_tokens(
    globals_: int, batch: int, tokens: int, share: float, balanced: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    hidden = torch.rand(globals_, batch, tokens) < share
    index = hidden.flatten().nonzero().squeeze(1)
    student = torch.randn(len(index), 6, dtype=torch.float64)
    target = target_of(torch.randn(len(index), 6, dtype=torch.float64), 0.3, balanced)
    q = probabilities(target)
    losses = ibot_loss(Scores(student), target, Masks.of(hidden, len(index)), 0.1)
    expected = torch.zeros(batch, dtype=torch.float64)
    row = 0
    for view in range(globals_):
        for sample in range(batch):
            count = int(hidden[view, sample].sum())
            for _ in range(count):
                expected[sample] += cross_entropy(q[row], student[row], 0.1) / count / globals_
                row += 1
    torch.testing.assert_close(losses, expected)


def dense_case() -> tuple[torch.Tensor, torch.Tensor, Masks]:
    torch.manual_seed(5)
    hidden = torch.rand(2, 3, 7) < 0.4
    hidden[0, 1] = False
    student, teacher = torch.randn(2, 42, 6, dtype=torch.float64)
    return student, teacher, Masks.of(hidden, int(hidden.sum()))


@pytest.mark.parametrize("balanced", [True, False])
def test_relaxed_masks_give_the_packed_value(balanced: bool) -> None:
    student, teacher, masks = dense_case()
    index = masks.hidden.flatten().nonzero().squeeze(1)
    relaxed = replace(masks, relaxed=masks.hidden.double())
    packed = ibot_loss(Scores(student[index]), target_of(teacher[index], 0.3, balanced), masks, 0.1)
    everywhere = (
        sinkhorn_target(Scores(teacher), 0.3, masks.hidden.flatten().float())
        if balanced
        else target_of(teacher, 0.3, False)
    )
    torch.testing.assert_close(ibot_loss(Scores(student), everywhere, relaxed, 0.1), packed)


def test_relaxed_masks_have_the_gradient_of_finite_differences_and_none_where_nothing_is_hidden() -> None:
    student, teacher, masks = dense_case()
    target = sinkhorn_target(Scores(teacher), 0.3, masks.hidden.flatten().float())
    shares = masks.hidden.double().requires_grad_()

    def loss(shares: torch.Tensor) -> torch.Tensor:
        hides = masks.hidden.any(-1, keepdim=True)
        moved = shares.where(hides, shares.detach())
        return ibot_loss(Scores(student), target, replace(masks, relaxed=moved), 0.1)

    assert torch.autograd.gradcheck(loss, shares)
    whole = ibot_loss(Scores(student), target, replace(masks, relaxed=shares), 0.1)
    (gradient,) = torch.autograd.grad(whole.sum(), shares)
    assert gradient[0, 1].abs().sum() == 0
    assert (gradient[masks.hidden.sum(-1) > 1] != 0).all()


def test_relaxed_weights_sum_to_one_where_anything_is_hidden() -> None:
    _, _, masks = dense_case()
    weights = relaxed_weights(masks.hidden.float(), masks.hidden)
    assert torch.equal(weights > 0, masks.hidden)
    torch.testing.assert_close(weights.sum(-1), masks.hidden.any(-1).float())
