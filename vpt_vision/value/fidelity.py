"""Value fidelity: predicted and realised change of downstream loss over a step of the learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_vision.feedback import Direction, FeedbackTask, Split, evaluating, inner
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


def adamw_scales(
    optimiser: torch.optim.AdamW,
    state: Mapping[Tensor, Mapping[str, Tensor]],
    parameters: Mapping[str, Tensor],
) -> Direction:
    """How far AdamW's next step moves each parameter per unit of its gradient: P, as positive numbers.

    lr (1 - β1) / (1 - β1^t) / (√v̂ + ε) at step t with v̂ of the gradients before it: what the gradient itself
    adds to v̂ is of second order. Weight decay and the momentum of past gradients move the parameters too, by
    the same whatever the task.

    Args:
        optimiser: whose groups hold the learning rates of that step.
        state: the optimiser's state before that step; a parameter without any has not been trained yet.
        parameters: by name, those of interest.
    """
    group_of = {parameter: group for group in optimiser.param_groups for parameter in group["params"]}
    scales = {}
    for name, parameter in parameters.items():
        group, past = group_of[parameter], state.get(parameter)
        if past is None:
            scales[name] = torch.zeros_like(parameter)
            continue
        (beta1, beta2), t = group["betas"], past["step"] + 1
        deviation = (past["exp_avg_sq"] / (1 - beta2 ** past["step"])).sqrt()
        scales[name] = group["lr"] * (1 - beta1) / (1 - beta1**t) / (deviation + group["eps"])
    return scales


def predicted_change(u: Direction, scales: Direction, gradient: Direction) -> float:
    """-⟨P u, g⟩ over u's tensors, P the diagonal `scales`: the first-order change of L_down."""
    return -float(inner(u, {name: scales[name] * gradient[name] for name in u}))
