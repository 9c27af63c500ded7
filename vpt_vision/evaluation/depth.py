"""Depth on frozen patch features: one linear layer, judged by RMSE, absolute relative error and δ1."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseConfig, DenseFeatures
from vpt_vision.evaluation.dense_training import answers, train_and_pick
from vpt_vision.evaluation.result import Mean, ProbeResult
from vpt_vision.evaluation.windows import merge

_LOG = logging.getLogger(__name__)

FINER = 4  # the loss looks at so many pixels along the side of a patch
BIN_FLOOR = 0.1  # added to every bin before they are normalised: AdaBins' linear norm as in DINOv2
LOG_OFFSET = 1e-3  # metres, inside logarithms
MEAN_SHARE = 0.15  # of the squared mean in the scale-invariant loss
DELTA = 1.25

CropName = Literal["none", "nyu_eigen", "kitti_eigen", "kitti_garg"]
NYU_SIZE = (480, 640)
NYU_EIGEN = (45, 471, 41, 601)  # top, bottom, left, right, pixels
KITTI: dict[str, tuple[float, float, float, float]] = {  # the same, as shares of height and width
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "kitti_garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


class DepthConfig(DenseConfig):
    """What depths count, and the head and its training; defaults are for NYUv2 as DINOv2 does it."""

    head: Literal["bins", "l1", "silog"] = Field(
        "bins",
        description="bins: depth as the mean of bins, scale-invariant loss (DINOv2's, AdaBins'); l1: depth "
        "itself, absolute error; silog: log depth, scale-invariant loss",
    )
    bins: int = Field(256, ge=2, description="number of bins, evenly spaced from min_depth to max_depth")
    min_depth: float = Field(1e-3, gt=0, description="depths from here on count, metres")
    max_depth: float = Field(10.0, gt=0, description="up to here (NYUv2: 10, KITTI: 80), metres")
    crop: CropName = Field(
        "none", description="part of a map that is judged: Eigen's of NYUv2 or KITTI, or Garg's of KITTI"
    )

    @model_validator(mode="after")
    def _range(self) -> DepthConfig:
        if self.min_depth >= self.max_depth:
            raise ValueError(
                f"no depth lies between min_depth {self.min_depth} and max_depth {self.max_depth}: widen them"
            )
        return self


class DepthHead(nn.Module):
    """One linear layer on each patch token beside the CLS token, and how its output is read as metres."""

    centres: Tensor  # [bins]: metres

    def __init__(self, width: int, config: DepthConfig, typical: float) -> None:
        super().__init__()
        self.config = config
        outputs = config.bins if config.head == "bins" else 1
        self.linear = nn.Linear(width, outputs)
        generator = torch.Generator().manual_seed(config.seed)
        self.linear.weight.data.normal_(0, 0.01, generator=generator)
        self.linear.bias.data.fill_({"bins": 0.0, "l1": typical, "silog": math.log(typical)}[config.head])
        bins = torch.linspace(config.min_depth, config.max_depth, config.bins)
        self.register_buffer("centres", bins, persistent=False)

    def forward(self, patches: Tensor, cls: Tensor) -> Tensor:
        """Metres [B, T, 1] of patches [B, T, D] and CLS [B, D']."""
        both = torch.cat([patches, cls[:, None].expand(-1, patches.shape[1], -1)], -1)
        output = self.linear(both)
        if self.config.head == "bins":
            mass = output.relu() + BIN_FLOOR
            return (mass @ self.centres / mass.sum(-1))[..., None]
        if self.config.head == "silog":
            low, high = math.log(self.config.min_depth), math.log(self.config.max_depth)
            return output.clamp(low, high).exp()
        return output


def depth_probe(
    train: DenseFeatures,
    test: DenseFeatures,
    config: DepthConfig,
    *,
    size: int,
    device: torch.device,
) -> ProbeResult:
    """Train a linear head on `train`, tell the depth of each pixel of `test`'s maps.

    As DINOv2's linear depth (Oquab et al. 2023, section 7.4): each patch token beside the CLS token, on
    features of fixed windows rather than of random crops, and without its gradient loss. The depth of
    patches is enlarged bilinearly; the loss looks at a grid 4 times finer than patches. Windows are averaged
    where they overlap, and brought to the map's size. RMSE, absolute relative error and δ1 are of each
    image's pixels of known depth inside range and crop, then averaged over images.

    Args:
        train: features of windows of `size` pixels, with depth maps.
        test: the same.
        config: range, crop, head and training.
        size: side of a window, pixels.
        device: where the head is trained.

    Raises:
        UserError: no depth of the train maps lies in range, no test image has a pixel to judge, NYU's crop of
            maps of another size, too few images, or a head that diverged.
    """
    values = train.map_values[_in_range(train.map_values, config)]
    if not len(values):
        raise UserError(
            f"no depth of the train maps lies between {config.min_depth} and {config.max_depth} m: look at "
            "evaluation.depth.min_depth and max_depth, and at the maps' unit."
        )
    typical = float(values.double().mean())
    side = math.isqrt(train.patches.shape[1])
    targets = torch.stack(
        [_window_map(train, window, FINER * side, size) for window in range(len(train.owner))]
    )

    def loss(depths: Tensor, windows: Tensor) -> Tensor:
        maps = depths.mT.reshape(len(depths), 1, side, side)
        predicted = F.interpolate(maps, scale_factor=FINER, mode="bilinear", align_corners=False)[:, 0]
        target = targets[windows].to(depths.device)
        known = _in_range(target, config)
        return depth_loss(predicted[known], target[known], config.head)

    def errors(head: nn.Module, features: DenseFeatures, images: Sequence[int]) -> list[Errors | None]:
        return [
            depth_errors(estimate(head, features, image, size, config), features.map(image), config)
            for image in images
        ]

    def judge(head: nn.Module, images: Sequence[int]) -> float:
        judged = [error.rmse for error in errors(head, train, images) if error is not None]
        return -sum(judged) / len(judged) if judged else math.nan

    picked = train_and_pick(
        train,
        config,
        make=lambda: DepthHead(train.patches.shape[-1] + train.cls.shape[-1], config, typical),
        loss=loss,
        judge=judge,
        device=device,
    )
    found = errors(picked.head, test, range(len(test)))
    judged = [(place, error) for place, error in enumerate(found) if error is not None]
    if not judged:
        raise UserError("no test image has a pixel of known depth inside range and crop: look at the maps.")
    if len(judged) < len(found):
        _LOG.warning("%d test images have no pixel to judge and do not count", len(found) - len(judged))
    table = torch.tensor([error for _, error in judged], dtype=torch.float64)
    return ProbeResult(
        f"depth, linear {config.head}",
        {name: Mean(table[:, column]) for column, name in enumerate(Errors._fields)},
        test.index[[place for place, _ in judged]],
        {"learning_rate": picked.learning_rate},
        {"validation_rmse": -picked.validation, "window": size, "crop": config.crop},
    )


def depth_loss(predicted: Tensor, target: Tensor, head: Literal["bins", "l1", "silog"]) -> Tensor:
    """Loss of depths [P] in metres, a scalar; 0 where there are no pixels.

    l1: mean |p - t|. Otherwise DINOv2's scale-invariant loss, √(var g + 0.15 mean(g)²) of
    g = log(p + 1 mm) - log(t + 1 mm), after Eigen et al. 2014 (arXiv 1406.2283).
    """
    if not predicted.numel():
        return predicted.sum()
    if head == "l1":
        return (predicted - target).abs().mean()
    gap = (predicted + LOG_OFFSET).log() - (target + LOG_OFFSET).log()
    variance = (gap - gap.mean()).square().mean()
    return (variance + MEAN_SHARE * gap.mean().square() + 1e-12).sqrt()


class Errors(NamedTuple):
    """The figures of one image."""

    rmse: float  # √ mean (p - t)², metres
    abs_rel: float  # mean |p - t| / t
    delta1: float  # share of pixels with max(p / t, t / p) < 1.25


def depth_errors(predicted: Tensor, target: Tensor, config: DepthConfig) -> Errors | None:
    """Figures of an image from maps [H, W] in metres; None where no pixel counts.

    As Eigen et al. 2014: pixels whose depth lies between min_depth and max_depth, inside the crop; what is
    predicted is clamped to that range.
    """
    counted = _in_range(target, config)
    mask = torch.zeros_like(counted)
    mask[crop_of(config.crop, *target.shape)] = True
    counted &= mask
    if not counted.any():
        return None
    t = target[counted].double()
    p = predicted[counted].double().clamp(config.min_depth, config.max_depth)
    return Errors(
        rmse=(p - t).square().mean().sqrt().item(),
        abs_rel=((p - t).abs() / t).mean().item(),
        delta1=(torch.maximum(p / t, t / p) < DELTA).double().mean().item(),
    )


def crop_of(name: CropName, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a map [height, width] that are judged."""
    if name == "none":
        return slice(height), slice(width)
    if name == "nyu_eigen":
        if (height, width) != NYU_SIZE:
            raise UserError(
                f"Eigen's crop of NYUv2 is of maps of 480 × 640 pixels, and one has {height} × {width}: set "
                "evaluation.depth.crop to none."
            )
        top, bottom, left, right = NYU_EIGEN
        return slice(top, bottom), slice(left, right)
    first, last, start, end = KITTI[name]
    return (
        slice(int(first * height), int(last * height)),
        slice(int(start * width), int(end * width)),
    )


def estimate(head: nn.Module, features: DenseFeatures, image: int, size: int, config: DepthConfig) -> Tensor:
    """The depth in metres [H, W] that a head gives each pixel of an image's map, on the CPU."""
    depths = answers(head, features, image)
    windows = F.interpolate(depths, (size, size), mode="bilinear", align_corners=False)
    whole = merge(windows, features.places[features.windows(image)], features.frame(image))
    height, width = features.map_sizes[image].tolist()
    found = F.interpolate(whole[None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    return found.clamp(config.min_depth, config.max_depth).cpu()


def _window_map(features: DenseFeatures, window: int, cells: int, size: int) -> Tensor:
    """The map under a window, sampled at the centres of cells [cells, cells]."""
    image = int(features.owner[window])
    whole = features.map(image)
    rows, columns = (
        _nearest(extent, frame, start, size, cells)
        for extent, frame, start in zip(
            whole.shape, features.frame(image), features.places[window].tolist(), strict=True
        )
    )
    return whole[rows[:, None], columns]


def _nearest(extent: int, frame: int, start: int, size: int, cells: int) -> Tensor:
    """Along one axis: the map's pixel under the centre of each of `cells` parts of a window."""
    centres = start + (torch.arange(cells, dtype=torch.float64) + 0.5) * (size / cells)
    return (centres * (extent / frame)).floor().long().clamp(0, extent - 1)


def _in_range(depths: Tensor, config: DepthConfig) -> Tensor:
    return (depths > config.min_depth) & (depths < config.max_depth)
