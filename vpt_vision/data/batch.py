"""A batch of source images in one stretch of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vpt_kernels import PackedImages
from vpt_vision.data.source import Sample

_ROWS = 4  # of int64 before the pixels: each image's number, offset, height and width


class Unreadable(NamedTuple):
    """An image that was skipped."""

    name: str
    reason: str
    shard: str | None = None  # where it lies, if in a shard

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Batch:
    """B source images, without their labels: those never reach the learner.

    All lies in one buffer, which crosses from a worker process through shared memory, into pinned memory
    and on to a device as a whole: one copy each.
    """

    buffer: Tensor  # uint8: four rows of int64 [B] (numbers, offsets, heights, widths), then the pixels
    size: int  # B
    unreadable: list[Unreadable]  # what was skipped to fill the batch
    seconds: float = 0.0  # that reading it took, in one process
    host_index: Tensor | None = None  # `index`, where the buffer is on another device

    @classmethod
    def of(cls, samples: Sequence[Sample], unreadable: list[Unreadable]) -> Batch:
        """Pack the images of `samples`, by a copy."""
        sizes = [(sample.image.shape[0], sample.image.shape[1]) for sample in samples]
        batch = cls.empty([sample.index for sample in samples], sizes, unreadable)
        for place, sample in zip(batch.images, samples, strict=True):
            place.copy_(sample.image)
        return batch

    @classmethod
    def empty(
        cls, index: Sequence[int], sizes: Sequence[tuple[int, int]], unreadable: list[Unreadable]
    ) -> Batch:
        """Make room for images of `sizes` (height, width) that are numbered `index`, and write none yet.

        In a worker process the room is in shared memory.
        """
        heights, widths = torch.tensor(sizes, dtype=torch.int64).view(-1, 2).T
        lengths = 3 * heights * widths
        rows = torch.stack(
            [torch.tensor(index, dtype=torch.int64), lengths.cumsum(0) - lengths, heights, widths]
        )
        batch = cls(_room(rows.nbytes + int(lengths.sum())), len(index), unreadable)
        batch._rows().copy_(rows)
        return batch

    @property
    def images(self) -> PackedImages:
        """The images, views of the buffer."""
        _, offsets, heights, widths = self._rows()
        return PackedImages(self.buffer[_ROWS * 8 * self.size :], offsets, heights, widths)

    @property
    def index(self) -> Tensor:
        """Each image's number in the source, [B] int64, on the CPU."""
        return self._rows()[0] if self.host_index is None else self.host_index

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its images on `device`: one copy, for which pinned memory need not wait."""
        if self.buffer.device == device:
            return self
        return replace(self, buffer=self.buffer.to(device, non_blocking=True), host_index=self.index)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, as `DataLoader` asks of what it hands on."""
        return replace(self, buffer=self.buffer.pin_memory())

    def _rows(self) -> Tensor:
        return self.buffer[: _ROWS * 8 * self.size].view(torch.int64).view(_ROWS, self.size)


def _room(length: int) -> Tensor:
    """Uninitialised uint8 [length]; in a worker shared, as else it would be copied to leave the process."""
    if get_worker_info() is None or not length:
        return torch.empty(length, dtype=torch.uint8)
    # As torch's own collate function does.
    shared = torch.UntypedStorage._new_shared(length)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared)
