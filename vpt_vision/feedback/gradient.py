"""u: the direction in the learner's last blocks along which downstream loss rises fastest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vpt_kernels import keyed_uniform
from vpt_vision.collectives import all_reduce_mean, rank
from vpt_vision.feedback.classification import ClassificationFeedback
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.feedback.examples import Examples
from vpt_vision.learner.backbone import Backbone
from vpt_vision.task import Keys

BATCH_STREAM = 902  # of `keyed_uniform`: which meta examples a step draws

Direction = dict[str, Tensor]  # one tensor per tail parameter, by `Backbone.tail_parameters`' names


def inner(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """⟨first, second⟩ over all tensors, a scalar; both have the same keys."""
    return torch.stack([(first[name] * second[name]).sum() for name in first]).sum()


class FeedbackGradient:
    """u = ∇_{θ_S} L_down, averaged over steps; S = the last `tail_blocks` blocks and the final norm.

    The meta split is cut in two once and for all, and each half keeps an average of its own: u is their
    mean, and the cosine between them says how much of u the labelled sample decides (its reliability).
    u is detached, and no `.grad` is written. Each rank takes a batch of its own.
    """

    def __init__(self, feedback: ClassificationFeedback, tail_blocks: int) -> None:
        meta = feedback.splits.meta
        self.feedback = feedback
        self.tail_blocks = tail_blocks
        self.halves = (meta[0::2], meta[1::2])  # both hold the classes evenly, as `meta` does
        self.averages: tuple[Direction, Direction] = ({}, {})
        self.count = 0
        self.heldout_loss = torch.tensor(float("nan"))  # until the head is first fitted

    def update(self, backbone: Backbone, keys: Keys) -> dict[str, Tensor]:
        """Take the gradient of one meta batch into the averages.

        Returns scalars: `meta_loss`, `heldout_loss` (of the head as last fitted), `u_norm`,
        `u_reliability` (cosine of the two averages) and `u_reliability_batch` (cosine of this batch's
        two gradients).
        """
        config = self.feedback.config
        if self.count % config.refit_every == 0:
            self.feedback.fit_head(backbone)
            self.heldout_loss = self.feedback.heldout_loss(backbone)
        self.count += 1

        losses, gradients = [], []
        for number, half in enumerate(self.halves):
            loss, gradient = self._gradient(backbone, self._draw(half, 2 * rank() + number, keys))
            losses.append(loss)
            gradients.append(gradient)
        for average, gradient in zip(self.averages, gradients, strict=True):
            for name, value in gradient.items():
                average[name] = torch.lerp(value, average.get(name, torch.zeros_like(value)), config.ema)
        return {
            "meta_loss": torch.stack(losses).mean(),
            "heldout_loss": self.heldout_loss,
            "u_norm": inner(self.u, self.u).sqrt(),
            "u_reliability": cosine(*self.averages),
            "u_reliability_batch": cosine(*gradients),
        }

    @property
    def u(self) -> Direction:
        """The averaged gradient, detached; its bias towards 0 in the first steps is taken out."""
        first, second = self.averages
        correction = 2 * (1 - self.feedback.config.ema**self.count)
        return {name: (first[name] + second[name]) / correction for name in first}

    def _draw(self, half: Examples, number: int, keys: Keys) -> Examples:
        """Draw half a batch from `half` without replacement; draws of other numbers are others."""
        names = number * len(half) + torch.arange(len(half))
        draws = keyed_uniform(keys.seed, keys.step, names, BATCH_STREAM, 1)[:, 0]
        return half[draws.argsort(stable=True)[: self.feedback.config.batch // 2]]

    def _gradient(self, backbone: Backbone, examples: Examples) -> tuple[Tensor, Direction]:
        """Return L_down of `examples` and its gradient with respect to θ_S, both detached."""
        feedback = self.feedback
        parameters = backbone.tail_parameters(self.tail_blocks)
        images = feedback.render(examples.images, backbone.mask_token.device)
        with evaluating(backbone):
            with torch.no_grad():
                tail_input = backbone.trunk(images, None, self.tail_blocks)
            with torch.enable_grad():
                loss = feedback.loss(feedback.pool(backbone.tail(tail_input)), examples.labels)
            gradient = torch.autograd.grad(loss, list(parameters.values()))
        return all_reduce_mean(loss), dict(zip(parameters, map(all_reduce_mean, gradient), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, their count, and the head with its held-out loss."""
        return {
            "averages": [dict(average) for average in self.averages],
            "count": self.count,
            "heldout_loss": self.heldout_loss,
            "head": self.feedback.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        first, second = state["averages"]
        self.averages = (dict(first), dict(second))
        self.count = state["count"]
        self.heldout_loss = state["heldout_loss"]
        self.feedback.load_state_dict(state["head"])


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Cosine between two directions, a scalar; 0 where one of them is 0."""
    norms = inner(first, first).sqrt() * inner(second, second).sqrt()
    return inner(first, second) / norms.clamp(min=torch.finfo(norms.dtype).tiny)
