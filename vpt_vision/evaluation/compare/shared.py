"""Work that several processes share: each piece is done once, by whichever of them gets to it first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")
PAUSE = 0.2  # seconds between two looks at what others are at


@dataclass(frozen=True)
class Work(Generic[T]):
    """A piece of work that leaves its result on disk, and reads it back where it is there already."""

    place: str  # where that is; two pieces of one place are never done at once
    do: Callable[[], T]


def shared(works: Sequence[Work[T]], locks: Path) -> list[T]:
    """Return the results of `works`, in their order, sharing them with every process that does the same.

    A process leaves out what another is at, and comes back to it until it is there. A process that dies lets
    go of its locks, which lie in the folder `locks`: what it was at is then taken up by another.
    """
    locks.mkdir(parents=True, exist_ok=True)
    found: dict[int, T] = {}
    while True:
        for number, work in enumerate(works):
            name = hashlib.sha256(str(Path(work.place).resolve()).encode()).hexdigest()[:16]
            lock = FileLock(locks / f"{name}.lock")
            if number in found or not _acquired(lock):
                continue
            try:
                found[number] = work.do()
            finally:
                lock.release()
        if len(found) == len(works):
            return [found[number] for number in range(len(works))]
        time.sleep(PAUSE)


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
