"""PackedImages: layout, selection, and what travels to another device."""

from dataclasses import replace

import pytest
import torch
from images import packed, random_sizes

from vpt_kernels import PackedImages, Photometrics, render_views

SIZES = [(2, 3), (4, 1), (5, 5)]


def assert_holds(images, expected):
    assert len(images) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(images, expected, strict=True))


def test_layout():
    images = random_sizes(SIZES)
    packed = PackedImages.pack(images)
    assert packed.offsets.tolist() == [0, 18, 30] and len(packed.pixels) == 105
    assert packed.heights.tolist() == [2, 4, 5] and packed.widths.tolist() == [3, 1, 5]
    assert torch.equal(packed.pixels[18:30].view(4, 1, 3), images[1])
    assert_holds(packed, images)
    assert_holds(PackedImages.pack([image.permute(2, 0, 1) for image in images], channels_first=True), images)


def test_nothing():
    nothing = PackedImages.pack([])
    assert [len(tensor) for tensor in nothing.tensors] == [0, 0, 0, 0]
    assert nothing.pixels.dtype == torch.uint8 and len(nothing) == 0 and list(nothing) == []


@pytest.mark.parametrize("some", [slice(0, 2), slice(1, 3), torch.tensor([2, 0]), torch.tensor([1, 1])])
def test_a_selection_shares_the_pixels(some):
    images = random_sizes(SIZES)
    packed = PackedImages.pack(images)
    chosen = packed[some]
    assert chosen.pixels is packed.pixels
    assert_holds(chosen, [images[i] for i in torch.arange(3)[some].tolist()])


def test_what_travels_is_what_was_selected():
    images = random_sizes(SIZES)
    there = PackedImages.pack(images)[torch.tensor([2, 0])].to("meta")
    assert there.device.type == "meta" and len(there.pixels) == 75 + 18
    assert len(packed(SIZES).to("meta").pixels) == 105
    chosen = packed(SIZES)[1:]
    assert chosen.to("cpu").pixels is chosen.pixels  # they are there


@pytest.mark.parametrize(
    ("images", "channels_first", "error", "word"),
    [
        ([torch.zeros(3, 4, 4, dtype=torch.uint8)], False, ValueError, r"must be uint8 \[H, W, 3\]"),
        ([torch.zeros(4, 4, 3, dtype=torch.uint8)], True, ValueError, r"must be uint8 \[3, H, W\]"),
        ([torch.zeros(4, 4, 3)], False, TypeError, "got float32"),
        ([torch.zeros(0, 4, 3, dtype=torch.uint8)], False, ValueError, "must not be empty"),
    ],
)
def test_errors_of_packing(images, channels_first, error, word):
    with pytest.raises(error, match=word):
        PackedImages.pack(images, channels_first=channels_first)


def test_a_compiled_function_takes_them_as_an_argument():
    def means(images, boxes):
        count = len(images)
        shape = (1, count)
        views = render_views(
            images, boxes / 2, torch.zeros(shape, dtype=torch.bool), Photometrics.neutral(shape), size=3,
            mean=torch.zeros(3), std=torch.ones(3), blur_kernel=3,
        )  # fmt: skip
        return views.mean((2, 3, 4)) * images[:count].heights

    images = packed(SIZES)
    boxes = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 4, 4]]])
    compiled = torch.compile(means, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, boxes), means(images, boxes))
    other = replace(images, heights=images.heights - 1)
    torch.testing.assert_close(compiled(other, boxes), means(other, boxes))
