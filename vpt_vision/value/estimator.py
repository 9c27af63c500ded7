"""Which estimator finds each surface's gradient, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

from pydantic import Field
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers import Designer, Policy, Surface
from vpt_vision.errors import UserError
from vpt_vision.schema import Config
from vpt_vision.task import Keys, Task

Derivative = Literal["finite_difference", "exact"]
Search = Literal["population", "score", "rollout"]


class Plan(NamedTuple):
    """The estimators of one designer's surfaces."""

    exact: bool  # whether value is measured by double backward, not by finite differences
    followed: frozenset[Surface]  # those whose gradient is the derivative of the measured value
    searched: dict[Search, frozenset[Surface]]


class EstimatorsConfig(Config):
    """Which estimator finds the gradient of each surface that the designer controls.

    finite_difference: the derivative of value by two ordinary passes through the last blocks.
    exact: the same derivative by double backward; slow, the check on it.
    population: values of antithetic candidates, forward passes only; for what has no derivative.
    score: values of several draws times the derivative of their log density; unbiased and noisy.
    rollout: as population, but judged by real steps of a copy of the learner; slow and faithful.
    """

    crops: Derivative | Search = Field("population", description="boxes: their area, aspect and position")
    photometrics: Derivative | Search = Field("population", description="strengths and probabilities")
    masks: Derivative | Search = Field("finite_difference", description="which patches are hidden")
    mask_ratio: Search = Field("population", description="how many patches are hidden; it has no derivative")
    targets: Derivative | Search = Field("finite_difference", description="weights, temperatures and mix")
    refined: Derivative = Field(
        "finite_difference", description="what a designer changes in views once they are rendered"
    )

    def plan(self, surfaces: frozenset[Surface]) -> Plan:
        """Sort `surfaces` by the estimator that each has.

        Raises:
            UserError: an estimator cannot find its surface's gradient, or value would have to be measured in
                two ways.
        """
        if "targets" in surfaces and self.targets == "score":
            raise UserError(
                "value.estimators.targets is score, and targets are not drawn: they have no density. Choose "
                "finite_difference, exact, population or rollout."
            )
        chosen: dict[Surface, str] = {surface: getattr(self, surface) for surface in sorted(surfaces)}
        derivatives = {name for name in chosen.values() if name in ("finite_difference", "exact")}
        if len(derivatives) > 1:
            raise UserError(
                "value.estimators asks for exact and for finite_difference, and value is measured in one way:"
                " give every surface that follows its derivative the same of the two."
            )
        followed = frozenset(surface for surface, name in chosen.items() if name in derivatives)
        searched: dict[Search, frozenset[Surface]] = {}
        for search in get_args(Search):
            if found := frozenset(surface for surface, name in chosen.items() if name == search):
                searched[search] = found
        return Plan((derivatives or {self.refined}) == {"exact"}, followed, searched)


@dataclass(frozen=True)
class Occasion:
    """One value step, as those estimators see it that search for the gradient.

    Features and outputs carry the graph that leads to the designer's parameters φ.
    """

    designer: Designer
    images: PackedImages  # B of them
    keys: Keys
    features: dict[str, Tensor]  # what each head of the designer reads, [B, D] or [B, D, R, C]
    outputs: dict[str, Tensor]  # what it says, [B, C] or [B, C, R, C']
    policy: Policy  # of these outputs
    judge: Callable[[Task], Tensor]  # from a task for `images` to its objective, a scalar
    fall: Callable[[Policy], Tensor] | None = None  # of downstream loss by real steps; where `rollout` asks


class Estimator(Protocol):
    """Finds the gradient of the expected objective J(φ) = E J(c_φ(x)) by some of the designer's surfaces."""

    def __call__(self, occasion: Occasion, surfaces: frozenset[Surface], /) -> Tensor:
        """Return a scalar whose gradient in φ is the estimate; its value means nothing."""
