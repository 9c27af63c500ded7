"""A designer of one's own: built from its name in the config, refused in one sentence."""

import pytest
import torch

from vpt_kernels import PackedImages
from vpt_vision.config import load_config
from vpt_vision.designers import FixedDesigner, MasksConfig, RecipeConfig, build_designer
from vpt_vision.errors import UserError
from vpt_vision.task import Keys

RECIPE = RecipeConfig(masks=MasksConfig(kind="random"))


class Named(FixedDesigner):
    def __init__(self, recipe, patch_size, name):
        super().__init__(recipe, patch_size)
        self.name = name


def not_a_designer(recipe, patch_size):
    return recipe


def config(factory, **options):
    settings = {
        "output": "x",
        "steps": 1,
        "batch_size": 2,
        "data": {"train": {"kind": "fashion_scenes", "split": "train", "count": 8}},
        "learner": {},
        "designer": {"kind": "custom", "factory": factory, "options": options},
    }
    return load_config(settings).designer


def test_is_called_with_the_recipe_the_patch_size_and_its_options():
    designer = build_designer(config(f"{__name__}:Named", name="mine"), RECIPE, patch_size=16)
    assert isinstance(designer, Named) and designer.name == "mine"
    images = PackedImages.pack([torch.zeros(300, 260, 3, dtype=torch.uint8)] * 2)
    keys = Keys(0, 3, torch.arange(2))
    task = designer(images, keys)
    assert torch.equal(task.masks.hidden, FixedDesigner(RECIPE, 16)(images, keys).masks.hidden)


@pytest.mark.parametrize("factory", ["nowhere:Designer", f"{__name__}:Nobody"])
def test_one_that_is_not_there_is_named(factory):
    with pytest.raises(UserError, match=f"factory {factory} cannot be imported"):
        build_designer(config(factory), RECIPE, patch_size=16)


def test_what_is_no_designer_is_refused():
    with pytest.raises(UserError, match="returned RecipeConfig: it should return a"):
        build_designer(config(f"{__name__}:not_a_designer"), RECIPE, patch_size=16)


def test_a_name_without_a_colon_is_refused():
    with pytest.raises(UserError, match=r"designer\.factory"):
        config("mine.Designer")
