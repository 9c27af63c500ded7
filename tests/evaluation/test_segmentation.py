import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import nn
from windows import one_window_each

from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseFeatures
from vpt_vision.evaluation.segmentation import (
    LinearBN,
    PatchShares,
    SegmentationConfig,
    confusion,
    segment,
    segmentation_probe,
    summarise,
)

CPU = torch.device("cpu")
SIZE, PATCH = 16, 4


def features(maps, seed=0, noise=0.1, classes=3, tells=True):
    """Features of one 16-pixel window for each of square maps: noisy means of its pixels' classes."""
    generator = torch.Generator().manual_seed(seed)
    side = SIZE // PATCH
    codes = torch.randn(classes, 8, generator=torch.Generator().manual_seed(1))
    pixels = codes[torch.stack(maps).long().clamp(max=classes - 1)].permute(0, 3, 1, 2)
    patches = nn.functional.adaptive_avg_pool2d(pixels, side).flatten(2).mT * tells
    patches = patches + noise * torch.randn(patches.shape, generator=generator)
    return one_window_each(patches, maps, SIZE)


def blocks(count, seed=0, side=SIZE, classes=3):
    """Maps [side, side] of constant quarters."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.randint(0, classes, (count, 2, 2), dtype=torch.uint8, generator=generator)
    return list(quarters.repeat_interleave(side // 2, 1).repeat_interleave(side // 2, 2))


@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 10**6))
def test_a_confusion_matrix_is_counted_as_by_hand_and_by_scikit_learn(classes, pixels, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (pixels, 3), generator=generator)
    predicted = torch.randint(0, classes, (pixels, 3), generator=generator)
    found = confusion(predicted, labels, classes)
    by_hand = [[0] * classes for _ in range(classes)]
    for label, answer in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if label >= 0:
            by_hand[label][answer] += 1
    assert found.tolist() == by_hand
    counted = labels >= 0
    if counted.any():
        expected = confusion_matrix(labels[counted], predicted[counted], labels=range(classes))
        assert np.array_equal(found.numpy(), expected)


def test_figures_of_hand_counted_matrices():
    # class 0: 3 right of 4, also given to 1 pixel of class 1; class 1: 5 right of 6; class 2 never occurs
    one = torch.tensor([[1, 1, 0], [0, 2, 0], [0, 0, 0]])
    two = torch.tensor([[2, 0, 0], [1, 3, 0], [0, 0, 0]])
    result = summarise(torch.stack([one, two]), torch.arange(2), 0.1, {})
    assert result.interval("miou").mean == pytest.approx((3 / 5 + 5 / 7) / 2)
    assert result.interval("pixel_accuracy").mean == pytest.approx(8 / 10)
    assert result.interval("class_accuracy").mean == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert result.details["iou_per_class"] == [pytest.approx(3 / 5), pytest.approx(5 / 7), None]


def test_miou_agrees_with_scikit_learns_jaccard_score():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (5, 9, 7), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, labels.roll(1, 0))
    matrices = torch.stack([confusion(p, t, 4) for p, t in zip(predicted, labels, strict=True)])
    found = summarise(matrices, torch.arange(5), 0.1, {}).interval("miou").mean
    assert found == pytest.approx(jaccard_score(labels.flatten(), predicted.flatten(), average="macro"))


def test_ade20ks_values_move_down_by_one_and_0_is_no_class():
    plain, ade = SegmentationConfig().numbering(), SegmentationConfig(reduce_zero_label=True).numbering()
    assert plain[[0, 1, 150, 254, 255]].tolist() == [0, 1, 150, 254, -1]
    assert ade[[0, 1, 150, 254, 255]].tolist() == [-1, 0, 149, 253, -1]
    assert SegmentationConfig(ignore=(11, 255)).numbering()[[10, 11]].tolist() == [10, -1]


@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 10**6))
def test_shares_count_each_pixel_under_its_patch(height, width, seed):
    """Against a loop over pixels, for maps of any size under two windows of one frame."""
    generator = torch.Generator().manual_seed(seed)
    map_ = torch.randint(0, 4, (height, width), dtype=torch.uint8, generator=generator)
    one = DenseFeatures(
        patches=torch.zeros(2, 16, 1).half(),
        cls=torch.zeros(2, 1).half(),
        owner=torch.zeros(2, dtype=torch.int64),
        places=torch.tensor([[0, 0], [0, 8]]),
        frames=torch.tensor([[16, 24]]),
        map_sizes=torch.tensor([[height, width]]),
        map_values=map_.flatten(),
        index=torch.arange(1),
    )
    numbering = SegmentationConfig(ignore=(3,)).numbering()
    for window in range(2):
        expected = torch.zeros(16, 3)
        for row in range(height):
            for column in range(width):
                y = (row + 0.5) * 16 / height
                x = (column + 0.5) * 24 / width - 8 * window
                if map_[row, column] < 3 and 0 <= x < 16:
                    expected[int(y // 4) * 4 + int(x // 4), int(map_[row, column])] += 1
        found = PatchShares.of(one, window, numbering, 3, 16).dense(16, 3)
        assert torch.equal(found, expected)


def test_the_head_is_batch_norm_and_a_linear_layer():
    head = LinearBN(8, 3, seed=0)
    patches = torch.randn(4, 16, 8) * 3 + 1
    flat = patches.flatten(0, 1)
    normalised = (flat - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()
    expected = (normalised @ head.linear.weight.T).view(4, 16, 3)
    torch.testing.assert_close(head(patches, patches[:, 0]), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(head.linear.weight, LinearBN(8, 3, seed=0).linear.weight)


def test_an_answer_is_enlarged_averaged_over_windows_and_brought_to_the_map():
    maps = blocks(1, side=32)
    one = features(blocks(1))
    two = DenseFeatures(
        patches=torch.randn(2, 16, 8).half(),
        cls=torch.zeros(2, 2).half(),
        owner=torch.zeros(2, dtype=torch.int64),
        places=torch.tensor([[0, 0], [0, 8]]),
        frames=torch.tensor([[16, 24]]),
        map_sizes=torch.tensor([[11, 33]]),
        map_values=torch.zeros(11 * 33, dtype=torch.uint8),
        index=torch.arange(1),
    )
    head = LinearBN(8, 3, seed=0).eval()
    with torch.no_grad():
        logits = head(two.patches.float(), two.cls.float()).mT.reshape(2, 3, 4, 4)
    enlarged = nn.functional.interpolate(logits, (16, 16), mode="bilinear")
    frame = torch.zeros(3, 16, 24)
    frame[:, :, :8], frame[:, :, 16:] = enlarged[0, :, :, :8], enlarged[1, :, :, 8:]
    frame[:, :, 8:16] = (enlarged[0, :, :, 8:] + enlarged[1, :, :, :8]) / 2
    expected = nn.functional.interpolate(frame[None], (11, 33), mode="bilinear")[0].argmax(0)
    assert torch.equal(segment(head, two, 0, 16), expected)
    assert segment(head, one, 0, 16).shape == maps[0][::2, ::2].shape


@pytest.mark.parametrize("side", [16, 24])
def test_what_features_tell_is_learned(side):
    train, test = features(blocks(40)), features(blocks(20, seed=1), seed=1)
    larger = blocks(20, seed=1, side=side)
    test = (
        DenseFeatures(**{**vars(test), "map_sizes": torch.full((20, 2), side)})
        if side == 16
        else (
            DenseFeatures(
                **{
                    **vars(test),
                    "map_sizes": torch.full((20, 2), side),
                    "map_values": torch.cat([map_.flatten() for map_ in larger]),
                }
            )
        )
    )
    config = SegmentationConfig(epochs=30, batch_size=8)
    result = segmentation_probe(train, test, config, size=SIZE, device=CPU)
    assert result.probe == "segmentation, linear-BN"
    assert result.interval("miou").mean > 0.85
    assert len(result.details["iou_per_class"]) == 3
    assert result.details["validation_miou"] > 0.85
    blind = features(blocks(40), tells=False)
    assert segmentation_probe(blind, test, config, size=SIZE, device=CPU).interval("miou").mean < 0.5


def test_the_test_split_decides_nothing():
    train = features(blocks(30), noise=1.0)
    config = SegmentationConfig(epochs=5, batch_size=8, learning_rates=(1e-5, 1e-2))
    settings = [
        segmentation_probe(train, features(blocks(10, seed=seed)), config, size=SIZE, device=CPU)
        for seed in (1, 2)
    ]
    assert settings[0].settings == settings[1].settings == {"learning_rate": 1e-2}
    assert settings[0].details["validation_miou"] == settings[1].details["validation_miou"]


def test_pixels_to_ignore_change_nothing():
    maps = blocks(30)
    config = SegmentationConfig(epochs=5, batch_size=8)
    first = segmentation_probe(features(maps), features(maps[:9]), config, size=SIZE, device=CPU)
    void = [map_.clone() for map_ in maps[:9]]
    for map_ in void:
        map_[:, 12:] = 255
    test = features(maps[:9])
    test = DenseFeatures(**{**vars(test), "map_values": torch.cat([map_.flatten() for map_ in void])})
    second = segmentation_probe(features(maps), test, config, size=SIZE, device=CPU)
    counted = second.figures["pixel_accuracy"].denominators
    assert counted.flatten().tolist() == 9 * [16 * 12]
    assert first.figures["pixel_accuracy"].denominators.flatten().tolist() == 9 * [256]


def test_bad_maps_are_refused_in_one_sentence():
    train = features(blocks(10))
    strange = [torch.full((16, 16), 7, dtype=torch.uint8)]
    config = SegmentationConfig(epochs=1)
    with pytest.raises(UserError, match="the test maps hold class 7, and there are classes 0 to 2"):
        segmentation_probe(train, features(strange), config, size=SIZE, device=CPU)
    with pytest.raises(UserError, match="the train maps hold class 2, and there are classes 0 to 1"):
        segmentation_probe(train, train, SegmentationConfig(epochs=1, classes=2), size=SIZE, device=CPU)
    void = features([torch.full((16, 16), 255, dtype=torch.uint8)] * 3)
    with pytest.raises(UserError, match="no pixel of the train maps has a class"):
        segmentation_probe(void, void, config, size=SIZE, device=CPU)
    with pytest.raises(UserError, match="no pixel of the test maps has a class"):
        segmentation_probe(train, void, config, size=SIZE, device=CPU)
    with pytest.raises(UserError, match="at least 2 train images, and has 1"):
        segmentation_probe(features(blocks(1)), train, config, size=SIZE, device=CPU)
