"""Multinomial logistic regression fitted to convergence: the light head of feedback and of probes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_vision.errors import UserError
from vpt_vision.linear_fit import LinearMap, Standardised, minimise


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Raise `UserError` unless all int64 `labels` [N] lie in 0 .. `classes` - 1 (waits for the device)."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise UserError(
            f"label {int(outside[0])} in {where} is outside 0..{classes - 1}: correct the labels or the "
            "number of classes"
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `logits` [N, C] in nats, a scalar.

    `labels` are int64 [N], or floating [N, C]: how much of row n is of each class, such as a patch's pixels
    by class. A row then counts by its sum, and where all sums are 0 the mean is 0.
    """
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels)
    total = labels.sum()
    return -(labels * logits.log_softmax(-1)).sum() / total.clamp(min=1e-12)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    l2: float,
    start: LinearMap | None = None,
    tolerance: float = 1e-6,
    iterations: int = 1000,
    conditioned: bool = False,
) -> LinearMap:
    """Minimise  mean_i CE(softmax(W z_i + b), y_i) + l2/2 ‖W‖²  by L-BFGS in fp64.

    z are the features [N, D] standardised by their own mean and deviation; the bias is free. The
    problem is convex, so the start only matters for the time it takes. With three classes or more it is
    scikit-learn's `LogisticRegression(C=1 / (l2 * N))` on `StandardScaler` features. Iterates until the
    largest entry of the gradient is below `tolerance`; waits for the device.

    Args:
        features: [N, D], any floating dtype; no gradient is taken.
        labels: int64 [N], 0 .. `classes` - 1, or floating [N, C] as in `cross_entropy`.
        classes: number C of classes.
        l2: weight decay of the standardised problem, above 0 (separable classes have no optimum at 0).
        start: the fit to begin from, for example that of the same head some steps ago.
        tolerance: largest gradient entry at which the fit counts as converged.
        iterations: bound on L-BFGS iterations.
        conditioned: iterate in coordinates in which the problem is about round (`Conditioned`), of which the
            gradient's entries are then. Faster where many features are correlated; where a start is
            near, the eigenvectors that it takes cost more than they save.

    Returns:
        weight [C, D] and bias [C] in fp32, to be applied to features that are not standardised.

    Raises:
        UserError: a label is out of range, there are no examples, or a feature is not finite.
    """
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}: logistic regression needs l2 > 0 to have an optimum")
    standard = Standardised.of(features)
    if labels.is_floating_point():
        labels = labels.double()
    else:
        check_labels(labels, classes, "the examples of the classifier")
    if start is None:
        zeros = standard.features.new_zeros(classes, features.shape[1] + 1)
        first = LinearMap(zeros[:, 1:], zeros[:, 0])
    else:
        first = standard.unfold(start)

    space = Conditioned.of(standard, classes, l2) if conditioned else None
    inputs = standard.features if space is None else space.features
    decay = 1.0 if space is None else space.scale.square()

    def objective(head: LinearMap) -> Tensor:
        return cross_entropy(head(inputs), labels) + l2 / 2 * (head.weight.square() * decay).sum()

    if space is None:
        return standard.fold(minimise(objective, first, tolerance=tolerance, iterations=iterations))
    found = minimise(objective, space.unfold(first), tolerance=tolerance, iterations=iterations)
    return standard.fold(space.fold(found))


class Conditioned(NamedTuple):
    """Standardised features in coordinates in which logistic regression has a Hessian near the identity.

    Where C classes are about as likely, the Hessian is Σ / C + l2, Σ being the features' covariance. The
    coordinates are its eigenvectors, each divided by the root of its eigenvalue.
    """

    features: Tensor  # [N, D]
    scale: Tensor  # [D]: (λ / C + l2)^-1/2
    vectors: Tensor  # [D, D]: eigenvectors of Σ, one a column

    @classmethod
    def of(cls, standard: Standardised, classes: int, l2: float) -> Conditioned:
        """Turn and scale the features of `standard`."""
        rows = standard.features
        values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
        scale = (values.clamp_min(0) / classes + l2).rsqrt()
        return cls((rows @ vectors) * scale, scale, vectors)

    def unfold(self, head: LinearMap) -> LinearMap:
        """Return `head`, which reads standardised features, as one that reads these."""
        return LinearMap((head.weight @ self.vectors) / self.scale, head.bias)

    def fold(self, head: LinearMap) -> LinearMap:
        """Return `head`, which reads these, as one that reads standardised features."""
        return LinearMap((head.weight * self.scale) @ self.vectors.mT, head.bias)
