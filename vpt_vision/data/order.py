"""The order of samples: an endless row of places, filled epoch by epoch as a function of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as count_from
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Streams of Philox under one key: each begins at a counter of its own.
SAMPLES = [0, 0, 0, 0]
SUBSTITUTES = [0, 0, 0, 1]
GROUPS = [0, 0, 0, 2]


class Groups(NamedTuple):
    """Samples that are best read together, such as those of one remote shard."""

    starts: NDArray[np.int64]  # [G + 1]: group g holds the samples from starts[g] up to starts[g + 1]
    window: int  # groups whose samples are mixed with one another


class Order:
    """Which sample of a data set lies at which place of an endless row.

    Place p lies in epoch p // count; every epoch holds each sample once, in an order of its own. Without
    groups that order is a permutation of all samples. With groups, the groups are permuted and taken a
    window at a time, and the samples of a window are permuted together: whoever reads along the row needs
    the groups of one window only, and each sample still has its place from (seed, epoch) alone.

    Args:
        seed: 0 or more; another seed gives another order.
        count: samples in the data set, 1 or more.
        groups: what has to stay together; None for nothing.
    """

    def __init__(self, seed: int, count: int, groups: Groups | None = None) -> None:
        self.seed = seed
        self.count = count
        self.groups = groups
        self._dealt: dict[int, _Epoch] = {}

    def samples(self, place: int, length: int) -> NDArray[np.int64]:
        """Sample numbers [length] at the places from `place` on."""
        parts = []
        while length:
            epoch, position = divmod(place, self.count)
            parts.append(self._epoch(epoch).samples[position : position + length])
            place += len(parts[-1])
            length -= len(parts[-1])
        return np.concatenate(parts)

    def substitutes(self, place: int) -> Iterator[int]:
        """Endless sample numbers, uniform, to try where the sample at `place` cannot be read.

        With groups they come from the window of `place`, so that no other group has to be fetched for them.
        """
        bits = np.random.Philox(key=np.array([self.seed, place], np.uint64), counter=SUBSTITUTES)
        if self.groups is None:
            while True:
                yield int(bits.random_raw()) % self.count
        dealt = self._epoch(place // self.count)
        window = dealt.window_at(place % self.count)
        candidates = dealt.samples[dealt.starts[window] : dealt.starts[window + 1]]
        while True:
            yield int(candidates[int(bits.random_raw()) % len(candidates)])

    def windows(self, place: int) -> Iterator[tuple[int, list[int]]]:
        """From the window of `place` on, without end: the place each window begins at, and its groups."""
        first = self._epoch(place // self.count).window_at(place % self.count)
        for epoch in count_from(place // self.count):
            dealt = self._epoch(epoch)
            for window in range(first, len(dealt.windows)):
                yield epoch * self.count + int(dealt.starts[window]), dealt.windows[window].tolist()
            first = 0

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._dealt:
            while len(self._dealt) > 1:  # this one and the next: whoever looks ahead needs both
                del self._dealt[min(self._dealt)]
            self._dealt[epoch] = self._deal(epoch)
        return self._dealt[epoch]

    def _deal(self, epoch: int) -> _Epoch:
        # Sorting raw bits, not Generator.permutation: numpy promises that only the raw stream never changes.
        key = np.array([self.seed, epoch], np.uint64)
        bits = np.random.Philox(key=key, counter=SAMPLES).random_raw(self.count)
        if self.groups is None:
            return _Epoch(np.argsort(bits, kind="stable"), np.array([0, self.count]), [])
        sizes = np.diff(self.groups.starts)
        turn = np.random.Philox(key=key, counter=GROUPS).random_raw(len(sizes))
        permuted = np.argsort(turn, kind="stable")
        permuted = permuted[sizes[permuted] > 0]  # a window always holds a sample
        windows = [
            permuted[first : first + self.groups.window]
            for first in range(0, len(permuted), self.groups.window)
        ]
        window_of_group = np.zeros(len(sizes), np.int64)
        for number, members in enumerate(windows):
            window_of_group[members] = number
        window_of_sample = np.repeat(window_of_group, sizes)
        starts = np.concatenate([[0], np.cumsum(np.bincount(window_of_sample))])
        return _Epoch(np.lexsort((bits, window_of_sample)), starts, windows)


class _Epoch(NamedTuple):
    """The order of one epoch."""

    samples: NDArray[np.int64]  # [count]
    starts: NDArray[np.int64]  # [W + 1]: the position at which each window begins, and the end
    windows: list[NDArray[np.int64]]  # groups of each window

    def window_at(self, position: int) -> int:
        return int(np.searchsorted(self.starts, position, side="right")) - 1
