"""The demo's table: probes of several backbones, their differences, and what those allow one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vpt_vision.evaluation.result import Interval, ProbeResult, paired
from vpt_vision.files import writing

_NOTE = (
    "Brackets hold bootstrap 95 % intervals over the test images of one training seed; differences are "
    "paired image by image. Another seed can move a difference by more than its interval."
)
_ARM_COLUMNS = ("backbone", "steps", "{knn}", "logistic accuracy", "logistic cross-entropy, nats")
_DIFFERENCE_COLUMNS = (
    "difference",
    "{knn}, points",
    "logistic accuracy, points",
    "logistic cross-entropy, nats",
)


@dataclass(frozen=True)
class Arm:
    """One backbone of a comparison and its probes."""

    name: str  # lower case, fit for "the ..." in a sentence: "learned designer"
    steps: int  # learner updates since the common start
    knn: ProbeResult
    logistic: ProbeResult


@dataclass(frozen=True)
class Report:
    """Arms and the differences asked about; `rich` prints it, `markdown` writes it."""

    arms: Sequence[Arm]
    pairs: Sequence[tuple[Arm, Arm]]  # (reference, arm): the difference is the arm's less the reference's

    def findings(self) -> list[str]:
        """One sentence for each pair, made from its numbers."""
        return [finding(reference, arm) for reference, arm in self.pairs]

    def markdown(self) -> str:
        """Return the findings, both tables and the note on the intervals as Markdown."""
        parts = [f"- {sentence}\n" for sentence in self.findings()]
        for header, rows in self._tables():
            parts += ["\n", _markdown_row(header), _markdown_row(["---"] + ["---:"] * (len(header) - 1))]
            parts += [_markdown_row(row) for row in rows]
        return "# Probes\n\n" + "".join(parts) + f"\n{_NOTE}\n"

    def save(self, path: Path) -> None:
        """Write `markdown()` to `path`; raises `UserError` where it cannot."""
        with writing(path) as part:
            part.write_text(self.markdown(), encoding="utf-8")

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        for header, rows in self._tables():
            table = Table(header_style="bold")
            for number, name in enumerate(header):
                table.add_column(name, justify="right" if number else "left")
            for row in rows:
                table.add_row(*(Text(cell.replace(" [", "\n[")) for cell in row))
            parts.append(table)
        findings = (Text(sentence, style="bold") for sentence in self.findings())
        return Group(*parts, *findings, Text(_NOTE, style="dim"))

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        knn = self.arms[0].knn.probe
        header, differences = (
            [column.format(knn=knn) for column in columns] for columns in (_ARM_COLUMNS, _DIFFERENCE_COLUMNS)
        )
        return [
            (header, [_arm_row(arm) for arm in self.arms]),
            (differences, [_difference_row(reference, arm) for reference, arm in self.pairs]),
        ]


def finding(reference: Arm, arm: Arm) -> str:
    """Say what the logistic regression's cross-entropy tells of `arm` against `reference`, in one sentence.

    It speaks of a change only where the paired interval leaves 0 out, and says that it speaks of one seed.
    """
    difference = paired(reference.logistic, arm.logistic).get("cross_entropy")
    if difference is None:
        raise ValueError("a finding needs probes with cross-entropy")
    images = f"over {len(arm.logistic.index):,} test images of one seed"
    against = f"the {reference.name}" + _steps(reference, arm)
    figures = _number(difference, signed=True)
    if difference.holds_zero:
        return (
            f"The {arm.name} against {against} shows nothing in cross-entropy: it changed by {figures} "
            f"{images}, an interval that holds 0."
        )
    verdict = "better" if difference.mean < 0 else "worse"
    return (
        f"The {arm.name} changed cross-entropy by {figures} against {against} {images}: {verdict}, by more "
        "than the choice of test images explains; other seeds are not yet asked."
    )


def _steps(reference: Arm, arm: Arm) -> str:
    if reference.steps == arm.steps:
        return f" at equal steps ({arm.steps:,})"
    if reference.steps == 0:
        return f" after {arm.steps:,} steps"
    return f" at unequal steps ({arm.steps:,} against {reference.steps:,})"


def _arm_row(arm: Arm) -> list[str]:
    return [
        arm.name,
        f"{arm.steps:,}",
        _number(arm.knn.interval("accuracy"), scale=100, unit=" %"),
        _number(arm.logistic.interval("accuracy"), scale=100, unit=" %"),
        _number(arm.logistic.interval("cross_entropy")),
    ]


def _difference_row(reference: Arm, arm: Arm) -> list[str]:
    knn, logistic = paired(reference.knn, arm.knn), paired(reference.logistic, arm.logistic)
    return [
        f"{arm.name} − {reference.name}",
        _number(knn["accuracy"], scale=100, signed=True),
        _number(logistic["accuracy"], scale=100, signed=True),
        _number(logistic["cross_entropy"], signed=True),
    ]


def _number(interval: Interval, *, scale: float = 1, unit: str = "", signed: bool = False) -> str:
    """`mean [low, high]` with the digits that the interval's width makes meaningful."""
    mean, low, high = (scale * value for value in interval)
    uncertainty = (high - low) / 2 or abs(mean) or 1.0
    decimals = min(6, max(1, 1 - math.floor(math.log10(uncertainty))))
    sign = "+" if signed else ""
    return f"{mean:{sign}.{decimals}f}{unit} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
