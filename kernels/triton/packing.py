"""What the mask kernels share: choosing exactly k of a row, and writing a row's packed form.

A row's tokens stay in one program, in registers, so the packed form costs one cumulative sum in the row.
Where the row's part of the list begins is the sum of the counts before it, which one small torch call gives.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered(scores):
    """Map fp32 to uint32 in the order of the numbers, NaN highest as torch sorts."""
    bits = scores.to(tl.uint32, bitcast=True)
    image = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(scores != scores, 0xFFFFFFFF, image)


@triton.jit
def highest(image, inside, count):
    """Choose the `count` highest of `image` where `inside`, of equal ones the first.

    image: uint32 [T]; inside: int1 [T]; count: int32, at most as many as are inside. Returns int1 [T].
    The lowest image chosen is found bit by bit from the top: the largest number that `count` images reach.
    """
    least = count.to(tl.uint32) ^ count.to(tl.uint32)
    bit = least + 0x80000000
    for _ in range(32):
        candidate = least | bit
        reach = tl.sum((inside & (image >= candidate)).to(tl.int32), 0)
        least = tl.where(reach >= count, candidate, least)
        bit = bit >> 1
    above = inside & (image > least)
    equal = inside & (image == least)
    needed = count - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= needed))


@triton.jit
def store_packed(
    hidden,  # [BLOCK] int1
    row,  # int64
    count,  # int32: how many are hidden
    end,  # int64: hidden tokens of this row and those before it
    T,
    total,
    hidden_ptr,  # [N, T] bool
    index_ptr,  # [total] int64
    inverse_ptr,  # [N, T] int64
    weights_ptr,  # [total] fp32
    BLOCK: tl.constexpr,
):
    """Write a row's mask and its part of the list."""
    tokens = tl.arange(0, BLOCK)
    inside = tokens < T
    flat = row * T + tokens
    place = end - count + tl.cumsum(hidden.to(tl.int32), 0) - 1
    tl.store(hidden_ptr + flat, hidden, mask=inside)
    tl.store(inverse_ptr + flat, tl.where(hidden, place, -1), mask=inside)
    listed = hidden & (place >= 0) & (place < total)  # a wrong total must not write elsewhere
    tl.store(index_ptr + place, flat, mask=listed)
    weight = tl.full([BLOCK], 1.0, tl.float32) / tl.maximum(count, 1).to(tl.float32)
    tl.store(weights_ptr + place, weight, mask=listed)


def warps(tokens: int) -> int:
    """Return the warps for a row: one while a reduction inside a warp beats one across warps."""
    return 1 if tokens <= 256 else 4 if tokens <= 2048 else 8
