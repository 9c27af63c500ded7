"""Uniform numbers that are a function of (seed, step, sample, stream): Philox4x32-10.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import INTEGER, expect

# The last 16 streams belong to this package's own kernels, the others to its callers.
BLOCK_MASKS_STREAM = 0xFFFF
SAMPLE_MASKS_STREAM = 0xFFFE

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key each round: fractions of the golden ratio and of sqrt(3)
_ROUNDS = 10
_LONGEST_DRAW = 2**18


def keyed_uniform(seed: int, step: int, sample: Tensor, stream: int, count: int, *, skip: int = 0) -> Tensor:
    """Draw `count` uniform numbers for each sample, as a function of the arguments alone.

    Neither the other samples of the call nor the device matter: rows can be split, reordered and
    repeated at will. Samples of equal key get equal numbers. A shorter draw is the start of a longer one.

    Args:
        seed: the run's, 0 <= seed < 2**64; the Philox key.
        step: 0 <= step < 2**32.
        sample: int64 [*S], any value.
        stream: which quantity is drawn, 0 <= stream < 2**16; the last 16 are this package's own.
        count: numbers for each sample.
        skip: leave out so many numbers at the start, a multiple of 4; skip + count <= 2**18.

    Returns:
        fp32 [*S, count] in the open interval (0, 1): odd multiples of 2**-24.

    Raises:
        TypeError: sample is not int64.
        ValueError: a number is out of its range.
    """
    seed_low, seed_high = seed_words("keyed_uniform", seed, step)
    if not 0 <= stream < 2**16:
        raise ValueError(f"keyed_uniform: stream must lie in 0..{2**16 - 1}, got {stream}.")
    if count < 0 or skip < 0 or skip % 4 or skip + count > _LONGEST_DRAW:
        raise ValueError(
            f"keyed_uniform: count and skip must be at least 0, skip a multiple of 4 and their sum at most "
            f"{_LONGEST_DRAW}, got count {count} and skip {skip}."
        )
    expect("keyed_uniform", "sample", sample, INTEGER)
    return keyed_uniform_op(sample, seed_low, seed_high, step, stream, count, skip)


def seed_words(function: str, seed: int, step: int) -> tuple[int, int]:
    """Split a checked seed into its low and high 32 bits: operators take signed 64-bit integers alone."""
    for name, value, limit in (("seed", seed, 2**64), ("step", step, 2**32)):
        if not 0 <= value < limit:
            raise ValueError(f"{function}: {name} must lie in 0..{limit - 1}, got {value}.")
    return seed & _WORD, seed >> 32


@torch.library.custom_op("vpt::keyed_uniform", mutates_args=())
def keyed_uniform_op(
    sample: Tensor, seed_low: int, seed_high: int, step: int, stream: int, count: int, skip: int
) -> Tensor:
    """Draw what `keyed_uniform` promises, its arguments checked and its seed in two words."""
    return reference_keyed_uniform(sample, seed_low, seed_high, step, stream, count, skip)


@keyed_uniform_op.register_kernel("cuda")
def _(sample: Tensor, seed_low: int, seed_high: int, step: int, stream: int, count: int, skip: int) -> Tensor:
    from .triton import random as device

    return device.keyed_uniform(sample, seed_low, seed_high, step, stream, count, skip)


@keyed_uniform_op.register_fake
def _(sample: Tensor, seed_low: int, seed_high: int, step: int, stream: int, count: int, skip: int) -> Tensor:
    return sample.new_empty((*sample.shape, count), dtype=torch.float32)


def reference_keyed_uniform(
    sample: Tensor, seed_low: int, seed_high: int, step: int, stream: int, count: int, skip: int = 0
) -> Tensor:
    """Give `keyed_uniform`'s numbers by torch operations: fp32 [*S, count]."""
    # The counter: word 0 is block and stream, word 1 the step, words 2 and 3 the sample.
    first = stream << 16
    block = torch.arange(first + skip // 4, first + (skip + count + 3) // 4, device=sample.device)
    sample = sample[..., None]
    words = philox(
        (block, block.new_full((), step), sample & _WORD, (sample >> 32) & _WORD), (seed_low, seed_high)
    )
    return _to_open_unit(torch.stack(words, -1)).flatten(-2)[..., :count].contiguous()


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of a counter of four broadcastable words and a key of two: four int64 tensors.

    Words are unsigned 32-bit numbers held in int64. The result is bit-equal to Random123's philox4x32.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    # Words 0 and 2 lie in one tensor and 1 and 3 in another, so that one operation serves both, and all
    # are written in place: small draws cost their calls, not their arithmetic.
    even, odd = torch.stack((c0, c2)), torch.stack((c1, c3))
    high, *products = torch.empty((3, *even.shape), dtype=torch.int64, device=even.device).unbind()
    column = (2,) + (1,) * (even.dim() - 1)
    multipliers = torch.tensor(_MULTIPLIERS, device=even.device).view(column)
    keys = torch.tensor(
        [[(k + r * w) & _WORD for k, w in zip(key, _WEYL, strict=True)] for r in range(_ROUNDS)],
        device=even.device,
    )
    half, word = torch.tensor((32, _WORD), device=even.device).unbind()  # a Python number costs more a call
    (even_0, even_1), (high_0, high_1), (odd_0, odd_1) = even.unbind(), high.unbind(), odd.unbind()
    halves = [product.unbind() for product in products]
    for number, round_key in enumerate(keys.view(_ROUNDS, *column).unbind()):
        # int64 holds the 64 bits of a product, be it as a negative number. The words that come of its
        # low half keep the high half until the next mask takes it off: one operation less.
        product = products[number % 2]
        torch.mul(even, multipliers, out=product)
        torch.bitwise_right_shift(product, half, out=high)
        torch.bitwise_xor(high_1, odd_0, out=even_0)
        torch.bitwise_xor(high_0, odd_1, out=even_1)
        even.bitwise_xor_(round_key).bitwise_and_(word)
        odd_1, odd_0 = halves[number % 2]
    return even_0, odd_0 & _WORD, even_1, odd_1 & _WORD


def _to_open_unit(words: Tensor) -> Tensor:
    """Map 32-bit words held in int64 to fp32 in (0, 1) by 23 bits: with 24 the largest would round to 1."""
    return (words >> 9).float().add_(0.5).mul_(2.0**-23)
