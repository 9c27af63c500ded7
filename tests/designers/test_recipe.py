from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from images import blank
from pydantic import ValidationError

from vpt_vision.designers import FixedDesigner, RecipeConfig
from vpt_vision.task import Keys


def test_defaults_are_the_published_recipe() -> None:
    recipe = RecipeConfig()
    global_kind, local_kind = recipe.view_kinds()
    assert (global_kind.views, global_kind.size, global_kind.scale) == (2, 224, (0.32, 1.0))
    assert (local_kind.views, local_kind.size, local_kind.scale) == (8, 96, (0.05, 0.32))
    assert global_kind.blur_p == (1.0, 0.1)
    assert global_kind.solarize_p == (0.0, 0.2)
    assert local_kind.blur_p == (0.5,) * 8
    assert local_kind.solarize_p == (0.0,) * 8


@given(
    st.floats(0.05, 1),
    st.floats(0.3, 1.5),
    st.floats(1, 3),
    st.integers(16, 256),
    st.floats(1, 4),
    st.booleans(),
)
def test_of_a_source_large_enough_no_view_is_enlarged(
    scale: float, lowest: float, stretch: float, size: int, aspect: float, upright: bool
) -> None:
    crops = {"global_size": size, "global_scale": [scale, 1.0], "ratio": [lowest, lowest * stretch]}
    recipe = RecipeConfig.model_validate({"crops": {**crops, "local_views": 0}})
    short = recipe.shorter_side()
    sides = [short, math.ceil(short * aspect)]
    images = blank(200, *(sides[::-1] if upright else sides))
    boxes = FixedDesigner(recipe, size)(images, Keys(0, 0, torch.arange(200))).global_views.boxes
    assert boxes[..., 2:].amin() >= size * (1 - 1e-5)


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
