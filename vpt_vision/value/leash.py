"""What holds a designer close to the recipe: the price of KL, a floor under entropy, and a hard bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.collectives import all_reduce_mean
from vpt_vision.designers import Designer, Policy
from vpt_vision.errors import UserError
from vpt_vision.schema import Config

_RANGE = 1e4  # by which the price of KL may rise above its start, or fall below it
_DOUBLINGS = 30  # of the smallest share of the outputs that the bound tries to leave before it leaves none
_HALVINGS = 11  # of the interval in which that share's logarithm lies: to 1 %


class LeashConfig(Config):
    """How a learned designer is held close to the recipe. KL and entropy are means over images, in nats."""

    kl_target: float | None = Field(
        None,
        gt=0,
        description="KL, summed over surfaces, that the price of KL is adapted to hold; null: the price "
        "stays designer.kl_weight",
    )
    kl_rate: float = Field(
        0.2, gt=0, description="largest change of the price's logarithm per step of the designer"
    )
    kl_bound: float | None = Field(
        None,
        gt=0,
        description="KL, summed over surfaces, that no step of the designer goes beyond on the step's "
        "images; null: no bound",
    )
    entropy_floor: float | None = Field(
        None,
        ge=0,
        description="nats that a surface's entropy may lie below the recipe's before it is pulled back; "
        "null: no floor",
    )
    entropy_weight: float = Field(1.0, ge=0, description="price in value of a nat below the floor")


class Leash:
    """Prices what a designer's policy does, and takes back what goes too far.

    The price is w KL + entropy_weight Σ_s (floor - H_s)_+ with H_s the entropy of surface s over the
    recipe's. With a target the weight w moves against the KL: log w += rate · clamp(KL / target - 1, ±1) at
    every step of the designer, as PPO adapts its penalty (Schulman et al. 2017, arXiv 1707.06347, section 4,
    smoothed).

    Args:
        config: see there.
        kl_weight: w at the start, the designer's.
        bends: whether the designer's tasks have a law that is the recipe's but for its surfaces.

    Raises:
        UserError: `config` asks for what such a designer cannot be held by.
    """

    def __init__(self, config: LeashConfig, kl_weight: float, *, bends: bool = True) -> None:
        asked = [
            key for key in ("kl_target", "kl_bound", "entropy_floor") if getattr(config, key) is not None
        ]
        if asked and not bends:
            raise UserError(
                f"value.leash.{asked[0]} is set, and this designer has no surface whose law could be held "
                "close to the recipe's: leave it out, or take designer.kind: learned."
            )
        if config.kl_target is not None and kl_weight == 0:
            raise UserError(
                "value.leash.kl_target adapts designer.kl_weight by factors, and that is 0: give it a start, "
                "such as 0.01 (a designer of your own has it as an attribute, kl_weight)."
            )
        self.config = config
        self.start = kl_weight
        self.log_factor = torch.zeros(())  # of the price over its start

    def price(self, policy: Policy) -> Tensor:
        """Return what `policy` costs, a scalar with its graph, and adapt the price to it."""
        kl = _mean_total(policy.kl())
        self._adapt(all_reduce_mean(kl))
        price = self.start * self.log_factor.exp().to(kl.device) * kl
        floor = self.config.entropy_floor
        if floor is not None:
            below = [(-floor - entropy.mean()).clamp(min=0) for entropy in policy.entropy().values()]
            price = price + self.config.entropy_weight * sum(below, start=kl.new_zeros(()))
        return price

    @torch.no_grad()
    def pull_back(self, designer: Designer, images: PackedImages) -> dict[str, Tensor]:
        """Bring the designer back within the bound on `images`: all outputs are scaled towards the recipe.

        Returns `leash/share`, the share of the outputs that is left, 1 where nothing was too far, and
        `leash/kl`, the KL summed over surfaces that the designer is left with; nothing without a bound.
        """
        bound = self.config.kl_bound
        if bound is None:
            return {}
        outputs = designer.outputs(designer.features(images))

        def kl(share: Tensor) -> Tensor:
            scaled = {name: share * output for name, output in outputs.items()}
            return all_reduce_mean(_mean_total(designer.policy_of(images, scaled).kl()))

        # Shares are looked for by their logarithm: outputs may lie far beyond what their bounds squash.
        recipe = torch.zeros((), device=images.device)
        low, high = recipe - _DOUBLINGS, recipe  # log2 of shares: of one that fits, and of one that may not
        share, left = recipe, recipe
        for log_share in (low, high):
            found = kl(log_share.exp2())
            fits = found <= bound  # False where the KL is not finite
            share, left = torch.where(fits, log_share.exp2(), share), torch.where(fits, found, left)
        low = torch.where(fits, high, low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = kl(middle.exp2())
            fits = found <= bound
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
            share, left = torch.where(fits, middle.exp2(), share), torch.where(fits, found, left)
        designer.scale_outputs(share)
        return {"leash/share": share, "leash/kl": left}

    def report(self) -> dict[str, Tensor]:
        """Return `leash/kl_weight`, the price of a nat of KL as it stands."""
        return {"leash/kl_weight": self.start * self.log_factor.exp()}

    def _adapt(self, kl: Tensor) -> None:
        target = self.config.kl_target
        if target is None:
            return
        error = (kl / target - 1).clamp(-1, 1).nan_to_num(0.0)
        limit = math.log(_RANGE)
        self.log_factor = (self.log_factor.to(kl.device) + self.config.kl_rate * error).clamp(-limit, limit)

    def state_dict(self) -> dict[str, Any]:
        """Return the price's factor."""
        return {"log_factor": self.log_factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.log_factor = state["log_factor"]


def _mean_total(by_surface: dict[Any, Tensor]) -> Tensor:
    """Sum over surfaces of means over images; 0 for none."""
    return sum((nats.mean() for nats in by_surface.values()), start=torch.zeros(()))
