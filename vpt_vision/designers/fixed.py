"""The fixed recipe as a designer: the baseline, and the prior of every learned one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers.designer import Designer
from vpt_vision.designers.policy import Policy, RecipeLaws
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.views import ViewBend
from vpt_vision.schema import Config


class FixedDesignerConfig(Config):
    """The recipe as it stands."""

    kind: Literal["fixed"] = Field("fixed", description="the recipe as it stands, the same for every image")


class RandomMasksDesignerConfig(Config):
    """The recipe with masks of patches chosen one by one."""

    kind: Literal["random_masks"] = Field(description="the recipe, hiding patches at random one by one")


class FixedDesigner(Designer):
    """Draws every task from the recipe, whatever the image."""

    def __init__(self, recipe: RecipeConfig, patch_size: int) -> None:
        super().__init__()
        self.laws = RecipeLaws(recipe, patch_size)

    def policy_of(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """Return the recipe's policy; there are no outputs."""
        recipe = ViewBend.none(len(images), images.device)
        return Policy(
            laws=self.laws,
            surfaces=frozenset(),
            global_bend=recipe,
            local_bend=recipe,
            mask_bend=None,
            ratio_bend=None,
            target_bend=None,
            heights=images.heights,
            widths=images.widths,
        )
