"""HVP: of several candidate views, train on the pair that the learner finds hardest."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpt_kernels import Photometrics, keyed_uniform
from vpt_vision.designers.designer import Observed, Refined
from vpt_vision.designers.fixed import FixedDesigner
from vpt_vision.designers.policy import RecipeLaws
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.streams import Stream
from vpt_vision.errors import UserError
from vpt_vision.schema import Config
from vpt_vision.task import Keys, RenderedViews, Task, Views


class HardViewsDesignerConfig(Config):
    """Hard-view pretraining (HVP, Ferreira et al. 2023, arXiv 2310.03940) over the recipe."""

    kind: Literal["hard_views"] = Field(description="the hardest of several views for the learner (HVP)")
    global_candidates: int = Field(
        4, ge=2, multiple_of=2, description="global views drawn of each image; the learner trains on two"
    )
    local_candidates: int | None = Field(
        None, ge=0, description="local views drawn of each image; none: as many as the learner trains on"
    )
    comparisons: int = Field(
        0,
        ge=0,
        le=1024,
        description="random choices of views compared for each image; 0: all there are. A released config "
        "has 4 global and 16 local candidates for 2 and 10, and 64 comparisons",
    )


class HardViewsDesigner(FixedDesigner):
    """Draws candidates from the recipe and keeps the choice of the highest loss for the learner as it stands.

    Candidates alternate between the recipe's first and second global view; a choice is one of each and, where
    there are more local candidates than the recipe has local views, so many of these. Its loss is DINO's, of
    class tokens of unmasked views; a forward pass of student and teacher over all candidates is the price.
    Token masks belong to the two places, not to the candidates. Comparing all choices is exact: the hardest
    local views of a pair are those of the highest loss.

    Raises `UserError` where the recipe does not have two global views.
    """

    def __init__(self, config: HardViewsDesignerConfig, recipe: RecipeConfig, patch_size: int) -> None:
        crops, photometrics = recipe.crops, recipe.photometrics
        if crops.global_views != 2:
            raise UserError(
                f"a hard_views designer chooses pairs of global views, and recipe.crops.global_views is "
                f"{crops.global_views}: set it to 2."
            )
        locals_drawn = crops.local_views if config.local_candidates is None else config.local_candidates
        if locals_drawn < crops.local_views:
            raise UserError(
                f"designer.local_candidates {locals_drawn} is below recipe.crops.local_views "
                f"{crops.local_views}: draw at least as many as the learner trains on."
            )
        pairs = config.global_candidates // 2
        candidates = recipe.model_copy(
            update={
                "crops": crops.model_copy(
                    update={"global_views": config.global_candidates, "local_views": locals_drawn}
                ),
                "photometrics": photometrics.model_copy(
                    update={
                        "global_blur_p": photometrics.global_blur_p * pairs,
                        "global_solarize_p": photometrics.global_solarize_p * pairs,
                    }
                ),
            }
        )
        super().__init__(candidates, patch_size)
        drawn_as_usual = RecipeLaws(recipe, patch_size)
        self.laws.masks, self.laws.mask_ratio = drawn_as_usual.masks, drawn_as_usual.mask_ratio
        self.config = config
        self.local_views = crops.local_views

    def refine(
        self, task: Task, views: RenderedViews, keys: Keys, learner: Observed, temperature: float
    ) -> Refined:
        """Keep the hardest pair of global views, with the hardest local ones."""
        candidates = len(views.global_views)
        if candidates == 2 and len(views.local_views) == self.local_views:
            return Refined(task, views)
        losses = learner.cross_entropies(views, temperature)
        pairs = torch.cartesian_prod(torch.arange(0, candidates, 2), torch.arange(1, candidates, 2))
        first, second = pairs.to(losses.device, non_blocking=True).unbind(-1)
        of_pairs = losses[second, first] + losses[first, second]  # [P, B]
        of_locals = losses[candidates:, first] + losses[candidates:, second]  # [L', P, B]
        if self.config.comparisons:
            pair, locals_kept = self._hardest_of_some(of_pairs, of_locals, keys)
        else:
            pair, locals_kept = self._hardest(of_pairs, of_locals)
        globals_kept = torch.stack([first[pair], second[pair]])
        kept = replace(
            task,
            global_views=_keep(task.global_views, globals_kept),
            local_views=_keep(task.local_views, locals_kept),
        )
        return Refined(
            kept,
            RenderedViews(_take(views.global_views, globals_kept), _take(views.local_views, locals_kept)),
        )

    def _hardest(self, of_pairs: Tensor, of_locals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pair [B] and the local views [L, B] of the highest loss of all."""
        top = of_locals.topk(self.local_views, dim=0)  # [L, P, B]
        pair = (of_pairs + top.values.sum(0)).argmax(0)
        kept = top.indices.gather(1, pair.expand(self.local_views, 1, -1)).squeeze(1)
        return pair, kept.sort(0).values

    def _hardest_of_some(self, of_pairs: Tensor, of_locals: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """Return the pair [B] and the local views [L, B] of the highest loss among random choices."""
        choices, (drawn, _, batch) = self.config.comparisons, of_locals.shape
        samples = keys.samples.to(of_pairs.device, non_blocking=True)
        u = keyed_uniform(keys.seed, keys.step, samples, 2 * Stream.HARD_PAIR, choices).T
        pairs = (u * len(of_pairs)).long()  # [C, B]
        lots = keyed_uniform(keys.seed, keys.step, samples, 2 * Stream.HARD_LOCALS, choices * drawn)
        subsets = lots.view(batch, choices, drawn).argsort(-1)[..., : self.local_views].sort(-1).values
        subsets = subsets.permute(2, 1, 0)  # [L, C, B]
        of_these = of_locals.gather(1, pairs.expand(drawn, -1, -1))  # [L', C, B]
        best = (of_pairs.gather(0, pairs) + of_these.gather(0, subsets).sum(0)).argmax(0)
        kept = subsets.gather(1, best.expand(self.local_views, 1, -1)).squeeze(1)
        return pairs.gather(0, best[None]).squeeze(0), kept


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Take entry `index` [K, B] along the first axis of `values` [V, B, ...] for each image: [K, B, ...]."""
    return values[index, torch.arange(values.shape[1], device=values.device)]


def _keep(views: Views, index: Tensor) -> Views:
    return replace(
        views,
        boxes=_take(views.boxes, index),
        flips=_take(views.flips, index),
        photometrics=Photometrics(*(_take(field, index) for field in views.photometrics)),
    )
