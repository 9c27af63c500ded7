"""Few-shot probe: logistic regression on a handful of images of each class, over several draws of them."""

from __future__ import annotations

import logging
import warnings
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.evaluation.splits import count_classes
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)


class FewShotConfig(Config):
    """How many images of each class, and how often they are drawn."""

    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 5, 10), min_length=1, description="images of each class that a classifier is fitted on"
    )
    draws: int = Field(5, ge=1, description="draws of those images, each with a seed of its own")
    l2: float = Field(
        0.00025, gt=0, description="weight decay: the sum of cross-entropies + l2/2 |W|² is minimised"
    )


def few_shot(train: ProbeFeatures, test: ProbeFeatures, config: FewShotConfig) -> list[ProbeResult]:
    """Classify `test` from k images of each class of `train`, for every k in `config.shots`.

    As MSN's low-shot protocol (Assran et al. 2022, arXiv 2204.07141; its `logistic_eval.py`): CLS features
    less their own mean and brought to length 1, multinomial logistic regression without bias, a weight decay
    that nothing is picked for. An image's accuracy is its mean over the draws; `accuracy_deviation` in the
    details is the standard deviation of accuracy over draws.

    A k that some class has too few images for is left out, which the log says. Raises `UserError` where none
    is left, or a class of the test split has no train image.
    """
    classes = count_classes(train.labels, test.labels)
    present, sizes = torch.unique(train.labels, return_counts=True)
    smallest = int(sizes.min())
    usable = [shots for shots in config.shots if shots <= smallest]
    if not usable:
        raise UserError(
            f"class {int(present[sizes.argmin()])} has {smallest} train images, fewer than the "
            f"{min(config.shots)} that a few-shot probe takes of each: give it more, or lower "
            "evaluation.few_shot.shots."
        )
    for shots in set(config.shots) - set(usable):
        _LOG.warning("few-shot with k = %d is left out: a class has only %d images", shots, smallest)
    queries = _unit(test.cls)
    results = []
    for shots in usable:
        correct, losses = [], []
        for draw in range(config.draws):
            rows = draw_shots(train.labels, shots, draw)
            log_probability = _classify(train[rows], queries, config.l2, classes)
            correct.append(log_probability.argmax(1) == test.labels)
            losses.append(-log_probability.gather(1, test.labels[:, None])[:, 0])
        right = torch.stack(correct).double()
        deviation = right.mean(1).std(correction=1).item() if config.draws > 1 else None
        results.append(
            ProbeResult.of_classes(
                f"few-shot, k = {shots}",
                right.mean(0),
                torch.stack(losses).mean(0),
                test.index,
                details={"shots": shots, "draws": config.draws, "accuracy_deviation": deviation},
            )
        )
    return results


def draw_shots(labels: Tensor, shots: int, draw: int) -> Tensor:
    """Rows of `shots` images of each class of `labels` [N], int64; a function of its arguments alone."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))
    return torch.cat([order[labels[order] == label][:shots] for label in torch.unique(labels)])


def _classify(shots: ProbeFeatures, queries: Tensor, l2: float, classes: int) -> Tensor:
    """Log probabilities fp64 [Q, classes]; -inf for a class without shots."""
    regression = LogisticRegression(C=1 / l2, fit_intercept=False, tol=1e-6, max_iter=2000)
    known = torch.unique(shots.labels)
    log_probability = queries.new_full((len(queries), classes), -torch.inf)
    if len(known) == 1:
        log_probability[:, known] = 0.0
        return log_probability
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # with one shot of each, of course
        regression.fit(_unit(shots.cls).numpy(), shots.labels.numpy())
    log_probability[:, known] = torch.from_numpy(regression.predict_log_proba(queries.numpy()))
    return log_probability


def _unit(features: Tensor) -> Tensor:
    """Rows less their mean, of length 1, fp64."""
    rows = features.double()
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
