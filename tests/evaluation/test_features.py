import pytest
import torch
import torchvision.transforms.v2.functional as T
from images import pack, packed

from vpt_kernels import PackedImages
from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import Reading, extract
from vpt_vision.task import Renderer


def test_whole_images_agree_with_torchvision():
    images = torch.randint(0, 256, (3, 3, 23, 23), dtype=torch.uint8)
    renderer = Renderer(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    resized = T.resize(
        images.double() / 255, [16, 16], interpolation=T.InterpolationMode.BICUBIC, antialias=True
    )
    expected = T.normalize(resized, renderer.mean, renderer.std)
    torch.testing.assert_close(renderer.whole(pack(images), 16).double(), expected, atol=2e-5, rtol=0)


def test_of_other_shapes_the_centred_square_is_seen():
    images = packed([(30, 24), (24, 40), (24, 24)])
    seen = Renderer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).whole(images, 12)
    for image, one in zip(images, seen, strict=True):
        square = T.center_crop(image.permute(2, 0, 1).double() / 255, [24, 24])
        expected = T.resize(square, [12, 12], interpolation=T.InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(one.double(), expected, atol=2e-5, rtol=0)


def test_an_image_of_the_very_size_is_left_as_it_is():
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    seen = Renderer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).whole(pack(images), 16)
    torch.testing.assert_close(seen, images / 255)


def test_features_are_those_of_timm_one_image_at_a_time(backbone, squares):
    source, renderer = squares(7), Renderer()
    found = extract(backbone, source, renderer, 16, reading=Reading(batch_size=3))
    vit = backbone.vit.eval()
    for number in range(7):
        with torch.no_grad():
            tokens = vit.forward_features(renderer.whole(PackedImages.pack([source[number].image]), 16))[0]
        torch.testing.assert_close(found.cls[number], tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.mean_patch[number], tokens[1:].mean(0), atol=1e-5, rtol=1e-5)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found.cls.dtype == found.mean_patch.dtype == torch.float32
    assert not found.cls.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_extraction_is_in_eval_mode_and_puts_the_mode_back(backbone, squares, training):
    backbone.train(training)
    first, second = (extract(backbone, squares(8), Renderer(), 16) for _ in range(2))
    assert torch.equal(first.cls, second.cls)  # stochastic depth would tell them apart
    assert all(part.training == training for part in backbone.modules())


def test_workers_change_nothing(backbone, squares):
    here, there = (
        extract(backbone, squares(5), Renderer(), 16, reading=Reading(batch_size=2, workers=n))
        for n in (0, 1)
    )
    assert torch.equal(here.cls, there.cls)
    assert torch.equal(here.index, there.index)


def test_unreadable_images_are_skipped_and_named(backbone, squares, caplog):
    source = squares(6, unreadable={0, 1, 4})
    found = extract(backbone, source, Renderer(), 16, reading=Reading(2, max_unreadable=0.5))
    assert found.index.tolist() == [2, 3, 5]
    assert found.labels.tolist() == [2, 0, 2]
    assert "image 4: broken on purpose" in caplog.text


def test_bad_sources_are_refused_in_one_sentence(backbone, squares):
    with pytest.raises(UserError, match="Image 3 of the source has no class label"):
        extract(backbone, squares(6, unlabelled={3}), Renderer(), 16)
    with pytest.raises(UserError, match="2 of the 2 images to probe on cannot be read"):
        extract(backbone, squares(2, unreadable={0, 1}), Renderer(), 16, reading=Reading(max_unreadable=1))
    with pytest.raises(UserError, match="3 of the 6 images to probe on cannot be read"):
        extract(
            backbone, squares(6, unreadable={0, 1, 4}), Renderer(), 16, reading=Reading(max_unreadable=0.4)
        )
    with pytest.raises(UserError, match="whole number of the backbone's patches"):
        extract(backbone, squares(2), Renderer(), 18)


def test_blocks_are_those_of_the_encoder_and_the_last_is_its_output(backbone, squares):
    source, renderer = squares(3), Renderer()
    found = extract(backbone, source, renderer, 16, blocks=2)
    assert found.block_cls.shape == (3, 2, 24)
    images = PackedImages.pack([source[number].image for number in range(3)])
    with torch.no_grad():
        expected = backbone.eval().last_blocks(renderer.whole(images, 16), 2)
    torch.testing.assert_close(found.block_cls[:, 0], expected[0].cls, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.cls, found.block_cls[:, 1])
    assert not torch.equal(found.block_cls[:, 0], found.block_cls[:, 1])


def test_bf16_keeps_fp16_features_close_to_those_of_fp32(backbone, squares):
    exact, rounded = (
        extract(backbone, squares(4), Renderer(), 16, precision=precision) for precision in ("fp32", "bf16")
    )
    assert rounded.block_cls.dtype == rounded.mean_patch.dtype == torch.float16
    assert rounded.cls.dtype == torch.float32
    assert 0 < (rounded.cls - exact.cls).norm() / exact.cls.norm() < 0.03


def test_unlabelled_images_pass_where_no_label_is_needed(backbone, squares):
    found = extract(backbone, squares(4, unlabelled={1}), Renderer(), 16, labelled=False)
    assert found.labels.tolist() == [0, -1, 2, 0]


def test_features_that_are_not_finite_are_refused(backbone, squares):
    torch.nn.init.constant_(backbone.vit.norm.weight, float("inf"))
    with pytest.raises(UserError, match="features are not finite"):
        extract(backbone, squares(2), Renderer(), 16)
