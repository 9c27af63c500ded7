"""The log-probability of the order in which `sample_masks` drew its patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .checks import FLOATS, INTEGER, expect, expect_counts, host_or


def plackett_luce_log_prob(logits: Tensor, perturbed: Tensor, counts: Tensor) -> Tensor:
    """Log-probability of drawing the counts[n] hidden patches in the order of their perturbed scores.

    Successive draws without replacement follow the Plackett-Luce law (Plackett 1975, "The analysis of
    permutations"): each draw takes a patch in proportion to exp(logit) among those left, so

        log p = Σ_i over draws [ logits_i - log Σ_j not drawn before i exp(logits_j) ].

    The gradient goes to logits alone: the score function of the sampled order. Of equal scores the first
    counts as drawn first, as in `sample_masks`.

    Args:
        logits: fp32 or fp64 [N, T], finite, or -inf for a patch that is never drawn.
        perturbed: fp32 or fp64 [N, T], without NaN: the scores that ordered the draws.
        counts: int64 [N], 0..T; on the device of logits or on the CPU.

    Returns:
        [N] in the dtype of logits; 0 where counts is 0.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device or is out of its range
            (counts are looked at on the CPU alone).
    """
    name = "plackett_luce_log_prob"
    expect(name, "logits", logits, FLOATS, ("N", "T"))
    expect(name, "perturbed", perturbed, FLOATS, tuple(logits.shape), logits.device)
    expect(name, "counts", counts, INTEGER, (len(logits),), host_or(counts, logits.device))
    expect_counts(name, counts, logits.shape[1])
    counts = counts.to(logits.device, non_blocking=True)
    log_prob, _ = plackett_luce(logits, perturbed.detach(), counts)
    return log_prob


@torch.library.custom_op("vpt::plackett_luce", mutates_args=())
def plackett_luce(logits: Tensor, perturbed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Give the log-probability [N] and each draw's surprisal [N, T], +inf where a patch is not drawn.

    The surprisal of a draw is -log of its probability, log Σ_j exp(logits_j - logits_i) over what is left. It
    is small where logits are large, so fp32 holds it exactly enough where the log-sum-exp would lose digits.
    """
    order = perturbed.argsort(dim=1, descending=True, stable=True)
    ranked = logits.double().gather(1, order)
    surprisal = ranked.flip(1).logcumsumexp(1).flip(1) - ranked
    drawn = torch.arange(logits.shape[1], device=logits.device) < counts[:, None]
    log_prob = -surprisal.masked_fill(~drawn, 0).sum(1)
    surprisal = torch.empty_like(surprisal).scatter(1, order, surprisal.masked_fill(~drawn, torch.inf))
    return log_prob.to(logits.dtype), surprisal.to(logits.dtype)


@plackett_luce.register_kernel("cuda")
def _(logits: Tensor, perturbed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    from .triton import plackett_luce as device

    return device.plackett_luce(logits, perturbed, counts)


@plackett_luce.register_fake
def _(logits: Tensor, perturbed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(len(logits)), logits.new_empty(logits.shape)


@torch.library.custom_op("vpt::plackett_luce_backward", mutates_args=())
def plackett_luce_backward(gradient: Tensor, logits: Tensor, perturbed: Tensor, surprisal: Tensor) -> Tensor:
    """Give the gradient [N, T] of `gradient` [N] times the log-probabilities, from the surprisals [N, T].

    Of patch j it is [j was drawn] - Σ_i exp(logits_j - logits_i - surprisal_i) over the draws i not after
    j. That exponent is never positive: it is the log-probability of j where i was drawn.
    """
    order = perturbed.argsort(dim=1, descending=True, stable=True)
    drawn = surprisal < torch.inf
    wide = logits.double()
    mass = (wide + surprisal).gather(1, order)  # log Σ exp(logits) over what was left
    # exp(logits_j) Σ_i exp(-mass_i), in logs lest it overflow
    ranked = wide.gather(1, order)
    spent = (ranked + (-mass).logcumsumexp(1)).exp().masked_fill(ranked == -torch.inf, 0)
    spent = torch.empty_like(spent).scatter(1, order, spent)
    return (gradient[:, None] * (drawn.double() - spent)).to(logits.dtype)


@plackett_luce_backward.register_kernel("cuda")
def _(gradient: Tensor, logits: Tensor, perturbed: Tensor, surprisal: Tensor) -> Tensor:
    from .triton import plackett_luce as device

    return device.plackett_luce_backward(gradient, logits, perturbed, surprisal)


@plackett_luce_backward.register_fake
def _(gradient: Tensor, logits: Tensor, perturbed: Tensor, surprisal: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, perturbed, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, perturbed, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return plackett_luce_backward(gradient, *ctx.saved_tensors), None, None


plackett_luce.register_autograd(_backward, setup_context=_setup_context)
