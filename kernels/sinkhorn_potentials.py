"""Targets of teacher logits as potentials: one number for each row and one for each column.

Sinkhorn-Knopp and centring both give q = exp(logits / temperature + row[:, None] + column), so that nothing
of size [M, K] has to be kept: whoever needs q makes it of logits and potentials on the spot.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import FLOATS, LOGITS, expect, expect_temperature


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
        temperature: above 0; a number or a tensor of one element.
        iterations: at least 1.
        weights: [M] float, the mass of each row, 1 if left out. Rows of weight 0 (padding, whatever they
            hold) leave the columns alone; their own potential normalises them under the others' columns.
        group: the processes that share one balance: the mass of each column is added up over them.

    Returns:
        Potentials in fp32 (fp64 for fp64), without gradient. Rows of q sum to 1.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape or is out of its range.
    """
    expect("sinkhorn_potentials", "logits", logits, LOGITS, ("M", "K"))
    expect_temperature("sinkhorn_potentials", "temperature", temperature)
    if iterations < 1:
        raise ValueError(f"sinkhorn_potentials: iterations must be at least 1, got {iterations}.")
    rows, prototypes = logits.shape
    scaled = _scale(logits, temperature)
    if weights is not None:
        expect("sinkhorn_potentials", "weights", weights, LOGITS, (rows,), logits.device)
        absent = weights[:, None] == 0
        log_weights = weights.to(scaled.dtype).log()

    row = scaled.new_zeros(rows)
    column = scaled.new_zeros(prototypes)
    for _ in range(iterations):
        if weights is None:
            shares = scaled + row[:, None]
        else:
            shares = (scaled + (row + log_weights)[:, None]).masked_fill(absent, -torch.inf)
        mass = _logsumexp_over(group, torch.logsumexp(shares, 0))
        column = -mass.masked_fill(mass == -torch.inf, 0)  # -inf: no rows anywhere, nothing to balance
        row = -torch.logsumexp(scaled + column, 1)
    return Potentials(row, column)


@torch.no_grad()
def centre_potentials(logits: Tensor, temperature: float | Tensor, centre: Tensor) -> Potentials:
    """Give softmax((logits - centre) / temperature) as potentials: DINO's centring (arXiv 2104.14294).

    Args:
        logits: [M, K] of the teacher, any float dtype.
        temperature: above 0; a number or a tensor of one element.
        centre: fp32 [K], the running mean of the teacher's logits.

    Returns:
        Potentials in fp32 (fp64 for fp64), without gradient.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range.
    """
    expect("centre_potentials", "logits", logits, LOGITS, ("M", "K"))
    expect("centre_potentials", "centre", centre, FLOATS, (logits.shape[1],), logits.device)
    expect_temperature("centre_potentials", "temperature", temperature)
    column = _scale(-centre, temperature)
    return Potentials(-torch.logsumexp(_scale(logits, temperature) + column, 1), column)


def _scale(logits: Tensor, temperature: float | Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


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
