"""Cross-entropy of student logits against targets made of teacher logits and potentials."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import LOGITS, expect, expect_rows, expect_temperatures
from .sinkhorn_potentials import Potentials


def masked_distillation_loss(
    student: Tensor,
    teacher: Tensor,
    potentials: Potentials,
    *,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Give weights[m] Σ_p Σ_k -q[rows[m, p], k] log softmax(student[m] / student_temperature[m])_k.

    With q = exp(teacher / teacher_temperature[:, None] + row[:, None] + column). One teacher row a student
    row is the loss of a masked token in iBOT (Zhou et al. 2022, arXiv 2111.07832, equation 2); several are
    the pairs of views of DINO (Caron et al. 2021, arXiv 2104.14294, equation 3).

    Gradients reach the student (twice), the weights, and the temperatures. The teacher's temperature
    moves q with its rows kept at their sums and the column potential held, dq = -q (t - mean_q t) /
    temperature² for teacher logits t: how the balance of the columns answers is not counted.

    Args:
        student: [M, K], any float dtype; computed in fp32 (fp64 for fp64).
        teacher: [T, K], any float dtype.
        potentials: row [T] and column [K], made with the same `teacher_temperature`.
        student_temperature: above 0; a number, or a tensor of one element or of [M].
        teacher_temperature: above 0; a number, or a tensor of one element or of [T].
        weights: float [M]; 1 if left out. They multiply what is there: padding that may hold anything is
            left out by a -1 in rows, not by a weight of 0.
        rows: int64 [M, P], 0..T-1 or -1 for none: the teacher rows that each student row is compared with.
            If left out, each with the one of the same number (T = M). A row with none has loss 0, whatever
            it holds.

    Returns:
        fp32 [M] (fp64 for fp64).

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range (rows
            are looked at on the CPU alone).
    """
    name = "masked_distillation_loss"
    expect(name, "student", student, LOGITS, ("M", "K"))
    expect(name, "teacher", teacher, LOGITS, ("T", student.shape[1]), student.device)
    expect_rows(name, rows, len(student), len(teacher), student.device)
    row, column = potentials
    expect(name, "potentials.row", row, LOGITS, (len(teacher),), student.device)
    expect(name, "potentials.column", column, LOGITS, (student.shape[1],), student.device)
    if weights is not None:
        expect(name, "weights", weights, LOGITS, (len(student),), student.device)
    own = expect_temperatures(name, "student_temperature", student_temperature, len(student), student)
    theirs = expect_temperatures(name, "teacher_temperature", teacher_temperature, len(teacher), student)
    losses, _, _ = masked_distillation(
        student,
        teacher.detach(),
        row.detach().to(own.dtype),
        column.detach().to(own.dtype),
        own,
        theirs,
        rows,
    )
    return losses if weights is None else weights.to(losses.dtype) * losses


@torch.library.custom_op("vpt::masked_distillation", mutates_args=())
def masked_distillation(
    student: Tensor,
    teacher: Tensor,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the losses [M], and for the backward pass log Σ_k exp z [M] and the targets' mass Σ_k q [M].

    With z = student / student_temperature. Temperatures are [M] and [T] in the dtype of the losses.
    """
    log_predicted, normaliser = _log_softmax(student, student_temperature)
    targets = _targets(teacher, row, column, teacher_temperature, rows)
    mass = targets.sum(1)
    losses = -targets.mul_(log_predicted).sum(1)
    if rows is None:
        return losses, normaliser, mass
    alone = (rows < 0).all(1)  # such a row may hold anything
    return losses.masked_fill(alone, 0), normaliser, mass


@masked_distillation.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton import masked_distillation_loss as device

    return device.forward(*arguments)


@masked_distillation.register_fake
def _(student: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    made = student.new_empty(len(student), dtype=torch.promote_types(student.dtype, torch.float32))
    return made, torch.empty_like(made), torch.empty_like(made)


@torch.library.custom_op("vpt::masked_distillation_student", mutates_args=())
def masked_distillation_student(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
    normaliser: Tensor,
    mass: Tensor,
) -> Tensor:
    """Give the student's gradient [M, K]: gradient · (mass · softmax(z) - q) / temperature, z as above."""
    # In place: on the CPU making a tensor of this size costs as much as computing it.
    slope = student.to(normaliser.dtype) / student_temperature[:, None]
    slope.sub_(normaliser[:, None]).exp_().mul_(mass[:, None])
    slope.sub_(_targets(teacher, row, column, teacher_temperature, rows))
    slope.mul_((gradient / student_temperature)[:, None])
    if rows is not None:
        slope.masked_fill_((rows < 0).all(1, keepdim=True), 0)
    return slope.to(student.dtype).contiguous()


@masked_distillation_student.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from .triton import masked_distillation_loss as device

    return device.student_gradient(*arguments)


@masked_distillation_student.register_fake
def _(gradient: Tensor, student: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


@torch.library.custom_op("vpt::masked_distillation_temperatures", mutates_args=())
def masked_distillation_temperatures(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
    normaliser: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give the temperatures' gradients, [M] and [T].

    With p = softmax(z) and t the teacher's logits: the student's is
    gradient · Σ_k (q - mass p) log p / student_temperature; the teacher's, added up over the student rows
    that are compared with its row, gradient · Σ_k q (t - mean_q t) log p / teacher_temperature².
    """
    log_predicted, _ = _log_softmax(student, student_temperature)
    partners = torch.arange(len(student), device=student.device)[:, None] if rows is None else rows
    present = partners >= 0
    of_student = torch.zeros_like(student_temperature, memory_format=torch.contiguous_format)
    of_teacher = torch.zeros_like(teacher_temperature, memory_format=torch.contiguous_format)
    for partner, there in zip(partners.clamp(min=0).T, present.T, strict=True):
        temperature = teacher_temperature[partner]
        logits = teacher[partner].to(temperature.dtype)
        q = (logits / temperature[:, None] + row[partner, None] + column).exp()
        mass = q.sum(1, keepdim=True)
        mean = (q * logits).sum(1, keepdim=True) / mass
        of_row = ((q - mass * log_predicted.exp()) * log_predicted).sum(1) / student_temperature
        of_partner = (q * (logits - mean) * log_predicted).sum(1) / temperature**2
        of_student += (gradient * of_row).masked_fill(~there, 0)
        of_teacher.index_put_((partner,), (gradient * of_partner).masked_fill(~there, 0), accumulate=True)
    return of_student, of_teacher


@masked_distillation_temperatures.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .triton import masked_distillation_loss as device

    return device.temperature_gradients(*arguments)


@masked_distillation_temperatures.register_fake
def _(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    return student_temperature.new_empty(len(student)), teacher_temperature.new_empty(len(teacher))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, normaliser, mass = output
    ctx.save_for_backward(*inputs, normaliser, mass)


def _backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, normaliser, mass = ctx.saved_tensors
    needs_student, _, _, _, needs_own, needs_teachers, _ = ctx.needs_input_grad
    of_student = of_own = of_teachers = None
    if needs_student:
        of_student = masked_distillation_student(gradient, *inputs, normaliser, mass)
    if needs_own or needs_teachers:
        of_own, of_teachers = masked_distillation_temperatures(gradient, *inputs, normaliser)
    return of_student, None, None, None, of_own, of_teachers, None


masked_distillation.register_autograd(_backward, setup_context=_save)


def _save_student(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])


def _backward_student(ctx: Any, second: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradient once more, in plain torch operations: it is rarely asked for."""
    gradient, student, teacher, row, column, own, theirs, rows = ctx.saved_tensors
    logits = teacher.to(own.dtype)
    mass = (logits / theirs[:, None] + row[:, None] + column).exp().sum(1, keepdim=True)  # of each row, held

    def first(gradient: Tensor, student: Tensor, own: Tensor, theirs: Tensor) -> Tensor:
        targets = mass * torch.softmax(logits / theirs[:, None] + column, 1)
        if rows is not None:
            none = targets.new_zeros(1, targets.shape[1])  # what row -1 points to
            targets = torch.cat((targets, none))[rows].sum(1)
        slope = (
            targets.sum(1, keepdim=True) * torch.softmax(student.to(own.dtype) / own[:, None], 1) - targets
        )
        slope = slope * (gradient / own)[:, None]
        return slope if rows is None else slope.where((rows >= 0).any(1, keepdim=True), 0)

    _, back, *_ = torch.func.vjp(first, gradient, student, own, theirs)
    of_gradient, of_student, of_own, of_theirs = back(second.to(own.dtype))
    return of_gradient, of_student, None, None, None, of_own, of_theirs, None, None, None


masked_distillation_student.register_autograd(_backward_student, setup_context=_save_student)


def _targets(
    teacher: Tensor, row: Tensor, column: Tensor, temperature: Tensor, rows: Tensor | None
) -> Tensor:
    """Give Σ_p q[rows[m, p]] as [M, K] in the dtype of `temperature`."""
    q = (teacher.to(temperature.dtype) / temperature[:, None]).add_(row[:, None]).add_(column).exp_()
    if rows is None:
        return q
    none = q.new_zeros(1, q.shape[1])  # what row -1 points to
    return F.embedding_bag(rows % (len(q) + 1), torch.cat((q, none)), mode="sum")


def _log_softmax(student: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Give log softmax(student / temperature) [M, K] and the normaliser it takes away [M]."""
    scaled = student.to(temperature.dtype) / temperature[:, None]
    normaliser = torch.logsumexp(scaled, 1)
    return scaled.sub_(normaliser[:, None]), normaliser
