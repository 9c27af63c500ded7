"""Checkpoints: written atomically, read back exactly."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from vpt_vision.errors import UserError
from vpt_vision.schema import Config

_NAME = re.compile(r"step_(\d{8})\.pt")


class CheckpointConfig(Config):
    """When the state of a run is written, and how much of it is kept."""

    every: int = Field(1000, ge=1, description="steps between checkpoints; the last step always writes one")
    keep: int = Field(2, ge=1, description="how many of the newest checkpoints stay on disk")
    designers: int = Field(
        6,
        ge=0,
        description="states of a learned designer kept for pictures, evenly over the run; 1.6 MB each",
    )


class Checkpoints:
    """The numbered checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` as the checkpoint of `step` learner updates, and drop the oldest.

        A kill at any moment leaves either the whole new file or none: it is written under another
        name, flushed to disk, and renamed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step_{step:08d}.pt"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        for old in self.paths()[: -self.config.keep]:
            old.unlink()
        return path

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return checkpoint_paths(self.folder)


def checkpoint_paths(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raises `UserError` where the file is missing or not one."""
    if not path.exists():
        raise UserError(f"{path} does not exist: name a run's output folder, or a checkpoint (.pt).")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen unrelated types on a damaged file
        raise UserError(
            f"{path} is not a readable checkpoint ({type(error).__name__}): name another, or delete it to go "
            "on from the one before."
        ) from error
    if not isinstance(state, dict) or "step" not in state:
        raise UserError(f"{path} is not a checkpoint of vpt-vision: it has no 'step' entry.")
    return state
