"""Targets of teacher logits as potentials: one number for each row and one for each column.

Sinkhorn-Knopp and centring both give q = exp(logits / temperature + row[:, None] + column), so that nothing
of size [M, K] has to be kept: whoever needs q makes it of logits and potentials on the spot. Both are made
of two reductions, a log-sum-exp along rows and one along columns, which are the operators of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import FLOATS, LOGITS, expect, expect_temperatures


class Potentials(NamedTuple):
    """What turns logits [M, K] into targets q = exp(logits / temperature + row[:, None] + column)."""

    row: Tensor  # [M] fp32
    column: Tensor  # [K] fp32


@torch.no_grad()
def sinkhorn_potentials(
    logits: Tensor,
    temperature: float | Tensor,
    *,
    iterations: int = 3,
    weights: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Potentials:
    """Balance the targets so that prototypes share the rows equally: Sinkhorn-Knopp in the log domain.

    The algorithm of SwAV (Caron et al. 2020, arXiv 2006.09882, section 3.1) as DINOv2 applies it:
    starting from exp(logits / temperature), `iterations` times scale all columns to one mass, then all
    rows to 1. (What mass makes no difference: the rows take out a common factor of the columns.)
    Logits and potentials stay logarithms throughout, so nothing overflows or is divided by 0.

    Args:
        logits: [M, K] of the teacher, any float dtype; computed in fp32 (fp64 for fp64).
        temperature: above 0; a number, or a tensor of one element or of one for each row.
        iterations: at least 1.
        weights: [M] float, the mass of each row, 1 if left out. Rows of weight 0 (padding, whatever they
            hold) leave the columns alone; their own potential normalises them under the others' columns.
        group: the processes that share one balance: the mass of each column is added up over them.

    Returns:
        Potentials in fp32 (fp64 for fp64), without gradient. Rows of q sum to 1.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape or is out of its range.
    """
    name = "sinkhorn_potentials"
    expect(name, "logits", logits, LOGITS, ("M", "K"))
    temperatures = expect_temperatures(name, "temperature", temperature, len(logits), logits)
    if weights is not None:
        expect(name, "weights", weights, LOGITS, (len(logits),), logits.device)
    return balance(
        name,
        rows=lambda column: row_logsumexp(logits, column, temperatures),
        columns=lambda row: column_logsumexp(logits, row, temperatures),
        start=torch.zeros_like(temperatures),
        iterations=iterations,
        weights=weights,
        group=group,
    )


def balance(
    function: str,
    *,
    rows: Callable[[Tensor], Tensor],
    columns: Callable[[Tensor], Tensor],
    start: Tensor,
    iterations: int,
    weights: Tensor | None,
    group: dist.ProcessGroup | None,
) -> Potentials:
    """Iterate Sinkhorn-Knopp for whoever can reduce the scaled logits along rows and along columns.

    Args:
        function: the caller's name, for the error.
        rows: from column [K] to the log-sum-exp over k of scaled logits + column: [M].
        columns: from row [M] to the log-sum-exp over m of scaled logits + row: [K]. A row of -inf counts for
            nothing whatever it holds.
        start: zeros [M] in the dtype and on the device of the result.
        iterations: as in `sinkhorn_potentials`.
        weights: as there.
        group: as there.
    """
    if iterations < 1:
        raise ValueError(f"{function}: iterations must be at least 1, got {iterations}.")
    row = start
    log_weights = None if weights is None else weights.to(start.dtype).log()
    for _ in range(iterations):
        if log_weights is None:
            shares = row
        else:  # the potential of a row left out may be anything, NaN included
            shares = (row + log_weights).masked_fill(log_weights == -torch.inf, -torch.inf)
        mass = _logsumexp_over(group, columns(shares))
        column = -mass.masked_fill(mass == -torch.inf, 0)  # -inf: no rows anywhere, nothing to balance
        row = -rows(column)
    return Potentials(row, column)


@torch.no_grad()
def centre_potentials(
    logits: Tensor,
    temperature: float | Tensor,
    centre: Tensor,
    *,
    centre_temperature: float | Tensor | None = None,
) -> Potentials:
    """Give softmax((logits - centre) / temperature) as potentials: DINO's centring (arXiv 2104.14294).

    Args:
        logits: [M, K] of the teacher, any float dtype.
        temperature: above 0; a number, or a tensor of one element or, with `centre_temperature`, of [M].
        centre: fp32 [K], the running mean of the teacher's logits.
        centre_temperature: above 0; a number or a tensor of one element: the potentials are those of
            softmax(logits / temperature - centre / centre_temperature), whose columns are all rows'. The
            temperature itself if left out.

    Returns:
        Potentials in fp32 (fp64 for fp64), without gradient.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range.
    """
    name = "centre_potentials"
    expect(name, "logits", logits, LOGITS, ("M", "K"))
    expect(name, "centre", centre, FLOATS, (logits.shape[1],), logits.device)
    if centre_temperature is None:
        centre_temperature = temperature
    column = centre_column(name, centre, centre_temperature, logits)
    temperatures = expect_temperatures(name, "temperature", temperature, len(logits), logits)
    return Potentials(-row_logsumexp(logits, column, temperatures), column)


def centre_column(function: str, centre: Tensor, temperature: float | Tensor, like: Tensor) -> Tensor:
    """Give -centre / temperature [K] in fp32 (fp64 for a `like` of fp64)."""
    one = expect_temperatures(function, "the centre's temperature", temperature, 1, like)
    return -centre.to(one.dtype) / one


@torch.library.custom_op("vpt::row_logsumexp", mutates_args=())
def row_logsumexp(logits: Tensor, column: Tensor, temperature: Tensor) -> Tensor:
    """Log-sum-exp over k of logits [M, K] / temperature [M] + column [K]: [M] in the dtype of `column`."""
    return _logsumexp((logits.to(column.dtype) / temperature[:, None]).add_(column), 1)


@row_logsumexp.register_kernel("cuda")
def _(logits: Tensor, column: Tensor, temperature: Tensor) -> Tensor:
    from .triton import sinkhorn_potentials as device

    return device.row_logsumexp(logits, column, temperature)


@row_logsumexp.register_fake
def _(logits: Tensor, column: Tensor, temperature: Tensor) -> Tensor:
    return column.new_empty(logits.shape[0])


@torch.library.custom_op("vpt::column_logsumexp", mutates_args=())
def column_logsumexp(logits: Tensor, row: Tensor, temperature: Tensor) -> Tensor:
    """Log-sum-exp over m of logits [M, K] / temperature [M] + row [M]: [K] in the dtype of `row`.

    A row of -inf counts for nothing, whatever its logits are.
    """
    shares = (logits.to(row.dtype) / temperature[:, None]).add_(row[:, None])
    left_out = row == -torch.inf
    if left_out.any():
        shares.masked_fill_(left_out[:, None], -torch.inf)
    return _logsumexp(shares, 0)


@column_logsumexp.register_kernel("cuda")
def _(logits: Tensor, row: Tensor, temperature: Tensor) -> Tensor:
    from .triton import sinkhorn_potentials as device

    return device.column_logsumexp(logits, row, temperature)


@column_logsumexp.register_fake
def _(logits: Tensor, row: Tensor, temperature: Tensor) -> Tensor:
    return row.new_empty(logits.shape[1])


def _logsumexp(x: Tensor, dim: int) -> Tensor:
    """Log-sum-exp of `x` [M, K], which is overwritten, so that a CPU makes no other tensor of its size.

    Terms below e^-80 of the highest are taken for as much: they add less than a rounding to the sum, and as
    denormal numbers would cost more than all others.
    """
    if x.shape[dim] == 0:
        return x.new_full((x.shape[1 - dim],), -torch.inf)
    highest = x.amax(dim, keepdim=True)
    base = highest.clamp(min=torch.finfo(x.dtype).min)  # not -inf, of which nothing can be taken away
    total = x.sub_(base).clamp_(min=-80).exp_().sum(dim).log_()
    return total + highest.squeeze(dim)


def _logsumexp_over(group: dist.ProcessGroup | None, local: Tensor) -> Tensor:
    """Log-sum-exp of `local` over the processes of `group`, element by element."""
    if group is None:
        return local
    highest = local.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    highest = highest.clamp(min=torch.finfo(local.dtype).min)  # -inf where no process has a row
    total = (local - highest).exp()
    dist.all_reduce(total, group=group)
    return highest + total.log()
