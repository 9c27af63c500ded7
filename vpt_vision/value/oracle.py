"""What value says of tasks whose worth is known, against what it says when labels mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpt_vision.designers import Designer
from vpt_vision.feedback import (
    Direction,
    FeedbackTask,
    PermutedLabels,
    all_features,
    cosine,
    evaluating,
    gradients_over,
    gradients_through_fit,
    inner,
)
from vpt_vision.learner.backbone import Backbone
from vpt_vision.task import Keys
from vpt_vision.value.gradient import pretraining_gradients
from vpt_vision.value.setting import Setting

ROUNDING = 1e-5  # relative, of values in fp32
AT_ONCE = 8  # u's whose gradients are taken over one graph

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Directions:
    """u of one feedback task on its whole meta split, and those of the same images under permuted labels."""

    u: Direction
    permuted: list[Direction]
    reliability: float  # cosine between u's of the two halves of meta
    permuted_reliability: list[float]

    @property
    def all(self) -> list[Direction]:
        """u, and the permuted ones brought to its length, so that only directions are compared."""
        length = inner(self.u, self.u).sqrt()
        scaled = []
        for other in self.permuted:
            factor = length / inner(other, other).sqrt().clamp(min=1e-30)
            scaled.append({name: factor * value for name, value in other.items()})
        return [self.u, *scaled]


def directions(
    task: FeedbackTask, backbone: Backbone, tail_blocks: int, permutations: int, *, through_fit: bool = False
) -> Directions:
    """Take u of `task`, with a head fitted to `backbone` as it stands, and its null, heads fitted to that.

    Args:
        task: its head is fitted anew.
        backbone: left as it is.
        tail_blocks: S is this many last blocks and the final norm.
        permutations: how many times labels are dealt anew.
        through_fit: take each u through its heads' fit, as `feedback.through_fit` does.
    """
    features = all_features(task, backbone, "head")
    tasks: list[FeedbackTask] = [task, *(PermutedLabels(task, seed) for seed in range(permutations))]
    for each in tasks:
        each.fit(features)
    parameters = backbone.tail_parameters(tail_blocks)
    halves = [torch.arange(start, task.count("meta"), 2) for start in (0, 1)]
    found: list[Direction] = []
    reliabilities: list[float] = []
    for start in range(0, len(tasks), AT_ONCE):
        some = tasks[start : start + AT_ONCE]
        if through_fit:
            pairs = [gradients_through_fit(each, backbone, halves, tail_blocks) for each in some]
        else:
            of_halves = [gradients_over(some, backbone, "meta", half, parameters) for half in halves]
            pairs = [list(pair) for pair in zip(*of_halves, strict=True)]
        for one, other in pairs:
            found.append({name: (one.gradient[name] + other.gradient[name]) / 2 for name in parameters})
            reliabilities.append(float(cosine(one.gradient, other.gradient)))
    return Directions(found[0], found[1:], reliabilities[0], reliabilities[1:])


def term_gradients(setting: Setting, designer: Designer, keys: Keys) -> dict[str, Direction]:
    """∇_{θ_S} of each term of the learner's loss on the task that `designer` sets, detached.

    The learner is read in eval mode, as the value step reads it; no `.grad` of it is written.
    """
    learner = setting.learner
    with evaluating(learner):
        with torch.no_grad():
            task = designer(setting.images, keys)
            views = setting.renderer(setting.images, task)
            with setting.autocast():
                task, views, *_ = designer.refine(task, views, keys, learner, setting.temperature)
        return pretraining_gradients(setting, task, views)


def values(gradients: Mapping[str, Direction], along: Sequence[Direction]) -> dict[str, Tensor]:
    """V_k [U] = ⟨u, ∇_{θ_S} L_k⟩ of each term for each of U directions: one gradient serves them all."""
    return {term: torch.stack([inner(u, gradient) for u in along]) for term, gradient in gradients.items()}


class Ranking(NamedTuple):
    """How value ranks a task against the recipe, by u, beside what permuted-label u's make of it."""

    gain: float  # V of the task less V of the recipe, mean over batches
    null_mean: float  # of the same by permuted-label u's
    null_deviation: float

    @property
    def z(self) -> float:
        """How many deviations of the null the gain lies above its mean; 0 where the null has none."""
        return (self.gain - self.null_mean) / self.null_deviation if self.null_deviation else 0.0


def rank(of_task: Numbers, of_recipe: Numbers) -> Ranking:
    """Compare values [batches, 1 + permutations], u's first, of a task and of the recipe on the same."""
    gains = (of_task - of_recipe).mean(0)
    null, rounding = gains[1:], ROUNDING * np.abs(of_recipe).mean()
    deviation = float(null.std(ddof=1))
    # A term that the task leaves alone differs by rounding, of which no ratio tells anything.
    return Ranking(float(gains[0]), float(null.mean()), deviation if deviation > rounding else 0.0)
