"""From teacher scores to targets: Sinkhorn-Knopp, or softmax against a running centre."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpt_vision import collectives
from vpt_vision.learner.scores import Scores, Target


def sinkhorn_target(
    scores: Scores, temperature: float | Tensor, fitted: Tensor | None = None, *, followed: bool = False
) -> Target:
    """Balance the prototypes over the rows of all ranks (SwAV, Caron et al. 2020; DINOv2, section 4).

    `fitted` [M] fp32: by how much each row counts in the balance. One that does not is normalised under its
    column potentials, as a row that comes later would be. `temperature` is one for all rows or [M]. With
    `followed` the potentials keep the graph of scores, temperature and `fitted`; else they are held.
    """
    with torch.set_grad_enabled(followed and torch.is_grad_enabled()):
        potentials = scores.balanced(temperature, fitted)
    return Target(scores, potentials, temperature)


class Centre(nn.Module):
    """The running mean of teacher scores (DINO, Caron et al. 2021, equation 4)."""

    value: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    def target(
        self, scores: Scores, temperature: float | Tensor, usual: float, *, followed: bool = False
    ) -> Target:
        """Return softmax(scores / temperature - centre / usual temperature) as a target.

        Where each row [M] has a temperature of its own the centre keeps the usual one, as Sinkhorn's column
        potentials are the same for all rows. The centre stays as it is. With `followed` the potentials keep
        the graph of scores and temperature; else they are held.
        """
        with torch.set_grad_enabled(followed and torch.is_grad_enabled()):
            potentials = scores.centred(temperature, self.value, usual)
        return Target(scores, potentials, temperature)

    @torch.no_grad()
    def update(self, scores: Scores, counted: Tensor | None = None) -> None:
        """Move the centre towards the mean of the scores over all ranks, if there are any rows.

        `counted` [M]: 1 for the rows that there are, 0 for padding. All are there if it is left out.

        A mean that is not finite is passed over: one bad batch must not spoil every later target.
        """
        rows = self.value.new_tensor(float(scores.count)) if counted is None else counted.sum()
        count = collectives.all_reduce_sum(rows.to(self.value.dtype))
        total = collectives.all_reduce_sum(scores.total(counted).to(self.value.dtype))
        mean = total / count.clamp(min=1)
        mean = torch.where(mean.isfinite(), mean, self.value)
        self.value.lerp_(mean, (1 - self.momentum) * count.clamp(max=1))
