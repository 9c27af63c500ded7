"""Linear probe: multinomial logistic regression on frozen features, fitted to convergence."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import fit_logistic
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)


class LinearProbeConfig(Config):
    """What the linear probe reads, and the weight decays it may choose from."""

    features: Literal["cls", "cls+mean_patch"] = Field(
        "cls+mean_patch", description="CLS token alone, or CLS token and mean patch token side by side"
    )
    l2_grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="weight decays l2 of the standardised problem, mean CE + l2/2 |W|²; one is picked",
    )
    heldout: float = Field(
        0.2, gt=0, le=0.5, description="share of each class of the train split on which l2 is picked"
    )


def linear_probe(train: ProbeFeatures, test: ProbeFeatures, config: LinearProbeConfig) -> ProbeResult:
    """Fit on `train`, classify `test`.

    Features are standardised by the train split's mean and deviation. l2 is the grid's value of least
    cross-entropy on a part of the train split that is held out, evenly over classes; the classifier is
    then fitted again to the whole of it. The test split decides nothing.

    Raises `UserError` where a class of the test split has no train image, or the train split is too small
    to hold a part out.
    """
    classes = _classes(train.labels, test.labels)
    inputs, labels = _inputs(train, config), train.labels
    heldout = _held_out(labels, config.heldout)

    best, best_l2, best_loss = None, 0.0, float("inf")
    start: LinearMap | None = None
    for l2 in sorted(config.l2_grid, reverse=True):  # each solution is a good start for the next, looser one
        start = fit_logistic(inputs[~heldout], labels[~heldout], classes, l2=l2, start=start)
        loss = _cross_entropy(start, inputs[heldout], labels[heldout]).mean().item()
        if loss < best_loss:
            best, best_l2, best_loss = start, l2, loss
    if len(config.l2_grid) > 1 and best_l2 in (min(config.l2_grid), max(config.l2_grid)):
        _LOG.warning(
            "The linear probe picked l2 = %g at the end of its grid: a wider one may do better.", best_l2
        )

    classifier = fit_logistic(inputs, labels, classes, l2=best_l2, start=best)
    test_inputs = _inputs(test, config)
    return ProbeResult.of_classes(
        probe=f"linear, {config.features.replace('cls', 'CLS').replace('_', ' ').replace('+', ' + ')}",
        correct=classifier(test_inputs).argmax(1) == test.labels,
        cross_entropy=_cross_entropy(classifier, test_inputs, test.labels),
        index=test.index,
        settings={"l2": best_l2},
    )


def _inputs(features: ProbeFeatures, config: LinearProbeConfig) -> Tensor:
    if config.features == "cls":
        return features.cls
    return torch.cat([features.cls, features.mean_patch], dim=1)


def _cross_entropy(classifier: LinearMap, inputs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of each row, fp64."""
    return F.cross_entropy(classifier(inputs).double(), labels, reduction="none")


def _classes(train: Tensor, test: Tensor) -> int:
    unseen = test[~torch.isin(test, train)]
    if len(unseen):
        raise UserError(
            f"Class {int(unseen[0])} has test images but no train image, so no probe can learn it: give the "
            "train split every class of the test split."
        )
    return int(train.max()) + 1


def _held_out(labels: Tensor, share: float) -> Tensor:
    """Bool [N]: the held-out part, `share` of each class at even spacing, the same at every call.

    A class keeps its first images in the fitted part, so that one too small to share is still learned.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for label in torch.unique(labels):
        of_class = order[labels[order] == label]
        number = torch.arange(1, len(of_class) + 1, dtype=torch.float64)
        held[of_class] = (number * share).floor() > ((number - 1) * share).floor()
    if not held.any():
        raise UserError(
            f"No class of the train split has the {1 / share:.0f} images that it takes to hold one out for "
            "picking l2: give the linear probe more labelled images."
        )
    return held
