"""Depth-like regression with a linear head, fitted to its optimum: each loss beside its fit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_vision.linear_fit import LinearMap, Standardised, minimise


def scale_invariant_error(answers: Tensor, targets: Tensor, weights: Tensor, *, share: float) -> Tensor:
    """Mean over images of  mean(g²) - λ mean(g)²,  g = `answers` - `targets` of log depth [N, T]; a scalar.

    Eigen et al. 2014 (arXiv 1406.2283, equation 4) with λ = `share`; means over an image's patches go by
    `weights` [N, T], and an image without weight does not count.
    """
    mass = weights.sum(1)
    shares = weights / mass.clamp(min=1e-12)[:, None]
    residuals = answers - targets
    errors = (shares * residuals.square()).sum(1) - share * (shares * residuals).sum(1).square()
    alive = (mass > 0).to(errors.dtype)
    return (alive * errors).sum() / alive.sum().clamp(min=1)


def fit_scale_invariant(
    features: Tensor, targets: Tensor, weights: Tensor, *, share: float, l2: float
) -> LinearMap:
    """Minimise  `scale_invariant_error` + l2/2 ‖W‖²  of W z + b in closed form, in fp64.

    z are the features standardised by their own mean and deviation; the bias is free. The loss is a sum of
    squares: those of the residuals' deviations from their image's mean, and 1 - `share` of that mean's.
    Waits for the device.

    Args:
        features: [N, T, D], any floating dtype; no gradient is taken.
        targets: [N, T], log depth.
        weights: [N, T], 0 or above, not all 0.
        share: λ, below 1.
        l2: weight decay of the standardised problem, above 0.

    Returns:
        weight [1, D] and bias [1] in fp32, to be applied to features that are not standardised.

    Raises:
        UserError: there are no rows, or a feature is not finite.
    """
    _expect_decay(l2)
    standard = Standardised.of(features.flatten(0, 1))
    z = standard.features.view(features.shape)
    rows = torch.cat([z, torch.ones_like(z[..., :1]), targets.double()[..., None]], dim=-1)  # inputs, bias, y
    mass = weights.double().sum(1, keepdim=True)
    shares = weights.double() / mass.clamp(min=1e-300)  # of an image's patches, summing to 1 or 0
    means = torch.einsum("nt,ntk->nk", shares, rows)
    centred = (rows - means[:, None]) * shares.sqrt()[..., None]
    moments = torch.einsum("ntk,ntl->kl", centred, centred) + (1 - share) * means.T @ means
    moments = moments / (mass > 0).sum()
    # The bias is free: only a share of 1 would leave it open.
    penalty = F.pad(moments.new_full((z.shape[-1],), l2 / 2), (0, 1)).diag()
    solution = torch.linalg.solve(moments[:-1, :-1] + penalty, moments[:-1, -1])
    return standard.fold(LinearMap(solution[None, :-1], solution[-1:]))


def smooth_l1(answers: Tensor, targets: Tensor, weights: Tensor, *, beta: float) -> Tensor:
    """Weighted mean of smooth absolute errors (Girshick 2015, arXiv 1504.08083, equation 3), a scalar.

    All tensors have one shape; the error is a parabola below `beta`. 0 where all weights are.
    """
    errors = F.smooth_l1_loss(answers, targets, beta=beta, reduction="none")
    return (weights * errors).sum() / weights.sum().clamp(min=1e-12)


def fit_smooth_l1(
    features: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    beta: float,
    l2: float,
    start: LinearMap | None = None,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> LinearMap:
    """Minimise  `smooth_l1` + l2/2 ‖W‖²  of W z + b by L-BFGS in fp64, with the bias free.

    As `fit_scale_invariant` where not said otherwise; `start`, `tolerance` and `iterations` as in
    `fit_logistic`.
    """
    _expect_decay(l2)
    standard = Standardised.of(features.flatten(0, 1))
    rows, goals, counts = standard.features, targets.double().flatten(), weights.double().flatten()
    if start is None:
        centre = (counts * goals).sum() / counts.sum()
        first = LinearMap(rows.new_zeros(1, rows.shape[1]), centre[None])
    else:
        first = standard.unfold(start)

    def objective(head: LinearMap) -> Tensor:
        loss = smooth_l1(head(rows)[:, 0], goals, counts, beta=beta)
        return loss + l2 / 2 * head.weight.square().sum()

    return standard.fold(minimise(objective, first, tolerance=tolerance, iterations=iterations))


def _expect_decay(l2: float) -> None:
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}: the regression needs l2 > 0 to have one optimum")
