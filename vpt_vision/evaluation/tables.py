"""Tables as Markdown and HTML show them, and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vpt_vision.evaluation.result import Interval


@dataclass(frozen=True)
class Table:
    """A caption, a header, and rows of cells."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()  # rows to set off

    def transposed(self) -> Table:
        """The table on its side: what was a row is a column."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Table(self.caption, header, rows)

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        body = "".join("| " + " | ".join(line) + " |\n" for line in lines)
        return f"{self.caption}:\n\n{body}\n"


def numbers(interval: Interval, *, scale: float = 1, sign: str = "") -> str:
    """`mean [low, high]` with the digits that the interval's width makes meaningful."""
    mean, low, high = (scale * value for value in interval)
    if not math.isfinite(high - low):
        return f"{mean:{sign}.3g} [no bounds]"
    uncertainty = (high - low) / 2 or abs(mean) or 1.0
    decimals = min(6, max(1, 1 - math.floor(math.log10(uncertainty))))
    return f"{mean:{sign}.{decimals}f} [{low:{sign}.{decimals}f}, {high:{sign}.{decimals}f}]"
