"""From teacher logits to targets: Sinkhorn-Knopp, or softmax against a running centre."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vpt_kernels import Potentials, centre_potentials, sinkhorn_potentials
from vpt_vision import collectives
from vpt_vision.learner.precision import widened


class Target(NamedTuple):
    """Soft targets q = exp(logits / temperature + row + column) of M tokens; each row of q sums to 1."""

    logits: Tensor  # [M, K] fp32
    potentials: Potentials  # row [M] and column [K], fp32
    temperature: float

    def probabilities(self) -> Tensor:
        """Return q [M, K] fp32."""
        row, column = self.potentials
        return torch.exp(widened(self.logits) / self.temperature + row[:, None] + column)


def sinkhorn_target(logits: Tensor, temperature: float, fitted: Tensor | None = None) -> Target:
    """Balance the prototypes over the rows of all ranks (SwAV, Caron et al. 2020; DINOv2, section 4).

    `fitted` [M] bool: the rows that count in the balance. The others are normalised under its column
    potentials, as a row that comes later would be.
    """
    if fitted is None:
        return Target(
            logits, sinkhorn_potentials(logits, temperature, group=collectives.group()), temperature
        )
    fit = sinkhorn_potentials(logits, temperature, weights=fitted.float(), group=collectives.group())
    return Target(logits, fit, temperature)


class Centre(nn.Module):
    """The running mean of teacher logits (DINO, Caron et al. 2021, equation 4)."""

    value: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    def target(self, logits: Tensor, temperature: float) -> Target:
        """Return softmax((logits - centre) / temperature) as a target; the centre stays as it is."""
        return Target(logits, centre_potentials(logits, temperature, self.value), temperature)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move the centre towards the mean of `logits` [M, K] over all ranks, if there are any rows.

        A mean that is not finite is passed over: one bad batch must not spoil every later target.
        """
        count = collectives.all_reduce_sum(self.value.new_tensor(float(len(logits))))
        mean = collectives.all_reduce_sum(logits.to(self.value.dtype).sum(0)) / count.clamp(min=1)
        mean = torch.where(mean.isfinite(), mean, self.value)
        self.value.lerp_(mean, (1 - self.momentum) * count.clamp(max=1))
