"""Nearest neighbours against a plain loop, and an encoder of one's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vpt_kernels import PackedImages
from vpt_vision.errors import UserError
from vpt_vision.evaluation.extraction import Extractor
from vpt_vision.evaluation.features import Reading
from vpt_vision.evaluation.pictures import Pictured, first_images, neighbours, neighbours_sheet, patch_pca
from vpt_vision.task import Renderer


def test_neighbours_are_those_of_a_plain_loop(backbone, squares):
    """In fp64, one image at a time; an image of the gallery is its own nearest, a broken one nobody's."""
    gallery = squares(count=12, unreadable={3})
    pictured = first_images(gallery, 5)
    assert pictured.names == ("image 0", "image 1", "image 2", "image 4", "image 5")
    extractor = Extractor(backbone, Renderer(), reading=Reading(max_unreadable=1.0))
    found = neighbours(extractor, gallery, pictured, count=4, size=16)
    backbone.eval()

    def feature(index):
        image = Renderer().whole(PackedImages.pack([gallery[index].image]), 16)
        with torch.no_grad():
            return backbone(image).cls[0].double()

    readable = [index for index in range(12) if index != 3]
    features = {index: feature(index) for index in readable}
    for row, asked in enumerate((0, 1, 2, 4, 5)):
        near = {
            index: float(torch.cosine_similarity(features[asked], other, dim=0))
            for index, other in features.items()
        }
        ranked = sorted(readable, key=lambda index: -near[index])[:4]
        assert found.index[row].tolist() == ranked and ranked[0] == asked
        assert found.similarity[row].tolist() == pytest.approx([near[index] for index in ranked], abs=1e-5)
    with pytest.raises(UserError, match="holds 11 readable images, fewer than the 12"):
        neighbours(extractor, gallery, pictured, count=12, size=16)


class Corners(nn.Module):
    """An encoder of one's own: the mean colour, and of each quarter."""

    patch_size = 8

    def forward(self, images):
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).mT
        return quarters.mean(1), quarters


@pytest.fixture
def colours(squares):
    """A gallery of plain colours: red, green, blue and nearly red."""
    shades = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (180, 20, 0)]

    class Plain(squares):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            image = torch.tensor(shades[index], dtype=torch.uint8).expand(16, 16, 3).contiguous()
            return type(sample)(image, index, sample.label)

    return Plain(count=4)


def test_a_sheet_shows_the_neighbours_of_any_encoder_in_their_order(colours, tmp_path):
    plain = Renderer(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    red = first_images(colours, 1)
    found = neighbours(Extractor(Corners(), plain), colours, red, count=2, size=16)
    assert found.index.tolist() == [[0, 3]]
    neighbours_sheet(found, colours, red, tmp_path / "sheet.png", title="T")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    first = np.nonzero(np.abs(pixels - [200, 0, 0]).max(-1) <= 2)[1]
    second = np.nonzero(np.abs(pixels - [180, 20, 0]).max(-1) <= 2)[1]
    assert len(first) == pytest.approx(2 * len(second), rel=0.05) and len(second) > 5000  # asked, and its own
    assert first.max() < second.min()


def test_patch_pca_takes_any_encoder(colours, tmp_path):
    pictured = Pictured(first_images(colours, 3).images, ("r", "g", "b"), torch.arange(3))
    patch_pca({"mine": Corners()}, pictured.images, tmp_path / "pca.png", renderer=Renderer(), size=16)
    with Image.open(tmp_path / "pca.png") as image:
        assert image.width > image.height
