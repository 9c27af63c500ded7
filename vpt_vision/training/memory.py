"""Host memory in use."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

MEGABYTE = 2**20


def host_memory_mb() -> float | None:
    """Memory of this process, and what its worker processes hold for themselves, in MiB.

    None where the system does not tell (it is Linux that does).
    """
    try:
        resident, _ = _pages("self")
    except OSError:
        return None
    for child in multiprocessing.active_children():
        try:
            theirs, shared = _pages(str(child.pid))
        except OSError:  # it has just ended
            continue
        resident += theirs - shared
    return resident * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def _pages(process: str) -> tuple[int, int]:
    """Pages that a process has in memory, and those of them that it shares (proc(5), statm)."""
    _, resident, shared, *_ = (Path("/proc") / process / "statm").read_text().split()
    return int(resident), int(shared)
