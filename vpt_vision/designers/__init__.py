"""Designers: what turns source images into self-supervised tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vpt_vision.designers.designer import Designer, Observed, Refined
from vpt_vision.designers.fixed import FixedDesigner, FixedDesignerConfig
from vpt_vision.designers.learned import LearnedDesigner, LearnedDesignerConfig
from vpt_vision.designers.policy import Policy, Surface
from vpt_vision.designers.recipe import CropsConfig, MasksConfig, PhotometricsConfig, RecipeConfig

DesignerConfig = Annotated[FixedDesignerConfig | LearnedDesignerConfig, Field(discriminator="kind")]


def build_designer(
    config: FixedDesignerConfig | LearnedDesignerConfig, recipe: RecipeConfig, *, patch_size: int
) -> Designer:
    """Build the designer that `config` describes over `recipe`, for a learner of `patch_size` pixels.

    Raises:
        UserError: the patches do not tile the global views, or the recipe is no start for the surfaces.
    """
    if isinstance(config, LearnedDesignerConfig):
        return LearnedDesigner(config, recipe, patch_size)
    return FixedDesigner(recipe, patch_size)


__all__ = [
    "CropsConfig",
    "Designer",
    "DesignerConfig",
    "FixedDesigner",
    "FixedDesignerConfig",
    "LearnedDesigner",
    "LearnedDesignerConfig",
    "MasksConfig",
    "Observed",
    "PhotometricsConfig",
    "Policy",
    "RecipeConfig",
    "Refined",
    "Surface",
    "build_designer",
]
