"""A hash that changes whenever what a source holds does, for what is kept of a source to be found again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def fingerprint(*parts: str | NDArray[np.generic]) -> str:
    """SHA-256 over texts, and over the dtype, shape and bytes of arrays."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data, header = part.encode("utf-8", "surrogateescape"), f"text {len(part)}"
        else:
            data, header = part.tobytes(), f"{part.dtype} {part.shape}"
        state.update(header.encode() + b"\n" + data)
    return state.hexdigest()


def stamp(path: Path) -> tuple[int, int]:
    """Length in bytes and time of the last change, nanoseconds; (-1, -1) for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
