"""A downstream loss whose gradient sees that the heads will be fitted anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vpt_vision.linear_fit import LinearMap

TOLERANCE = 1e-6  # of conjugate gradients, relative to the right side
ITERATIONS = 500


def loss_through_fit(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    labels: Tensor,
    fold: Tensor,
    judged: Tensor,
    heads: LinearMap,
    l2: float,
) -> Tensor:
    """L(w(θ), θ) of the judged examples, its gradient that of w(θ) too: each head's fit is differentiated.

    A held head takes every drift of the features for a loss, also one that the next fit undoes. The head w_k
    that judges fold k minimises F_k, the same loss of all other folds and l2/2 of its squared weights, on
    features standardised over them; so by the implicit function theorem

        dL/dθ = ∂L/∂θ - Σ_k (∂L/∂w_k) (∂²F_k/∂w_k²)⁻¹ ∂²F_k/∂w_k ∂θ,

    with the inverse by conjugate gradients, in fp64. Where the others are a sample of what w_k learned from,
    so is F_k. (Bengio 2000, "Gradient-based optimization of hyperparameters", equation 9.)

    Args:
        loss_of: mean loss, a scalar, of answers [n, R, K] to examples with `labels`; that of the fit.
        rows: [n, R, D], what the heads read of n examples, with its graph.
        labels: [n, ...] of these examples.
        fold: int64 [n], which head judges an example and has not learned from it.
        judged: bool [n], those whose loss it is; the others are learned from alone.
        heads: as last fitted, [heads, K, D], head k that of fold k.
        l2: weight decay of the fit.

    Returns:
        The loss as held heads have it, a scalar of fp32.
    """
    inputs = rows.double()
    folds = sorted(set(fold[judged].tolist()))
    standard: dict[int, tuple[Tensor, Tensor]] = {}
    fitted: dict[int, Tensor] = {}
    for number in folds:
        learned = inputs[fold != number].flatten(0, 1)
        mean, deviation = learned.mean(0), learned.std(0, correction=0)
        constant = deviation <= 1e-8 * (1 + mean.abs())
        standard[number] = (mean, torch.where(constant, 1.0, deviation))
        weight, bias = (part[number].double() for part in heads)
        at = [part.detach() for part in standard[number]]
        folded = torch.cat([weight * at[1], (bias + weight @ at[0])[:, None]], dim=1)
        fitted[number] = folded.detach().requires_grad_()

    def answers(members: Tensor, number: int, *, held: bool = False) -> Tensor:
        mean, deviation = standard[number]
        z = (inputs[members] - mean) / deviation
        return _with_bias(z.detach() if held else z) @ fitted[number].mT

    with torch.enable_grad():
        order = torch.cat([(judged & (fold == number)).nonzero()[:, 0] for number in folds])
        told = torch.cat([answers(judged & (fold == number), number) for number in folds])
        loss = loss_of(told, labels[order])
        outer = torch.autograd.grad(loss, list(fitted.values()), retain_graph=True)
        drift = torch.zeros_like(loss)
        for (number, head), right in zip(fitted.items(), outer, strict=True):
            others = fold != number
            penalty = l2 / 2 * head[:, :-1].square().sum()
            held = loss_of(answers(others, number, held=True), labels[others]) + penalty
            (slope,) = torch.autograd.grad(held, head, create_graph=True)
            along = _solve(partial(_hessian_product, slope, head), right)
            inner = loss_of(answers(others, number), labels[others]) + penalty
            (slope,) = torch.autograd.grad(inner, head, create_graph=True)
            drift = drift - (slope * along).sum()
    return (loss + drift - drift.detach()).float()


def _hessian_product(slope: Tensor, head: Tensor, vector: Tensor) -> Tensor:
    return torch.autograd.grad(slope, head, vector, retain_graph=True)[0]


def _with_bias(z: Tensor) -> Tensor:
    return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)


def _solve(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve H x = `right` by conjugate gradients; H, positive definite, is given by its `product` with x."""
    found = torch.zeros_like(right)
    residual = right.clone()
    along, square = residual.clone(), residual.square().sum()
    enough = TOLERANCE**2 * square
    for _ in range(ITERATIONS):
        if square <= enough:
            break
        bent = product(along)
        step = square / (along * bent).sum()
        found, residual = found + step * along, residual - step * bent
        before, square = square, residual.square().sum()
        along = residual + square / before * along
    return found
