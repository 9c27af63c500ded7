"""Policies near a designer's own."""

from __future__ import annotations

import torch
from torch import Tensor

from vpt_kernels import PackedImages, keyed_uniform
from vpt_vision.designers import Designer, Observed, Policy, Refined
from vpt_vision.task import Keys, RenderedViews, Task

SPREAD_STREAM = 920  # of `keyed_uniform`


class Spread(Designer):
    """A policy near another designer's: random numbers are added to its outputs, the same for all images.

    Args:
        designer: the other one; one without outputs is left as it is.
        size: root mean square of what is added.
        seed: of the numbers.
        number: which policy.
    """

    def __init__(self, designer: Designer, size: float, seed: int, number: int) -> None:
        super().__init__()
        self.designer = designer
        self.size = size
        self.seed = seed
        self.number = number
        self.surfaces = designer.surfaces

    def features(self, images: PackedImages) -> dict[str, Tensor]:
        """Return the other designer's."""
        return self.designer.features(images)

    def outputs(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the other designer's outputs, moved."""
        return {
            name: output + self.size * self._numbers(output, place)
            for place, (name, output) in enumerate(self.designer.outputs(features).items())
        }

    def policy_of(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """Return the other designer's policy of moved outputs."""
        return self.designer.policy_of(images, outputs)

    def refine(
        self, task: Task, views: RenderedViews, keys: Keys, learner: Observed, temperature: float
    ) -> Refined:
        """Finish the task as the other designer does."""
        return self.designer.refine(task, views, keys, learner, temperature)

    def _numbers(self, output: Tensor, place: int) -> Tensor:
        """Draw standard normal numbers [1, ...] for a head's output [B, ...]."""
        sample = torch.full((), place, device=output.device)
        uniform = keyed_uniform(self.seed, self.number, sample, SPREAD_STREAM, output[0].numel())
        return torch.special.ndtri(uniform).view_as(output[:1])
