"""A batch of source images in one stretch of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from vpt_kernels import PackedImages
from vpt_vision.data.image import Pixels
from vpt_vision.data.rooms import Rooms, content, held
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
    room: Tensor | None = None  # in a worker process: the shared memory in which the buffer lies

    @classmethod
    def of(cls, samples: Sequence[Sample], unreadable: list[Unreadable]) -> Batch:
        """Pack the images of `samples`, by a copy."""
        packing = Packing(len(samples), sum(sample.image.nbytes for sample in samples))
        for sample in samples:
            packing.room(sample.image.shape[0], sample.image.shape[1])[...] = sample.image.numpy()
            packing.keep(sample.index)
        return packing.batch(unreadable)

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[object, ...]]:
        """Leave the process; from a worker in its room, which is held where it arrives."""
        there = (self.buffer, None) if self.room is None else (self.room, len(self.buffer))
        return _arrived, (*there, self.size, self.unreadable, self.seconds, self.host_index)

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


class Packing:
    """A batch in the making: each image is written straight to where it stays.

    In a worker process that is shared memory.

    Args:
        size: B.
        pixels: bytes that the images are expected to take; more of them are paid for by a copy.
    """

    def __init__(self, size: int, pixels: int = 0) -> None:
        self._rows = np.zeros((_ROWS, size), np.int64)
        self._kept = 0  # images
        self._end = self._rows.nbytes  # of what is kept
        self._sides = (0, 0)  # of the image that is being written
        self._allocate(self._end + pixels)

    def room(self, height: int, width: int) -> Pixels:
        """Give the place of the next image, uint8 [height, width, 3]; it may be asked for again."""
        self._sides = (height, width)
        end = self._end + 3 * height * width
        if end > len(self._bytes):
            written, room = self._bytes[: self._end], self._room
            self._allocate(2 * end)
            self._bytes[: self._end] = written
            if room is not None:
                _ROOMS.give_back(room)
        return self._bytes[self._end : end].reshape(height, width, 3)

    def keep(self, number: int) -> None:
        """Let what was written to the place given last be the next image, with its `number` in the source."""
        height, width = self._sides
        self._rows[:, self._kept] = number, self._end - self._rows.nbytes, height, width
        self._kept += 1
        self._end += 3 * height * width

    def batch(self, unreadable: list[Unreadable], seconds: float = 0.0) -> Batch:
        """Give the batch, of as many images as were announced."""
        self._bytes[: self._rows.nbytes] = self._rows.reshape(-1).view(np.uint8)
        return Batch(self._memory[: self._end], self._kept, unreadable, seconds, room=self._room)

    def _allocate(self, length: int) -> None:
        if get_worker_info() is None or not length:
            self._memory, self._room = torch.empty(length, dtype=torch.uint8), None
        else:
            self._room = _ROOMS.take(length)
            self._memory = content(self._room)
        self._bytes: NDArray[np.uint8] = self._memory.numpy()


def _arrived(there: Tensor, length: int | None, *others: Any) -> Batch:
    return Batch(there if length is None else held(there, length), *others)


_ROOMS = Rooms()  # of this process, if it is a worker
