"""What a data set is: numbered samples of one square size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One image with whatever labels lie beside it."""

    image: Tensor  # [3, H, W] uint8 RGB, H = W = the source's size
    index: int  # its number in the source
    label: int | None = None  # its class
    segmentation: Tensor | None = None  # [H, W] int64: the class of each pixel
    depth: Tensor | None = None  # [H, W] fp32: metres, 0 where unknown


class UnreadableSample(Exception):
    """A sample that lies in the source but cannot be decoded; `Loader` skips, counts and names it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it crosses a process boundary by pickle
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source(Protocol):
    """A data set with random access, the same at every run. Worker processes hold copies of it."""

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, indexed by `Sample.label`; None where samples have no label."""

    def __len__(self) -> int:
        """Count the samples, unreadable ones included."""

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; raises `UnreadableSample` where it cannot."""
