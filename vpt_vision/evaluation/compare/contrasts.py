"""What a study allows one to say: differences between its rows, and the first line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare.spec import FINE_TUNED, MATCHED, Match
from vpt_vision.evaluation.compare.study import Row, Study, is_higher_better, result_of
from vpt_vision.evaluation.result import KINDS, Interval, MeanRatio, PerImage
from vpt_vision.evaluation.statistics import Floats, PairedDifference, paired_difference
from vpt_vision.evaluation.tables import numbers

SAME_TIME = 0.05  # arms matched by seconds may differ in them by this share before the page says so


@dataclass(frozen=True)
class Contrast:
    """One arm held against another in one metric at one budget."""

    arm: str
    against: str
    metric: str
    match: Match
    difference: PairedDifference

    @property
    def is_better(self) -> bool:
        """Whether the arm's mean is on the better side, shown or not."""
        return (self.difference.interval.mean > 0) == is_higher_better(self.metric)


def metrics(study: Study) -> list[str]:
    """Every metric that all rows have, the primary one first."""
    results = study.rows[0].measured[0].results
    names = [f"{probe}.{figure}" for probe, result in results.items() for figure in result.figures]
    primary = study.spec.primary.metric
    return [primary, *(name for name in names if name != primary)]


def title_of(study: Study, metric: str) -> str:
    """What a table calls a metric, such as `logistic regression, CLS: cross-entropy`."""
    if metric.startswith("labels."):
        return f"classifier of the {study.labels:,} feedback labels: {KINDS[metric.partition('.')[2]].title}"
    probe = result_of(study.rows[0].measured[0], metric).probe
    return f"{probe}: {KINDS[metric.partition('.')[2]].title}"


def primary(study: Study) -> Contrast:
    """The one difference that the spec named."""
    question = study.spec.primary
    return contrast(study, question.arm, study.spec.against, question.metric, question.match)


def secondary(study: Study) -> list[Contrast]:
    """Every other difference: arms against the reference, their start and the control, at every budget.

    They are described, not tested: one in twenty of them leaves 0 out by chance.
    """
    spec = study.spec
    found = []
    for match in spec.match:
        for metric in metrics(study):
            for arm in spec.arms:
                rivals = [spec.reference, study.starts[arm.name]]
                if arm.name == spec.primary.arm:
                    rivals = [*(other.name for other in spec.arms if other.name != arm.name), rivals[-1]]
                    rivals += [FINE_TUNED] if spec.controls is not None else []
                for rival in dict.fromkeys(rivals):
                    asked = (spec.primary.arm, spec.against, spec.primary.metric, spec.primary.match)
                    if rival != arm.name and (arm.name, rival, metric, match) != asked:
                        found.append(contrast(study, arm.name, rival, metric, match))
    return found


@lru_cache(maxsize=4096)
def contrast(study: Study, arm: str, against: str, metric: str, match: Match) -> Contrast:
    """Hold one row against another, paired by seed and by test image."""
    ours, theirs = (per_image(study.row(name, match), metric) for name in (arm, against))
    return Contrast(arm, against, metric, match, paired_difference(ours - theirs))


def per_image(row: Row, metric: str) -> Floats:
    """A metric's share of each seed and test image [S, N]; means over images are the figures.

    Raises `UserError` where seeds were judged on different images, or a figure is not a finite number.
    """
    results = [result_of(measured, metric) for measured in row.measured]
    if any(not torch.equal(result.index, results[0].index) for result in results):
        raise UserError(f"the seeds of '{row.name}' were judged on different test images: delete its probes.")
    values = np.stack([linearised(result.figures[metric.partition(".")[2]]) for result in results])
    broken = np.flatnonzero(~np.isfinite(values).all(1))
    if len(broken):
        raise UserError(
            f"{metric} of '{row.name}' is not finite in {len(broken)} of {len(values)} seeds, so nothing can "
            f"be said of it: look at those runs' logs, or leave out the probe {metric.partition('.')[0]}."
        )
    return values


def linearised(figure: PerImage) -> Floats:
    """Values [N] of single images whose mean is `figure` over all of them.

    A mean of ratios is not a mean over images: it is replaced by its first-order expansion around the whole,
    image n's share being R_c + (numerator - R_c · denominator) / mean denominator, averaged over classes c
    (the delete-one jackknife's pseudo-values, to first order; Efron & Tibshirani 1993, section 11.5).
    """
    if not isinstance(figure, MeanRatio):
        return figure.values.double().numpy()
    above, below = (part.double().numpy() for part in figure)
    present = below.sum(0) > 0
    above, below = above[:, present], below[:, present]
    ratios = above.sum(0) / below.sum(0)
    shares: Floats = (ratios + (above - ratios * below) / below.mean(0)).mean(1)
    return shares


def headline(study: Study) -> str:
    """The first line of every output: what the primary question's answer is, in one sentence."""
    found = primary(study)
    difference = found.difference
    question = (
        f"the {found.arm} against {_the(found.against)} in {title_of(study, found.metric)} at "
        f"{MATCHED[found.match]}"
    )
    figures = (
        f"{signed(difference.interval, found.metric)} over {difference.seeds} seeds and "
        f"{difference.images:,} "
        f"test images; {sign_flip_in_words(difference)}"
    )
    if not difference.shows:
        why = (
            "an interval that holds 0" if difference.interval.holds_zero else _only_the_bootstrap(difference)
        )
        return f"This comparison shows nothing: {question} differs by {figures}: {why}.{unmatched(study)}"
    verdict = "better" if found.is_better else "worse"
    return f"The {found.arm} is {verdict}: {question} differs by {figures}.{unmatched(study)}"


def unmatched(study: Study) -> str:
    """A sentence where the primary arms did not train for the same seconds though they should have."""
    spec = study.spec
    if spec.primary.match != "seconds":
        return ""
    seconds = [
        np.mean([measured.seconds for measured in study.row(name, "seconds").measured])
        for name in (spec.primary.arm, spec.against)
    ]
    apart = abs(seconds[0] / seconds[1] - 1) if seconds[1] else 0.0
    if apart <= SAME_TIME:
        return ""
    return f" But their training times are {apart:.0%} apart, so they are not matched."


def sign_flip_in_words(difference: PairedDifference) -> str:
    """The sign-flip test's p, and how small it could have been."""
    least = f", where {difference.seeds} seeds allow no less than {difference.least_p:.2g}"
    return f"sign-flip p = {difference.p:.2g}" + (least if difference.least_p > 0.05 else "")


def signed(interval: Interval, metric: str) -> str:
    """A difference with its interval; percentages are told in points."""
    kind = KINDS[metric.partition(".")[2]]
    unit = " points" if kind.unit == "%" else f" {kind.unit}".rstrip()
    return numbers(interval, scale=100 if kind.unit == "%" else 1, sign="+") + unit


def _only_the_bootstrap(difference: PairedDifference) -> str:
    low, high = difference.bootstrap[1:]
    if not math.isfinite(high - low):
        return f"{difference.seeds} seeds are too few for the bootstrap to bound it"
    return "the bootstrap's interval, which does without normality, holds 0"


def _the(name: str) -> str:
    return name if name == FINE_TUNED else f"the {name}"
