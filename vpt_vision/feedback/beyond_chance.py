"""A feedback task less what any labels would ask for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from vpt_vision.feedback.permuted import PermutedLabels
from vpt_vision.feedback.task import FeedbackTask, Split, through_fit_of
from vpt_vision.learner.backbone import Features


class BeyondChance:
    """L_down = L(labels) - 1/K Σ_k L(labels dealt anew by permutation k), each with a head of its own.

    A head fitted to finitely many examples loses on others even where the labels say nothing of the images,
    and a gradient lowers that loss too, by making features that no head can overfit. Labels at random ask for
    it as loudly as true ones; it is taken off, as the null's mean is in a permutation test. What stays is
    minus the features' usable information about the labels, in the loss's unit, below 0 where there is any
    (Xu et al. 2020, arXiv 2002.10689, whose H_V(Y|∅) the permuted losses stand for).

    Args:
        task: `fit` of it must set the head, not change one in place.
        heads: K, at least 1.
        seed: of the permutations.
    """

    def __init__(self, task: FeedbackTask, heads: int, seed: int) -> None:
        self.task = task
        self.null = [PermutedLabels(task, seed + 1 + number) for number in range(heads)]

    def __copy__(self) -> BeyondChance:
        """A task with heads of its own on the same examples."""
        other = object.__new__(type(self))
        other.task = copy.copy(self.task)
        other.null = [copy.copy(each) for each in self.null]
        return other

    def count(self, split: Split) -> int:
        """Count the examples of a split."""
        return self.task.count(split)

    def images(self, split: Split, index: Tensor, device: torch.device) -> Tensor:
        """Return the images as they are."""
        return self.task.images(split, index, device)

    def fit(self, features: Features) -> None:
        """Fit the head, and those of the null."""
        for each in (self.task, *self.null):
            each.fit(features)

    def loss(self, features: Features, split: Split, index: Tensor) -> Tensor:
        """Return the loss less the mean of the null's."""
        chance = torch.stack([each.loss(features, split, index) for each in self.null])
        return self.task.loss(features, split, index) - chance.mean()

    def loss_through_fit(self, features: Features, index: Tensor, judged: Tensor) -> Tensor:
        """Return the same through the fits of all heads."""
        chance = torch.stack([each.loss_through_fit(features, index, judged) for each in self.null])
        return through_fit_of(self.task)(features, index, judged) - chance.mean()

    def state_dict(self) -> dict[str, Any]:
        """Return all heads."""
        return {"task": self.task.state_dict(), "null": [each.state_dict() for each in self.null]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.task.load_state_dict(state["task"])
        for each, its in zip(self.null, state["null"], strict=True):
            each.load_state_dict(its)
