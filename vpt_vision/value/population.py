"""The designer's gradient from values of nearby designers, for whatever has no derivative of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from vpt_kernels import keyed_uniform
from vpt_vision.designers import Designer
from vpt_vision.task import Keys, Task

PERTURBATION_STREAM = 910  # of `keyed_uniform`


@torch.no_grad()
def population_gradient(
    designer: Designer,
    images: Tensor,
    keys: Keys,
    objective: Callable[[Task], Tensor],
    *,
    pairs: int,
    sigma: float,
) -> dict[str, Tensor]:
    """Gradient of the smoothed objective E_ε J(φ + σε) by antithetic pairs.

        ∇φ ≈ 1/P Σ_p [J(φ + σ ε_p) - J(φ - σ ε_p)] / 2σ · ε_p,   ε_p ~ N(0, 1)

    (Salimans et al. 2017, arXiv 1703.03864, section 2). φ are `designer.search_parameters()`. Every candidate
    sets its task for the same images and keys (common random numbers), and `objective` scores it as a
    batch of its own, so that centring and Sinkhorn compare like with like: values of samples in a batch
    of mixed policies have the wrong sign, for their targets depend on one another.

    Args:
        designer: not changed.
        images: uint8 [B, 3, H, W].
        keys: of the tasks and of the perturbations.
        objective: from a task for `images` to the scalar that is to rise.
        pairs: P, at least 1.
        sigma: deviation σ of the perturbations.

    Returns:
        A tensor for each of `designer.search_parameters()`, by name.
    """
    centre = {name: parameter.detach() for name, parameter in designer.search_parameters().items()}
    if not centre:
        return {}
    total = {name: torch.zeros_like(value) for name, value in centre.items()}
    for pair in range(pairs):
        direction = _direction(centre, keys, pair)

        def score(sign: int, direction: dict[str, Tensor] = direction) -> Tensor:
            candidate = {name: centre[name] + sign * sigma * direction[name] for name in centre}
            return objective(functional_call(designer, candidate, (images, keys)))

        slope = (score(+1) - score(-1)) / (2 * sigma)
        for name in total:
            total[name] += slope * direction[name] / pairs
    return total


def _direction(like: dict[str, Tensor], keys: Keys, pair: int) -> dict[str, Tensor]:
    """Draw standard normal numbers in the shapes of `like`, a function of seed, step and pair."""
    direction = {}
    for number, (name, value) in enumerate(like.items()):
        sample = torch.full((), pair * len(like) + number, device=value.device)
        uniform = keyed_uniform(keys.seed, keys.step, sample, PERTURBATION_STREAM, value.numel())
        direction[name] = torch.special.ndtri(uniform).view_as(value)
    return direction
