"""What a data set is: numbered samples, each of its own size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from vpt_vision.data.order import Groups


@dataclass(frozen=True)
class Sample:
    """One image with whatever labels lie beside it.

    A map shows what the image shows, at a size of its own: a large JPEG may be decoded to 1/2, 1/4 or 1/8.
    `data.maps.whole_map` brings it to any size.
    """

    image: Tensor  # [H, W, 3] uint8 RGB
    index: int  # its number in the source
    label: int | None = None  # its class
    segmentation: Tensor | None = None  # [H', W'] uint8: the class of each pixel
    depth: Tensor | None = None  # [H', W'] fp32: metres, 0 where unknown


class UnreadableSample(Exception):
    """A sample that lies in the source but cannot be read; `Loader` skips, counts and names it."""

    def __init__(self, name: str, reason: str, shard: str | None = None) -> None:
        super().__init__(name, reason, shard)  # all, so that it crosses a process boundary by pickle
        self.name = name
        self.reason = reason
        self.shard = shard  # where it lies, if in a shard

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

    def name(self, index: int) -> str:
        """What a report calls a sample."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A source that can say whether it still holds what it held."""

    def fingerprint(self) -> str:
        """A hash that changes with any sample or label; what it is made of is not the pixels themselves."""


@runtime_checkable
class Grouped(Protocol):
    """A source whose samples are best read group by group."""

    @property
    def groups(self) -> Groups | None:
        """Which samples lie together; None where any order is as fast."""

    def prefetch(self, group: int) -> None:
        """Bring a group near, so that its samples can be read without delay; quiet where it cannot."""
