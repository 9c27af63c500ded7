"""Block-wise random masks with exact counts: the fixed recipe's."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .checks import INTEGER, expect, expect_counts
from .packing import PackedMasks, empty_masks, expect_total, pack, without_tail
from .random import BLOCK_MASKS_STREAM, reference_keyed_uniform, seed_words

# Where each octet has zeros: eight bools, held as one int64 so that a look-up copies one element.
_ZEROS = torch.tensor([[not octet >> bit & 1 for bit in range(8)] for octet in range(256)]).view(torch.int64)
ATTEMPTS = 10  # at each block, as in BEiT
MOST_BLOCKS = 32  # of 3000 masks that hide half of a 16 x 16 grid, none asked for more than 15


def block_masks(
    counts: Tensor,
    grid: tuple[int, int],
    *,
    total: int,
    seed: int,
    step: int,
    sample: Tensor,
    padded: bool = False,
    min_patches: int = 4,
    min_aspect: float = 0.3,
) -> PackedMasks:
    """Hide exactly counts[n] patches of a grid in random rectangles.

    The law of BEiT (Bao et al. 2021, arXiv 2106.08254, algorithm 1) as iBOT and DINOv2 apply it, for
    each row on its own. While patches remain to be hidden, draw a rectangle: area uniform between
    `min_patches` and the number that remains, log-aspect uniform in ±log(min_aspect), sides rounded,
    position uniform. Take it if it is smaller than the grid along both sides and hides something new, but
    no more than remains; otherwise draw again, up to 10 times, and then give up. What remains then is
    hidden at uniformly random patches, as in DINOv3. A row has at most 32 rectangles.

    Args:
        counts: int64 [N], 0..h*w: patches to hide.
        grid: (h, w), 1..4,096 patches.
        total: the sum of counts, which the caller knows, so that nothing waits for the device.
        seed: the run's, 0 <= seed < 2**64.
        step: the run's, 0 <= step < 2**32.
        sample: int64 [N], the key of each row; on the device of counts or on the CPU. Rows of equal
            key get equal draws, so two views of one image need two keys, say image * views + view. Keys
            on the CPU are copied to a CUDA device, which a CUDA graph cannot capture unless they are pinned.
        padded: total may exceed the sum of counts, for counts that only the device knows. The list then ends
            in padding: index 0 and weight 0.
        min_patches: smallest area, at least 1.
        min_aspect: least height / width, in (0, 1]; the greatest is its inverse.

    Returns:
        The masks, tokens being the patches in row-major order, on the device of counts. All devices draw the
        same numbers; where a side falls half-way between two integers their rounding may differ, in one row
        of many thousands.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape or is out of its range (counts and
            total are looked at on the CPU alone).
    """
    name = "block_masks"
    if len(grid) != 2:
        raise ValueError(f"{name}: grid must be (h, w), got {grid}.")
    height, width = grid
    if height < 1 or width < 1 or height * width > 4096:
        raise ValueError(f"{name}: grid must have 1..4096 patches, got {height} x {width}.")
    expect_counts(name, counts, height * width)
    expect_total(name, counts, total, padded)
    expect(name, "sample", sample, INTEGER, (len(counts),))
    if min_patches < 1 or not 0 < min_aspect <= 1:
        raise ValueError(
            f"{name}: min_patches must be at least 1 and min_aspect in (0, 1], "
            f"got {min_patches} and {min_aspect}."
        )
    low, high = seed_words(name, seed, step)
    sample = sample.to(counts.device, non_blocking=True)
    hidden, indices, inverse, weights = block_masks_op(
        counts, sample, height, width, total, low, high, step, min_patches, min_aspect
    )
    if padded:
        indices, weights = without_tail(indices, weights, counts)
    return PackedMasks(hidden, indices, inverse, weights)


@torch.library.custom_op("vpt::block_masks", mutates_args=())
def block_masks_op(
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
    """Draw what `block_masks` promises, its arguments checked and its seed in two words."""
    hidden = _reference(counts, sample, height, width, (seed_low, seed_high, step), min_patches, min_aspect)
    return (*pack(hidden, counts, total),)


@block_masks_op.register_kernel("cuda")
def _(
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
    from .triton import block_masks as device

    return device.block_masks(
        counts, sample, height, width, total, seed_low, seed_high, step, min_patches, min_aspect
    )


@block_masks_op.register_fake
def _(
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
    return empty_masks(counts, len(counts), height * width, total)


def _reference(
    counts: Tensor,
    sample: Tensor,
    height: int,
    width: int,
    keys: tuple[int, int, int],
    min_patches: int,
    min_aspect: float,
) -> Tensor:
    """Give `hidden` [N, h*w] of block_masks.

    Numbers and bits are made by tensor operations for all rows. The rectangles, of which each depends on
    those before it, are taken one by one, a mask's cells being the bits of one integer: tensor operations
    over rows would be some 50 for each of up to 15 blocks, and slower at the size of a batch.
    """
    patches = height * width
    amounts = counts.tolist()  # a device without a kernel of its own waits here
    if not amounts:
        return counts.new_empty(0, patches, dtype=torch.bool)
    free = [(1 << patches) - 1] * len(amounts)
    going = [(row, count, 0, 0) for row, count in enumerate(amounts) if count]
    begin = drawn = taken = 0
    while going:
        rows = [state[0] for state in going]
        if taken == drawn:  # of masks of a 16 x 16 grid half are done after 8 attempts, 99 % after 20
            begin, drawn = drawn, drawn + max(32, drawn)
            table = _numbers(sample[torch.tensor(rows)].cpu(), keys, begin, drawn - begin, min_aspect)
            lines = {row: line for line, row in enumerate(rows)}
            part = table
        else:
            part = table.index_select(0, torch.tensor([lines[row] for row in rows]))
        several = min(8, drawn - taken)
        part = part[:, taken - begin : taken - begin + several].flatten(1)
        going = _advance(going, part.tolist(), free, height, width, min_patches)
        taken += several
    return _zeros(free, patches).to(counts.device)


def _numbers(
    sample: Tensor, keys: tuple[int, int, int], first: int, attempts: int, min_aspect: float
) -> Tensor:
    """Give [N, attempts, 4]: uniform numbers for area, aspect, top and left, that of aspect as √aspect."""
    numbers = reference_keyed_uniform(sample, *keys, BLOCK_MASKS_STREAM, 4 * attempts, 4 * first)
    numbers = numbers.view(len(sample), attempts, 4)
    numbers[..., 1].sub_(0.5).mul_(-math.log(min_aspect)).exp_()
    return numbers


_State = tuple[int, int, int, int]  # row, cells that remain to be hidden, failures, blocks


def _advance(
    going: list[_State],
    numbers: list[list[float]],
    free_of: list[int],
    height: int,
    width: int,
    min_patches: int,
) -> list[_State]:
    """Carry each row's law on by some attempts, in `free_of`; return the rows that are not done."""
    shapes, top_end, left_end = _rectangles(height, width), height + 1, width + 1
    sqrt = math.sqrt
    unfinished = []
    for (row, remaining, failures, blocks), line in zip(going, numbers, strict=True):
        free = free_of[row]
        one = iter(line)
        attempts = zip(one, one, one, one)  # noqa: B905 (the same iterator four times)
        if failures < ATTEMPTS and blocks < MOST_BLOCKS:
            span = remaining - min_patches
            for area, root, top, left in attempts:
                side = sqrt(min_patches + area * span)
                tall = int(side * root + 0.5)
                wide = int(side / root + 0.5)
                if tall < height and wide < width:
                    place = int(top * (top_end - tall)) * width + int(left * (left_end - wide))
                    new = shapes[tall][wide] << place & free
                    size = new.bit_count()
                    if 0 < size <= remaining:
                        free ^= new
                        remaining -= size
                        span -= size
                        blocks += 1
                        failures = 0
                        if remaining and blocks < MOST_BLOCKS:
                            continue
                        break
                failures += 1
                if failures == ATTEMPTS:
                    break
        if remaining and (failures == ATTEMPTS or blocks == MOST_BLOCKS):
            for number, *_ in attempts:
                free ^= 1 << _nth_bit(free, int(number * free.bit_count()), height * width)
                remaining -= 1
                if not remaining:
                    break
        free_of[row] = free
        if remaining:
            unfinished.append((row, remaining, failures, blocks))
    return unfinished


def _nth_bit(bits: int, n: int, size: int) -> int:
    """Find the place of the n-th set bit (from 0 on) among the lowest `size`."""
    place, half = 0, 1 << size.bit_length()
    while half := half >> 1:
        below = (bits & ((1 << half) - 1)).bit_count()
        if n >= below:
            n -= below
            bits >>= half
            place += half
    return place


@lru_cache(maxsize=16)
def _rectangles(height: int, width: int) -> list[list[int]]:
    """List the cells of a rectangle of each size at the grid's corner: bit y * width + x is a cell."""
    columns = [sum(1 << y * width for y in range(tall)) for tall in range(height)]
    return [[column * ((1 << wide) - 1) for wide in range(width)] for column in columns]


def _zeros(free: list[int], patches: int) -> Tensor:
    """Tell where each integer has a 0 among its lowest `patches` bits, from the lowest: bool [N, patches]."""
    size = (patches + 7) // 8
    packed = bytearray().join([bits.to_bytes(size, "little") for bits in free])
    octets = torch.frombuffer(packed, dtype=torch.uint8).int()
    zeros = _ZEROS[:, 0].index_select(0, octets).view(torch.bool)
    return zeros.view(len(free), 8 * size)[:, :patches].contiguous()
