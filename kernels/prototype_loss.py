"""The head's last layer and the distillation loss together: from features and prototypes straight to losses.

Logits are features @ prototypes.T, and no tensor [M, K] of them is ever made, neither on the way to the loss
nor on the way back, nor for the targets' potentials: they come tile by tile and are used on the spot, as cut
cross-entropy does for language models (Wijmans et al. 2024, arXiv 2411.09009). On the CPU, and for second
derivatives everywhere, they come a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .autocast import outside_autocast
from .checks import FLOATS, LOGITS, expect, expect_rows, expect_temperatures
from .sinkhorn_potentials import Potentials, balance, centre_column

EPSILON = 1e-12  # a shorter prototype is divided by this instead of its length, as in F.normalize
_LOGITS_AT_ONCE = 2**20  # that plain torch operations make


def prototype_loss(
    student: Tensor,
    student_prototypes: Tensor,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    potentials: Potentials,
    *,
    student_temperature: float | Tensor,
    teacher_temperature: float | Tensor,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    weight_norm: bool = True,
) -> Tensor:
    """Give `masked_distillation_loss` of logits features @ prototypes.T without making them.

    Gradients reach the student's features and prototypes (any order, also of the first in the second), the
    weights, and the temperatures; the teacher's temperature as in `masked_distillation_loss`: rows of the
    targets keep their sums, the column potential is held.

    Args:
        student: features [M, D], any float dtype; fp32 sums, under autocast too (fp64, on the CPU only, for
            fp64).
        student_prototypes: [K, D] in the dtype of student.
        teacher: features [T, D], any float dtype (fp64 on the CPU only), summed in that of the losses.
        teacher_prototypes: [K, D] in the dtype of teacher.
        potentials: row [T] and column [K], of `prototype_potentials` or `prototype_centre_potentials` with
            the same `teacher_temperature` and `weight_norm`.
        student_temperature: above 0; a number, or a tensor of one element or of [M].
        teacher_temperature: above 0; a number, or a tensor of one element or of [T].
        weights: float [M]; 1 if left out.
        rows: int64 [M, P], 0..T-1 or -1 for none: the teacher rows that each student row is compared with.
            If left out, each with the one of the same number (T = M). A row with none has loss 0, whatever
            its features hold.
        weight_norm: divide each prototype by its length. Gradients reach the prototypes as they are.

    Returns:
        fp32 [M] (fp64 for fp64).

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range (rows
            are looked at on the CPU alone).
    """
    name = "prototype_loss"
    _expect_sides(name, "student", student, student_prototypes)
    _expect_sides(name, "teacher", teacher, teacher_prototypes, len(student_prototypes), student)
    expect_rows(name, rows, len(student), len(teacher), student.device)
    row, column = potentials
    expect(name, "potentials.row", row, LOGITS, (len(teacher),), student.device)
    expect(name, "potentials.column", column, LOGITS, (len(student_prototypes),), student.device)
    if weights is not None:
        expect(name, "weights", weights, LOGITS, (len(student),), student.device)
    wide = torch.promote_types(student.dtype, torch.float32)
    losses, _, _, _ = prototype_distillation(
        student,
        student_prototypes,
        _lengths(student_prototypes, student, weight_norm),
        teacher.detach(),
        teacher_prototypes.detach(),
        _lengths(teacher_prototypes, student, weight_norm),
        row.detach().to(wide),
        column.detach().to(wide),
        expect_temperatures(name, "student_temperature", student_temperature, len(student), student),
        expect_temperatures(name, "teacher_temperature", teacher_temperature, len(teacher), student),
        rows,
    )
    losses = losses.sum(1)
    return losses if weights is None else weights.to(wide) * losses


@torch.no_grad()
def prototype_potentials(
    teacher: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
    *,
    iterations: int = 3,
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    weight_norm: bool = True,
) -> Potentials:
    """Give `sinkhorn_potentials` of logits teacher @ prototypes.T, made anew for each half of an iteration.

    Args:
        teacher: features [T, D], any float dtype; fp32 sums (fp64, on the CPU only, for fp64).
        prototypes: [K, D] in the dtype of teacher.
        temperature: above 0; a number, or a tensor of one element or of [T].
        iterations: at least 1.
        weights: as in `sinkhorn_potentials`, [T].
        group: as in `sinkhorn_potentials`.
        weight_norm: divide each prototype by its length.

    Returns:
        Potentials in fp32 (fp64 for fp64), without gradient. Rows of q sum to 1.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range.
    """
    name = "prototype_potentials"
    _expect_sides(name, "teacher", teacher, prototypes)
    temperatures = expect_temperatures(name, "temperature", temperature, len(teacher), teacher)
    if weights is not None:
        expect(name, "weights", weights, LOGITS, (len(teacher),), teacher.device)
    lengths = _lengths(prototypes, teacher, weight_norm)
    return balance(
        name,
        rows=lambda column: prototype_row_logsumexp(teacher, prototypes, lengths, column, temperatures),
        columns=lambda row: prototype_column_logsumexp(teacher, prototypes, lengths, row, temperatures),
        start=torch.zeros_like(temperatures),
        iterations=iterations,
        weights=weights,
        group=group,
    )


@torch.no_grad()
def prototype_centre_potentials(
    teacher: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
    centre: Tensor,
    *,
    centre_temperature: float | Tensor | None = None,
    weight_norm: bool = True,
) -> Potentials:
    """Give `centre_potentials` of logits teacher @ prototypes.T without making them.

    Args:
        teacher: features [T, D], any float dtype; fp32 sums (fp64, on the CPU only, for fp64).
        prototypes: [K, D] in the dtype of teacher.
        temperature: above 0; a number, or a tensor of one element or, with `centre_temperature`, of [T].
        centre: fp32 [K], the running mean of the teacher's logits.
        centre_temperature: as in `centre_potentials`.
        weight_norm: divide each prototype by its length.

    Returns:
        Potentials in fp32 (fp64 for fp64), without gradient.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range.
    """
    name = "prototype_centre_potentials"
    _expect_sides(name, "teacher", teacher, prototypes)
    expect(name, "centre", centre, FLOATS, (len(prototypes),), teacher.device)
    if centre_temperature is None:
        centre_temperature = temperature
    column = centre_column(name, centre, centre_temperature, teacher)
    temperatures = expect_temperatures(name, "temperature", temperature, len(teacher), teacher)
    lengths = _lengths(prototypes, teacher, weight_norm)
    return Potentials(-prototype_row_logsumexp(teacher, prototypes, lengths, column, temperatures), column)


@torch.library.custom_op("vpt::prototype_row_logsumexp", mutates_args=())
@outside_autocast
def prototype_row_logsumexp(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, column: Tensor, temperature: Tensor
) -> Tensor:
    """Log-sum-exp over k of logits [M, K] / temperature [M] + column [K]: [M] in the dtype of `column`.

    Prototypes are divided by their `lengths` [K] where there are any; all are in the dtype of `column`.
    """
    unit = _unit(prototypes.to(column.dtype), lengths is not None)
    out = [
        torch.logsumexp(features[some].to(unit.dtype) @ unit.T / temperature[some, None] + column, 1)
        for some in _chunks(len(features), len(prototypes))
    ]
    return torch.cat([column.new_empty(0), *out])


@prototype_row_logsumexp.register_kernel("cuda")
def _(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, column: Tensor, temperature: Tensor
) -> Tensor:
    from .triton import prototype_loss as device

    return device.row_logsumexp(features, prototypes, lengths, column, temperature)


@prototype_row_logsumexp.register_fake
def _(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, column: Tensor, temperature: Tensor
) -> Tensor:
    return column.new_empty(len(features))


@torch.library.custom_op("vpt::prototype_column_logsumexp", mutates_args=())
@outside_autocast
def prototype_column_logsumexp(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, row: Tensor, temperature: Tensor
) -> Tensor:
    """Log-sum-exp over m of logits [M, K] / temperature [M] + row [M]: [K] in the dtype of `row`.

    A row of -inf counts for nothing, whatever its features are.
    """
    unit = _unit(prototypes.to(row.dtype), lengths is not None)
    total = row.new_full((len(prototypes),), -torch.inf)
    for some in _chunks(len(features), len(prototypes)):
        shares = features[some].to(unit.dtype) @ unit.T / temperature[some, None] + row[some, None]
        shares = shares.masked_fill_(row[some, None] == -torch.inf, -torch.inf)
        total = torch.logaddexp(total, torch.logsumexp(shares, 0))
    return total


@prototype_column_logsumexp.register_kernel("cuda")
def _(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, row: Tensor, temperature: Tensor
) -> Tensor:
    from .triton import prototype_loss as device

    return device.column_logsumexp(features, prototypes, lengths, row, temperature)


@prototype_column_logsumexp.register_fake
def _(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, row: Tensor, temperature: Tensor
) -> Tensor:
    return row.new_empty(len(prototypes))


@torch.library.custom_op("vpt::prototype_distillation", mutates_args=())
@outside_autocast
def prototype_distillation(
    student: Tensor,
    student_prototypes: Tensor,
    student_lengths: Tensor | None,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    teacher_lengths: Tensor | None,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give for each pair of a student and a teacher row, [M, P]: the loss, and what its gradients need.

    That is, with z = logits / student_temperature, log Σ_k exp z, the target's mass Σ_k q, and the entropy of
    softmax(z); of a pair without a teacher row (-1 in `rows`) only loss and mass are defined, as 0.
    Prototypes are divided by their lengths [K] where there are any: a gradient to prototypes takes that
    into account, one to lengths there is none. Temperatures [M] and [T] and lengths are in the dtype of the
    losses.
    """
    wide = student_temperature.dtype
    unit = _unit(student_prototypes.to(wide), student_lengths is not None)
    their_unit = _unit(teacher_prototypes.to(wide), teacher_lengths is not None)
    shape = (len(student), 1 if rows is None else rows.shape[1])
    losses, normaliser, mass, entropy = (student_temperature.new_zeros(shape) for _ in range(4))
    for some in _chunks(len(student), len(student_prototypes)):
        partners = _partners(rows, some, student)
        logits = _present(student[some], partners).to(wide) @ unit.T / student_temperature[some, None]
        log_total = torch.logsumexp(logits, 1, keepdim=True)
        log_p = logits - log_total
        normaliser[some] = log_total
        entropy[some] = -(log_p.exp() * log_p).sum(1, keepdim=True)
        for partner, present in enumerate(partners.T):
            _, q = _targets(teacher, their_unit, row, column, teacher_temperature, present)
            losses[some, partner] = -(q * log_p).sum(1)
            mass[some, partner] = q.sum(1)
    return losses, normaliser, mass, entropy


@prototype_distillation.register_kernel("cuda")
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .triton import prototype_loss as device

    return device.forward(*inputs)


@prototype_distillation.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student, *_, temperature, _, rows = inputs
    shape = (len(student), 1 if rows is None else rows.shape[1])
    made = temperature.new_empty(shape)
    return made, torch.empty_like(made), torch.empty_like(made), torch.empty_like(made)


@torch.library.custom_op("vpt::prototype_distillation_gradients", mutates_args=())
@outside_autocast
def prototype_distillation_gradients(
    gradient: Tensor,
    student: Tensor,
    student_prototypes: Tensor,
    student_lengths: Tensor | None,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    teacher_lengths: Tensor | None,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
    normaliser: Tensor,
    mass: Tensor,
    to_student: bool,
    to_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    """Give the gradients to the student's features [M, D] and prototypes [K, D]; [0, D] where not wanted.

    Both come from the slopes of the losses in the logits, Σ_p gradient[m, p] (mass[m, p] softmax(z[m]) -
    q[rows[m, p]]) / student_temperature[m], with z as in `prototype_distillation`.
    """
    wide = student_temperature.dtype
    weight_norm = student_lengths is not None
    prototypes = student_prototypes.to(wide)
    unit = _unit(prototypes, weight_norm)
    their_unit = _unit(teacher_prototypes.to(wide), teacher_lengths is not None)
    width = student.shape[1]
    of_student = student.new_zeros(len(student) if to_student else 0, width)
    of_unit = torch.zeros_like(unit) if to_prototypes else unit.new_zeros(0, width)
    for some in _chunks(len(student), len(prototypes)):
        partners = _partners(rows, some, student)
        features = _present(student[some], partners).to(wide)
        slopes = _slopes(
            gradient[some], features, unit, teacher, their_unit, row, column,
            student_temperature[some], teacher_temperature, partners,
        )  # fmt: skip
        if to_student:
            of_student[some] = (slopes @ unit).to(student.dtype)
        if to_prototypes:
            of_unit += slopes.T @ features
    of_prototypes = _through_norm(of_unit, prototypes, weight_norm) if to_prototypes else of_unit
    return of_student, of_prototypes.to(
        student_prototypes.dtype, copy=True, memory_format=torch.contiguous_format
    )


@prototype_distillation_gradients.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .triton import prototype_loss as device

    *others, to_student, to_prototypes = arguments
    _, student, student_prototypes, *_ = others
    return (
        device.features_gradient(*others) if to_student else student[:0].clone(),
        device.prototypes_gradient(*others) if to_prototypes else student_prototypes[:0].clone(),
    )


@prototype_distillation_gradients.register_fake
def _(gradient: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    student, student_prototypes, *_, to_student, to_prototypes = others
    return (
        student.new_empty(len(student) if to_student else 0, student.shape[1]),
        student_prototypes.new_empty(len(student_prototypes) if to_prototypes else 0, student.shape[1]),
    )


@torch.library.custom_op("vpt::prototype_distillation_student_temperature", mutates_args=())
@outside_autocast
def prototype_distillation_student_temperature(
    gradient: Tensor, losses: Tensor, mass: Tensor, entropy: Tensor, temperature: Tensor
) -> Tensor:
    """Give the gradient to the student's temperature [M]: Σ_p gradient (mass · entropy - loss) / temperature.

    Which is Σ_k (q - mass p) log p of each pair, for p = softmax(z): all of it came with the losses.
    """
    return (gradient * (mass * entropy - losses)).sum(1) / temperature


@prototype_distillation_student_temperature.register_fake
def _(gradient: Tensor, losses: Tensor, mass: Tensor, entropy: Tensor, temperature: Tensor) -> Tensor:
    return temperature.new_empty(len(temperature))


@torch.library.custom_op("vpt::prototype_distillation_teacher_temperature", mutates_args=())
@outside_autocast
def prototype_distillation_teacher_temperature(
    gradient: Tensor,
    student: Tensor,
    student_prototypes: Tensor,
    student_lengths: Tensor | None,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    teacher_lengths: Tensor | None,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
    normaliser: Tensor,
) -> Tensor:
    """Give the gradient to the teacher's temperatures [T], added up over the pairs of each of its rows.

    That of a pair is gradient · Σ_k q (t - mean_q t) log softmax(z) / teacher_temperature², for logits t.
    """
    wide = student_temperature.dtype
    unit = _unit(student_prototypes.to(wide), student_lengths is not None)
    their_unit = _unit(teacher_prototypes.to(wide), teacher_lengths is not None)
    out = torch.zeros_like(teacher_temperature, memory_format=torch.contiguous_format)
    for some in _chunks(len(student), len(student_prototypes)):
        partners = _partners(rows, some, student)
        logits = _present(student[some], partners).to(wide) @ unit.T / student_temperature[some, None]
        log_p = logits.log_softmax(1)
        for partner, present in enumerate(partners.T):
            scaled, q = _targets(teacher, their_unit, row, column, teacher_temperature, present)
            if len(scaled) == 0:
                continue
            own = present.clamp(min=0)
            mean = (q * scaled).sum(1, keepdim=True) / q.sum(1, keepdim=True).clamp(min=1e-30)
            slope = gradient[some, partner] * (q * (scaled - mean) * log_p).sum(1) / teacher_temperature[own]
            out.index_put_((own,), slope, accumulate=True)
    return out


@prototype_distillation_teacher_temperature.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from .triton import prototype_loss as device

    return device.teacher_temperature_gradient(*arguments)


@prototype_distillation_teacher_temperature.register_fake
def _(*arguments: Any) -> Tensor:
    *_, temperature, _, _ = arguments
    return temperature.new_empty(len(temperature))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, losses, normaliser, mass, entropy = ctx.saved_tensors
    to_student, to_prototypes, *_, to_own, to_theirs, _ = ctx.needs_input_grad
    of_student = of_prototypes = of_own = of_theirs = None
    if to_student or to_prototypes:
        found = prototype_distillation_gradients(
            gradient, *inputs, normaliser, mass, to_student, to_prototypes
        )
        of_student = found[0] if to_student else None
        of_prototypes = found[1] if to_prototypes else None
    if to_own:
        own = inputs[8]
        of_own = prototype_distillation_student_temperature(gradient, losses, mass, entropy, own)
    if to_theirs:
        of_theirs = prototype_distillation_teacher_temperature(gradient, *inputs, normaliser)
    return of_student, of_prototypes, *[None] * 6, of_own, of_theirs, None


prototype_distillation.register_autograd(_backward, setup_context=_save)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.wanted = inputs[-2:]
    ctx.save_for_backward(*inputs[:12])


@outside_autocast
def _backward_gradients(ctx: Any, second: Tensor, second_prototypes: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradients once more, in plain torch operations on a few rows at a time."""
    gradient, student, student_prototypes, student_lengths, *targets, rows = ctx.saved_tensors
    teacher, teacher_prototypes, teacher_lengths, row, column, own, theirs = targets
    to_student, to_prototypes = ctx.wanted
    weight_norm = student_lengths is not None
    their_unit = _unit(teacher_prototypes.to(own.dtype), teacher_lengths is not None)
    prototypes = student_prototypes.to(own.dtype)
    of_prototypes, of_theirs = torch.zeros_like(prototypes), torch.zeros_like(theirs)
    of_rows = []
    for some in _chunks(len(student), len(prototypes)):
        partners = _partners(rows, some, student)

        def first(
            gradient: Tensor,
            features: Tensor,
            own: Tensor,
            prototypes: Tensor,
            theirs: Tensor,
            partners: Tensor = partners,
        ) -> tuple[Tensor, ...]:
            unit = _unit(prototypes, weight_norm)
            slopes = _slopes(
                gradient, features, unit, teacher, their_unit, row, column, own, theirs, partners
            )
            found: tuple[Tensor, ...] = (slopes @ unit,) if to_student else ()
            if to_prototypes:
                found = (*found, _through_norm(slopes.T @ features, prototypes, weight_norm))
            return found

        features = _present(student[some], partners).to(own.dtype)
        back = torch.func.vjp(first, gradient[some], features, own[some], prototypes, theirs)[1]
        seconds: tuple[Tensor, ...] = (second[some].to(own.dtype),) if to_student else ()
        if to_prototypes:
            seconds = (*seconds, second_prototypes.to(own.dtype))
        *of_some, more, more_theirs = back(seconds)
        of_rows.append(of_some)
        of_prototypes, of_theirs = of_prototypes + more, of_theirs + more_theirs
    if not of_rows:
        return (None,) * 16
    of_gradient, of_student, of_own = map(torch.cat, zip(*of_rows, strict=True))
    return (
        of_gradient,
        of_student.to(student.dtype),
        of_prototypes.to(student_prototypes.dtype),
        *[None] * 6,
        of_own,
        of_theirs,
        *[None] * 5,
    )


prototype_distillation_gradients.register_autograd(_backward_gradients, setup_context=_save_gradients)


def _chunks(count: int, prototypes: int) -> Iterator[slice]:
    """Cut `count` rows so that the logits of some of them are few enough to be made at once."""
    size = max(1, _LOGITS_AT_ONCE // max(1, prototypes))
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def _partners(rows: Tensor | None, some: slice, like: Tensor) -> Tensor:
    """Give the teacher rows of `some` student rows, [some, P]."""
    return torch.arange(some.start, some.stop, device=like.device)[:, None] if rows is None else rows[some]


def _present(student: Tensor, partners: Tensor) -> Tensor:
    """Give 0 for features that are compared with nothing: they may hold anything."""
    return student.masked_fill((partners < 0).all(1, keepdim=True), 0)


def _lengths(prototypes: Tensor, student: Tensor, weight_norm: bool) -> Tensor | None:
    """Give the length of each prototype, if they are to be divided by it."""
    if not weight_norm:
        return None
    made_in, wanted = (torch.promote_types(of.dtype, torch.float32) for of in (prototypes, student))
    return torch.linalg.vector_norm(prototypes.detach(), dim=1, dtype=made_in).to(wanted)


def _unit(prototypes: Tensor, weight_norm: bool) -> Tensor:
    return F.normalize(prototypes, dim=1, eps=EPSILON) if weight_norm else prototypes


def _through_norm(of_unit: Tensor, prototypes: Tensor, weight_norm: bool) -> Tensor:
    """Take the gradient to the prototypes of length 1 to the prototypes as they are."""
    if not weight_norm:
        return of_unit
    length = torch.linalg.vector_norm(prototypes, dim=1, keepdim=True)
    divisor = length.clamp(min=EPSILON)
    unit = prototypes / divisor
    along = (unit * of_unit).sum(1, keepdim=True).masked_fill(length < EPSILON, 0)
    return (of_unit - unit * along) / divisor


def _targets(
    teacher: Tensor, unit: Tensor, row: Tensor, column: Tensor, temperature: Tensor, partner: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the scaled logits and the targets of the teacher rows `partner` [N], 0 for -1: twice [N, K].

    The row potential moves with the temperature so that q keeps its sum: this shows in derivatives only.
    """
    if len(teacher) == 0:
        return (unit.new_zeros(len(partner), len(unit)),) * 2
    present = partner >= 0
    own = partner.clamp(min=0)
    features = teacher[own].masked_fill(~present[:, None], 0).to(unit.dtype)
    scaled = features @ unit.T / temperature[own, None]
    balanced = scaled + column
    shift = row[own].masked_fill(~present, -torch.inf).to(unit.dtype)
    if temperature.requires_grad:
        normaliser = torch.logsumexp(balanced, 1)
        shift = shift + normaliser.detach() - normaliser
    return scaled, (balanced + shift[:, None]).exp()


def _slopes(
    gradient: Tensor,
    features: Tensor,
    unit: Tensor,
    teacher: Tensor,
    their_unit: Tensor,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    partners: Tensor,
) -> Tensor:
    """Give the derivatives of the losses, weighted with `gradient` [N, P], in the student's logits [N, K]."""
    p = (features @ unit.T / student_temperature[:, None]).softmax(1)
    out = torch.zeros_like(p)
    for of_pairs, partner in zip(gradient.T, partners.T, strict=True):
        _, q = _targets(teacher, their_unit, row, column, teacher_temperature, partner)
        out = out + of_pairs[:, None] * (q.sum(1, keepdim=True) * p - q)
    return out / student_temperature[:, None]


def _expect_sides(
    name: str,
    side: str,
    features: Tensor,
    prototypes: Tensor,
    count: int | str = "K",
    like: Tensor | None = None,
) -> None:
    """Refuse features and prototypes that do not go together, or not with the features `like`."""
    width, device = ("D", None) if like is None else (like.shape[1], like.device)
    expect(name, side, features, LOGITS, ("T" if side == "teacher" else "M", width), device)
    which = "prototypes" if name != "prototype_loss" else f"{side}_prototypes"
    expect(name, which, prototypes, (features.dtype,), (count, features.shape[1]), features.device)
    if features.dtype == torch.float64 and features.is_cuda:
        raise TypeError(f"{name}: {side} must not be float64 on a GPU: it is computed on the CPU only.")
