"""Some samples of a source, in an order of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vpt_vision.data.source import Sample, Source


class Subset:
    """The samples `rows` of `source`, which keep their numbers there."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source = source
        self.rows = np.asarray(rows, np.int64)
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.rows[index])]

    def name(self, index: int) -> str:
        """What the source calls the sample."""
        return self.source.name(int(self.rows[index]))
