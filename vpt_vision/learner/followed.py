"""Targets that a derivative follows: what a task does to the teacher's answers, in plain torch operations.

The learner's step holds its targets, and so do the kernels. The value of a task depends on them all the same:
other views are other targets, and one sample's scores shift the balance that every other sample's targets
are made under. These functions give what the kernels give, to rounding, with a gradient to the teacher's
scores and to the rows' weights. They store tensors of the scores' size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vpt_kernels import Potentials
from vpt_vision import collectives


def followed_sinkhorn(scaled: Tensor, weights: Tensor | None, iterations: int = 3) -> Potentials:
    """Return `sinkhorn_potentials` over all ranks of scores / temperature `scaled` [M, K], with a graph.

    `weights` [M]: the mass of each row in the balance, 1 if left out.
    """
    row = scaled.new_zeros(len(scaled))
    for _ in range(iterations):
        column = -_log_mass(scaled + row[:, None], weights)
        row = -torch.logsumexp(scaled + column, 1)
    return Potentials(row, column)


def followed_centre(scaled: Tensor, column: Tensor) -> Potentials:
    """Return the potentials of softmax(scaled [M, K] + column [K]), with a graph."""
    return Potentials(-torch.logsumexp(scaled + column, 1), column)


def followed_loss(
    student: Tensor, teacher: Tensor, potentials: Potentials, partners: Tensor | None
) -> Tensor:
    """Return `masked_distillation_loss` [M] of scores over their temperatures, with a graph to both sides.

    `student` is [M, K], `teacher` [T, K]; `partners` int64 [M, P] are the rows of the latter that each of the
    former is compared with, -1 for none.
    """
    row, column = potentials
    q = torch.exp(teacher + row[:, None] + column)
    if partners is not None:
        q = torch.cat([q, q.new_zeros(1, q.shape[1])])[partners].sum(1)  # -1 points to the row of zeros
    return -(q * torch.log_softmax(student, 1)).sum(1)


def _log_mass(x: Tensor, weights: Tensor | None) -> Tensor:
    """Return log Σ_m weights_m exp(x_m) [K] over the rows of all ranks."""
    if weights is None:
        local = torch.logsumexp(x, 0)
    else:  # a weight of 0 has a derivative too, so its logarithm is not taken
        counted = x.detach().masked_fill(weights.detach()[:, None] <= 0, torch.finfo(x.dtype).min)
        highest = counted.amax(0)
        local = (weights[:, None] * (x - highest).clamp(max=80).exp()).sum(0).log() + highest
    return torch.logsumexp(collectives.all_gather_rows(local[None]), 0)
