"""What a probe found, image by image, and how sure the test images let one be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vpt_vision.errors import UserError

_RESAMPLES = 4000
_VALUES_AT_ONCE = 4_000_000  # resampled values held in memory at a time


class Interval(NamedTuple):
    """A mean and its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is among the values that the interval does not rule out."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class ProbeResult:
    """One probe's outcome on each of N test images."""

    probe: str  # its name in tables, such as "kNN, k = 10"
    correct: Tensor  # [N] bool: the predicted class is the label
    cross_entropy: Tensor | None  # [N] fp64, nats: -log p(label); None where the probe gives no probabilities
    index: Tensor  # [N] int64: each test image's number in its source
    settings: dict[str, float] = field(default_factory=dict)  # picked on the train split

    def __str__(self) -> str:
        figures = ["accuracy {:.1%} [{:.1%}, {:.1%}]".format(*self.accuracy())]
        if self.cross_entropy is not None:
            figures.append("cross-entropy {:.3f} [{:.3f}, {:.3f}] nats".format(*self.mean_cross_entropy()))
        settings = "".join(f", {name} = {value:g}" for name, value in self.settings.items())
        return f"{self.probe}{settings}: {', '.join(figures)} over {len(self.index):,} test images"

    def accuracy(self) -> Interval:
        """Share of test images classified rightly."""
        return bootstrap(self.correct)

    def mean_cross_entropy(self) -> Interval:
        """Mean cross-entropy in nats; raises `ValueError` for a probe without probabilities."""
        return bootstrap(self._cross_entropy())

    def _cross_entropy(self) -> Tensor:
        if self.cross_entropy is None:
            raise ValueError(f"{self.probe} gives no probabilities, so it has no cross-entropy")
        return self.cross_entropy


class Difference(NamedTuple):
    """Paired differences of two probes on the same test images, the second minus the first."""

    accuracy: Interval
    cross_entropy: Interval | None  # nats; below 0 the second is better


def paired(first: ProbeResult, second: ProbeResult) -> Difference:
    """Differences `second` - `first` over the same test images, with paired bootstrap intervals.

    An image's difficulty, which both probes share, cancels within each pair, so the interval is
    narrower than the two separate ones suggest. It covers the choice of test images alone: what another
    seed of training would change lies outside it. Raises `UserError` where the images differ.
    """
    if not torch.equal(first.index, second.index):
        raise UserError(
            f"Probes of {len(first.index)} and {len(second.index)} test images cannot be paired: they must "
            "have read the same images in the same order, so evaluate both on one test split."
        )
    both = first.cross_entropy is not None and second.cross_entropy is not None
    return Difference(
        accuracy=bootstrap(second.correct.double() - first.correct.double()),
        cross_entropy=bootstrap(second._cross_entropy() - first._cross_entropy()) if both else None,
    )


def bootstrap(values: Tensor, *, resamples: int = _RESAMPLES, level: float = 0.95) -> Interval:
    """Mean of `values` [N] with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    The draws are the same at every call, so a report repeats itself. Raises `ValueError` for no values.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be a non-empty vector, not of shape {tuple(values.shape)}")
    sample = values.double().numpy()
    generator = np.random.default_rng(0)
    rows = max(1, _VALUES_AT_ONCE // len(sample))
    means = np.concatenate(
        [
            sample[generator.integers(len(sample), size=(min(rows, resamples - start), len(sample)))].mean(1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high))
