"""Linear probe as DINOv2 runs it: a grid of classifiers trained at once by SGD, one picked on validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.evaluation.splits import count_classes, validation_part
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)

MOMENTUM = 0.9
INITIAL_DEVIATION = 0.01  # of the weights; biases start at 0
SCALED_TO = 256  # images: learning rates are those of batches of so many


class LinearProbeConfig(Config):
    """The grid of linear classifiers and their training; defaults are DINOv2's."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
        min_length=1,
        description="learning rates at a batch of 256; they grow with the batch",
    )
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 4), min_length=1, description="numbers of last blocks whose CLS tokens are read side by side"
    )
    mean_patch: tuple[bool, ...] = Field(
        (False, True), min_length=1, description="whether the mean patch token is read beside them"
    )
    epochs: int = Field(10, ge=1, description="passes over the train split")
    batch_size: int = Field(128, ge=1, description="images per SGD step")
    validation: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="share of each class of the train split on which a classifier is picked",
    )
    seed: int = Field(0, ge=0, description="of initial weights and of the order of images")


@dataclass(frozen=True)
class Choice:
    """One point of the grid."""

    learning_rate: float
    blocks: int
    mean_patch: bool


def linear_probe(
    train: ProbeFeatures,
    test: ProbeFeatures,
    config: LinearProbeConfig,
    *,
    device: torch.device | None = None,
) -> ProbeResult:
    """Train the whole grid on `train`, pick one, classify `test`.

    As DINOv2 (Oquab et al. 2023, appendix; its `eval/linear.py`): every learning rate × CLS alone or with the
    mean patch × CLS of the last 1 or 4 blocks is a classifier of its own; all are trained at once on the same
    batches by SGD with momentum 0.9, no weight decay and half a cosine down to 0. The one of highest
    accuracy on a part of the train split that is held out is picked (of equal ones, that of lowest
    cross-entropy) and trained again on the whole split. Other than there, features are of each whole
    image, without random crops and flips, and the test split decides nothing. Computed in fp32 on
    `device` (the CPU where it is None).

    Numbers of blocks above those in the features are left out, which the log says.

    Raises `UserError` where a class of the test split has no train image, the train split is too small
    to hold a part out, no number of blocks is left, or every classifier diverged.
    """
    classes = count_classes(train.labels, test.labels)
    available = train.block_cls.shape[1]
    if missing := [count for count in config.blocks if count > available]:
        _LOG.warning(
            "The linear probe leaves out the last %s blocks: the encoder gives only %d",
            " and ".join(map(str, missing)),
            available,
        )
    grid = [
        Choice(rate, blocks, mean_patch)
        for blocks in config.blocks
        if blocks <= available
        for mean_patch in config.mean_patch
        for rate in config.learning_rates
    ]
    if not grid:
        raise UserError(
            f"the encoder gives its last block alone: add 1 to evaluation.linear.blocks {config.blocks}."
        )
    held = validation_part(train.labels, config.validation)
    heads = _train(grid, train[~held], classes, config, device)
    correct, losses = heads.judge(train[held])
    accuracy, loss = correct.double().mean(0), losses.mean(0).nan_to_num(nan=math.inf)
    best = min(range(len(grid)), key=lambda choice: (-accuracy[choice].item(), loss[choice].item()))
    if not loss[best].isfinite():
        raise UserError(
            "every classifier of the linear probe diverged: lower evaluation.linear.learning_rates."
        )
    picked = grid[best]
    ends = (min(config.learning_rates), max(config.learning_rates))
    if len(config.learning_rates) > 1 and picked.learning_rate in ends:
        _LOG.warning(
            "The linear probe picked learning rate %g at the end of its grid: a wider one, or other epochs, "
            "may do better.",
            picked.learning_rate,
        )
    final_correct, final_losses = _train([picked], train, classes, config, device).judge(test)
    return ProbeResult.of_classes(
        f"linear, {_name(picked)}",
        final_correct[:, 0],
        final_losses[:, 0],
        test.index,
        {"learning_rate": picked.learning_rate},
        {
            "blocks": picked.blocks,
            "mean_patch": picked.mean_patch,
            "validation_accuracy": accuracy[best].item(),
            "validation_cross_entropy": loss[best].item(),
        },
    )


class _Heads(nn.Module):
    """The classifiers of a grid; those that read the same are one matrix."""

    order: Tensor  # [G]: where each classifier of the grid stands among the groups

    def __init__(
        self, grid: list[Choice], features: ProbeFeatures, classes: int, config: LinearProbeConfig
    ) -> None:
        super().__init__()
        self.classes = classes
        self.groups: dict[tuple[int, bool], list[int]] = {}  # what is read → places in the grid
        for place, choice in enumerate(grid):
            self.groups.setdefault((choice.blocks, choice.mean_patch), []).append(place)
        self.layers = nn.ModuleList()
        for (blocks, mean_patch), places in self.groups.items():
            width = _read(features[torch.arange(1)], blocks, mean_patch).shape[1]
            layer = nn.Linear(width, classes * len(places))
            generator = torch.Generator().manual_seed(config.seed)  # a classifier starts the same in any grid
            one = torch.empty(classes, width).normal_(0, INITIAL_DEVIATION, generator=generator)
            layer.weight.data = one.repeat(len(places), 1)
            layer.bias.data.zero_()
            self.layers.append(layer)
        places = [place for group in self.groups.values() for place in group]
        self.register_buffer("order", torch.tensor(places).argsort(), persistent=False)

    def forward(self, features: ProbeFeatures) -> Tensor:
        """Logits [B, G, C] of each classifier in the order of the grid."""
        logits = [
            layer(_read(features, *read).to(self.order.device)).view(len(features), -1, self.classes)
            for read, layer in zip(self.groups, self.layers, strict=True)
        ]
        return torch.cat(logits, 1)[:, self.order]

    def losses(self, features: ProbeFeatures) -> tuple[Tensor, Tensor]:
        """Whether each classifier is right, and its cross-entropy, [B, G]."""
        logits = self(features)
        labels = features.labels.to(logits.device)[:, None].expand(logits.shape[:2])
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        return logits.argmax(2) == labels, losses

    @torch.no_grad()
    def judge(self, features: ProbeFeatures) -> tuple[Tensor, Tensor]:
        """`losses` of all images on the CPU: bool [N, G] and fp64 [N, G]."""
        parts = [self.losses(features[rows]) for rows in torch.split(torch.arange(len(features)), 1024)]
        correct, losses = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return correct, losses.double()


def _train(
    grid: list[Choice],
    features: ProbeFeatures,
    classes: int,
    config: LinearProbeConfig,
    device: torch.device | None,
) -> _Heads:
    heads = _Heads(grid, features, classes, config).to(device)
    scale = config.batch_size / SCALED_TO
    rates = torch.tensor([choice.learning_rate * scale for choice in grid], device=device)
    # SGD with momentum and without weight decay is linear in the gradient, so a classifier's learning rate
    # may as well weigh its loss: one optimiser then serves all.
    optimiser = torch.optim.SGD(heads.parameters(), lr=1.0, momentum=MOMENTUM)
    steps = config.epochs * math.ceil(len(features) / config.batch_size)
    for step, rows in enumerate(_batches(len(features), config)):
        optimiser.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * step / steps))
        _, losses = heads.losses(features[rows])
        optimiser.zero_grad()
        (losses.mean(0) * rates).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return heads


def _batches(count: int, config: LinearProbeConfig) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        yield from torch.split(torch.randperm(count, generator=generator), config.batch_size)


def _read(features: ProbeFeatures, blocks: int, mean_patch: bool) -> Tensor:
    """What a classifier reads, fp32 [B, D]."""
    parts = [features.block_cls[:, -blocks:].flatten(1)]
    if mean_patch:
        parts.append(features.mean_patch)
    return torch.cat(parts, 1).float()


def _name(choice: Choice) -> str:
    blocks = "CLS" if choice.blocks == 1 else f"CLS of {choice.blocks} blocks"
    return f"{blocks} + mean patch" if choice.mean_patch else blocks
