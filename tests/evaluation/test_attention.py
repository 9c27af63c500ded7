"""Attention maps: the weights themselves, and where in the picture the highest stands."""

import numpy as np
import pytest
import torch
from images import packed
from matplotlib import colormaps
from PIL import Image
from torch import nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures import Pictured, attention, attention_maps
from vpt_vision.task import Renderer


@pytest.fixture
def pictured():
    return Pictured(packed([(20, 20), (20, 31)]), ("one.png", "two.png"), torch.arange(2))


def test_maps_are_the_softmax_of_the_last_blocks_products(backbone, pictured):
    """From queries and keys, written out; an even share is 1, and the model is left as it was."""
    backbone.train()
    found = attention(backbone, pictured, renderer=Renderer(), size=16)
    assert backbone.training and found.shape == (2, 2, 4, 4)
    backbone.eval()
    kept = []
    block = backbone.vit.blocks[-1]
    handle = block.norm1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        backbone(Renderer().whole(pictured.images, 16))
        handle.remove()
        query, key, _ = block.attn.qkv(kept[0]).double().view(2, 17, 3, 2, 12).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(query @ key.mT / 12**0.5, -1)[:, :, 0, 1:]
    expected = (16 * weights / weights.sum(-1, keepdim=True)).view(2, 2, 4, 4).float()
    torch.testing.assert_close(found, expected)


def test_the_mean_over_heads_is_what_attend_says(backbone, pictured):
    images = Renderer().whole(pictured.images, 16)
    with torch.no_grad():
        features, by_head = backbone.eval().attend_by_head(images)
        again, mean = backbone.attend(images)
    assert torch.equal(mean, by_head.mean(1)) and torch.equal(features.cls, again.cls)


def test_the_highest_patch_stands_where_it_is(pictured, tmp_path):
    attended = torch.full((2, 2, 4, 4), 0.5)
    attended[:, :, 3, 0] = 8.5  # the lower left
    path = tmp_path / "new" / "maps.png"
    attention_maps(attended, pictured, path, title="T")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").crop((0, 0, image.width, image.height * 4 // 5))).astype(int)
    low, high = (np.array(colormaps["inferno"](share, bytes=True)[:3]) for share in (0.5 / 8.5, 1.0))
    rows, columns = {}, {}
    for name, colour in (("low", low), ("high", high)):
        rows[name], columns[name] = np.nonzero(np.abs(pixels - colour).max(-1) <= 2)
    assert len(rows["low"]) == pytest.approx(15 * len(rows["high"]), rel=0.1)
    assert columns["high"].min() == pytest.approx(columns["low"].min(), abs=2)
    for row in np.unique(rows["high"]):  # to the right of the highest the rest of its row
        assert columns["high"][rows["high"] == row].min() < columns["low"][rows["low"] == row].min()


def test_many_heads_are_wrapped(pictured, tmp_path):
    sizes = []
    for heads in (6, 7, 12):
        attention_maps(torch.ones(2, heads, 2, 2), pictured, tmp_path / "m.png", title="T")
        with Image.open(tmp_path / "m.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] == sizes[2][0] and sizes[1] == sizes[2]
    assert sizes[1][1] > 1.6 * sizes[0][1]


def test_what_has_no_class_token_is_told(backbone, pictured):
    with pytest.raises(UserError, match="Identity has no class token"):
        attention(nn.Identity(), pictured, renderer=Renderer(), size=16)
    with pytest.raises(UserError, match="multiple of 4"):
        attention(backbone, pictured, renderer=Renderer(), size=18)
