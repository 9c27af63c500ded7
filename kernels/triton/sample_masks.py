"""Gumbel top-k with exact counts, one program a row.

The row's scores stay in registers while the k-th highest is found in 32 counts. So a row of T patches reads
4T bytes of logits and writes 13T (mask, inverse, perturbed) and 12 for each hidden patch, each once. Philox
is computed where it is used. At 512 rows of 256 patches this is under 3 MB: what takes time is the latency
of 32 reductions inside a warp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packing import empty_masks
from ..random import SAMPLE_MASKS_STREAM
from .launch import block, on_device_of
from .packing import highest, ordered, store_packed, warps
from .random import row_uniform, signed


@triton.jit(do_not_specialize=["total", "first", "step", "seed_low", "seed_high"])
def sample_masks_kernel(
    logits_ptr,  # [N, T] fp32, strides (row_stride, column_stride)
    counts_ptr,  # [N] int64
    ends_ptr,  # [N] int64: cumulative sum of counts
    sample_ptr,  # [N] int64
    hidden_ptr,  # [N, T] bool
    index_ptr,  # [total] int64
    inverse_ptr,  # [N, T] int64
    weights_ptr,  # [total] fp32
    perturbed_ptr,  # [N, T] fp32
    T,
    row_stride,
    column_stride,
    total,
    first,  # int32: the bits of word 0 of the first counter
    step,  # int32: the bits
    seed_low,  # int32: the bits
    seed_high,  # int32: the bits
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.arange(0, BLOCK)
    inside = tokens < T
    count = tl.minimum(tl.maximum(tl.load(counts_ptr + row), 0), T).to(tl.int32)
    end = tl.load(ends_ptr + row)
    u = row_uniform(first, step, tl.load(sample_ptr + row), seed_low, seed_high, BLOCK)
    at = logits_ptr + row * row_stride + tokens.to(tl.int64) * column_stride
    perturbed = tl.load(at, mask=inside, other=0.0) - tl.log(-tl.log(u))
    tl.store(perturbed_ptr + row * T + tokens, perturbed, mask=inside)
    hidden = highest(ordered(perturbed), inside, count)
    store_packed(hidden, row, count, end, T, total, hidden_ptr, index_ptr, inverse_ptr, weights_ptr, BLOCK)


def sample_masks(
    logits: Tensor, counts: Tensor, sample: Tensor, total: int, seed_low: int, seed_high: int, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch `sample_masks_kernel`: perturbed, hidden, index, inverse and weights."""
    rows, tokens = logits.shape
    masks = empty_masks(logits, rows, tokens, total)
    perturbed = torch.empty((rows, tokens), dtype=torch.float32, device=logits.device)
    if perturbed.numel() == 0:
        return perturbed, *masks
    with on_device_of(logits):
        sample_masks_kernel[(rows,)](
            logits,
            counts.contiguous(),
            counts.cumsum(0),
            sample.contiguous(),
            *masks,
            perturbed,
            tokens,
            *logits.stride(),
            total,
            signed(SAMPLE_MASKS_STREAM << 16),
            signed(step),
            signed(seed_low),
            signed(seed_high),
            BLOCK=block(tokens, most=4096, least=4),
            num_warps=warps(tokens),
        )
    return perturbed, *masks
