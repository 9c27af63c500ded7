"""The number that the designer raises: its task's value, with every term of the loss at a size of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vpt_vision.collectives import all_reduce_mean
from vpt_vision.designers import Refined
from vpt_vision.errors import UserError
from vpt_vision.feedback import Direction, cosine, inner
from vpt_vision.value.config import ValueConfig
from vpt_vision.value.exact import exact_value
from vpt_vision.value.finite_difference import finite_difference_value
from vpt_vision.value.gradient import pretraining_gradients
from vpt_vision.value.scale import RunningScale
from vpt_vision.value.setting import Setting

_TINY = 1e-12


class Measured(NamedTuple):
    """What one task is worth."""

    values: dict[str, Tensor]  # V_k = ⟨P u, ∇L_k⟩ of each loss term, unweighted, over all ranks, detached
    objective: Tensor  # scalar; leads back to the designer where the task does


def valued_weights(terms: Mapping[str, float] | None, of_learner: Mapping[str, float]) -> dict[str, float]:
    """Return w_k of each of the learner's loss terms in value: `terms`, or where that is None the learner's.

    Raises `UserError` where `terms` names one that the learner does not have, or weighs none above 0.
    """
    if terms is None:
        return dict(of_learner)
    if unknown := sorted(terms.keys() - of_learner.keys()):
        raise UserError(
            f"value.terms names '{unknown[0]}', and the learner's loss has {', '.join(of_learner)}: take it "
            "out, or give the term a weight in the learner."
        )
    if not any(terms.values()):
        raise UserError("value.terms weighs no loss term above 0: give one a weight, or leave it out.")
    return {term: terms.get(term, 0.0) for term in of_learner}


class Objective:
    """Σ_k w_k V_k / s_k, with the weight w_k of loss term k in value and the size s_k of V_k.

    s_k is 1, the running size of V_k, or ‖P u‖ ‖∇L_k‖, which makes of V_k / s_k the cosine. The cosine has
    the gradient of ⟨d_k, ∇L_k⟩ for the held direction d_k = (P u/‖P u‖ - cos_k ∇L_k/‖∇L_k‖) / ‖∇L_k‖: what
    lengthens the learner's gradient alone is worth nothing.
    """

    def __init__(self, config: ValueConfig, weights: Mapping[str, float], *, exact: bool) -> None:
        self.config = config
        self.weights = weights
        self.exact = exact
        self.scale = RunningScale(config.scale_decay)

    def measure(self, setting: Setting, refined: Refined, u: Direction, *, first: bool = False) -> Measured:
        """Measure a task along `u`, P u above; with `first` the running sizes take it in."""
        if self.config.normalise == "cosine":
            return self._cosine(setting, refined, u)
        values = self._values(setting, refined, u)
        over_ranks = {term: all_reduce_mean(value) for term, value in values.items()}
        if first:
            self.scale.update(over_ranks)
        if self.config.normalise == "running":
            values = {term: value / self.scale.scale(term) for term, value in values.items()}
        return Measured(over_ranks, self.weighted(values))

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Sum over the loss terms with their weights in value; one without weight is left out, NaN or not."""
        return torch.stack(
            [self.weights[term] * value for term, value in terms.items() if self.weights[term]]
        ).sum()

    def _values(self, setting: Setting, refined: Refined, u: Direction) -> dict[str, Tensor]:
        """V_k of each loss term; with a graph where one leads back to the designer."""
        with torch.set_grad_enabled(leads_back(refined) and torch.is_grad_enabled()):
            if self.exact:
                return exact_value(setting, refined.task, refined.views, u)
            return finite_difference_value(setting, refined.task, refined.views, u, rho=self.config.rho)

    def aligned(self, gradients: Mapping[str, Direction], u: Direction) -> Tensor:
        """How far the terms' gradients lie along `u`, whatever their lengths: a scalar in [-1, 1].

        The mean of the terms' cosines by their weights in value; with `normalise: none` the cosine of the
        weighted sum, in which a longer gradient says more.
        """
        if self.config.normalise == "none":
            return cosine(u, self.whole(gradients))
        cosines = {term: cosine(u, gradient) for term, gradient in gradients.items()}
        return self.weighted(cosines) / sum(self.weights.values())

    def whole(self, gradients: Mapping[str, Direction]) -> Direction:
        """The gradient of the loss terms' sum by their weights in value, given those of the terms."""
        valued = {term: part for term, part in gradients.items() if self.weights[term]}
        names = next(iter(valued.values()))
        return {
            name: torch.stack([self.weights[term] * part[name] for term, part in valued.items()]).sum(0)
            for name in names
        }

    def _cosine(self, setting: Setting, refined: Refined, u: Direction) -> Measured:
        gradients = pretraining_gradients(setting, refined.task, refined.views)
        values = {term: inner(u, gradient) for term, gradient in gradients.items()}
        cosines = {term: cosine(u, gradient) for term, gradient in gradients.items()}
        if leads_back(refined) and torch.is_grad_enabled():
            length = _norm(u)
            for term, gradient in gradients.items():
                if not self.weights[term]:
                    continue
                own = _norm(gradient)  # a term without a gradient has no cosine to raise
                along = {
                    name: (own > _TINY) * (u[name] / length - cosines[term] * gradient[name] / own) / own
                    for name in u
                }
                slope = self._values(setting, refined, along)[term]
                cosines[term] = cosines[term] + slope - slope.detach()
        return Measured(
            {term: all_reduce_mean(value) for term, value in values.items()}, self.weighted(cosines)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the running sizes."""
        return {"scale": self.scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.scale.load_state_dict(state["scale"])


def leads_back(refined: Refined) -> bool:
    """Whether a derivative of the task's value leads back to the designer."""
    pixels = (refined.views.global_views, refined.views.local_views)
    return refined.task.has_gradient or any(part.requires_grad for part in pixels)


def _norm(direction: Direction) -> Tensor:
    return inner(direction, direction).sqrt().clamp(min=_TINY)
