"""Value fidelity: predicted and realised change of downstream loss over a step of the learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_vision.feedback import FeedbackTask, Split, evaluating
from vpt_vision.learner.backbone import Backbone, Features, TailInput

CHUNK = 256  # images per forward pass
WATCHED: tuple[Split, ...] = ("meta", "heldout")

Losses = dict[tuple[str, Split], float]  # of each task on each split that is watched


class _Seen(NamedTuple):
    """One set of images, as far as it need be looked at once only."""

    images: Tensor  # [N, 3, s, s]
    trunk: list[TailInput]  # a chunk each


class Downstream:
    """L_down of every task on many examples, at a backbone's parameters of one's choice; heads are fixed.

    Tasks that look at the same images share their features.

    Args:
        tasks: with heads fitted to `backbone` as it stands.
        backbone: a student's; left as it is.
        tail_blocks: S is this many last blocks and the final norm.
        examples: the most of each split that are looked at.
    """

    def __init__(
        self, tasks: Mapping[str, FeedbackTask], backbone: Backbone, tail_blocks: int, examples: int
    ) -> None:
        self.tasks = tasks
        self.backbone = backbone
        self.index = {
            (name, split): torch.arange(min(examples, task.count(split)))
            for name, task in tasks.items()
            for split in WATCHED
        }
        self._seen: list[_Seen] = []
        self._number: dict[tuple[str, Split], int] = {}  # of what each task and split look at
        device = backbone.mask_token.device
        with torch.no_grad(), evaluating(backbone):
            for (name, split), index in self.index.items():
                images = tasks[name].images(split, index, device)
                known = [n for n, seen in enumerate(self._seen) if torch.equal(seen.images, images)]
                if not known:
                    trunk = [backbone.trunk(chunk, None, tail_blocks) for chunk in torch.split(images, CHUNK)]
                    self._seen.append(_Seen(images, trunk))
                self._number[name, split] = known[0] if known else len(self._seen) - 1

    @torch.no_grad()
    def losses(self) -> Losses:
        """Losses at the backbone's parameters as they now are."""
        with evaluating(self.backbone):
            return self._losses(
                [
                    _joined([self.backbone(chunk, None) for chunk in torch.split(seen.images, CHUNK)])
                    for seen in self._seen
                ]
            )

    @torch.no_grad()
    def losses_with(self, tail: Mapping[str, Tensor]) -> Losses:
        """Losses with `tail` for θ_S, below which the backbone is what it was when this was made."""
        with evaluating(self.backbone):
            return self._losses(
                [
                    _joined([self.backbone.tail(chunk, dict(tail)) for chunk in seen.trunk])
                    for seen in self._seen
                ]
            )

    def _losses(self, features: list[Features]) -> Losses:
        return {
            (name, split): float(self.tasks[name].loss(features[self._number[name, split]], split, index))
            for (name, split), index in self.index.items()
        }


def _joined(chunks: list[Features]) -> Features:
    return Features(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def first_share(optimiser: torch.optim.AdamW) -> float:
    """Share of a gradient's whole effect that AdamW's next step has of it: (1 - β1) / (1 - β1^t) at step t.

    The rest comes in later steps, through the first moment; `preconditioner.adamw_step` counts all of it. All
    parameters that have been moved are taken to have been moved equally often. Waits for the device.
    """
    beta1 = optimiser.param_groups[0]["betas"][0]
    past = max((float(state["step"]) for state in optimiser.state.values()), default=0.0)
    return float((1 - beta1) / (1 - beta1 ** (past + 1)))
