"""Segmentation and depth: heads on patches, and the maps they are judged by."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vpt_vision.data import FashionScenes, FashionScenesConfig, Sample
from vpt_vision.errors import UserError
from vpt_vision.feedback import (
    DepthConfig,
    DepthFeedback,
    Feedback,
    FeedbackGradient,
    SegmentationConfig,
    SegmentationFeedback,
    WeightedTask,
    all_features,
    whole_loss,
)
from vpt_vision.feedback.depth import patch_depths
from vpt_vision.feedback.patches import patchify
from vpt_vision.task import Renderer

SOURCE = FashionScenesConfig(kind="fashion_scenes", split="feedback", count=100, size=40)
SIZES = {"head_size": 30, "meta_size": 24, "heldout_size": 16, "batch": 24}
KINDS = {"segmentation": (SegmentationConfig, SegmentationFeedback), "depth": (DepthConfig, DepthFeedback)}


class Maps:
    """Images of one size with maps made by a function of their number; some of either may be missing."""

    classes = None

    def __init__(self, segmentation=None, depth=None):
        self.segmentation, self.depth = segmentation, depth

    def __len__(self):
        return 100

    def __getitem__(self, index):
        image = torch.randint(
            0, 256, (20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index)
        )
        maps = (None if make is None else make(index) for make in (self.segmentation, self.depth))
        return Sample(image, index, None, *maps)


@pytest.fixture
def make():
    """Make tasks of either kind; the backbone sees 16 pixels in patches of 8."""

    def make(kind, source=None, **settings):
        config, feedback = KINDS[kind]
        return feedback.from_source(
            config(kind=kind, source=SOURCE, **{**SIZES, **settings}),
            FashionScenes(SOURCE) if source is None else source,
            renderer=Renderer(),
            size=16,
            patch_size=8,
            seed=0,
        )

    return make


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([(8, 4), (12, 4), (12, 3)]))
def test_maps_are_cut_as_the_backbone_cuts_the_image(height, width, sizes):
    size, patch = sizes
    map_ = torch.randint(0, 300, (height, width), dtype=torch.int16)
    cut, side = patchify(map_, size, patch), min(height, width)
    assert cut.shape == ((size // patch) ** 2, patch**2) and cut.dtype == map_.dtype
    for row in range(size):
        for column in range(size):
            down, right = (row + 0.5) * side / size, (column + 0.5) * side / size
            nearest = map_[math.floor((height - side) / 2 + down), math.floor((width - side) / 2 + right)]
            place = row // patch * (size // patch) + column // patch
            assert cut[place, row % patch * patch + column % patch] == nearest


def test_patches_come_in_the_backbones_order():
    """What shows the patch a class of its own shows in the features of that patch alone."""
    map_ = torch.arange(4).view(2, 2).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert (patchify(map_, 16, 8) == torch.arange(4)[:, None]).all()


class TestSegmentation:
    def maps(self, index):
        map_ = torch.randint(0, 3, (20, 20), generator=torch.Generator().manual_seed(index))
        map_[:10, :10] = 255
        return map_

    def test_the_loss_is_that_of_every_pixel(self, make, backbone, fit):
        """Blow the patches' logits up to the image and compare pixel by pixel, ignoring what is to be."""
        task = make("segmentation", Maps(self.maps))
        fit(task, backbone)
        features = all_features(task, backbone, "meta")
        weight, bias = (part[0] for part in task.heads)
        logits = (features.patches @ weight.T + bias).transpose(1, 2).unflatten(2, (2, 2))
        pixels = logits.repeat_interleave(8, 2).repeat_interleave(8, 3)
        maps = torch.stack(  # [24, 16, 16], back from the patches
            [F.fold(label.double().T[None], (16, 16), 8, stride=8)[0, 0] for label in task.splits.meta.labels]
        ).long()
        assert (maps == 3).float().mean() > 0.2
        expected = F.cross_entropy(pixels, maps, ignore_index=3)  # 3: what does not count, after 0, 1 and 2
        torch.testing.assert_close(whole_loss(task, backbone, "meta"), expected)

    def test_what_is_ignored_says_nothing(self, make, backbone, fit):
        noise = lambda index: torch.where(self.maps(index) == 255, 7 + index % 2, self.maps(index))  # noqa: E731
        plain, other = make("segmentation", Maps(self.maps)), make("segmentation", Maps(noise), ignore=[7, 8])
        for task in (plain, other):
            fit(task, backbone)
        assert torch.equal(plain.heads.weight, other.heads.weight)
        assert plain.classes == other.classes == [0, 1, 2]

    def test_classes_may_have_gaps_and_those_that_no_head_learns_do_not_count(self, make, caplog):
        def maps(index):
            return torch.full((20, 20), 90 if index == rare else 40 * (index % 2))

        rare = None
        usual = make("segmentation", Maps(maps))
        assert usual.classes == [0, 40]
        pixels = {split: next(iter(getattr(usual.splits, split).images)) for split in ("meta", "head")}
        source = Maps(maps)
        numbers = {
            split: next(index for index in range(100) if torch.equal(source[index].image, image))
            for split, image in pixels.items()
        }
        rare = numbers["meta"]
        with caplog.at_level(logging.WARNING):
            assert make("segmentation", source).classes == [0, 40]
        assert "no head learns the classes [90]" in caplog.text
        rare = numbers["head"]
        assert make("segmentation", source).classes == [0, 40, 90]

    def test_learns_scenes(self, make, backbone, fit):
        task = make("segmentation")
        fit(task, backbone)
        shares = task._shares(task.splits.head.labels).mean((0, 1))
        chance = -(shares * shares.log()).sum()
        assert whole_loss(task, backbone, "head") < 0.95 * chance

    def test_bad_sources_are_told(self, make):
        with pytest.raises(UserError, match=r"image \d+ of its source has no segmentation map"):
            make("segmentation", Maps())
        with pytest.raises(UserError, match="no pixel of the feedback's head split has a class"):
            make("segmentation", Maps(lambda index: torch.full((20, 20), 255)))
        with pytest.raises(UserError, match="holds -1: classes are 0 or above"):
            make("segmentation", Maps(lambda index: self.maps(index) - 1))


class TestDepth:
    def maps(self, index):
        depth = 1 + 5 * torch.rand(20, 20, generator=torch.Generator().manual_seed(index))
        depth[5:12] = 0
        return depth

    @pytest.mark.parametrize("loss", ["silog", "l1"])
    def test_unknown_depth_says_nothing(self, make, backbone, fit, loss):
        def spoiled(index):
            depth = self.maps(index)
            depth[depth == 0] = [float("nan"), float("inf"), 900.0, -3.0][index % 4]
            return depth

        plain = make("depth", Maps(None, self.maps), loss=loss, depth_range=(0.01, 10))
        other = make("depth", Maps(None, spoiled), loss=loss, depth_range=(0.01, 10))
        for task in (plain, other):
            fit(task, backbone)
        assert torch.equal(plain.heads.weight, other.heads.weight)
        assert whole_loss(plain, backbone, "meta") == whole_loss(other, backbone, "meta")

    def test_patches_are_reduced_to_mean_and_known_share(self, make):
        depths = torch.tensor([[1.0, 4.0, 0.0, float("nan")], [0.0, 0.0, 50.0, -1.0]])
        config = make("depth").config
        near = config.model_copy(update={"depth_range": (0.1, 10.0)})
        expected = torch.tensor([[math.log(4) / 2, 0.5], [0.0, 0.0]])
        torch.testing.assert_close(patch_depths(depths, near), expected)
        metres = near.model_copy(update={"loss": "l1"})
        torch.testing.assert_close(patch_depths(depths, metres)[0], torch.tensor([2.5, 0.5]))

    @pytest.mark.parametrize("loss", ["silog", "l1"])
    def test_learns_scenes(self, make, backbone, fit, loss):
        task = make("depth", loss=loss)
        fit(task, backbone)
        targets, weights = task.splits.head.labels.unbind(-1)
        constant = targets.median() if loss == "l1" else (weights * targets).sum() / weights.sum()
        blind = task.loss_of(constant.expand(*targets.shape, 1), task.splits.head.labels)
        assert whole_loss(task, backbone, "head") < 0.95 * blind

    def test_bad_sources_are_told(self, make):
        with pytest.raises(UserError, match=r"image \d+ of its source has no depth map"):
            make("depth", Maps(self.maps))
        with pytest.raises(UserError, match=r"has a depth within 0.001 to 1000.0 metres"):
            make("depth", Maps(None, lambda index: torch.zeros(20, 20)))


@pytest.mark.parametrize(
    ("kind", "settings"), [("segmentation", {}), ("depth", {}), ("depth", {"loss": "l1"})]
)
@pytest.mark.parametrize("folds", [1, 3])
def test_u_against_finite_differences(make, backbone, keys, kind, settings, folds):
    """Along random directions in the tail, u predicts the change of the loss of all meta examples."""
    task = make(kind, batch=54 if folds > 1 else 24, folds=folds, **settings)
    gradient = FeedbackGradient(Feedback({"dense": WeightedTask(task, batch=task.config.batch)}), 2)
    gradient.update(backbone, keys)
    tail = backbone.tail_parameters(2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        move = {name: torch.randn(p.shape, generator=generator) for name, p in tail.items()}
        predicted = sum((gradient.u[name] * move[name]).sum() for name in tail)
        losses = []
        for step in (2e-4, -2e-4):
            with torch.no_grad():
                for name, parameter in tail.items():
                    parameter += step * move[name]
            losses.append(whole_loss(task, backbone, "meta").double())
            with torch.no_grad():
                for name, parameter in tail.items():
                    parameter -= step * move[name]
        assert ((losses[0] - losses[1]) / 4e-4).item() == pytest.approx(predicted.item(), rel=0.03, abs=2e-3)
