"""States of a designer over its run, kept so that what it asked early and late can be drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpt_vision.training.checkpoint import read_checkpoint

DESIGNER_FOLDER = "designers"
_NAME = re.compile(r"step_(\d{8})\.pt")


def kept_after(steps: int, count: int) -> set[int]:
    """The `count` steps of a run of `steps` after which its designer is kept, evenly spaced, the last too."""
    return {round(steps * number / count) for number in range(1, count + 1)} - {0}


def keep_designer(output: Path, step: int, designer: nn.Module) -> None:
    """Write `designer` as it is after `step` learner updates into the run's folder, whole or not at all."""
    path = output / DESIGNER_FOLDER / f"step_{step:08d}.pt"
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    torch.save({"step": step, "designer": designer.state_dict()}, part)
    part.replace(path)


def kept_designers(output: Path) -> dict[int, dict[str, Any]]:
    """State of the run's designer after each of the steps at which it was kept, in order."""
    paths = sorted(
        path for path in (output / DESIGNER_FOLDER).glob("step_*.pt") if _NAME.fullmatch(path.name)
    )
    states = [read_checkpoint(path) for path in paths]
    return {state["step"]: state["designer"] for state in states}
