"""How well one row of numbers follows another, and how sure so many pairs let one be of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]

RESAMPLES = 2000


class Correlation(NamedTuple):
    """A correlation over pairs and its percentile bootstrap 95 % interval; NaN where one side is constant."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def pearson(x: Numbers, y: Numbers) -> Correlation:
    """Pearson's correlation of pairs [N], at least 3."""
    return _with_interval(x, y, _product_moment)


def spearman(x: Numbers, y: Numbers) -> Correlation:
    """Spearman's correlation of pairs [N], at least 3: that of their ranks, which equal ones share."""
    return _with_interval(
        x, y, lambda a, b: _product_moment(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))
    )


def _product_moment(x: Numbers, y: Numbers) -> Numbers:
    """Along the last axis of [..., N]."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Numbers = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return found


def _with_interval(x: Numbers, y: Numbers, statistic: Callable[[Numbers, Numbers], Numbers]) -> Correlation:
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise ValueError(f"a correlation needs two rows of at least 3 numbers, not {x.shape} and {y.shape}")
    value = float(statistic(x, y))
    if not np.isfinite(value):
        return Correlation(value, value, value)
    rows = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.nanquantile(statistic(x[rows], y[rows]), [0.025, 0.975])
    return Correlation(value, float(low), float(high))
