"""What a probe found, image by image, and how sure the test images let one be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpt_vision.errors import UserError

_RESAMPLES = 4000
_VALUES_AT_ONCE = 4_000_000  # resampled values held in memory at a time

Floats: TypeAlias = NDArray[np.float64]


class Kind(NamedTuple):
    """What a figure of a name is."""

    title: str
    unit: str  # "%" for a share in [0, 1] that is told in per cent
    higher_is_better: bool


KINDS = {
    "accuracy": Kind("accuracy", "%", True),
    "cross_entropy": Kind("cross-entropy", "nats", False),
    "map": Kind("mAP", "%", True),
    "miou": Kind("mIoU", "%", True),
    "pixel_accuracy": Kind("pixel accuracy", "%", True),
    "class_accuracy": Kind("mean class accuracy", "%", True),
    "rmse": Kind("RMSE", "m", False),
    "abs_rel": Kind("AbsRel", "", False),
    "delta1": Kind("δ1", "%", True),
}


class Interval(NamedTuple):
    """A figure and its bootstrap 95 % interval."""

    mean: float  # the figure over all test images
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is among the values that the interval does not rule out."""
        return self.low <= 0 <= self.high


class Mean(NamedTuple):
    """A figure that is the mean over images, such as accuracy or RMSE per image."""

    values: Tensor  # [N] fp64

    def __len__(self) -> int:
        return len(self.values)

    def of(self, counts: Floats) -> Floats:
        """The figure [R] of R samples in which image n occurs `counts` [R, N] times."""
        return counts @ self.values.double().numpy() / counts.sum(1)


class MeanRatio(NamedTuple):
    """A figure that is a mean over classes of ratios of sums over images, such as mIoU.

    A class whose denominator is 0 in a sample is left out of that sample's mean.
    """

    numerators: Tensor  # [N, C]
    denominators: Tensor  # [N, C]

    def __len__(self) -> int:
        return len(self.numerators)

    def of(self, counts: Floats) -> Floats:
        """The figure [R] of R samples in which image n occurs `counts` [R, N] times."""
        above, below = (counts @ part.double().numpy() for part in self)
        present = below > 0
        ratios = np.divide(above, below, out=np.zeros_like(above), where=present)
        return ratios.sum(1) / np.maximum(present.sum(1), 1)


PerImage: TypeAlias = Mean | MeanRatio


@dataclass(frozen=True)
class ProbeResult:
    """One probe's outcome: figures of N test images, kept image by image."""

    probe: str  # its name in tables, such as "kNN, k = 10"
    figures: Mapping[str, PerImage]  # by name, such as "accuracy"; each of N images
    index: Tensor  # [N] int64: each test image's number in its source
    settings: Mapping[str, float] = field(default_factory=dict)  # picked on the train split
    details: Mapping[str, object] = field(default_factory=dict)  # further JSON-able facts, without intervals

    @classmethod
    def of_classes(
        cls,
        probe: str,
        correct: Tensor,
        cross_entropy: Tensor | None,
        index: Tensor,
        settings: Mapping[str, float] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> ProbeResult:
        """Result of a classifier: `accuracy`, and `cross_entropy` in nats where it gives probabilities.

        Args:
            probe: its name in tables.
            correct: [N] bool, or the share of several classifiers that were right on each image.
            cross_entropy: [N], -log p(label) in nats, or None.
            index: [N] int64, each test image's number in its source.
            settings: what was picked on the train split.
            details: see the class.
        """
        figures = {"accuracy": Mean(correct.double())}
        if cross_entropy is not None:
            figures["cross_entropy"] = Mean(cross_entropy.double())
        return cls(probe, figures, index, settings or {}, details or {})

    def __str__(self) -> str:
        settings = "".join(f", {name} = {value:g}" for name, value in self.settings.items())
        figures = ", ".join(_told(name, self.interval(name)) for name in self.figures)
        return f"{self.probe}{settings}: {figures} over {len(self.index):,} test images"

    def value(self, figure: str) -> float:
        """The figure of that name over all test images."""
        per_image = self.figures[figure]
        return float(per_image.of(np.ones((1, len(per_image))))[0])

    def interval(self, figure: str) -> Interval:
        """The figure of that name with its bootstrap interval."""
        return bootstrap(self.figures[figure])


def paired(first: ProbeResult, second: ProbeResult) -> dict[str, Interval]:
    """Differences `second` - `first` of the figures that both have, with paired bootstrap intervals.

    An image's difficulty, which both probes share, cancels within each pair, so the interval is
    narrower than the two separate ones suggest. It covers the choice of test images alone: what another
    seed of training would change lies outside it. Raises `UserError` where the images differ.
    """
    if not torch.equal(first.index, second.index):
        raise UserError(
            f"Probes of {len(first.index)} and {len(second.index)} test images cannot be paired: they must "
            "have read the same images in the same order, so evaluate both on one test split."
        )
    return {
        name: bootstrap(second.figures[name], minus=figure)
        for name, figure in first.figures.items()
        if name in second.figures
    }


def bootstrap(
    figure: PerImage,
    *,
    minus: PerImage | None = None,
    resamples: int = _RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """A figure with its percentile bootstrap interval over images (Efron & Tibshirani 1993, chapter 13).

    With `minus`, the difference of the two figures, both taken of the same resampled images. The draws
    are the same at every call, so a report repeats itself. Raises `ValueError` for no images.
    """
    images = len(figure)
    if images == 0 or (minus is not None and len(minus) != images):
        raise ValueError("a bootstrap needs at least one image, and the same images on both sides")

    def of(counts: Floats) -> Floats:
        return figure.of(counts) - (minus.of(counts) if minus is not None else 0.0)

    generator = np.random.default_rng(0)
    rows = max(1, _VALUES_AT_ONCE // images)
    drawn = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        flat = generator.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        counts = np.bincount(flat.ravel(), minlength=size * images).reshape(size, images)
        drawn.append(of(counts.astype(np.float64)))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(of(np.ones((1, images)))[0]), float(low), float(high))


def _told(name: str, interval: Interval) -> str:
    kind = KINDS[name]
    if kind.unit == "%":
        shares = "{:.1%} [{:.1%}, {:.1%}]".format(*interval)
        return f"{kind.title} {shares}"
    numbers = "{:.3f} [{:.3f}, {:.3f}]".format(*interval)
    return f"{kind.title} {numbers} {kind.unit}".rstrip()
