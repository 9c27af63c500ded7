"""Multinomial logistic regression fitted to convergence: the light head of feedback and of probes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_vision.errors import UserError


class Logistic(NamedTuple):
    """A fitted classifier on features as they come (standardisation is folded into its weights)."""

    weight: Tensor  # [C, D]
    bias: Tensor  # [C]

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [..., C] of features [..., D]."""
        return F.linear(features, self.weight, self.bias)


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Raise `UserError` unless all int64 `labels` [N] lie in 0 .. `classes` - 1 (waits for the device)."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise UserError(
            f"label {int(outside[0])} in {where} is outside 0..{classes - 1}: correct the labels or the "
            "number of classes"
        )


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    l2: float,
    start: Logistic | None = None,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> Logistic:
    """Minimise  mean_i CE(softmax(W z_i + b), y_i) + l2/2 ‖W‖²  by L-BFGS in fp64.

    z are the features [N, D] standardised by their own mean and deviation; the bias is free. The
    problem is convex, so the start only matters for the time it takes. With three classes or more it is
    scikit-learn's `LogisticRegression(C=1 / (l2 * N))` on `StandardScaler` features. Iterates until the
    largest entry of the gradient is below `tolerance`; waits for the device.

    Args:
        features: [N, D], any floating dtype; no gradient is taken.
        labels: int64 [N], 0 .. `classes` - 1.
        classes: number C of classes.
        l2: weight decay of the standardised problem, above 0 (separable classes have no optimum at 0).
        start: the fit to begin from, for example that of the same head some steps ago.
        tolerance: largest gradient entry at which the fit counts as converged.
        iterations: bound on L-BFGS iterations.

    Returns:
        weight [C, D] and bias [C] in fp32, to be applied to features that are not standardised.

    Raises:
        UserError: a label is out of range, there are no examples, or a feature is not finite.
    """
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}: logistic regression needs l2 > 0 to have an optimum")
    if not len(features):
        raise UserError("no examples to fit a classifier to: give at least one per class")
    check_labels(labels, classes, "the examples of the classifier")
    raw = features.detach().double()
    if not bool(raw.isfinite().all()):
        raise UserError(
            "the backbone's features are not finite: load other weights or lower the learning rate"
        )

    mean = raw.mean(0)
    deviation = raw.std(0, correction=0)
    # A constant feature carries nothing; dividing it by 1 leaves it at 0.
    deviation = torch.where(deviation > 1e-8 * (1 + mean.abs()), deviation, 1.0)
    standard = (raw - mean) / deviation

    weight = raw.new_zeros(classes, raw.shape[1])
    bias = raw.new_zeros(classes)
    if start is not None:
        weight = start.weight.detach().to(raw) * deviation
        bias = start.bias.detach().to(raw) + start.weight.detach().to(raw) @ mean

    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(standard, weight, bias), labels) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]

    folded = weight.detach() / deviation
    return Logistic(folded.float(), (bias.detach() - folded @ mean).float())
