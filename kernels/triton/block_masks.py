"""Block-wise random masks, one program a row.

A row's law is a chain: each rectangle depends on the cells covered before. So the covered grid stays in
registers, and an attempt is one Philox call and one count over the grid. A row ends as soon as its law does,
after 8 attempts in the median at 16 x 16 and about 30 at the most. Only the packed masks are written, 9 bytes
a patch and 12 for each hidden one. With one warp a row no step of the chain waits for another warp.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ..block_masks import ATTEMPTS, MOST_BLOCKS
from ..packing import empty_masks
from ..random import BLOCK_MASKS_STREAM
from .launch import block, on_device_of
from .packing import store_packed, warps
from .random import keyed_words, open_unit, signed, uniform_below


@triton.jit
def nearest(x):
    """Round fp32 x in 0..2**22 to the nearest integer, halves up: int32."""
    return (x + 0.5).to(tl.int32)


@triton.jit(do_not_specialize=["total", "first", "step", "seed_low", "seed_high"])
def block_masks_kernel(
    counts_ptr,  # [N] int64
    ends_ptr,  # [N] int64: cumulative sum of counts
    sample_ptr,  # [N] int64
    hidden_ptr,  # [N, T] bool
    index_ptr,  # [total] int64
    inverse_ptr,  # [N, T] int64
    weights_ptr,  # [total] fp32
    height,
    width,
    total,
    first,  # int32: the bits of word 0 of the first counter
    step,  # int32: the bits
    seed_low,  # int32: the bits
    seed_high,  # int32: the bits
    least_area,  # fp32
    log_aspect,  # fp32: log(min_aspect)
    ATTEMPTS: tl.constexpr,
    MOST_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    T = height * width
    tokens = tl.arange(0, BLOCK)
    inside = tokens < T
    y = tokens // width
    x = tokens - y * width
    count = tl.minimum(tl.maximum(tl.load(counts_ptr + row), 0), T).to(tl.int32)
    end = tl.load(ends_ptr + row)
    sample = tl.load(sample_ptr + row)

    free = inside.to(tl.int32)  # 1 where a patch can still be hidden
    remaining = count
    failures = count * 0
    blocks = count * 0
    counter = first.to(tl.uint32, bitcast=True)
    while (remaining > 0) & (failures < ATTEMPTS) & (blocks < MOST_BLOCKS):
        w0, w1, w2, _ = keyed_words(counter, step, sample, seed_low, seed_high)
        counter += 1
        side = tl.sqrt_rn(least_area + open_unit(w0) * (remaining.to(tl.float32) - least_area))
        root = tl.exp((0.5 - open_unit(w1)) * log_aspect)
        tall = nearest(side * root)
        wide = nearest(side / root)
        columns = tl.maximum(width - wide + 1, 1)
        place = uniform_below(w2, tl.maximum(height - tall + 1, 1) * columns)
        top = place // columns
        left = place - top * columns
        rectangle = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        new = tl.sum(tl.where(rectangle, free, 0), 0)
        good = (tall < height) & (wide < width) & (new > 0) & (new <= remaining)
        free = tl.where(rectangle & good, 0, free)
        remaining = tl.where(good, remaining - new, remaining)
        blocks = tl.where(good, blocks + 1, blocks)
        failures = tl.where(good, 0, failures + 1)

    while remaining > 0:  # the law has given up: patches one by one, each uniform among the free ones
        w0, _, _, _ = keyed_words(counter, step, sample, seed_low, seed_high)
        counter += 1
        number = tl.cumsum(free, 0) - 1  # [BLOCK], among the free ones
        chosen = uniform_below(w0, tl.sum(free, 0))
        free = tl.where(number == chosen, 0, free)
        remaining -= 1

    hidden = inside & (free == 0)
    store_packed(hidden, row, count, end, T, total, hidden_ptr, index_ptr, inverse_ptr, weights_ptr, BLOCK)


def block_masks(
    counts: Tensor,
    sample: Tensor,
    height: int,
    width: int,
    total: int,
    seed_low: int,
    seed_high: int,
    step: int,
    min_patches: int,
    min_aspect: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch `block_masks_kernel`: hidden, index, inverse and weights."""
    rows, tokens = len(counts), height * width
    masks = empty_masks(counts, rows, tokens, total)
    if rows == 0:
        return masks
    with on_device_of(counts):
        block_masks_kernel[(rows,)](
            counts.contiguous(),
            counts.cumsum(0),
            sample.contiguous(),
            *masks,
            height,
            width,
            total,
            signed(BLOCK_MASKS_STREAM << 16),
            signed(step),
            signed(seed_low),
            signed(seed_high),
            float(min_patches),
            math.log(min_aspect),
            ATTEMPTS=ATTEMPTS,
            MOST_BLOCKS=MOST_BLOCKS,
            BLOCK=block(tokens, most=4096, least=4),
            num_warps=warps(tokens),
        )
    return masks
