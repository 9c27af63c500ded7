"""Philox4x32-10 on the device, bit-equal to the reference in kernels/random.py.

A draw reads 8 bytes a sample and writes 4 bytes a number. A program computes a tile of samples by blocks of
four numbers, so that a block leaves in one store of 16 bytes where rows are aligned to that.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.random import philox_impl

from .launch import block, cdiv, on_device_of

_TILE = 256  # Philox calls in a program: two for each thread of four warps


@triton.jit
def keyed_words(
    first,  # [*S] uint32: word 0 of the counter, block and stream
    step,  # int32: the bits of word 1
    sample,  # int64, broadcastable to [*S]: words 2 and 3
    seed_low,  # int32: the bits of the key's word 0
    seed_high,  # int32: of its word 1
):
    """Four uint32 [*S]."""
    zero = first ^ first  # spreads the scalars: all words must have one shape and type
    c1 = zero + step.to(tl.uint32, bitcast=True)
    c2 = zero + sample.to(tl.uint32)
    c3 = zero + (sample >> 32).to(tl.uint32)
    k0 = zero + seed_low.to(tl.uint32, bitcast=True)
    k1 = zero + seed_high.to(tl.uint32, bitcast=True)
    return philox_impl(first, c1, c2, c3, k0, k1)


@triton.jit
def open_unit(words):
    """Map uint32 to fp32 in (0, 1) by the upper 23 bits, as the reference does."""
    return ((words >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23


@triton.jit
def uniform_below(words, n):
    """Give floor(open_unit(words) * n), exactly as the reference's fp64 does: int32 for int32 n > 0."""
    n = (words ^ words) + n.to(tl.uint32)
    return tl.umulhi((words >> 9 << 9) + 256, n).to(tl.int32)  # open_unit is that much / 2**32


@triton.jit
def interleave(w0, w1, w2, w3):
    """Give [*S, 2, 2], in memory order the four words of each block one after another."""
    return tl.join(tl.join(w0, w2), tl.join(w1, w3))


@triton.jit
def row_uniform(first, step, sample, seed_low, seed_high, BLOCK: tl.constexpr):
    """BLOCK numbers of one sample, from the block and stream `first` (int32 bits) on: fp32 [BLOCK]."""
    blocks = first.to(tl.uint32, bitcast=True) + tl.arange(0, BLOCK // 4).to(tl.uint32)
    w0, w1, w2, w3 = keyed_words(blocks, step, sample, seed_low, seed_high)
    return open_unit(tl.reshape(interleave(w0, w1, w2, w3), [BLOCK]))


@triton.jit(do_not_specialize=["samples", "first", "step", "seed_low", "seed_high"])
def keyed_uniform_kernel(
    sample_ptr,  # [S] int64
    out_ptr,  # [S, count] fp32
    samples,  # S
    count,
    first,  # int32: the bits of word 0 of the counter of the first block
    step,  # int32: the bits
    seed_low,  # int32: the bits
    seed_high,  # int32: the bits
    SAMPLES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """SAMPLES samples by BLOCKS blocks of four numbers."""
    rows = tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES)  # [SAMPLES]
    there = rows < samples
    sample = tl.load(sample_ptr + rows, mask=there, other=0)
    start = tl.program_id(1) * BLOCKS
    blocks = first.to(tl.uint32, bitcast=True) + (start + tl.arange(0, BLOCKS)).to(tl.uint32)
    counter = tl.zeros([SAMPLES, BLOCKS], tl.uint32) + blocks[None, :]
    w0, w1, w2, w3 = keyed_words(counter, step, sample[:, None], seed_low, seed_high)
    words = tl.reshape(interleave(w0, w1, w2, w3), [SAMPLES, 4 * BLOCKS])
    columns = 4 * start + tl.arange(0, 4 * BLOCKS)
    mask = there[:, None] & (columns < count)[None, :]
    tl.store(out_ptr + rows[:, None] * count + columns[None, :], open_unit(words), mask=mask)


def signed(word: int) -> int:
    """Return the signed number of the same 32 bits, so that every word reaches a kernel as an int32."""
    return word - (word >> 31 << 32)


def keyed_uniform(
    sample: Tensor, seed_low: int, seed_high: int, step: int, stream: int, count: int, skip: int
) -> Tensor:
    """Launch `keyed_uniform_kernel`: fp32 [*S, count] for int64 `sample` [*S], copied if not contiguous."""
    out = torch.empty((*sample.shape, count), dtype=torch.float32, device=sample.device)
    if out.numel() == 0:
        return out
    blocks = cdiv(count, 4)
    wide = block(blocks, most=_TILE, least=1)
    tall = _TILE // wide
    grid = (cdiv(sample.numel(), tall), cdiv(blocks, wide))
    with on_device_of(sample):
        keyed_uniform_kernel[grid](
            sample.contiguous(),
            out,
            sample.numel(),
            count,
            signed(stream << 16 | skip // 4),
            signed(step),
            signed(seed_low),
            signed(seed_high),
            SAMPLES=tall,
            BLOCKS=wide,
            num_warps=4,
        )
    return out
