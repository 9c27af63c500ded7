"""Known-good and known-bad crops as designers that a config can name (`designer.kind: custom`)."""

from __future__ import annotations

from typing import Any

from vpt_vision.data import FashionScenesConfig, build_source
from vpt_vision.designers import Designer, RecipeConfig
from vpt_vision.value.known import known_policies


def towards(recipe: RecipeConfig, patch_size: int, scenes: dict[str, Any]) -> Designer:
    """The recipe with crops drawn to the salient garment of `scenes`, which the run trains on."""
    return _known(recipe, patch_size, scenes, 1)


def away(recipe: RecipeConfig, patch_size: int, scenes: dict[str, Any]) -> Designer:
    """The recipe with crops drawn away from the salient garment."""
    return _known(recipe, patch_size, scenes, -1)


def _known(recipe: RecipeConfig, patch_size: int, scenes: dict[str, Any], sign: int) -> Designer:
    source = build_source(FashionScenesConfig.model_validate(scenes))
    policies, _ = known_policies(recipe, patch_size, source, ("crops",))
    return next(policy.designer for policy in policies if policy.towards == sign)
