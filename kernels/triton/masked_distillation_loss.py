"""The distillation loss of stored logits: one read of both forward; one read of both and one write backward.

Five passes in all over [M, K]; at [3763, 65536] in bf16 each is 493 MB. The targets are made in registers and
never stored; a row's softmax is found on the way, with sums kept relative to the highest logit so far. As in
`sinkhorn_potentials` each program takes several rows, which share the column potentials.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block, cdiv, on_device_of
from .sinkhorn_potentials import rows_at_once


@triton.jit
def _partner(rows_ptr, rows, partner, row_stride, partner_stride, there, HAS_ROWS: tl.constexpr):
    """Give the teacher rows that `rows` are compared with, -1 for none, and which of `rows` have one."""
    if HAS_ROWS:
        place = rows_ptr + rows * row_stride + partner * partner_stride
        theirs = tl.load(place, mask=there, other=-1).to(tl.int64)
    else:
        theirs = tl.where(there, rows, -1)
    return theirs, theirs >= 0


@triton.jit
def _targets(
    teacher_ptr,  # [T, K] float
    row_ptr,  # [T] float
    temperature_ptr,  # [T] wide
    rows_ptr,  # [M, P] int64, or nothing
    rows,  # [ROWS] int64
    there,  # [ROWS]
    column,  # [BLOCK] wide
    columns,  # [BLOCK] int64
    inside,  # [BLOCK]
    teacher_stride,
    teacher_column_stride,
    row_stride,
    temperature_stride,
    rows_stride,
    partner_stride,
    P: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """Give the sum of the targets of all partners [ROWS, BLOCK]."""
    wide = column.dtype
    q = tl.zeros([rows.shape[0], columns.shape[0]], wide)
    for partner in tl.static_range(P):
        theirs, present = _partner(rows_ptr, rows, partner, rows_stride, partner_stride, there, HAS_ROWS)
        inverse = 1.0 / tl.load(temperature_ptr + theirs * temperature_stride, mask=present, other=1.0)
        row = tl.load(row_ptr + theirs * row_stride, mask=present, other=-float("inf")).to(wide)
        place = teacher_ptr + theirs[:, None] * teacher_stride + columns[None, :] * teacher_column_stride
        logits = tl.load(place, mask=present[:, None] & inside[None, :], other=0.0).to(wide)
        q += tl.exp(logits * inverse[:, None] + row[:, None] + column[None, :])
    return q


@triton.jit
def forward_kernel(
    student_ptr,  # [M, K] float
    teacher_ptr,  # [T, K] float
    row_ptr,  # [T] float
    column_ptr,  # [K] float
    student_temperature_ptr,  # [M] wide
    teacher_temperature_ptr,  # [T] wide
    rows_ptr,  # [M, P] int64, or nothing
    losses_ptr,  # [M] wide
    normaliser_ptr,  # [M] wide: log of the sum of exp(student / temperature)
    mass_ptr,  # [M] wide: sum of the targets
    M,
    K,
    student_stride,
    student_column_stride,
    teacher_stride,
    teacher_column_stride,
    row_stride,
    column_stride,
    student_temperature_stride,
    teacher_temperature_stride,
    rows_stride,
    partner_stride,
    P: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of ROWS rows and what their gradient needs."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    there = rows < M
    wide = losses_ptr.dtype.element_ty
    own = student_temperature_ptr + rows * student_temperature_stride
    inverse = 1.0 / tl.load(own, mask=there, other=1.0)
    some = tl.zeros([ROWS], tl.int32)  # has any partner
    for partner in tl.static_range(P):
        _, present = _partner(rows_ptr, rows, partner, rows_stride, partner_stride, there, HAS_ROWS)
        some += present.to(tl.int32)
    compared = some > 0

    highest = tl.full([ROWS], -float("inf"), wide)
    total = tl.zeros([ROWS, BLOCK], wide)  # of exp(z - highest)
    mass = tl.zeros([ROWS, BLOCK], wide)  # of q
    dot = tl.zeros([ROWS, BLOCK], wide)  # of q (z - highest): one sign, so nothing cancels
    for first in range(0, K, BLOCK):
        columns = (first + tl.arange(0, BLOCK)).to(tl.int64)
        inside = columns < K
        column = tl.load(column_ptr + columns * column_stride, mask=inside, other=-float("inf")).to(wide)
        q = _targets(
            teacher_ptr, row_ptr, teacher_temperature_ptr, rows_ptr, rows, there, column, columns, inside,
            teacher_stride, teacher_column_stride, row_stride, teacher_temperature_stride,
            rows_stride, partner_stride, P, HAS_ROWS,
        )  # fmt: skip
        place = student_ptr + rows[:, None] * student_stride + columns[None, :] * student_column_stride
        logits = tl.load(place, mask=compared[:, None] & inside[None, :], other=0.0).to(wide)
        z = tl.where(inside[None, :], logits * inverse[:, None], -float("inf"))
        risen = tl.maximum(highest, tl.max(z, 1))
        fall = highest - risen  # -inf at first, when nothing has been added up
        total = total * tl.exp(fall)[:, None] + tl.exp(z - risen[:, None])
        dot += mass * tl.where(fall == -float("inf"), 0.0, fall)[:, None]
        dot += tl.where(inside[None, :], q * (z - risen[:, None]), 0.0)
        mass += q
        highest = risen
    log_total = tl.log(tl.sum(total, 1))
    all_mass = tl.sum(mass, 1)
    losses = tl.where(compared, all_mass * log_total - tl.sum(dot, 1), 0.0)
    tl.store(losses_ptr + rows, losses, mask=there)
    tl.store(normaliser_ptr + rows, highest + log_total, mask=there)
    tl.store(mass_ptr + rows, all_mass, mask=there)


@triton.jit
def student_gradient_kernel(
    gradient_ptr,  # [M] wide
    student_ptr,  # [M, K] float
    teacher_ptr,  # [T, K] float
    row_ptr,  # [T] float
    column_ptr,  # [K] float
    student_temperature_ptr,  # [M] wide
    teacher_temperature_ptr,  # [T] wide
    rows_ptr,  # [M, P] int64, or nothing
    normaliser_ptr,  # [M] wide
    mass_ptr,  # [M] wide
    out_ptr,  # [M, K] as student, contiguous
    M,
    K,
    blocks,  # along K
    gradient_stride,
    student_stride,
    student_column_stride,
    teacher_stride,
    teacher_column_stride,
    row_stride,
    column_stride,
    student_temperature_stride,
    teacher_temperature_stride,
    rows_stride,
    partner_stride,
    P: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient's tile of ROWS rows and BLOCK columns. A grid of one axis: the others end at 65,535."""
    tile = tl.program_id(0)
    columns = (tile % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < K
    rows = (tile // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = rows < M
    wide = normaliser_ptr.dtype.element_ty
    inverse = 1.0 / tl.load(
        student_temperature_ptr + rows * student_temperature_stride, mask=there, other=1.0
    )
    normaliser = tl.load(normaliser_ptr + rows, mask=there, other=0.0)
    mass = tl.load(mass_ptr + rows, mask=there, other=0.0)
    gradient = tl.load(gradient_ptr + rows * gradient_stride, mask=there, other=0.0).to(wide)
    column = tl.load(column_ptr + columns * column_stride, mask=inside, other=-float("inf")).to(wide)
    q = _targets(
        teacher_ptr, row_ptr, teacher_temperature_ptr, rows_ptr, rows, there, column, columns, inside,
        teacher_stride, teacher_column_stride, row_stride, teacher_temperature_stride,
        rows_stride, partner_stride, P, HAS_ROWS,
    )  # fmt: skip
    # A row without a partner has mass 0, and no gradient whatever it or its temperature holds.
    mask = (mass > 0)[:, None] & inside[None, :]
    place = student_ptr + rows[:, None] * student_stride + columns[None, :] * student_column_stride
    logits = tl.load(place, mask=mask, other=0.0).to(wide)
    p = tl.where(mask, tl.exp(logits * inverse[:, None] - normaliser[:, None]), 0.0)
    factor = tl.where(mass > 0, gradient * inverse, 0.0)
    slope = factor[:, None] * (mass[:, None] * p - q)
    out = out_ptr + rows[:, None] * K + columns[None, :]
    tl.store(out, slope.to(out_ptr.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def temperature_gradients_kernel(
    gradient_ptr,  # [M] wide
    student_ptr,  # [M, K] float
    teacher_ptr,  # [T, K] float
    row_ptr,  # [T] float
    column_ptr,  # [K] float
    student_temperature_ptr,  # [M] wide
    teacher_temperature_ptr,  # [T] wide
    rows_ptr,  # [M, P] int64, or nothing
    normaliser_ptr,  # [M] wide
    of_student_ptr,  # [M, P] wide
    of_teacher_ptr,  # [M, P] wide
    M,
    K,
    gradient_stride,
    student_stride,
    student_column_stride,
    teacher_stride,
    teacher_column_stride,
    row_stride,
    column_stride,
    student_temperature_stride,
    teacher_temperature_stride,
    rows_stride,
    partner_stride,
    P: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What one student row and one partner add to the gradients of their temperatures.

    Three reads of the teacher's row and two of the student's: only designers of temperatures ask for this.
    """
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)  # [1], so that the helpers above serve
    partner = tl.program_id(1).to(tl.int64)
    there = rows < M
    wide = normaliser_ptr.dtype.element_ty
    theirs, present = _partner(rows_ptr, rows, partner, rows_stride, partner_stride, there, HAS_ROWS)
    inverse = 1.0 / tl.load(
        student_temperature_ptr + rows * student_temperature_stride, mask=there, other=1.0
    )
    their_inverse = 1.0 / tl.load(
        teacher_temperature_ptr + theirs * teacher_temperature_stride, mask=present, other=1.0
    )
    row = tl.load(row_ptr + theirs * row_stride, mask=present, other=-float("inf")).to(wide)
    normaliser = tl.load(normaliser_ptr + rows, mask=there, other=0.0)
    gradient = tl.load(gradient_ptr + rows * gradient_stride, mask=there, other=0.0).to(wide)

    mass = tl.zeros([1, BLOCK], wide)
    moment = tl.zeros([1, BLOCK], wide)
    for first in range(0, K, BLOCK):
        columns = (first + tl.arange(0, BLOCK)).to(tl.int64)
        inside = columns < K
        column = tl.load(column_ptr + columns * column_stride, mask=inside, other=-float("inf")).to(wide)
        place = teacher_ptr + theirs[:, None] * teacher_stride + columns[None, :] * teacher_column_stride
        t = tl.load(place, mask=present[:, None] & inside[None, :], other=0.0).to(wide)
        q = tl.exp(t * their_inverse[:, None] + row[:, None] + column[None, :])
        mass += q
        moment += q * t
    all_mass = tl.sum(mass, 1)  # [1]
    mean = tl.sum(moment, 1) / tl.where(all_mass > 0, all_mass, 1.0)

    of_student = tl.zeros([1, BLOCK], wide)
    of_teacher = tl.zeros([1, BLOCK], wide)
    for first in range(0, K, BLOCK):
        columns = (first + tl.arange(0, BLOCK)).to(tl.int64)
        inside = columns < K
        column = tl.load(column_ptr + columns * column_stride, mask=inside, other=-float("inf")).to(wide)
        mask = present[:, None] & inside[None, :]
        place = teacher_ptr + theirs[:, None] * teacher_stride + columns[None, :] * teacher_column_stride
        t = tl.load(place, mask=mask, other=0.0).to(wide)
        q = tl.exp(t * their_inverse[:, None] + row[:, None] + column[None, :])
        place = student_ptr + rows[:, None] * student_stride + columns[None, :] * student_column_stride
        logits = tl.load(place, mask=mask, other=0.0).to(wide)
        log_p = logits * inverse[:, None] - normaliser[:, None]
        of_student += tl.where(mask, (q - all_mass[:, None] * tl.exp(log_p)) * log_p, 0.0)
        of_teacher += tl.where(mask, q * (t - mean[:, None]) * log_p, 0.0)
    out = rows * P + partner
    zero = tl.zeros([1], wide)
    own = tl.where(present, gradient * inverse * tl.sum(of_student, 1), zero)
    other = tl.where(present, gradient * their_inverse * their_inverse * tl.sum(of_teacher, 1), zero)
    tl.store(of_student_ptr + out, own, mask=there)
    tl.store(of_teacher_ptr + out, other, mask=there)


def forward(
    student: Tensor,
    teacher: Tensor,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpt_kernels.masked_distillation_loss.masked_distillation`."""
    tokens, prototypes = student.shape
    made = [student_temperature.new_empty(tokens) for _ in range(3)]
    losses, normaliser, mass = made
    if prototypes == 0:
        return losses.zero_(), normaliser.fill_(-torch.inf), mass.zero_()
    if tokens > 0:
        at_once = rows_at_once(tokens)
        with on_device_of(student):
            forward_kernel[(cdiv(tokens, at_once),)](
                student, teacher, row, column, student_temperature, teacher_temperature, rows, *made,
                tokens, prototypes, *student.stride(), *teacher.stride(), row.stride(0), column.stride(0),
                student_temperature.stride(0), teacher_temperature.stride(0), **_partners(rows),
                ROWS=at_once, BLOCK=block(prototypes, 1024), num_warps=8,
            )  # fmt: skip
    return losses, normaliser, mass


def student_gradient(
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
    """See `vpt_kernels.masked_distillation_loss.masked_distillation_student`."""
    tokens, prototypes = student.shape
    out = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    if out.numel() > 0:
        at_once, wide_block = rows_at_once(tokens), block(prototypes, 1024)
        blocks = cdiv(prototypes, wide_block)
        with on_device_of(student):
            student_gradient_kernel[(blocks * cdiv(tokens, at_once),)](
                gradient, student, teacher, row, column, student_temperature, teacher_temperature, rows,
                normaliser, mass, out,
                tokens, prototypes, blocks, gradient.stride(0), *student.stride(), *teacher.stride(),
                row.stride(0), column.stride(0), student_temperature.stride(0), teacher_temperature.stride(0),
                **_partners(rows), ROWS=at_once, BLOCK=wide_block, num_warps=4,
            )  # fmt: skip
    return out


def temperature_gradients(
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
    """See `vpt_kernels.masked_distillation_loss.masked_distillation_temperatures`."""
    tokens, prototypes = student.shape
    partners = 1 if rows is None else rows.shape[1]
    parts = [student_temperature.new_zeros(tokens, partners) for _ in range(2)]
    if tokens > 0 and partners > 0 and prototypes > 0:
        with on_device_of(student):
            temperature_gradients_kernel[(tokens, partners)](
                gradient, student, teacher, row, column, student_temperature, teacher_temperature, rows,
                normaliser, *parts,
                tokens, prototypes, gradient.stride(0), *student.stride(), *teacher.stride(),
                row.stride(0), column.stride(0), student_temperature.stride(0), teacher_temperature.stride(0),
                **_partners(rows), BLOCK=block(prototypes, 1024), num_warps=8,
            )  # fmt: skip
    of_student, of_pairs = parts
    if rows is None:
        return of_student.sum(1), of_pairs.sum(1)
    of_teacher = teacher_temperature.new_zeros(len(teacher))
    # Sorts the indices first, so unlike atomic additions it gives the same sum every time. Pairs of -1 add 0.
    of_teacher.index_put_((rows.clamp(min=0).flatten(),), of_pairs.flatten(), accumulate=True)
    return of_student.sum(1), of_teacher


def _partners(rows: Tensor | None) -> dict[str, int | bool]:
    """Give the arguments that say how to read `rows`."""
    if rows is None:
        return {"rows_stride": 0, "partner_stride": 0, "P": 1, "HAS_ROWS": False}
    return {
        "rows_stride": rows.stride(0),
        "partner_stride": rows.stride(1),
        "P": rows.shape[1],
        "HAS_ROWS": True,
    }
