"""Uniform numbers that are a function of (seed, step, sample, stream): Philox4x32-10 in torch.

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
    for name, value, limit in (("seed", seed, 2**64), ("step", step, 2**32), ("stream", stream, 2**16)):
        if not 0 <= value < limit:
            raise ValueError(f"keyed_uniform: {name} must lie in 0..{limit - 1}, got {value}.")
    if count < 0 or skip < 0 or skip % 4 or skip + count > _LONGEST_DRAW:
        raise ValueError(
            f"keyed_uniform: count and skip must be at least 0, skip a multiple of 4 and their sum at most "
            f"{_LONGEST_DRAW}, got count {count} and skip {skip}."
        )
    expect("keyed_uniform", "sample", sample, INTEGER)

    # The counter: word 0 is block and stream, word 1 the step, words 2 and 3 the sample.
    block = torch.arange(skip // 4, (skip + count + 3) // 4, device=sample.device) | (stream << 16)
    sample = sample[..., None]
    words = philox(
        (block, torch.full_like(block, step), sample & _WORD, (sample >> 32) & _WORD),
        (seed & _WORD, seed >> 32),
    )
    return _to_open_unit(torch.stack(words, -1).flatten(-2)[..., :count])


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of a counter of four broadcastable words and a key of two: four int64 tensors.

    Words are unsigned 32-bit numbers held in int64. The result is bit-equal to Random123's philox4x32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 holds the 64 bits of the product, be it as a negative number. The words that come of
        # its low half keep the high half until the next mask takes it off: one operation less.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) ^ c1 ^ k0) & _WORD, p1
        c2, c3 = ((p0 >> 32) ^ c3 ^ k1) & _WORD, p0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1 & _WORD, c2, c3 & _WORD


def _to_open_unit(words: Tensor) -> Tensor:
    """Map 32-bit words held in int64 to fp32 in (0, 1) by 23 bits: with 24 the largest would round to 1."""
    return ((words >> 9).float() + 0.5) * 2.0**-23
