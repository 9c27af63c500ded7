"""AttMask: hide the patches that the teacher attends to."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.designers.designer import Observed, Refined
from vpt_vision.designers.fixed import FixedDesigner
from vpt_vision.designers.recipe import Probability, RecipeConfig
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.schema import Config
from vpt_vision.task import Keys, Masks, RenderedViews, Task


class AttentionMasksDesignerConfig(Config):
    """AttMask (Kakogeorgiou et al. 2022, arXiv 2203.12719) over the recipe's crops and photometrics."""

    kind: Literal["attention_masks"] = Field(description="masks by the teacher's attention (AttMask)")
    mode: Literal["high", "hints", "low"] = Field(
        "high", description="high: hide the most attended patches; hints: show some of them; low: the least"
    )
    hints: Probability = Field(
        0.1,
        description="mode hints: share of the patches, the most attended, among which hints are drawn, and "
        "share of the hidden ones that are shown again",
    )


class AttentionMasksDesigner(FixedDesigner):
    """Hides as many patches of a view as the recipe does, with its probability; attention says which.

    It is that of the teacher's last class token to the patches, the mean over heads. The published
    probability (0.5) and ratio (uniform on 0.1 to 0.5) are the recipe's defaults; in the released code one
    ratio holds for a batch, here each view draws its own. With hints a view shows floor(hints * hidden)
    patches again, drawn from its floor(hints * patches) most attended ones.
    """

    def __init__(self, config: AttentionMasksDesignerConfig, recipe: RecipeConfig, patch_size: int) -> None:
        super().__init__(recipe, patch_size)
        self.config = config

    def refine(
        self, task: Task, views: RenderedViews, keys: Keys, learner: Observed, temperature: float
    ) -> Refined:
        """Replace the masks of `task`."""
        attention = learner.cls_attention(views.global_views)
        host = keys.samples.device  # where the sum must be known
        counts = self.laws.mask_ratio.draw(keys, None, host).each
        low = self.config.mode == "low"
        hidden = _ranks(attention if low else -attention) < _on(attention, counts)
        if self.config.mode == "hints":
            hints = (self.config.hints * counts).long()
            hidden = hidden & ~self._shown(attention, counts, hints, keys)
            counts = counts - hints
        return Refined(replace(task, masks=Masks.of(hidden, int(counts.sum()))), views)

    def _shown(self, attention: Tensor, counts: Tensor, hints: Tensor, keys: Keys) -> Tensor:
        """Draw `hints` [G, B] of each view's most attended patches, all hidden ones: [G, B, N] bool."""
        patches = attention.shape[-1]
        eligible = counts.clamp(max=int(self.config.hints * patches))
        there = keys._replace(samples=_on(attention, keys.samples))
        lots = draw(there, Stream.HINT, self.laws.masks.kind, patches)
        lots = torch.where(_ranks(-attention) < _on(attention, eligible), lots, 1.0)
        return _ranks(lots) < _on(attention, hints)


def _ranks(values: Tensor) -> Tensor:
    """Rank of every entry along the last axis, 0 for the lowest; ties by place."""
    return values.argsort(dim=-1, stable=True).argsort(dim=-1)


def _on(like: Tensor, numbers: Tensor) -> Tensor:
    """Host `numbers` on the device of `like`, with an axis of patches where they are one a view."""
    there = numbers.to(like.device, non_blocking=True)
    return there[..., None] if there.ndim == like.ndim - 1 else there
