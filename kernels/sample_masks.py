"""Masks drawn from per-patch logits with exact counts: Gumbel top-k."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import INTEGER, expect, expect_counts
from .random import SAMPLE_MASKS_STREAM, keyed_uniform


class MaskSample(NamedTuple):
    """Masks of N views of T patches, and what they were cut from."""

    hidden: Tensor  # [N, T] bool: True where the patch is hidden
    perturbed: Tensor  # [N, T] fp32: logits + Gumbel noise, differentiable; the highest are hidden


def sample_masks(logits: Tensor, counts: Tensor, *, seed: int, step: int, sample: Tensor) -> MaskSample:
    """Hide exactly counts[n] of T patches, drawn without replacement by weights exp(logits).

    The k highest of logits + Gumbel noise are k successive draws without replacement, each patch in
    proportion to its weight among those left (Gumbel top-k: Kool et al. 2019, arXiv 1903.06059). Equal
    logits hide uniformly random patches.

    Args:
        logits: fp32 [N, T].
        counts: int64 [N], 0..T; on the device of logits or on the CPU.
        seed: the run's.
        step: the run's.
        sample: int64 [N], the key of each row; on the device of logits or on the CPU. Rows of equal
            key get equal noise, so two views of one image need two keys, say image * views + view.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape or is out of its range (counts
            are looked at on the CPU alone).
    """
    expect("sample_masks", "logits", logits, (torch.float32,), ("N", "T"))
    n, patches = logits.shape
    expect("sample_masks", "counts", counts, INTEGER, (n,))
    expect_counts("sample_masks", counts, patches)
    expect("sample_masks", "sample", sample, INTEGER, (n,))
    sample = sample.to(logits.device, non_blocking=True)
    counts = counts.to(logits.device, non_blocking=True)
    uniform = keyed_uniform(seed, step, sample, SAMPLE_MASKS_STREAM, patches)
    perturbed = logits - (-uniform.log()).log()
    return MaskSample(hide_highest(perturbed.detach(), counts), perturbed)


def hide_highest(scores: Tensor, counts: Tensor) -> Tensor:
    """Hide the counts[n] highest of scores [N, T], so many even where scores are equal: bool [N, T]."""
    places = scores.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter(1, places, chosen)
