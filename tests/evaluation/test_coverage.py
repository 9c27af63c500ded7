"""Heat maps of crops and masks: shares against a count place by place, and what is drawn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from images import packed
from PIL import Image

from vpt_vision.designers import (
    CropsConfig,
    FixedDesigner,
    LearnedDesigner,
    LearnedDesignerConfig,
    MasksConfig,
    RecipeConfig,
)
from vpt_vision.evaluation.pictures import Pictured, coverage, coverage_maps
from vpt_vision.evaluation.pictures.coverage import CELLS
from vpt_vision.task import Keys

PATCH = 8


def recipe(**crops):
    return RecipeConfig(
        crops=CropsConfig(global_size=24, local_size=16, **{"local_views": 2, **crops}),
        masks=MasksConfig(kind="random", probability=0.8, ratio=(0.2, 0.6)),
    )


@pytest.fixture
def pictured():
    return Pictured(packed([(40, 30), (25, 50)]), ("tall.png", "wide.png"), torch.tensor([3, 8]))


@pytest.fixture
def learned():
    torch.manual_seed(0)
    config = LearnedDesignerConfig(
        kind="learned", surfaces=("crops", "masks"), thumbnail=32, width=8, blocks=1
    )
    designer = LearnedDesigner(config, recipe(), PATCH)
    with torch.no_grad():
        for parameter in designer.heads.parameters():
            parameter.normal_()
    return designer


def counted(designer, pictured, draws, seed):
    """Shares at the middle of each cell: whether it lies in a box, and in a hidden patch of the view."""
    count = len(pictured.names)
    shown, local, hidden = (np.zeros((count, CELLS, CELLS)) for _ in range(3))
    middles = (np.arange(CELLS) + 0.5) / CELLS
    copies = min(draws, 64 // count)
    for draw in range(draws):
        step, copy = divmod(draw, copies)
        keys = Keys(seed, step, pictured.numbers * copies + copy)
        task = designer.policy(pictured.images).sample(keys)
        side = math.isqrt(task.masks.hidden.shape[-1])
        for number in range(count):
            height, width = int(pictured.images.heights[number]), int(pictured.images.widths[number])
            for views, total in ((task.global_views, shown), (task.local_views, local)):
                for view in range(len(views.boxes)):
                    top, left, tall, wide = views.boxes[view, number].tolist()
                    row, column = (middles * height - top) / tall, (middles * width - left) / wide
                    inside = ((row >= 0) & (row < 1))[:, None] & ((column >= 0) & (column < 1))
                    total[number] += inside
                    if views is task.global_views:
                        across = 1 - column if views.flips[view, number] else column
                        mask = task.masks.hidden[view, number].view(side, side).numpy()
                        at = [np.clip((place * side).astype(int), 0, side - 1) for place in (row, across)]
                        hidden[number] += inside & mask[np.ix_(*at)]
    return shown / (2 * draws), local / (2 * draws), hidden / np.where(shown, shown, np.nan)


def test_shares_are_those_counted_place_by_place(learned, pictured):
    """But for cells that an edge runs through, of which one counts the share and the other the middle."""
    found = coverage(learned, pictured, draws=70, seed=5)  # more than one batch, the last one not full
    for ours, theirs in zip(found.maps().values(), counted(learned, pictured, 70, 5), strict=True):
        error = np.abs(ours.numpy() - theirs)
        assert np.nanmean(error) < 0.012 and np.nanmax(error) < 0.2
    assert found.hidden.nan_to_num().std() > 0.1 and (found.global_.flatten(1).std(1) > 0.05).all()


def test_the_mean_of_the_shares_is_the_mean_area_and_ratio(pictured):
    """Exact whatever the boxes: no part of any is lost or counted twice."""
    designer = FixedDesigner(recipe(), PATCH)
    found = coverage(designer, pictured, draws=32, seed=0)
    task = designer(
        pictured.images[torch.arange(2).repeat_interleave(32)],
        Keys(0, 0, torch.cat([torch.arange(96, 128), torch.arange(256, 288)])),
    )
    areas = (pictured.images.heights * pictured.images.widths).repeat_interleave(32)
    for views, share in ((task.global_views, found.global_), (task.local_views, found.local)):
        expected = (views.boxes[..., 2] * views.boxes[..., 3] / areas).mean(0).view(2, 32).mean(1)
        torch.testing.assert_close(share.mean((1, 2)), expected)
    ratio = task.masks.hidden.float().mean(-1)
    weights = task.global_views.boxes[..., 2] * task.global_views.boxes[..., 3]
    expected = (ratio * weights).sum(0).view(2, 32).sum(1) / weights.sum(0).view(2, 32).sum(1)
    found_ratio = (found.hidden * found.global_).nansum((1, 2)) / found.global_.sum((1, 2))
    torch.testing.assert_close(found_ratio, expected)


def test_the_recipe_favours_no_side_and_a_place_that_no_view_shows_has_no_share(pictured):
    fixed = coverage(FixedDesigner(recipe(global_scale=(0.05, 0.1)), PATCH), pictured, draws=1, seed=0)
    assert fixed.hidden.isnan().any() and not fixed.global_.isnan().any()
    many = coverage(FixedDesigner(recipe(), PATCH), pictured, draws=1024, seed=0)
    for share in (many.global_, many.local, many.hidden):
        assert (share - share.flip(1)).abs().mean() < 0.03 and (share - share.flip(2)).abs().mean() < 0.03
    assert coverage(FixedDesigner(recipe(local_views=0), PATCH), pictured, draws=2, seed=0).local is None


def test_maps_are_drawn_where_the_shares_lie(pictured, tmp_path):
    """The last moment shows the left half alone: its map is light and dark, the change red and blue."""
    even = coverage(FixedDesigner(recipe(), PATCH), pictured, draws=2, seed=0)
    even = replace(even, global_=torch.full_like(even.global_, 0.5))
    left = torch.zeros_like(even.global_)
    left[..., : CELLS // 2] = 1
    path = tmp_path / "new" / "maps.png"
    one = replace(pictured, images=pictured.images[:1], names=pictured.names[:1])
    coverage_maps(
        one, {"recipe": even, "end": replace(even, global_=left)}, path, title="T", kinds=["global"]
    )
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for colour, beside in (((253, 231, 36), (68, 1, 84)), ((103, 0, 31), (5, 48, 97))):
        columns = [
            np.flatnonzero((np.abs(pixels[: pixels.shape[0] // 2] - shade).max(-1) <= 3).sum(0) > 40)
            for shade in (colour, beside)
        ]
        assert len(columns[0]) == pytest.approx(len(columns[1]), abs=4) and len(columns[0]) > 60
        assert columns[0].max() < columns[1].min()  # left of it
    kinds = ["global", "local", "hidden"]
    coverage_maps(pictured, {"recipe": even, "end": even}, tmp_path / "two.png", title="T", kinds=kinds)
    with Image.open(path) as single, Image.open(tmp_path / "two.png") as both:
        assert both.height > 2 * single.height
