import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from windows import one_window_each

from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseFeatures
from vpt_vision.evaluation.depth import (
    DepthConfig,
    DepthHead,
    _window_map,
    crop_of,
    depth_errors,
    depth_loss,
    depth_probe,
    estimate,
)

CPU = torch.device("cpu")
SIZE = 16


def features(maps, seed=0, noise=0.02):
    """Features of one 16-pixel window for each of square maps, in which depth is a linear function."""
    generator = torch.Generator().manual_seed(seed)
    count = len(maps)
    mean = nn.functional.adaptive_avg_pool2d(torch.stack(maps)[:, None], 4).flatten(2).mT
    code = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    patches = mean * code / 5 + noise * torch.randn(count, 16, 8, generator=generator)
    return one_window_each(patches, maps, SIZE)


def slopes(count, seed=0):
    """Depth maps that rise in some direction, 1 to 9 metres."""
    generator = torch.Generator().manual_seed(seed)
    along = torch.linspace(-1, 1, SIZE)
    steps = torch.rand(count, 3, generator=generator)
    return [5 + (2 * a - 1) * 2 * along[:, None] + (2 * b - 1) * 2 * along for a, b, _ in steps]


def test_figures_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    target = 12 * torch.rand(9, 7, generator=generator)
    target[0, 0], target[1, 1] = 0.0, 10.0
    predicted = target * (0.6 + torch.rand(9, 7, generator=generator))
    errors = depth_errors(predicted, target, DepthConfig())
    squares, relative, close, count = 0.0, 0.0, 0, 0
    for p, t in zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True):
        if 1e-3 < t < 10:
            p = min(max(p, 1e-3), 10)
            squares, relative = squares + (p - t) ** 2, relative + abs(p - t) / t
            close, count = close + (max(p / t, t / p) < 1.25), count + 1
    assert count < 60
    assert errors.rmse == pytest.approx(math.sqrt(squares / count), rel=1e-6)
    assert errors.abs_rel == pytest.approx(relative / count, rel=1e-6)
    assert errors.delta1 == pytest.approx(close / count)


def test_only_the_crop_counts_and_unknown_depth_never():
    target = torch.full((480, 640), 2.0)
    predicted = torch.full((480, 640), 9.0)
    predicted[45:471, 41:601] = 2.0
    assert depth_errors(predicted, target, DepthConfig(crop="nyu_eigen")).rmse == 0
    assert depth_errors(predicted, target, DepthConfig()).rmse > 0
    assert depth_errors(predicted, torch.zeros(480, 640), DepthConfig()) is None


def test_crops_are_those_of_the_published_code():
    assert crop_of("nyu_eigen", 480, 640) == (slice(45, 471), slice(41, 601))
    assert crop_of("kitti_garg", 375, 1242) == (slice(153, 371), slice(44, 1197))
    assert crop_of("kitti_eigen", 375, 1242) == (slice(124, 342), slice(44, 1197))
    assert crop_of("none", 3, 5) == (slice(3), slice(5))
    with pytest.raises(UserError, match=r"maps of 480 × 640 pixels, and one has 240 × 320"):
        crop_of("nyu_eigen", 240, 320)


@pytest.mark.parametrize("head", ["bins", "silog"])
def test_the_scale_invariant_loss_is_its_formula(head):
    generator = torch.Generator().manual_seed(0)
    p, t = (5 * torch.rand(50, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    gaps = np.log(p.numpy() + 1e-3) - np.log(t.numpy() + 1e-3)
    expected = np.sqrt(gaps.var() + 0.15 * gaps.mean() ** 2)
    assert depth_loss(p, t, head).item() == pytest.approx(expected)
    # one factor on all depths costs less than the same errors with mixed signs
    assert depth_loss(t * 1.2, t, head) < depth_loss(t * 1.2 ** torch.tensor([1.0, -1.0]).repeat(25), t, head)


def test_the_other_losses():
    p, t = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0])
    assert depth_loss(p, t, "l1").item() == 2.0
    assert depth_loss(p[:0], t[:0], "bins").item() == 0.0
    equal = t.clone().requires_grad_()
    depth_loss(equal, t, "bins").backward()
    assert equal.grad.isfinite().all()


def test_heads_read_their_output_as_metres():
    patches, cls = torch.randn(2, 16, 6), torch.randn(2, 3)
    inputs = torch.cat([patches, cls[:, None].expand(2, 16, 3)], -1)
    config = DepthConfig(head="bins", bins=5, min_depth=1, max_depth=3)
    head = DepthHead(9, config, typical=2.0)
    head.linear.weight.data *= 100
    mass = (inputs @ head.linear.weight.T).relu() + 0.1
    expected = (mass / mass.sum(-1, keepdim=True) * torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0])).sum(-1)
    torch.testing.assert_close(head(patches, cls)[..., 0], expected)
    for kind in ("l1", "silog"):
        fresh = DepthHead(9, DepthConfig(head=kind), typical=4.0)
        assert (fresh(patches, cls) - 4).abs().max() < 1


@pytest.mark.parametrize("head", ["bins", "l1", "silog"])
def test_what_features_tell_is_learned(head):
    train, test = features(slopes(60)), features(slopes(20, seed=1), seed=1)
    config = DepthConfig(head=head, epochs=60, batch_size=8, learning_rates=(3e-3, 1e-2, 3e-2))
    result = depth_probe(train, test, config, size=SIZE, device=CPU)
    assert result.probe == f"depth, linear {head}"
    guess = np.mean([math.sqrt(((map_ - 5) ** 2).mean()) for map_ in slopes(20, seed=1)])
    assert result.interval("rmse").mean < 0.6 * guess
    assert result.interval("delta1").mean > 0.9
    assert result.details["validation_rmse"] < 0.6 * guess


def test_windows_are_averaged_and_brought_to_the_map():
    config = DepthConfig(head="l1")
    head = DepthHead(10, config, typical=3.0).eval()
    head.linear.weight.data *= 50
    two = DenseFeatures(
        patches=torch.randn(2, 16, 8).half(),
        cls=torch.randn(2, 2).half(),
        owner=torch.zeros(2, dtype=torch.int64),
        places=torch.tensor([[0, 0], [8, 0]]),
        frames=torch.tensor([[24, 16]]),
        map_sizes=torch.tensor([[30, 20]]),
        map_values=torch.ones(600),
        index=torch.arange(1),
    )
    with torch.no_grad():
        depths = head(two.patches.float(), two.cls.float()).mT.reshape(2, 1, 4, 4)
    enlarged = nn.functional.interpolate(depths, (16, 16), mode="bilinear")
    frame = torch.cat(
        [enlarged[0, :, :8], (enlarged[0, :, 8:] + enlarged[1, :, :8]) / 2, enlarged[1, :, 8:]], 1
    )
    expected = nn.functional.interpolate(frame[None], (30, 20), mode="bilinear")[0, 0].clamp(1e-3, 10)
    torch.testing.assert_close(estimate(head, two, 0, 16, config), expected)


def test_targets_are_the_maps_pixels_under_a_windows_cells():
    one = features(slopes(2))
    assert torch.equal(_window_map(one, 1, 16, 16), slopes(2)[1])
    assert torch.equal(_window_map(one, 1, 4, 16), slopes(2)[1][2::4, 2::4])


def test_images_without_a_pixel_to_judge_do_not_count(caplog):
    maps = slopes(5)
    maps[3] = torch.zeros(16, 16)
    config = DepthConfig(head="l1", epochs=1)
    result = depth_probe(features(slopes(9)), features(maps), config, size=SIZE, device=CPU)
    assert result.index.tolist() == [0, 1, 2, 4]
    assert "1 test images have no pixel to judge" in caplog.text
    with pytest.raises(UserError, match="no test image has a pixel"):
        nothing = features([torch.zeros(16, 16)])
        depth_probe(features(slopes(9)), nothing, config, size=SIZE, device=CPU)
    with pytest.raises(UserError, match=r"no depth of the train maps lies between 0.001 and 10.0 m"):
        depth_probe(features([100 * map_ for map_ in slopes(3)]), nothing, config, size=SIZE, device=CPU)


def test_an_empty_range_is_refused():
    with pytest.raises(ValidationError, match="no depth lies between"):
        DepthConfig(min_depth=5, max_depth=5)
