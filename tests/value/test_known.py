"""Policies whose worth is known: they are what they are called, and elsewhere nothing is claimed."""

import pytest
import torch

from vpt_kernels import PackedImages
from vpt_vision.data import FashionScenes, FashionScenesConfig, FolderConfig, Sample
from vpt_vision.designers import FixedDesigner, RecipeConfig
from vpt_vision.task import Keys
from vpt_vision.value.known import known_policies, object_share

SCENES = FashionScenesConfig(kind="fashion_scenes", split="train", count=40, size=64)
RECIPE = RecipeConfig.model_validate(
    {
        "crops": {"global_size": 32, "local_size": 16, "local_views": 2, "global_scale": [0.2, 0.4]},
        "masks": {"kind": "random", "probability": 1.0, "ratio": [0.2, 0.3]},
    }
)
ALL = ("crops", "photometrics", "masks", "targets")


@pytest.fixture(scope="module")
def source():
    return FashionScenes(SCENES)


@pytest.fixture(scope="module")
def policies(source):
    found, notes = known_policies(RECIPE, 8, source, ALL)
    assert notes == []
    return {(policy.surface, policy.towards): policy for policy in found}


@pytest.fixture(scope="module")
def batch(source):
    index = torch.arange(16)
    return PackedImages.pack([source[int(i)].image for i in index]), Keys(0, 3, index)


def salient(source, index):
    sample = source[index]
    return sample.segmentation == sample.label + 1


def share_in_boxes(task, source, index):
    """Mean share of the salient garment that local and global boxes show, over images and views."""
    shares = []
    for views in (task.global_views, task.local_views):
        for view in views.boxes:
            for (top, left, height, width), number in zip(view.tolist(), index.tolist(), strict=True):
                object_ = salient(source, number).float()
                rows, columns = (torch.arange(64) + 0.5 for _ in range(2))
                inside = ((rows > top) & (rows < top + height))[:, None] & (
                    (columns > left) & (columns < left + width)
                )
                shares.append((object_ * inside).sum() / object_.sum())
    return torch.stack(shares).mean().item()


def test_crops_are_drawn_to_the_object_or_far_from_it(policies, source, batch):
    images, keys = batch
    designers = [FixedDesigner(RECIPE, 8), *(policies["crops", towards].designer for towards in (1, -1))]
    recipe, good, bad = (share_in_boxes(d(images, keys), source, keys.samples) for d in designers)
    assert good > recipe + 0.1 and bad < recipe - 0.1


def test_masks_hide_the_object_or_the_ground(policies, source, batch):
    images, keys = batch
    # Whole images as views, so that a patch of the view is a patch of the image.
    whole = RECIPE.model_copy(
        update={"crops": RECIPE.crops.model_copy(update={"global_scale": (1.0, 1.0), "ratio": (1.0, 1.0)})}
    )
    found = {policy.towards: policy for policy in known_policies(whole, 8, source, ("masks",))[0]}
    shares = {}
    for towards, policy in found.items():
        task = policy.designer(images, keys)
        hidden = task.masks.hidden.view(2, 16, 4, 4)
        hidden = torch.where(task.global_views.flips[..., None, None], hidden.flip(-1), hidden)
        of_object = torch.stack(
            [salient(source, i).float().view(4, 16, 4, 16).mean((1, 3)) for i in range(16)]
        )
        shares[towards] = (of_object * hidden).sum() / hidden.sum()
    plain = of_object.mean()
    assert shares[1] > 1.4 * plain and shares[-1] < 0.7 * plain


def test_tokens_of_the_object_weigh_more_or_less(policies, batch):
    images, keys = batch
    good, bad = (
        policies["targets", towards].designer(images, keys).targets.token_weights for towards in (1, -1)
    )
    assert torch.corrcoef(torch.stack([good.flatten().log(), bad.flatten().log()]))[0, 1] < -0.9


def test_colour_is_always_or_never_changed(policies, batch):
    images, keys = batch
    always, never = (policies["photometrics", towards].designer(images, keys) for towards in (1, -1))
    for views in (always.global_views, always.local_views):
        assert (views.photometrics.hue != 0).float().mean() > 0.99
    for views in (never.global_views, never.local_views):
        assert (views.photometrics.hue == 0).all() and not views.photometrics.grey.any()
        assert (views.photometrics.saturation == 1).all()


def test_each_differs_from_the_recipe_on_its_surface_alone(policies, batch):
    images, keys = batch
    recipe = FixedDesigner(RECIPE, 8)(images, keys)
    for (surface, _), policy in policies.items():
        task = policy.designer(images, keys)
        same = {
            "crops": torch.equal(task.global_views.boxes, recipe.global_views.boxes),
            "photometrics": torch.equal(
                task.global_views.photometrics.hue, recipe.global_views.photometrics.hue
            ),
            "targets": task.targets == recipe.targets,
        }
        if surface != "crops":  # masks are drawn by the image: other crops, other masks
            same["masks"] = torch.equal(task.masks.hidden, recipe.masks.hidden)
        assert [name for name, equal in same.items() if not equal] == [surface]


def test_what_is_good_depends_on_the_labels(policies):
    colour = SCENES.model_copy(update={"goal": "colour"})
    folder = FolderConfig(kind="folder", path="photos")
    for source, expected in ((SCENES, 1), (colour, -1), (folder, 0), (None, 0)):
        assert policies["photometrics", 1].expected(source) == expected
        assert policies["photometrics", -1].expected(source) == -expected
        assert policies["crops", 1].expected(source) == 1 and policies["masks", -1].expected(source) == -1


class Maps:
    classes = None

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return Sample(torch.zeros(8, 8, 3, dtype=torch.uint8), index, None, self.make(index))


def test_without_objects_nothing_is_claimed():
    full = torch.full((8, 8), 3, dtype=torch.uint8)
    for make in (
        lambda index: None,
        lambda index: full,
        lambda index: 0 * full,
        lambda index: 255 + 0 * full,
    ):
        policies, notes = known_policies(
            RECIPE, 8, Maps(make), ("crops", "photometrics", "masks", "mask_ratio")
        )
        assert {policy.surface for policy in policies} == {"photometrics"}
        assert ["where the object lies is not known" in note for note in notes] == [True, True, False]
        assert notes[2] == "mask_ratio: nothing is known to be good or bad."


def test_the_object_is_what_is_not_ground():
    map_ = torch.zeros(8, 8, dtype=torch.uint8)
    map_[:4, :4], map_[4:, :4] = 7, 255
    share = object_share(Maps(lambda index: map_), 0, 4)
    assert torch.equal(share, torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))


def test_of_a_scene_it_is_the_salient_garment(source):
    found = sum(
        torch.allclose(
            object_share(source, i, 8), salient(source, i).float().view(8, 8, 8, 8).mean((1, 3)), atol=1e-6
        )
        for i in range(20)
    )
    assert found >= 18  # two garments of one class may outweigh the largest one
