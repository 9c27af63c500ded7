"""Block-wise random masks with exact counts: the fixed recipe's."""

from __future__ import annotations

import math
from array import array
from functools import lru_cache

import torch
from torch import Tensor

from .checks import INTEGER, expect, expect_counts, host_or
from .packing import PackedMasks, empty_masks, expect_total, pack, without_tail
from .random import BLOCK_MASKS_STREAM, keyed_words, seed_words, to_open_unit

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
    expect(name, "sample", sample, INTEGER, (len(counts),), host_or(sample, counts.device))
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
    if len(counts) == 0:
        return counts.new_empty(0, patches, dtype=torch.bool)
    # A device without a kernel of its own waits here.
    free = _free(counts.tolist(), sample.cpu(), height, width, keys, min_patches, min_aspect)
    return _zeros(free, patches).to(counts.device)


def _free(
    counts: list[int],
    sample: Tensor,
    height: int,
    width: int,
    keys: tuple[int, int, int],
    min_patches: int,
    min_aspect: float,
    attempts: int = 28,  # rows of a 16 x 16 grid take 8 in the mean; one of 4,000 takes more than these
) -> list[int]:
    """Give for each row the bits of the patches that stay: bit y * width + x is a patch."""
    numbers = _numbers(sample, keys, attempts, min_aspect)
    free, unfinished = _draw(counts, numbers, attempts, height, width, min_patches)
    if unfinished:  # from the start again, with more numbers
        some, few = sample[torch.tensor(unfinished)], [counts[row] for row in unfinished]
        again = _free(few, some, height, width, keys, min_patches, min_aspect, 4 * attempts)
        for row, bits in zip(unfinished, again, strict=True):
            free[row] = bits
    return free


def _numbers(sample: Tensor, keys: tuple[int, int, int], attempts: int, min_aspect: float) -> array[float]:
    """Give three numbers for each attempt of each sample: of area (uniform), √aspect, and of place (uniform).

    They come from the first three of a block of four uniform numbers; the fourth is not used. An array is
    quicker to read than a tensor.
    """
    area, aspect, place, _ = keyed_words(sample, keys, BLOCK_MASKS_STREAM, attempts)
    uniform = to_open_unit(torch.stack((area, aspect, place), -1))  # [N, attempts, 3]
    uniform[..., 1].sub_(0.5).mul_(-math.log(min_aspect)).exp_()
    numbers = array("f", [0]) * uniform.numel()
    torch.frombuffer(numbers, dtype=torch.float32).copy_(uniform.view(-1))
    return numbers


def _draw(
    counts: list[int], numbers: array[float], attempts: int, height: int, width: int, min_patches: int
) -> tuple[list[int], list[int]]:
    """Draw masks: the bits that stay in each row, and the rows that take more numbers than these."""
    rectangles, sqrt = _rectangles(height, width), math.sqrt
    rows, unfinished = [], []
    for row, remaining in enumerate(counts):
        one = iter(numbers[3 * attempts * row : 3 * attempts * (row + 1)])
        triples = zip(one, one, one)  # noqa: B905 (the same iterator three times)
        free = (1 << height * width) - 1
        failures = blocks = 0
        for area, root, place in triples:
            side = sqrt(min_patches + area * (remaining - min_patches))
            tall = int(side * root + 0.5)
            wide = int(side / root + 0.5)
            if tall < height and wide < width:
                cells, places, columns, gap = rectangles[tall][wide]
                number = int(place * places)
                new = cells << number + number // columns * gap & free
                size = new.bit_count()
                if 0 < size <= remaining:
                    free ^= new
                    remaining -= size
                    failures = 0
                    blocks += 1
                    if remaining and blocks < MOST_BLOCKS:
                        continue
                    break
            failures += 1
            if failures == ATTEMPTS:
                break
        if remaining:
            for uniform, *_ in triples:
                free ^= 1 << _nth_bit(free, int(uniform * free.bit_count()), height * width)
                remaining -= 1
                if not remaining:
                    break
            else:
                unfinished.append(row)
        rows.append(free)
    return rows, unfinished


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
def _rectangles(height: int, width: int) -> list[list[tuple[int, int, int, int]]]:
    """Tell of a rectangle of each size, [tall][wide]: its cells at the grid's corner, and where it may lie.

    That is, in how many places, how many of them in one row, and how many bits it skips from one row's last
    to the next one's first.
    """
    columns = [sum(1 << y * width for y in range(tall)) for tall in range(height)]
    across = [width + 1 - wide for wide in range(width)]
    return [
        [
            (columns[tall] * ((1 << wide) - 1), (height + 1 - tall) * across[wide], across[wide], wide - 1)
            for wide in range(width)
        ]
        for tall in range(height)
    ]


def _zeros(free: list[int], patches: int) -> Tensor:
    """Tell where each integer has a 0 among its lowest `patches` bits, from the lowest: bool [N, patches]."""
    size = (patches + 7) // 8
    packed = bytearray().join([bits.to_bytes(size, "little") for bits in free])
    octets = torch.frombuffer(packed, dtype=torch.uint8).int()
    zeros = _ZEROS[:, 0].index_select(0, octets).view(torch.bool)
    return zeros.view(len(free), 8 * size)[:, :patches].contiguous()
