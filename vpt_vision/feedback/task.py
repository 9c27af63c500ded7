"""`FeedbackTask`: what labelled examples must be able to do to say which way the backbone should go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vpt_vision.errors import UserError
from vpt_vision.learner.backbone import Features

Split = Literal["head", "meta", "heldout"]


class FeedbackTask(Protocol):
    """Labelled examples in three splits that never mix, a light head, and a downstream loss L_down.

    The head is fitted on `head`, u is the gradient of the loss on `meta`, and `heldout` only watches. An
    example is an image and whatever is known of it; within a split examples are numbered from 0. Implement
    these methods for a goal of your own; nothing need be inherited. What is random must be a function of the
    arguments.
    """

    def count(self, split: Split) -> int:
        """Count the examples of a split."""

    def images(self, split: Split, index: Tensor, device: torch.device) -> Tensor:
        """Return the images numbered `index` (int64 [n], on the CPU) as the backbone reads them.

        Normalised fp32 [n, 3, s, s] on `device`; s is a multiple of the backbone's patch.
        """

    def fit(self, features: Features) -> None:
        """Fit the head to convergence, given the features of all of `head` in order, without gradient.

        At the head's optimum the gradient of L_down in the backbone alone is that of the best head's loss
        (envelope theorem), which a half-trained head does not give. A task without a head leaves this empty.
        """

    def loss(self, features: Features, split: Split, index: Tensor) -> Tensor:
        """Return the mean loss of examples `index`, differentiable in their `features`; the head is fixed."""

    def state_dict(self) -> dict[str, Any]:
        """Return the head as tensors, so that a run goes on exactly where it stopped."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class LossThroughFit(Protocol):
    """What a task further implements, as a method `loss_through_fit`, for `feedback.through_fit`."""

    def __call__(self, features: Features, index: Tensor, judged: Tensor) -> Tensor:
        """Return the mean loss of meta examples `index[judged]`, differentiable in the `features` of `index`.

        Its gradient sees how the head moves with the features that it is fitted to; `judged` is bool [n].
        """


def through_fit_of(task: FeedbackTask) -> LossThroughFit:
    """Return the task's `loss_through_fit`; raises `UserError` where it has none."""
    found: LossThroughFit | None = getattr(task, "loss_through_fit", None)
    if found is None:
        raise UserError(
            f"feedback.through_fit asks every task for a method loss_through_fit, and {type(task).__name__} "
            "has none: give it one, or leave through_fit out"
        )
    return found


@dataclass(frozen=True)
class WeightedTask:
    """A feedback task, and how it enters u."""

    task: FeedbackTask
    weight: float = 1.0  # share of u, relative to that of other tasks
    batch: int = 256  # `meta` examples per gradient, half from each half of `meta`


@dataclass(frozen=True)
class Feedback:
    """One or more tasks, by name, and how u is made of their gradients."""

    tasks: dict[str, WeightedTask]
    normalise: bool = True  # bring every task's gradient to one length before weighing it
    ema: float = 0.9  # decay of the gradients' moving averages
    through_fit: bool = False  # u sees how the heads move with the features
    every: int = 1  # value steps from one fit of the heads and gradient to the next
    heldout_every: int = 1  # fits between two looks at the held-out loss
