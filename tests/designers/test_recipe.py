from __future__ import annotations

import pytest
from pydantic import ValidationError

from vpt_vision.designers import RecipeConfig


def test_defaults_are_the_published_recipe() -> None:
    recipe = RecipeConfig()
    global_kind, local_kind = recipe.view_kinds()
    assert (global_kind.views, global_kind.size, global_kind.scale) == (2, 224, (0.32, 1.0))
    assert (local_kind.views, local_kind.size, local_kind.scale) == (8, 96, (0.05, 0.32))
    assert global_kind.blur_p == (1.0, 0.1)
    assert global_kind.solarize_p == (0.0, 0.2)
    assert local_kind.blur_p == (0.5,) * 8
    assert local_kind.solarize_p == (0.0,) * 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crops": {"global_views": 3}}, "global_blur_p holds 2 probabilities"),
        ({"crops": {"global_scale": [0.5, 0.2]}}, "lower end 0.5 lies above"),
        ({"crops": {"local_scale": [0.0, 0.2]}}, "greater than 0"),
        ({"crops": {"ratio": [0.5, -1]}}, "greater than 0"),
        ({"photometrics": {"hue": 0.6}}, "less than or equal to 0.5"),
        ({"photometrics": {"grey_p": 1.5}}, "less than or equal to 1"),
        ({"masks": {"kind": "blocks"}}, "'block' or 'random'"),
        ({"masks": {"share": 0.5}}, "Extra inputs"),
    ],
)
def test_refuses_what_is_no_recipe(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RecipeConfig.model_validate(settings)
