"""The schedules of DINOv2 and DINOv3: learning rate, weight decay, teacher momentum and temperature."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import Field

from vpt_vision.schema import Config


class ScheduleConfig(Config):
    """What changes over a run. Lengths are shares of `steps`, so that a shortened run keeps its shape."""

    learning_rate: float = Field(
        1e-3, gt=0, description="peak learning rate, as given to AdamW (not scaled by batch size)"
    )
    final_learning_rate: float = Field(1e-6, ge=0, description="learning rate at the last step")
    warmup: float = Field(
        0.1, ge=0, le=1, description="share of the run over which the learning rate rises from 0"
    )
    weight_decay: float = Field(0.04, ge=0, description="weight decay at the first step")
    final_weight_decay: float = Field(0.2, ge=0, description="weight decay at the last step")
    momentum: float = Field(0.992, ge=0, le=1, description="EMA momentum of the teacher at the first step")
    final_momentum: float = Field(1.0, ge=0, le=1, description="EMA momentum of the teacher at the last step")
    teacher_temperature: float = Field(0.07, gt=0, description="temperature of the teacher after its warm-up")
    initial_teacher_temperature: float = Field(
        0.04, gt=0, description="temperature of the teacher at the first step"
    )
    teacher_temperature_warmup: float = Field(
        0.3, ge=0, le=1, description="share of the run over which it rises linearly"
    )
    freeze_prototypes: float = Field(
        0.01, ge=0, le=1, description="share of the run in which the heads' last layer stays as it is"
    )

    freeze_backbone: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the run in which the heads alone learn: new heads on a pretrained backbone "
        "spoil it before they fit it",
    )


class ScheduledValues(NamedTuple):
    """The scheduled quantities of one step."""

    learning_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    prototypes_frozen: bool
    backbone_frozen: bool


def scheduled_values(config: ScheduleConfig, step: int, steps: int) -> ScheduledValues:
    """Return the scheduled quantities at `step` (from 0) of a run of `steps`.

    Learning rate: linear warm-up, then half a cosine (DINO, Caron et al. 2021, section 3). Weight decay
    and momentum: half a cosine over the whole run. Teacher temperature: linear, then constant.
    """
    warmup_steps = round(config.warmup * steps)
    if step < warmup_steps:
        learning_rate = config.learning_rate * (step + 1) / warmup_steps
    else:
        after = _progress(step - warmup_steps, steps - warmup_steps)
        learning_rate = _cosine(config.learning_rate, config.final_learning_rate, after)
    progress = _progress(step, steps)
    temperature_steps = round(config.teacher_temperature_warmup * steps)
    rise = min(1.0, step / temperature_steps) if temperature_steps else 1.0
    return ScheduledValues(
        learning_rate=learning_rate,
        weight_decay=_cosine(config.weight_decay, config.final_weight_decay, progress),
        momentum=_cosine(config.momentum, config.final_momentum, progress),
        teacher_temperature=config.initial_teacher_temperature
        + rise * (config.teacher_temperature - config.initial_teacher_temperature),
        prototypes_frozen=step < config.freeze_prototypes * steps,
        backbone_frozen=step < config.freeze_backbone * steps,
    )


def _progress(step: int, steps: int) -> float:
    """Share of the way from the first step (0) to the last (1)."""
    return min(1.0, step / max(1, steps - 1))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
