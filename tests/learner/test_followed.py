"""Against the kernels in value, and against differences of the kernels in gradient, in fp64."""

import pytest
import torch

from vpt_kernels import masked_distillation_loss, sinkhorn_potentials
from vpt_vision.learner.centring import Centre, sinkhorn_target
from vpt_vision.learner.scores import Scores, distillation_loss

M, T, K = 7, 9, 11
STUDENT, TEACHER = 0.1, 0.05


@pytest.fixture
def made():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    partners = torch.tensor([[0, 3], [8, -1], [2, 2], [-1, -1], [5, 6], [-1, 1], [4, 7]])
    weights = torch.tensor([1.0, 0.0, 1.0, 0.3, 1.0, 0.0, 1.0, 1.0, 0.7], dtype=torch.float64)
    return 0.2 * random(M, K), 0.2 * random(T, K), weights, partners


def held(student, teacher, weights, partners):
    """The losses as the kernels give them, without a graph."""
    potentials = sinkhorn_potentials(teacher, TEACHER, weights=weights)
    return masked_distillation_loss(
        student,
        teacher,
        potentials,
        student_temperature=STUDENT,
        teacher_temperature=TEACHER,
        rows=partners,
    )


def slope(loss, point, direction, step=1e-6):
    return (loss(point + step * direction) - loss(point - step * direction)) / (2 * step)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_gradient_is_that_of_the_balance_and_the_loss(made, weighed):
    student, teacher, weights, partners = made
    weights = weights if weighed else None
    goal = torch.linspace(-1, 2, M, dtype=torch.float64)
    teacher.requires_grad_()
    target = sinkhorn_target(Scores(teacher), TEACHER, weights, followed=True)
    losses = distillation_loss(Scores(student), target, STUDENT, partners)
    torch.testing.assert_close(losses, held(student, teacher.detach(), weights, partners))
    (found,) = torch.autograd.grad((goal * losses).sum(), teacher)
    direction = torch.randn(T, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = slope(
        lambda point: (goal * held(student, point, weights, partners)).sum(), teacher.detach(), direction
    )
    torch.testing.assert_close((found * direction).sum(), expected, rtol=1e-6, atol=1e-7)


def test_a_row_has_a_gradient_to_its_weight_at_0_too(made):
    student, teacher, weights, partners = made
    weights.requires_grad_()
    losses = distillation_loss(
        Scores(student), sinkhorn_target(Scores(teacher), TEACHER, weights, followed=True), STUDENT, partners
    )
    (found,) = torch.autograd.grad(losses.sum(), weights)
    for row in range(T):
        nudge = torch.zeros(T, dtype=torch.float64)
        nudge[row] = 1e-6
        base = weights.detach()
        expected = (
            held(student, teacher, base + nudge, partners) - held(student, teacher, base, partners)
        ).sum() / 1e-6
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_the_running_centre_is_held_and_rows_are_not(made):
    student, teacher, _, _ = made
    centre = Centre(K, 0.9).double()
    centre.value.copy_(torch.linspace(-0.3, 0.3, K))

    def losses(teacher):
        return distillation_loss(
            Scores(student), centre.target(Scores(teacher[:M]), TEACHER, TEACHER, followed=True), STUDENT
        ).sum()

    teacher.requires_grad_()
    (found,) = torch.autograd.grad(losses(teacher), teacher)
    direction = torch.randn(T, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((found * direction).sum(), slope(losses, teacher.detach(), direction))


def test_factors_give_what_scores_give(made):
    generator = torch.Generator().manual_seed(2)
    student, theirs = (torch.randn(n, 4, generator=generator) for n in (M, T))
    own, their_prototypes = (torch.randn(K, 4, generator=generator) for _ in range(2))
    partners = made[3]
    found = []
    for stored in (True, False):
        teacher = theirs.clone().requires_grad_()
        sides = []
        for rows, prototypes in ((student, own), (teacher, their_prototypes)):
            unit = torch.nn.functional.normalize(prototypes, dim=-1)
            sides.append(Scores(rows @ unit.T) if stored else Scores(rows, prototypes, weight_norm=True))
        loss = distillation_loss(sides[0], sinkhorn_target(sides[1], 0.5, followed=True), 0.5, partners).sum()
        found.append((loss, *torch.autograd.grad(loss, teacher)))
    torch.testing.assert_close(*found)


def test_nothing_is_followed_where_nothing_leads(made):
    _, teacher, _, _ = made
    teacher.requires_grad_()
    with torch.no_grad():
        target = sinkhorn_target(Scores(teacher), TEACHER)
    assert not target.potentials.row.requires_grad
