"""Masks drawn from per-patch logits with exact counts: Gumbel top-k."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import INTEGER, expect, expect_counts, host_or
from .packing import empty_masks, expect_total, hide_highest, pack, without_tail
from .random import SAMPLE_MASKS_STREAM, reference_keyed_uniform, seed_words


class MaskSample(NamedTuple):
    """Masks of N views of T patches in packed form (as `PackedMasks`), and what they were cut from."""

    hidden: Tensor  # [N, T] bool: True where the patch is hidden
    indices: Tensor  # [total] int64: row * T + patch of each hidden patch, in row-major order
    inverse: Tensor  # [N, T] int64: a hidden patch's place in that list, -1 where the patch is shown
    weights: Tensor  # [total] fp32: 1 / how many its row hides
    perturbed: Tensor  # [N, T] fp32: logits + Gumbel noise, differentiable; the highest are hidden


def sample_masks(
    logits: Tensor,
    counts: Tensor,
    *,
    total: int,
    seed: int,
    step: int,
    sample: Tensor,
    padded: bool = False,
) -> MaskSample:
    """Hide exactly counts[n] of T patches, drawn without replacement by weights exp(logits).

    The k highest of logits + Gumbel noise are k successive draws without replacement, each patch in
    proportion to its weight among those left (Gumbel top-k: Kool et al. 2019, arXiv 1903.06059). Equal
    logits hide uniformly random patches. `plackett_luce_log_prob` gives the log-probability of the draws.

    Args:
        logits: fp32 [N, T], T at most 4,096.
        counts: int64 [N], 0..T; on the device of logits or on the CPU.
        total: the sum of counts, which the caller knows, so that nothing waits for the device.
        seed: the run's, 0 <= seed < 2**64.
        step: the run's, 0 <= step < 2**32.
        sample: int64 [N], the key of each row; on the device of logits or on the CPU. Rows of equal
            key get equal noise, so two views of one image need two keys, say image * views + view.
        padded: total may exceed the sum of counts, for counts that only the device knows. The list then ends
            in padding: index 0 and weight 0.

    Counts or keys on the CPU are copied to a CUDA device of logits, which a CUDA graph cannot capture unless
    they are pinned.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape or is out of its range (counts and
            total are looked at on the CPU alone).
    """
    name = "sample_masks"
    expect(name, "logits", logits, (torch.float32,), ("N", "T"))
    n, patches = logits.shape
    if patches > 4096:
        raise ValueError(f"{name}: logits must have at most 4096 patches in a row, got {patches}.")
    expect(name, "counts", counts, INTEGER, (n,), host_or(counts, logits.device))
    expect_counts(name, counts, patches)
    expect_total(name, counts, total, padded)
    expect(name, "sample", sample, INTEGER, (n,), host_or(sample, logits.device))
    low, high = seed_words(name, seed, step)
    sample = sample.to(logits.device, non_blocking=True)
    counts = counts.to(logits.device, non_blocking=True)
    perturbed, hidden, indices, inverse, weights = sample_masks_op(
        logits, counts, sample, total, low, high, step
    )
    if padded:
        indices, weights = without_tail(indices, weights, counts)
    return MaskSample(hidden, indices, inverse, weights, perturbed)


_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("vpt::sample_masks", mutates_args=())
def sample_masks_op(
    logits: Tensor, counts: Tensor, sample: Tensor, total: int, seed_low: int, seed_high: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw what `sample_masks` promises, the perturbed logits first; the seed is in two words."""
    uniform = reference_keyed_uniform(sample, seed_low, seed_high, step, SAMPLE_MASKS_STREAM, logits.shape[1])
    perturbed = logits.contiguous() - (-uniform.log()).log()
    return perturbed, *pack(hide_highest(perturbed, counts), counts, total)


@sample_masks_op.register_kernel("cuda")
def _(
    logits: Tensor, counts: Tensor, sample: Tensor, total: int, seed_low: int, seed_high: int, step: int
) -> _Outputs:
    from .triton import sample_masks as device

    return device.sample_masks(logits, counts, sample, total, seed_low, seed_high, step)


@sample_masks_op.register_fake
def _(
    logits: Tensor, counts: Tensor, sample: Tensor, total: int, seed_low: int, seed_high: int, step: int
) -> _Outputs:
    rows, patches = logits.shape
    return logits.new_empty(rows, patches), *empty_masks(logits, rows, patches, total)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Outputs) -> None:
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return gradients[0], None, None, None, None, None, None  # perturbed = logits + noise


sample_masks_op.register_autograd(_backward, setup_context=_setup_context)
