"""Cross-entropy of student logits against targets made of teacher logits and potentials."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import LOGITS, expect, expect_temperature
from .sinkhorn_potentials import Potentials


def masked_distillation_loss(
    student: Tensor,
    teacher: Tensor,
    potentials: Potentials,
    *,
    student_temperature: float,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """Give -Σ_k q_k log softmax(student / student_temperature)_k for each row.

    With q = exp(teacher / teacher_temperature + row[:, None] + column): the loss of a masked token in
    iBOT (Zhou et al. 2022, arXiv 2111.07832) and of a pair of views in DINO (Caron et al. 2021, arXiv
    2104.14294, equation 2). Gradients, of any order, reach the student alone.

    Args:
        student: [M, K], any float dtype; computed in fp32 (fp64 for fp64).
        teacher: [M, K], any float dtype.
        potentials: row [M] and column [K], made with the same `teacher_temperature`.
        student_temperature: above 0.
        teacher_temperature: above 0; a number or a tensor of one element.

    Returns:
        fp32 [M] (fp64 for fp64).

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range.
    """
    name = "masked_distillation_loss"
    expect(name, "student", student, LOGITS, ("M", "K"))
    expect(name, "teacher", teacher, LOGITS, tuple(student.shape), student.device)
    expect(name, "potentials.row", potentials.row, LOGITS, (student.shape[0],), student.device)
    expect(name, "potentials.column", potentials.column, LOGITS, (student.shape[1],), student.device)
    expect_temperature(name, "student_temperature", student_temperature)
    expect_temperature(name, "teacher_temperature", teacher_temperature)
    wide = torch.promote_types(student.dtype, torch.float32)
    with torch.no_grad():
        targets = (teacher.to(wide) / teacher_temperature + potentials.row[:, None] + potentials.column).exp()
    return -(targets * torch.log_softmax(student.to(wide) / student_temperature, 1)).sum(1)
