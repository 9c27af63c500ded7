"""masked_distillation_loss: brute force over tokens and prototypes in fp64, and its gradients."""

import math

import pytest
import torch

from vpt_kernels import Potentials, centre_potentials, masked_distillation_loss, sinkhorn_potentials


def brute_force(student, teacher, potentials, student_temperature, teacher_temperature):
    losses = []
    for row in range(len(student)):
        logits = [float(value) / student_temperature for value in student[row]]
        highest = max(logits)
        normaliser = highest + math.log(sum(math.exp(value - highest) for value in logits))
        loss = 0.0
        for k, value in enumerate(logits):
            exponent = float(teacher[row, k]) / teacher_temperature
            q = math.exp(exponent + float(potentials.row[row]) + float(potentials.column[k]))
            loss -= q * (value - normaliser)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "prototypes"), [(0, 5), (1, 1), (1, 13), (11, 1), (7, 31), (5, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_brute_force(rows, prototypes, dtype):
    generator = torch.Generator().manual_seed(rows)
    student = torch.randn(rows, prototypes, generator=generator).to(dtype)
    teacher = torch.randn(rows, prototypes, generator=generator).to(dtype)
    potentials = sinkhorn_potentials(teacher, 0.07)
    loss = masked_distillation_loss(
        student, teacher, potentials, student_temperature=0.1, teacher_temperature=torch.tensor(0.07)
    )
    assert loss.dtype == torch.float32 and loss.shape == (rows,)
    expected = brute_force(student.double(), teacher.double(), potentials, 0.1, 0.07)
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-4)


def test_potentials_that_do_not_normalise_are_taken_as_they_are():
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    potentials = Potentials(torch.randn(4), torch.randn(6))
    loss = masked_distillation_loss(
        student, teacher, potentials, student_temperature=0.5, teacher_temperature=0.8
    )
    expected = brute_force(student, teacher, potentials, 0.5, 0.8)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)


def test_extreme_logits_stay_finite():
    student = ((torch.rand(9, 20) * 2 - 1) * 1e4).requires_grad_()
    teacher = (torch.rand(9, 20) * 2 - 1) * 1e4
    loss = masked_distillation_loss(
        student,
        teacher,
        centre_potentials(teacher, 0.01, torch.zeros(20)),
        student_temperature=0.1,
        teacher_temperature=0.01,
    )
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad.isfinite().all()


def test_gradient_is_softmax_minus_targets_and_reaches_the_student_alone():
    student = torch.randn(5, 8, requires_grad=True)
    teacher = torch.randn(5, 8, requires_grad=True)
    row, column = sinkhorn_potentials(teacher, 0.2)
    potentials = Potentials(row.requires_grad_(), column.requires_grad_())
    weight = torch.rand(5)
    loss = masked_distillation_loss(
        student, teacher, potentials, student_temperature=0.1, teacher_temperature=0.2
    )
    (loss * weight).sum().backward()
    q = (teacher / 0.2 + row[:, None] + column).exp().detach()
    expected = weight[:, None] * ((student / 0.1).softmax(1) * q.sum(1, keepdim=True) - q) / 0.1
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-5, rtol=1e-4)
    assert teacher.grad is None and row.grad is None and column.grad is None


def test_first_and_second_derivatives_by_finite_differences():
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64)
    potentials = sinkhorn_potentials(teacher, 0.3)

    def loss(student):
        return masked_distillation_loss(
            student, teacher, potentials, student_temperature=0.4, teacher_temperature=0.3
        )

    assert torch.autograd.gradcheck(loss, (student,))
    assert torch.autograd.gradgradcheck(loss, (student,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_dtype_do_not_change_that_of_the_losses(dtype):
    student, teacher, weights = torch.randn(3, 4), torch.randn(3, 4), torch.rand(3).to(dtype)
    common = {"student_temperature": 0.1, "teacher_temperature": 0.1}
    potentials = sinkhorn_potentials(teacher, 0.1)
    found = masked_distillation_loss(student, teacher, potentials, weights=weights, **common)
    assert found.dtype == torch.float32
    plain = masked_distillation_loss(student, teacher, potentials, **common)
    torch.testing.assert_close(found, plain * weights.float())


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"student": torch.zeros(3, 4, dtype=torch.int32)}, TypeError, "student must be"),
        ({"teacher": torch.zeros(3, 5)}, ValueError, r"teacher must be .*\[T, 4\], got float32 \[3, 5\]"),
        ({"potentials": Potentials(torch.zeros(2), torch.zeros(4))}, ValueError, "potentials.row must be"),
        ({"potentials": Potentials(torch.zeros(3), torch.zeros(5))}, ValueError, "potentials.column must be"),
        ({"teacher": torch.zeros(3, 4, device="meta")}, ValueError, "teacher must be .*on cpu"),
        ({"student_temperature": -1.0}, ValueError, "student_temperature must be above 0"),
        ({"teacher_temperature": 0.0}, ValueError, "teacher_temperature must be above 0"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "student": torch.zeros(3, 4),
        "teacher": torch.zeros(3, 4),
        "potentials": Potentials(torch.zeros(3), torch.zeros(4)),
        "student_temperature": 0.1,
        "teacher_temperature": 0.1,
        **change,
    }
    with pytest.raises(error, match=word):
        masked_distillation_loss(**arguments)
