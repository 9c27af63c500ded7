"""One step of a designer's optimiser."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from vpt_vision.collectives import all_reduce_mean
from vpt_vision.designers.designer import Designer


def ascend(designer: Designer, optimiser: Optimizer, goal: Tensor) -> dict[str, Tensor]:
    """Step the designer's parameters up the gradient of `goal`, a scalar, averaged over ranks.

    A gradient that is not finite changes nothing; nothing waits for the device. Returns
    `designer_gradient_norm` and `designer_skipped` (1 or 0), scalars on the device.
    """
    parameters = list(designer.parameters())
    gradients = torch.autograd.grad(goal, parameters, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = -all_reduce_mean(gradient)  # the optimiser descends
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    skipped = 1.0 - norm.isfinite().float()
    optimiser.grad_scale, optimiser.found_inf = None, skipped  # type: ignore[attr-defined]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {"designer_gradient_norm": norm, "designer_skipped": skipped}
