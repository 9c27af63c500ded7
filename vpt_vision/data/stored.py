"""Samples as they lie in a source, before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vpt_vision.data.decode import decode
from vpt_vision.data.image import Pixels, decode_image
from vpt_vision.data.source import Sample, Source, UnreadableSample


@dataclass(frozen=True)
class Stored:
    """The bytes of the files of one sample."""

    key: str  # its name in the source, without suffix
    image: bytes
    label: int | None = None
    segmentation: bytes | None = None
    depth: bytes | None = None
    shard: str | None = None  # where it lies, if in a shard

    def decode_image_to(self, room: Callable[[int, int], Pixels], name: str, at_least: int | None) -> None:
        """Decode the image alone, as `decode_image` does to `room`; raises `UnreadableSample`."""
        try:
            decode_image(name, self.image, at_least, room)
        except UnreadableSample as error:
            raise UnreadableSample(error.name, error.reason, self.shard) from error

    def decoded(self, name: str, index: int, at_least: int | None) -> Sample:
        """Decode the sample, as `decode` does; raises `UnreadableSample` calling it `name`."""
        try:
            decoded = decode(name, self.image, self.segmentation, self.depth, at_least=at_least)
        except UnreadableSample as error:
            raise UnreadableSample(error.name, error.reason, self.shard) from error
        return Sample(index=index, label=self.label, **decoded._asdict())


@runtime_checkable
class StoredSource(Source, Protocol):
    """A source whose samples lie in files, and can be had undecoded."""

    @property
    def at_least(self) -> int | None:
        """Pixels of an image's shorter side that are enough; None for all there are."""

    @property
    def faults(self) -> list[str]:
        """What is broken about the source apart from its samples, a sentence each."""

    def stored(self, index: int) -> Stored:
        """Read the bytes of one sample; raises `UnreadableSample` where it cannot."""

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of image, segmentation map and depth map of each sample [N, 3]; 0 for what it has not."""
