import pytest
import torch
from torch import nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import Encoder, device_of, encode, patch_size_of, reachable_blocks
from vpt_vision.evaluation.features import extract
from vpt_vision.task import Renderer


class Tiles(nn.Module):
    """The smallest encoder: mean colours of tiles, and of the image."""

    patch_size = 4

    def forward(self, images):
        tiles = nn.functional.avg_pool2d(images, 4).flatten(2).mT
        return tiles.mean(1), tiles


def test_a_module_of_ones_own_is_an_encoder(squares):
    encoder: Encoder = Tiles()
    found = extract(encoder, squares(3), Renderer(), 8)
    assert found.block_cls.shape == (3, 1, 3)
    torch.testing.assert_close(found.cls, found.mean_patch)
    assert reachable_blocks(encoder, 4) == 1
    assert device_of(encoder) == torch.device("cpu")


def test_a_backbone_gives_as_many_blocks_as_it_has(backbone):
    assert [reachable_blocks(backbone, wanted) for wanted in (1, 2, 4)] == [1, 2, 2]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (lambda images: images, "returned Tensor"),
        (lambda images: (images, images, images), "returned tuple"),
        (lambda images: (torch.zeros(2, 5), torch.zeros(2, 3, 5)), r"returned \[2, 5\] and \[2, 3, 5\]"),
        (lambda images: (torch.zeros(5), torch.zeros(2, 4, 5)), r"returned \[5\] and"),
    ],
)
def test_a_broken_contract_is_told_with_what_is_wanted(output, told):
    encoder = Tiles()
    encoder.forward = output
    with pytest.raises(UserError, match=told + r".* CLS \[2, D\] and patches \[2, 4, D\]"):
        encode(encoder, torch.zeros(2, 3, 8, 8))


def test_a_patch_size_is_needed():
    with pytest.raises(UserError, match="Linear has no patch_size"):
        patch_size_of(nn.Linear(2, 2))
