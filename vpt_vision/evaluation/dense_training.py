"""Heads on patch features: trained at once for several learning rates, one picked on validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseConfig, DenseFeatures

_LOG = logging.getLogger(__name__)

WARMUP = 1500 / 40_000  # share of the steps over which the learning rate rises, as DINOv2's

# A head maps patches fp32 [B, T, D] and CLS fp32 [B, D'] to answers [B, T, K].
Loss = Callable[[Tensor, Tensor], Tensor]  # answers [B, T, K] of windows int64 [B] → scalar


class Picked(NamedTuple):
    """A head, and how it came about."""

    head: nn.Module
    learning_rate: float
    validation: float  # of the heads of that learning rate, on the validation images


def train_and_pick(
    features: DenseFeatures,
    config: DenseConfig,
    *,
    make: Callable[[], nn.Module],
    loss: Loss,
    judge: Callable[[nn.Module, Sequence[int]], float],
    device: torch.device,
) -> Picked:
    """Train a head for each learning rate, pick one, and train one of its kind on all images.

    Args:
        features: of the train split.
        config: learning rates, epochs and the like.
        make: makes a head with initial weights that do not differ from call to call.
        loss: of a head's answers to some windows.
        judge: a head's figure over images, higher better; called with validation images alone.
        device: where heads are trained.

    Raises `UserError` where there are too few images, or every head diverged.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(config.seed))
    held = max(1, round(config.validation * len(features)))
    if held >= len(features):
        raise UserError(
            f"a probe with a validation part needs at least 2 train images, and has {len(features)}."
        )
    validation, fitted = order[:held].sort().values.tolist(), order[held:]
    heads = train_heads(
        [make() for _ in config.learning_rates],
        config.learning_rates,
        features,
        torch.isin(features.owner, fitted).nonzero()[:, 0],
        loss,
        config,
        device,
    )
    judged = [judge(head, validation) for head in heads]
    best = max(range(len(heads)), key=lambda place: -math.inf if math.isnan(judged[place]) else judged[place])
    if not all(bool(parameter.isfinite().all()) for parameter in heads[best].parameters()):
        raise UserError("every head of the probe diverged: lower its learning_rates.")
    rate = config.learning_rates[best]
    if len(config.learning_rates) > 1 and rate in (min(config.learning_rates), max(config.learning_rates)):
        _LOG.info("learning rate %g, an end of the grid, was picked: a wider one may do better", rate)
    (final,) = train_heads(
        [make()], [rate], features, torch.arange(len(features.owner)), loss, config, device
    )
    return Picked(final, rate, judged[best])


def train_heads(
    heads: Sequence[nn.Module],
    learning_rates: Sequence[float],
    features: DenseFeatures,
    windows: Tensor,
    loss: Loss,
    config: DenseConfig,
    device: torch.device,
) -> list[nn.Module]:
    """Train heads on the same batches of `windows` int64 [W], each with its learning rate.

    AdamW; the learning rate rises linearly, then falls linearly to 0, as in DINOv2's segmentation. Heads come
    back in eval mode.
    """
    heads = [head.to(device).train() for head in heads]
    optimiser = torch.optim.AdamW(
        [{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, learning_rates, strict=True)],
        weight_decay=config.weight_decay,
    )
    steps = config.epochs * math.ceil(len(windows) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, steps))
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        shuffled = windows[torch.randperm(len(windows), generator=generator)]
        for rows in torch.split(shuffled, config.batch_size):
            patches, cls = (part[rows].to(device).float() for part in (features.patches, features.cls))
            total = torch.stack([loss(head(patches, cls), rows) for head in heads]).sum()
            optimiser.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return [head.eval() for head in heads]


@torch.no_grad()
def answers(head: nn.Module, features: DenseFeatures, image: int) -> Tensor:
    """What a head answers to each window of an image, as maps [V, K, g, g] on the head's device."""
    windows = features.windows(image)
    device = next(head.parameters()).device
    patches, cls = (part[windows].to(device).float() for part in (features.patches, features.cls))
    found: Tensor = head(patches, cls)
    side = math.isqrt(found.shape[1])
    return found.mT.reshape(len(found), -1, side, side)


def _factor(step: int, steps: int) -> float:
    """Share of the learning rate at `step`: a linear rise over `WARMUP`, a linear fall to 0 at the end."""
    rise = max(1.0, WARMUP * steps)
    return min((step + 1) / rise, 1.0) * (1 - step / steps)
