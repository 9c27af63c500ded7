"""Logistic-regression probe: the best linear classifier of frozen features, fitted to convergence."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.evaluation.splits import count_classes, validation_part
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import fit_logistic
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)


class LogisticProbeConfig(Config):
    """What the logistic regression reads, and the weight decays it may choose from."""

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


def logistic_probe(
    train: ProbeFeatures,
    test: ProbeFeatures,
    config: LogisticProbeConfig,
    *,
    device: torch.device | None = None,
) -> ProbeResult:
    """Fit on `train`, classify `test`.

    Features are standardised by the train split's mean and deviation. l2 is the grid's value of least
    cross-entropy on a part of the train split that is held out, evenly over classes; the classifier is
    then fitted again to the whole of it. The test split decides nothing. The fit is in fp64 on `device` (the
    CPU where it is None).

    Raises `UserError` where a class of the test split has no train image, or the train split is too small
    to hold a part out.
    """
    classes = count_classes(train.labels, test.labels)
    inputs, labels = _inputs(train, config).to(device), train.labels.to(device)
    heldout = validation_part(train.labels, config.heldout).to(device)

    best, best_l2, best_loss, accuracy = None, 0.0, float("inf"), 0.0
    start: LinearMap | None = None
    for l2 in sorted(config.l2_grid, reverse=True):  # each solution is a good start for the next, looser one
        start = fit_logistic(
            inputs[~heldout], labels[~heldout], classes, l2=l2, start=start, conditioned=True
        )
        loss = _cross_entropy(start, inputs[heldout], labels[heldout]).mean().item()
        if loss < best_loss:
            best, best_l2, best_loss = start, l2, loss
            accuracy = (start(inputs[heldout]).argmax(1) == labels[heldout]).double().mean().item()
    if len(config.l2_grid) > 1 and best_l2 in (min(config.l2_grid), max(config.l2_grid)):
        _LOG.warning(
            "The logistic regression picked l2 = %g at the end of its grid: a wider one may do better.",
            best_l2,
        )

    classifier = fit_logistic(inputs, labels, classes, l2=best_l2, start=best, conditioned=True)
    test_inputs, test_labels = _inputs(test, config).to(device), test.labels.to(device)
    return ProbeResult.of_classes(
        f"logistic regression, {_NAMES[config.features]}",
        (classifier(test_inputs).argmax(1) == test_labels).cpu(),
        _cross_entropy(classifier, test_inputs, test_labels).cpu(),
        test.index,
        {"l2": best_l2},
        {"validation_accuracy": accuracy, "validation_cross_entropy": best_loss},
    )


_NAMES = {"cls": "CLS", "cls+mean_patch": "CLS + mean patch"}


def _inputs(features: ProbeFeatures, config: LogisticProbeConfig) -> Tensor:
    if config.features == "cls":
        return features.cls
    return torch.cat([features.cls, features.mean_patch.float()], dim=1)


def _cross_entropy(classifier: LinearMap, inputs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of each row, fp64."""
    return F.cross_entropy(classifier(inputs).double(), labels, reduction="none")
