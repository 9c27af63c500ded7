"""The held-out guard: a gain of value that held-out examples do not confirm moves the designer less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.schema import Config

_DECAY = 0.9  # of a look's weight, per later look
_TINY = 1e-12


class GuardConfig(Config):
    """When held-out examples do not confirm what the designer gains on meta, and what follows."""

    every: int = Field(
        4, ge=0, description="value steps from one look at the held-out examples to the next; 0: never"
    )
    confirmed: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the designer's gain over the recipe on meta that held-out examples should show",
    )
    looks: int = Field(6, ge=3, description="looks after the burn-in before the guard may intervene")
    tolerance: float = Field(
        3.0, gt=0, description="standard errors by which the held-out gain may lag behind that share"
    )
    shrink: float = Field(0.5, ge=0, lt=1, description="factor on the designer's steps, at each intervention")
    recovery: float = Field(1.1, ge=1, description="factor back towards 1, at each look without one")


class Guard:
    """Watches the designer's gain over the recipe, on held-out examples beside meta.

    Let c_m and c_h be the cosines of the learner's gradient with u on meta and on held-out examples, and Δ
    the designer's less the recipe's for the same images and random numbers, 0 where the designer is the
    recipe. A designer that learns what only the meta examples say raises Δc_m alone; one that does harm
    lowers Δc_h. Watched is e = Δc_h - κ Δc_m, κ the share that should be confirmed. The guard intervenes
    where the mean of e over recent looks (weights falling by 0.9 a look) lies more than `tolerance` of its
    standard errors below 0, by the weighted variance of the same looks.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.count = 0  # of looks
        self.weights = (0.0, 0.0)  # Σw and Σw² over looks
        self.sums = torch.zeros(4)  # Σ w Δc_m, Σ w Δc_h, Σ w e, Σ w e²
        self.factor = torch.ones(())  # on the designer's steps
        self.interventions = torch.zeros(())  # so far
        self.told = 1.0  # the factor that `news` last spoke of

    def look(self, meta: Tensor, heldout: Tensor) -> dict[str, Tensor]:
        """Take in Δc_m and Δc_h, scalars; ones that are not finite count as 0.

        Returns scalars: `guard/gain` and `guard/heldout_gain`, their means over recent looks, `guard/lag`,
        standard errors by which the held-out gain lies behind (0 during the first looks),
        `guard/interventions` so far, and `guard/factor` on the designer's steps.
        """
        meta, heldout = meta.detach().nan_to_num(0.0, 0.0, 0.0), heldout.detach().nan_to_num(0.0, 0.0, 0.0)
        excess = heldout - self.config.confirmed * meta
        self.count += 1
        self.weights = (_DECAY * self.weights[0] + 1, _DECAY**2 * self.weights[1] + 1)
        self.sums = _DECAY * self.sums.to(meta.device) + torch.stack([meta, heldout, excess, excess.square()])
        mass, squares = self.weights
        gain, heldout_gain, mean, mean_square = (self.sums / mass).unbind()
        lag = torch.zeros_like(mean)
        if self.count >= self.config.looks:
            variance = (mean_square - mean.square()).clamp(min=0) / (1 - squares / mass**2)
            lag = -mean / (variance * squares / mass**2).sqrt().clamp(min=_TINY)
        intervenes = lag > self.config.tolerance
        factor = self.factor.to(meta.device)
        recovered = (factor * self.config.recovery).clamp(max=1.0)
        self.factor = torch.where(intervenes, factor * self.config.shrink, recovered)
        self.interventions = self.interventions.to(meta.device) + intervenes.float()
        return {
            "guard/gain": gain,
            "guard/heldout_gain": heldout_gain,
            "guard/lag": lag,
            "guard/interventions": self.interventions,
            "guard/factor": self.factor,
        }

    def news(self, record: Mapping[str, float | int | None]) -> str | None:
        """Say in a sentence that it has begun to shrink the designer's steps, and again at an eighth of that.

        `record` is a line of the log.
        """
        factor = record.get("guard/factor")
        if factor is None:
            return None
        if factor == 1:
            self.told = 1.0
        if factor == 1 or (self.told < 1 and factor > self.told / 8):
            return None
        self.told = factor
        return (
            "held-out examples do not confirm what the designer gains over the recipe (cosine of value "
            f"{record['guard/gain']:+.3f} on meta, {record['guard/heldout_gain']:+.3f} on held-out): the "
            f"guard has shrunk the designer's steps to {record['guard/factor']:.1%}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next look depends on."""
        return {
            "count": self.count,
            "weights": self.weights,
            "sums": self.sums,
            "factor": self.factor,
            "interventions": self.interventions,
            "told": self.told,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.count, self.weights, self.sums = state["count"], state["weights"], state["sums"]
        self.factor, self.interventions, self.told = state["factor"], state["interventions"], state["told"]
