"""The designer's gradient from values of its own draws and their log density."""

from __future__ import annotations

import torch
from torch import Tensor

from vpt_vision.designers import Surface
from vpt_vision.errors import UserError
from vpt_vision.value.estimator import Occasion


def score(occasion: Occasion, surfaces: frozenset[Surface], *, draws: int) -> Tensor:
    """Weigh the score of each of several draws by how much more it is worth than the others.

        ∇φ J = 1/(M - 1) Σ_m (J_m - J̄) Σ_i ∇φ log π_φ(task_mi | x_i)

    (Williams 1992, with the mean of the other draws as each one's baseline.) Every draw m sets tasks for all
    images i, and is a batch of its own in centring and Sinkhorn, with one value J_m: what an image's task
    does to the targets of the others is in it, and the estimate is unbiased. Values of single samples
    within a batch leave that out, and have the wrong sign where good and poor tasks are mixed. The price is
    noise: each image's score is weighed by what the others' tasks were worth too.

    `draws` is M, at least 2. Raises `UserError` where the policy has no density by one of `surfaces`.
    """
    values, log_densities = [], []
    for draw in range(1, draws + 1):
        keys = occasion.keys._replace(seed=occasion.keys.seed + (draw << 32))  # none that a run draws by
        with torch.no_grad():
            task = occasion.policy.sample(keys)
            values.append(occasion.judge(task))
        by_surface = occasion.policy.log_prob(task, keys)
        if unknown := sorted(surfaces - by_surface.keys()):
            raise UserError(
                f"value.estimators.{unknown[0]} is score, and the policy of "
                f"{type(occasion.designer).__name__} has no density by {unknown[0]}: name the surface in the "
                "policy's `surfaces`, or choose another estimator."
            )
        log_densities.append(torch.stack([by_surface[surface].sum() for surface in sorted(surfaces)]).sum())
    worth = torch.stack(values).detach()
    return ((worth - worth.mean()) * torch.stack(log_densities)).sum() / (draws - 1)
