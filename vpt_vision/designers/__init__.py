"""Designers: what turns source images into self-supervised tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vpt_vision.designers.adversarial_masks import AdversarialMasksDesigner, AdversarialMasksDesignerConfig
from vpt_vision.designers.attention_masks import AttentionMasksDesigner, AttentionMasksDesignerConfig
from vpt_vision.designers.custom import CustomDesignerConfig, custom_designer
from vpt_vision.designers.designer import Designer, Observed, Refined
from vpt_vision.designers.fixed import FixedDesigner, FixedDesignerConfig, RandomMasksDesignerConfig
from vpt_vision.designers.hard_views import HardViewsDesigner, HardViewsDesignerConfig
from vpt_vision.designers.learned import LearnedDesigner, LearnedDesignerConfig
from vpt_vision.designers.policy import Policy, Surface
from vpt_vision.designers.recipe import CropsConfig, MasksConfig, PhotometricsConfig, RecipeConfig
from vpt_vision.designers.soft_mask import SoftMaskDesigner, SoftMaskDesignerConfig

AnyDesignerConfig = (
    FixedDesignerConfig
    | LearnedDesignerConfig
    | RandomMasksDesignerConfig
    | AttentionMasksDesignerConfig
    | AdversarialMasksDesignerConfig
    | HardViewsDesignerConfig
    | SoftMaskDesignerConfig
    | CustomDesignerConfig
)
DesignerConfig = Annotated[AnyDesignerConfig, Field(discriminator="kind")]


def build_designer(config: AnyDesignerConfig, recipe: RecipeConfig, *, patch_size: int) -> Designer:
    """Build the designer that `config` describes over `recipe`, for a learner of `patch_size` pixels.

    Raises:
        UserError: the patches do not tile the global views, or the recipe does not suit the designer.
    """
    match config:
        case LearnedDesignerConfig():
            return LearnedDesigner(config, recipe, patch_size)
        case RandomMasksDesignerConfig():
            masks = recipe.masks.model_copy(update={"kind": "random"})
            return FixedDesigner(recipe.model_copy(update={"masks": masks}), patch_size)
        case AttentionMasksDesignerConfig():
            return AttentionMasksDesigner(config, recipe, patch_size)
        case AdversarialMasksDesignerConfig():
            return AdversarialMasksDesigner(config, recipe, patch_size)
        case HardViewsDesignerConfig():
            return HardViewsDesigner(config, recipe, patch_size)
        case SoftMaskDesignerConfig():
            return SoftMaskDesigner(config, recipe, patch_size)
        case CustomDesignerConfig():
            return custom_designer(config, recipe, patch_size)
        case FixedDesignerConfig():
            return FixedDesigner(recipe, patch_size)


__all__ = [
    "AdversarialMasksDesigner",
    "AdversarialMasksDesignerConfig",
    "AttentionMasksDesigner",
    "AttentionMasksDesignerConfig",
    "CropsConfig",
    "CustomDesignerConfig",
    "Designer",
    "DesignerConfig",
    "FixedDesigner",
    "FixedDesignerConfig",
    "HardViewsDesigner",
    "HardViewsDesignerConfig",
    "LearnedDesigner",
    "LearnedDesignerConfig",
    "MasksConfig",
    "Observed",
    "PhotometricsConfig",
    "Policy",
    "RandomMasksDesignerConfig",
    "RecipeConfig",
    "Refined",
    "SoftMaskDesigner",
    "SoftMaskDesignerConfig",
    "Surface",
    "build_designer",
]
