"""The designer's gradient from values of nearby policies, for whatever has no derivative of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vpt_kernels import keyed_uniform
from vpt_vision.designers import Designer, Policy, Surface
from vpt_vision.errors import UserError
from vpt_vision.task import Keys
from vpt_vision.value.estimator import Occasion

PERTURBATION_STREAM = 910  # of `keyed_uniform`


def population(occasion: Occasion, surfaces: frozenset[Surface], *, pairs: int, sigma: float) -> Tensor:
    """Search as `antithetic` does, by the value of one task of each candidate.

    Every candidate sets its task for the same images and keys (common random numbers) and is a batch of its
    own, so that centring and Sinkhorn compare like with like: values of samples in a batch of mixed
    policies have the wrong sign, for their targets depend on one another.

    Args:
        occasion: see there.
        surfaces: those that are searched, together.
        pairs: P, at least 1.
        sigma: σ, the root mean square of a perturbation.
    """

    def judge(policy: Policy) -> Tensor:
        return occasion.judge(policy.sample(occasion.keys))

    return antithetic(occasion, surfaces, judge, pairs=pairs, sigma=sigma)


def antithetic(
    occasion: Occasion,
    surfaces: frozenset[Surface],
    judge: Callable[[Policy], Tensor],
    *,
    pairs: int,
    sigma: float,
) -> Tensor:
    """Search along a few directions of the outputs o by antithetic pairs of policies.

        ∇_o J ≈ 1/P Σ_p [J(o + σ d_p) - J(o - σ d_p)] / 2σ · d_p / m

    (Salimans et al. 2017, arXiv 1703.03864, section 2, in the space of outputs in place of φ.) A
    direction d_p of a head's outputs [B, C] is (ε + ε' s(x)) / √2: ε and ε' standard normal numbers [C],
    the same for all images, and s a random projection of the head's features, standardised over the batch. So
    a pair asks what a shift of all images' policies does, and one of those images that look alike. For a
    field [B, C, R, C'] only s counts, standardised over images and places: a shift of all places at once
    leaves the policy as it is. A head that reads nothing has ε alone. m makes the mean over pairs the
    projection of ∇_o J on the functions 1 and s, each with as many free numbers as the head has outputs: tens
    in place of the thousands of weights that lead to them.

    Args:
        occasion: see there.
        surfaces: those that are searched, together.
        judge: from a policy to its J, a scalar; random numbers are to be common to all candidates.
        pairs: P, at least 1.
        sigma: σ, the root mean square of a perturbation.

    Raises:
        UserError: the designer does not say which surface an output shapes, or none shapes one of `surfaces`.
    """
    designer = occasion.designer
    centre = {name: output.detach() for name, output in occasion.outputs.items()}
    searched = _searched(designer, list(centre), surfaces)
    total = {name: torch.zeros_like(centre[name]) for name in searched}
    with torch.no_grad():
        for pair in range(pairs):
            directions = {
                name: _direction(occasion.features[name], centre[name], occasion.keys, pair * len(centre) + n)
                for n, name in enumerate(centre)
                if name in searched
            }

            def score(sign: int, directions: dict[str, Tensor] = directions) -> Tensor:
                moved = {name: centre[name] + sign * sigma * directions[name] for name in directions}
                return judge(designer.policy_of(occasion.images, centre | moved))

            slope = (score(+1) - score(-1)) / (2 * sigma)
            for name, direction in directions.items():
                functions = 2 if direction.ndim == 2 and occasion.features[name].shape[1] else 1
                rows = direction.numel() / direction.shape[1]
                total[name] += slope * direction * (functions / rows / pairs)
    return torch.stack([(total[name] * occasion.outputs[name]).sum() for name in searched]).sum()


def _searched(designer: Designer, outputs: list[str], surfaces: frozenset[Surface]) -> list[str]:
    """Those of a designer's outputs that shape `surfaces`."""
    whose = f"the outputs of {type(designer).__name__}"
    unnamed = [name for name in outputs if name not in designer.surface_of]
    if unnamed:
        raise UserError(
            f"{whose} are searched by moving them, and its surface_of does not say which surface "
            f"'{unnamed[0]}' shapes: name it there."
        )
    searched = [name for name in outputs if designer.surface_of[name] in surfaces]
    if not searched:
        raise UserError(
            f"{whose} are searched by moving them, and none shapes {' or '.join(sorted(surfaces))}: let "
            "`outputs` return one that does, or choose another estimator in value.estimators."
        )
    return searched


def _direction(features: Tensor, output: Tensor, keys: Keys, number: int) -> Tensor:
    """Draw direction `number` of a head: `output`'s shape, root mean square about 1."""
    reads, says = features.shape[1], output.shape[1]
    sample = torch.full((), number, device=output.device)
    uniform = keyed_uniform(keys.seed, keys.step, sample, PERTURBATION_STREAM, reads + 2 * says)
    onto, common, own = torch.special.ndtri(uniform).split([reads, says, says])
    places = (1,) * (output.ndim - 2)
    projected = torch.einsum("bd...,d->b...", features.detach(), onto)
    projected = projected - projected.mean()
    deviation = projected.square().mean().sqrt().clamp(min=1e-12)  # 0 where all features are the same
    by_content = (projected / deviation)[:, None] * own.view(-1, *places)
    if output.ndim > 2:
        return by_content
    if not reads:
        return common.expand_as(output)
    return (by_content + common) / math.sqrt(2)
