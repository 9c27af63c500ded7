"""ADIOS: masks that a network learns so that the learner's loss is high."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.optim import AdamW, Optimizer

from vpt_vision.designers.designer import Observed, Refined
from vpt_vision.designers.fixed import FixedDesigner
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.designers.unet import UNet
from vpt_vision.schema import Config
from vpt_vision.task import Keys, Masks, RenderedViews, Task


class AdversarialMasksDesignerConfig(Config):
    """ADIOS (Shi et al. 2022, arXiv 2201.13100) over the recipe's views."""

    kind: Literal["adversarial_masks"] = Field(description="occlusions that raise the learner's loss (ADIOS)")
    masks: int = Field(6, ge=2, description="masks of a view, a softmax over them at each pixel; 4 or 6")
    forward: Literal["all", "one"] = Field(
        "all", description="all: the student sees every mask's view; one: one mask at random (ADIOS-s)"
    )
    sparsity_weight: float = Field(1.0, ge=0, description="price of 1 / sin(π · a mask's mean)")
    width: int = Field(16, ge=8, multiple_of=8, description="channels of the U-Net's first level")
    learning_rate: float = Field(
        1e-3, ge=0, description="of the designer's AdamW; ours, ADIOS trains with SGD"
    )
    weight_decay: float = Field(0.0, ge=0, description="of the designer's AdamW")


class AdversarialMasksDesigner(FixedDesigner):
    """Occludes the student's global views: v ⊙ (1 - m_n), with m = softmax over n of a U-Net's output for v.

    The teacher sees the views whole; local views and token masks stay the recipe's. The network ascends the
    learner's own loss less sparsity_weight / sin(π · mean m_n), which forbids masks of all or nothing; it
    reads no label. With forward all the student sees every view once for each mask, and loss and price are
    means over masks. With one it sees a single mask, drawn anew for each view, and the price is summed over
    the masks, as released. A hidden pixel has the colour that normalisation sends to 0.
    """

    learns_from: ClassVar = "loss"

    def __init__(self, config: AdversarialMasksDesignerConfig, recipe: RecipeConfig, patch_size: int) -> None:
        super().__init__(recipe, patch_size)
        self.config = config
        self.generator = UNet(recipe.crops.global_size, config.width, config.masks, whole_view=True)

    def refine(
        self, task: Task, views: RenderedViews, keys: Keys, learner: Observed, temperature: float
    ) -> Refined:
        """Occlude the global views that the student sees."""
        pixels = views.global_views
        with torch.autocast(pixels.device.type, enabled=False):
            logits = self.generator(pixels.flatten(0, 1))
            masks = torch.softmax(logits.view(*pixels.shape[:2], *logits.shape[1:]), dim=2)  # [G, B, M, S, S]
        shares = masks.mean((-2, -1))  # [G, B, M]
        prices = 1 / torch.sin(math.pi * shares).clamp(min=1e-6)
        if self.config.forward == "one":
            there = keys._replace(samples=keys.samples.to(pixels.device, non_blocking=True))
            u = draw(there, Stream.OCCLUSION, self.laws.masks.kind).squeeze(-1)
            number = (u * self.config.masks).long()[..., None, None, None]
            masks = masks.take_along_dim(number, dim=2)
            price = prices.sum(-1).mean()
        else:
            price = prices.mean()
        versions = masks.shape[2]
        occluded = pixels * (1 - masks.movedim(2, 0)[..., None, :, :])  # [versions, G, B, 3, S, S]
        hidden = task.masks.hidden.repeat(versions, 1, 1)
        return Refined(
            replace(task, masks=Masks.of(hidden, versions * task.masks.total)),
            views._replace(global_views=occluded.flatten(0, 1), teacher_views=pixels),
            penalties={"sparsity": self.config.sparsity_weight * price},
            figures={"largest_mask": shares.amax(2).mean()},
        )

    def optimiser(self) -> Optimizer:
        """Return AdamW over the U-Net."""
        config = self.config
        return AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
