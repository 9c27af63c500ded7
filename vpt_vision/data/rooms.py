"""Shared memory in which batches leave a worker process, used again as soon as nobody looks into it."""

from __future__ import annotations

import os
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 4  # rooms that a worker keeps: two are on their way, as `DataLoader` asks ahead, two with the reader
SLACK = 1.25  # how much larger a room is than what it is made for: batches differ in size
HEADER = 64  # bytes before the content, the first of them 1 while someone may look into it


class Rooms:
    """The rooms of one worker process; a room is a uint8 tensor in shared memory.

    New shared memory costs half as much time as decoding photos into it does: the system clears and maps it
    page by page. So a worker writes where it has written before, once that was read out. Where all that
    it keeps is still held, or too small, it makes a new room; nothing is overwritten that somebody holds.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def take(self, length: int) -> Tensor:
        """Give a room for `length` bytes or more, which hold anything."""
        free = [place for place, room in enumerate(self._kept) if not room[0]]
        for place in free:
            if len(content(self._kept[place])) >= length:
                room = self._kept[place]
                break
        else:
            # As torch's own collate function does.
            shared = torch.UntypedStorage._new_shared(HEADER + int(SLACK * length))  # type: ignore[no-untyped-call]
            room = torch.empty(0, dtype=torch.uint8).set_(shared)
            room.zero_()  # maps all its pages now: memory stays level, however full the room becomes later
            if free:
                self._kept[free[0]] = room  # in place of one that is too small
            elif len(self._kept) < MOST:
                self._kept.append(room)
        room[0] = 1
        return room

    def give_back(self, room: Tensor) -> None:
        """Take a room back that never left the process."""
        room[0] = 0


def content(room: Tensor) -> Tensor:
    """What may be written to, uint8."""
    return room[HEADER:]


def held(room: Tensor, length: int) -> Tensor:
    """The first `length` bytes of the content of a room that came from a worker, uint8 [length].

    The worker writes to the room again once the tensor, its views and all that shares their memory are gone.
    """
    memory = room.numpy()
    bytes_ = memory[HEADER : HEADER + length]
    weakref.finalize(bytes_, _free, memory[:1], os.getpid()).atexit = False
    return torch.from_numpy(bytes_)  # its storage holds on to `bytes_`


def _free(taken: NDArray[np.uint8], holder: int) -> None:
    if os.getpid() == holder:  # a process forked off meanwhile lets go of copies only
        taken[0] = 0
