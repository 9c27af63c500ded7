"""A policy: the law of tasks that a designer sets for one batch of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vpt_vision.designers.mask_ratio import RatioBend, RatioLaw
from vpt_vision.designers.masks import MaskBend, MaskLaw
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.targets import TargetBend, TargetLaw
from vpt_vision.designers.views import ViewBend, ViewLaw
from vpt_vision.task import Keys, Masks, Targets, Task, Views

Surface = Literal["crops", "photometrics", "masks", "mask_ratio", "targets"]


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
        self.mask_ratio = RatioLaw(recipe.masks, global_kind, self.masks.side**2)
        self.targets = TargetLaw()


@dataclass(frozen=True)
class Policy:
    """The law of the tasks of one batch: the recipe's laws, bent for every image.

    A task drawn from it depends on an image, its bends and its key alone, never on the rest of the batch; but
    the weights of images, if they are bent, have mean 1 over it.
    """

    laws: RecipeLaws
    surfaces: frozenset[Surface]  # those the designer controls: what `kl` and `describe` speak of
    global_bend: ViewBend
    local_bend: ViewBend
    mask_bend: MaskBend | None
    ratio_bend: RatioBend | None
    target_bend: TargetBend | None
    heights: Tensor  # [B] int64: of the source images, pixels
    widths: Tensor  # [B] int64

    def sample(self, keys: Keys) -> Task:
        """Draw the task of `keys`; differentiable in the bends wherever a `Task` is."""
        there = keys._replace(samples=keys.samples.to(self.heights.device, non_blocking=True))
        global_views = self.laws.global_views.draw(there, self.global_bend, self.heights, self.widths)
        local_views = self.laws.local_views.draw(there, self.local_bend, self.heights, self.widths)
        counts = self.laws.mask_ratio.draw(keys, self.ratio_bend, self.heights.device)
        masks = self.laws.masks.draw(keys, self.mask_bend, counts, global_views, self.heights, self.widths)
        return Task(global_views, local_views, masks, self._targets(global_views, masks))

    def kl(self) -> dict[Surface, Tensor]:
        """KL [B] in nats of each controlled surface's law to the recipe's; each law says what it counts."""
        return self._each(lambda law, bend: law.kl(bend))

    def entropy(self) -> dict[Surface, Tensor]:
        """Entropy [B] in nats of each controlled surface's law less the recipe's: 0 where nothing is bent.

        At or below 0 but where the recipe has rare or frequent events that a bend makes more even. Each law
        says what it counts.
        """
        return self._each(lambda law, bend: law.entropy(bend))

    def log_prob(self, task: Task, keys: Keys) -> dict[Surface, Tensor]:
        """Log density [B] of each controlled surface's part of `task`, which `sample(keys)` drew.

        Targets have none: nothing of them is drawn.
        What was drawn is made anew from the keys and held; the gradient goes to the bends: the score of
        each image's draws. Each law says what its density is of.
        """
        log_prob: dict[Surface, Tensor] = {}
        there = keys._replace(samples=keys.samples.to(self.heights.device, non_blocking=True))
        size = (self.heights, self.widths)
        kinds = self._kinds()
        if "crops" in self.surfaces:
            each = [law.crops.log_prob(there, bend.crops, *size) for law, bend in kinds]
            log_prob["crops"] = torch.stack(each).sum(0)
        if "photometrics" in self.surfaces:
            each = [law.photometrics.log_prob(there, bend.photometrics) for law, bend in kinds]
            log_prob["photometrics"] = torch.stack(each).sum(0)
        if self.mask_bend is not None:
            counts = self.laws.mask_ratio.draw(keys, self.ratio_bend, there.samples.device)
            log_prob["masks"] = self.laws.masks.log_prob(
                keys, self.mask_bend, counts, task.global_views, *size
            )
        if self.ratio_bend is not None:
            log_prob["mask_ratio"] = self.laws.mask_ratio.log_prob(there, self.ratio_bend)
        return log_prob

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
        if self.ratio_bend is not None:
            described = self.laws.mask_ratio.describe(self.ratio_bend)
            scalars |= {f"masks/{name}": value for name, value in described.items()}
        if self.target_bend is not None:
            described = self.laws.targets.describe(self.target_bend)
            scalars |= {f"targets/{name}": value for name, value in described.items()}
        return scalars

    def _targets(self, views: Views, masks: Masks) -> Targets:
        if self.target_bend is None:
            return Targets()
        logits = None
        if self.target_bend.field is not None:
            logits = self.laws.masks.in_views(
                self.target_bend.field, views, self.heights, self.widths
            ).flatten(2)
        return self.laws.targets.draw(self.target_bend, logits, masks)

    def _each(self, ask: Callable[[Any, Any], Tensor]) -> dict[Surface, Tensor]:
        """Ask the law of each controlled surface about its bend; answers are summed over kinds of views."""
        answers: dict[Surface, Tensor] = {}
        kinds = self._kinds()
        if "crops" in self.surfaces:
            answers["crops"] = torch.stack([ask(law.crops, bend.crops) for law, bend in kinds]).sum(0)
        if "photometrics" in self.surfaces:
            each = [ask(law.photometrics, bend.photometrics) for law, bend in kinds]
            answers["photometrics"] = torch.stack(each).sum(0)
        if self.mask_bend is not None:
            answers["masks"] = ask(self.laws.masks, self.mask_bend)
        if self.ratio_bend is not None:
            answers["mask_ratio"] = ask(self.laws.mask_ratio, self.ratio_bend)
        if self.target_bend is not None:
            answers["targets"] = ask(self.laws.targets, self.target_bend)
        return answers

    def _kinds(self) -> list[tuple[ViewLaw, ViewBend]]:
        """Pair each kind of view that the recipe has with its bend."""
        both = [(self.laws.global_views, self.global_bend), (self.laws.local_views, self.local_bend)]
        return [(law, bend) for law, bend in both if law.kind.views]
