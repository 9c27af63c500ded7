"""The order of samples: an endless row of places, filled epoch by epoch as a function of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def samples_at(seed: int, count: int, place: int, length: int) -> NDArray[np.int64]:
    """Sample numbers [length] at the places from `place` on, of `count` samples in all.

    Place p lies in epoch p // count; every epoch holds each sample once, in an order of its own.
    """
    parts = []
    while length:
        epoch, position = divmod(place, count)
        parts.append(_permutation(seed, count, epoch)[position : position + length])
        place += len(parts[-1])
        length -= len(parts[-1])
    return np.concatenate(parts)


def substitutes(seed: int, count: int, place: int) -> Iterator[int]:
    """Endless sample numbers, uniform, to try where the sample at `place` cannot be read."""
    bits = np.random.Philox(key=np.array([seed, place], np.uint64), counter=[0, 0, 0, 1])
    while True:
        yield int(bits.random_raw()) % count


@lru_cache(maxsize=1)
def _permutation(seed: int, count: int, epoch: int) -> NDArray[np.int64]:
    # Sorting raw bits, not Generator.permutation: numpy promises that only the raw stream never changes.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")
