"""A designer of one's own, named in the config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vpt_vision.designers.designer import Designer
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.errors import UserError
from vpt_vision.factory import Factory, import_factory
from vpt_vision.schema import Config


class CustomDesignerConfig(Config):
    """A designer of your own."""

    kind: Literal["custom"] = Field(description="a designer of your own")
    factory: Factory = Field(
        description="package.module:callable, called with recipe, patch_size and `options`; makes a Designer"
    )
    options: dict[str, Any] = Field({}, description="further arguments of the callable")


def custom_designer(config: CustomDesignerConfig, recipe: RecipeConfig, patch_size: int) -> Designer:
    """Build the designer; raises `UserError` where `factory` cannot be imported or returns none."""
    designer = import_factory(config.factory)(recipe=recipe, patch_size=patch_size, **config.options)
    if not isinstance(designer, Designer):
        raise UserError(
            f"designer.factory {config.factory} returned {type(designer).__name__}: it should return a "
            "vpt_vision.designers.Designer."
        )
    return designer
