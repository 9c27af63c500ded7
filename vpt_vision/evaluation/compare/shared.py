"""Work that several processes share: each piece is done once, by whichever of them gets to it first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")


@dataclass(frozen=True)
class Work(Generic[T]):
    """A piece of work that leaves its result on disk, and reads it back where it is there already."""

    place: str  # where that is; two pieces of one place are never done at once
    do: Callable[[], T]


def shared(works: Sequence[Work[T]], locks: Path) -> list[T]:
    """Return the results of `works`, in their order, sharing them with every process that does the same.

    A process leaves out what another is at, and comes back to it at the end, when it waits for it. A process
    that dies lets go of its locks, which lie in the folder `locks`: what it was at is then taken up by
    another.
    """
    locks.mkdir(parents=True, exist_ok=True)
    found: dict[int, T] = {}
    for wait in (False, True):
        for number, work in enumerate(works):
            name = hashlib.sha256(work.place.encode()).hexdigest()[:16]
            if number not in found:
                try:
                    with FileLock(locks / f"{name}.lock", blocking=wait):
                        found[number] = work.do()
                except Timeout:
                    continue
    return [found[number] for number in range(len(works))]
