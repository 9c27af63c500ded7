"""A feedback task whose labels say nothing: the null that value is judged against."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from vpt_kernels import keyed_uniform
from vpt_vision.feedback.task import FeedbackTask, Split, through_fit_of
from vpt_vision.learner.backbone import Features

PERMUTATION_STREAM = 903  # of `keyed_uniform`


class PermutedLabels:
    """`task` with the labels of every split dealt anew among its images, and a head fitted to those.

    What the labels' distribution and the images' own structure do to u stays; what they know of each other
    is gone.

    Args:
        task: left as it is. Its `fit` must set the head, not change one in place.
        seed: of the permutation.
    """

    def __init__(self, task: FeedbackTask, seed: int) -> None:
        self.task = copy.copy(task)
        self.seed = seed

    def __copy__(self) -> PermutedLabels:
        """A task with a head of its own on the same examples and permutation."""
        return PermutedLabels(self.task, self.seed)

    def count(self, split: Split) -> int:
        """Count the examples of a split."""
        return self.task.count(split)

    def images(self, split: Split, index: Tensor, device: torch.device) -> Tensor:
        """Return the images as they are."""
        return self.task.images(split, index, device)

    def fit(self, features: Features) -> None:
        """Fit the head to permuted labels: label number n meets the image whose permuted number it is."""
        image_of = self._permutation("head").argsort().to(features.cls.device)
        self.task.fit(Features(features.cls[image_of], features.patches[image_of]))

    def loss(self, features: Features, split: Split, index: Tensor) -> Tensor:
        """Return the loss against permuted labels."""
        return self.task.loss(features, split, self._permutation(split)[index])

    def loss_through_fit(self, features: Features, index: Tensor, judged: Tensor) -> Tensor:
        """Return the same through the head's fit."""
        return through_fit_of(self.task)(features, self._permutation("meta")[index], judged)

    def state_dict(self) -> dict[str, Any]:
        """Return the head."""
        return self.task.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.task.load_state_dict(state)

    def _permutation(self, split: Split) -> Tensor:
        """Number of the label that each image gets; splits of one size share it, so that folds stay apart.

        Even numbers are dealt among even ones and odd among odd: the halves of meta, whose agreement tells
        how far u can be trusted, stay halves, and with two folds each is judged by a head of its own.
        """
        count = self.task.count(split)
        draws = keyed_uniform(self.seed, 0, torch.arange(count), PERMUTATION_STREAM, 1)[:, 0]
        dealt = torch.empty(count, dtype=torch.int64)
        for half in (0, 1):
            dealt[half::2] = half + 2 * draws[half::2].argsort()
        return dealt
