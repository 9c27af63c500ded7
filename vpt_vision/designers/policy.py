"""A policy: the law of tasks that a designer sets for one batch of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vpt_vision.designers.masks import MaskBend, MaskLaw
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.views import ViewBend, ViewLaw
from vpt_vision.task import Keys, Task

Surface = Literal["crops", "photometrics", "masks"]


class RecipeLaws(nn.Module):
    """The laws of the fixed recipe, each of them open to a bend.

    Raises `UserError` where the patches do not tile the global views.
    """

    def __init__(self, recipe: RecipeConfig, patch_size: int) -> None:
        super().__init__()
        global_kind, local_kind = recipe.view_kinds()
        self.global_views = ViewLaw(recipe, global_kind)
        self.local_views = ViewLaw(recipe, local_kind)
        self.masks = MaskLaw(recipe.masks, global_kind, patch_size)


@dataclass(frozen=True)
class Policy:
    """The law of the tasks of one batch: the recipe's laws, bent for every image.

    A task drawn from it depends on an image, its bends and its key alone, never on the rest of the batch.
    """

    laws: RecipeLaws
    surfaces: frozenset[Surface]  # those the designer controls: what `kl` and `describe` speak of
    global_bend: ViewBend
    local_bend: ViewBend
    mask_bend: MaskBend | None
    height: int  # of the source images, pixels
    width: int
    device: torch.device

    def sample(self, keys: Keys) -> Task:
        """Draw the task of `keys`; differentiable in the bends wherever a `Task` is."""
        there = keys._replace(samples=keys.samples.to(self.device, non_blocking=True))
        global_views = self.laws.global_views.draw(there, self.global_bend, self.height, self.width)
        local_views = self.laws.local_views.draw(there, self.local_bend, self.height, self.width)
        masks = self.laws.masks.draw(keys, self.mask_bend, global_views, self.height, self.width)
        return Task(global_views, local_views, masks)

    def kl(self) -> dict[str, Tensor]:
        """KL [B] in nats of each controlled surface's law to the recipe's; each law says what it counts."""
        kl: dict[str, Tensor] = {}
        kinds = self._kinds()
        if "crops" in self.surfaces:
            each = [law.crops.kl(bend.crops) for law, bend in kinds]
            kl["crops"] = torch.stack(each).sum(0)
        if "photometrics" in self.surfaces:
            each = [law.photometrics.kl(bend.photometrics) for law, bend in kinds]
            kl["photometrics"] = torch.stack(each).sum(0)
        if self.mask_bend is not None:
            kl["masks"] = self.laws.masks.kl(self.mask_bend)
        return kl

    def describe(self) -> dict[str, Tensor]:
        """Scalars to log, each a mean over the batch, such as `global/scale` and `local/blur_p`."""
        scalars: dict[str, Tensor] = {}
        for law, bend in self._kinds():
            described: dict[str, Tensor] = {}
            if "crops" in self.surfaces:
                described |= law.crops.describe(bend.crops)
            if "photometrics" in self.surfaces:
                described |= law.photometrics.describe(bend.photometrics)
            scalars |= {f"{law.kind.name}/{name}": value for name, value in described.items()}
        if self.mask_bend is not None:
            described = self.laws.masks.describe(self.mask_bend)
            scalars |= {f"masks/{name}": value for name, value in described.items()}
        return scalars

    def _kinds(self) -> list[tuple[ViewLaw, ViewBend]]:
        """Pair each kind of view that the recipe has with its bend."""
        both = [(self.laws.global_views, self.global_bend), (self.laws.local_views, self.local_bend)]
        return [(law, bend) for law, bend in both if law.kind.views]
