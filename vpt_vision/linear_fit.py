"""What fits of linear heads share: the map, standardised features, and a solver of smooth convex problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_vision.errors import UserError


class LinearMap(NamedTuple):
    """A fitted head on features as they come (standardisation is folded into its weights)."""

    weight: Tensor  # [K, D]
    bias: Tensor  # [K]

    def __call__(self, features: Tensor) -> Tensor:
        """Answers [..., K] to features [..., D]."""
        return F.linear(features, self.weight, self.bias)


class Standardised(NamedTuple):
    """Features in fp64 with mean 0 and deviation 1 over their rows."""

    features: Tensor  # [N, D]
    mean: Tensor  # [D]
    deviation: Tensor  # [D]

    @classmethod
    def of(cls, features: Tensor) -> Standardised:
        """Standardise `features` [N, D] of any floating dtype; waits for the device.

        Raises:
            UserError: there are none, or one is not finite.
        """
        if not len(features):
            raise UserError("no examples to fit a classifier to: give at least one per class")
        raw = features.detach().double()
        if not bool(raw.isfinite().all()):
            raise UserError(
                "the backbone's features are not finite: load other weights or lower the learning rate"
            )
        mean = raw.mean(0)
        deviation = raw.std(0, correction=0)
        # A constant feature carries nothing; dividing it by 1 leaves it at 0.
        deviation = torch.where(deviation > 1e-8 * (1 + mean.abs()), deviation, 1.0)
        return cls((raw - mean) / deviation, mean, deviation)

    def unfold(self, head: LinearMap) -> LinearMap:
        """Return `head`, which reads features as they come, as one that reads standardised ones."""
        weight = head.weight.detach().to(self.features)
        return LinearMap(weight * self.deviation, head.bias.detach().to(self.features) + weight @ self.mean)

    def fold(self, head: LinearMap) -> LinearMap:
        """Return `head`, which reads standardised features, as an fp32 one that reads them as they come."""
        weight = head.weight.detach() / self.deviation
        return LinearMap(weight.float(), (head.bias.detach() - weight @ self.mean).float())


def minimise(
    objective: Callable[[LinearMap], Tensor], start: LinearMap, *, tolerance: float, iterations: int
) -> LinearMap:
    """Minimise a smooth convex `objective` by L-BFGS with a strong Wolfe line search, from `start`.

    Iterates until the largest entry of the gradient is below `tolerance`; waits for the device.
    """
    head = LinearMap(*(part.detach().clone().requires_grad_() for part in start))
    solver = torch.optim.LBFGS(
        list(head),
        max_iter=iterations,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective(head)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return LinearMap(head.weight.detach(), head.bias.detach())
