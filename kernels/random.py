"""Uniform numbers that are a function of (seed, step, sample, stream): Philox4x32-10.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
"""

from __future__ import annotations

from functools import lru_cache

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
    words = keyed_words(sample, (seed_low, seed_high, step), stream, (skip + count + 3) // 4, skip // 4)
    return to_open_unit(torch.stack(words, -1)).flatten(-2)[..., :count].contiguous()


def keyed_words(
    sample: Tensor, keys: tuple[int, int, int], stream: int, end: int, start: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the words that blocks start..end-1 of four numbers are made of: four int64 [*S, end - start].

    The keys are the seed's two words and the step.
    """
    seed_low, seed_high, step = keys
    # The counter: word 0 is block and stream, word 1 the step, words 2 and 3 the sample.
    first = stream << 16
    block = torch.arange(first + start, first + end, device=sample.device)
    sample = sample.unsqueeze(-1)
    counter = block, block.new_full((), step), sample & _WORD, (sample >> 32) & _WORD
    return philox(counter, (seed_low, seed_high), (*sample.shape[:-1], end - start))


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of a counter of four words broadcastable to `shape` and a key of two: four int64 tensors.

    Words are unsigned 32-bit numbers held in int64. The result is bit-equal to Random123's philox4x32.
    """
    # Small draws cost their calls, not their arithmetic. So words 0 and 2 lie in one tensor and 1 and 3 in
    # another, that one call may serve both, and all are written in place.
    device = counter[0].device
    even, odd, high, *products = torch.empty((5, 2, *shape), dtype=torch.int64, device=device).unbind()
    (even_0, even_1), (odd_0, odd_1), (high_0, high_1) = even.unbind(), odd.unbind(), high.unbind()
    for word, value in zip((even_0, odd_0, even_1, odd_1), counter, strict=True):
        word.copy_(value)
    multipliers, (half, mask), *round_keys = _constants(key, len(shape), device)
    words_of = [product.unbind() for product in products]
    for number, round_key in enumerate(round_keys):
        # int64 holds the 64 bits of a product, be it as a negative number. The words that come of its
        # low half keep the high half until the next mask takes it off: one operation less.
        product = products[number % 2]
        torch.mul(even, multipliers, out=product)
        torch.bitwise_right_shift(product, half, out=high)
        torch.bitwise_xor(high_1, odd_0, out=even_0)
        torch.bitwise_xor(high_0, odd_1, out=even_1)
        even.bitwise_xor_(round_key).bitwise_and_(mask)
        odd_1, odd_0 = words_of[number % 2]
    product.bitwise_and_(mask)
    return even_0, odd_0, even_1, odd_1


@lru_cache(maxsize=16)
def _constants(key: tuple[int, int], dimensions: int, device: torch.device) -> tuple[Tensor, ...]:
    """Give pairs for words of so many dimensions: multipliers, 32 and the mask of a word, a key a round."""
    pairs: list[tuple[int, ...]] = [_MULTIPLIERS, (32, _WORD)]
    pairs += [tuple((k + r * w) & _WORD for k, w in zip(key, _WEYL, strict=True)) for r in range(_ROUNDS)]
    return torch.tensor(pairs, device=device).view(-1, 2, *(1,) * dimensions).unbind()


def to_open_unit(words: Tensor) -> Tensor:
    """Map 32-bit words held in int64 to fp32 in (0, 1) by 23 bits: with 24 the largest would round to 1."""
    return (words >> 9).float().add_(0.5).mul_(2.0**-23)
