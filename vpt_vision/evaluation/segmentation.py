"""Semantic segmentation on frozen patch features: batch norm and one linear layer, judged by mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseConfig, DenseFeatures
from vpt_vision.evaluation.dense_training import answers, train_and_pick
from vpt_vision.evaluation.result import MeanRatio, ProbeResult
from vpt_vision.evaluation.windows import merge

VALUES = 256  # a map is 8-bit
IGNORED = -1


class SegmentationConfig(DenseConfig):
    """What the maps' values mean, and the head's training; defaults are DINOv2's where it has them."""

    classes: int | None = Field(
        None, ge=2, description="number of classes; unset: one more than the largest in the train maps"
    )
    ignore: tuple[int, ...] = Field((255,), description="values of the maps that are no class")
    reduce_zero_label: bool = Field(
        False, description="0 is no class either and all others move down by 1, as for ADE20K"
    )

    def numbering(self) -> Tensor:
        """Class int64 [256] of each value of a map; -1 for what is ignored."""
        table = torch.arange(VALUES)
        if self.reduce_zero_label:
            table -= 1
        table[[value for value in self.ignore if 0 <= value < VALUES]] = IGNORED
        return table


class LinearBN(nn.Module):
    """Batch norm and a linear layer on patch tokens: DINOv2's `BNHead`."""

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, classes)
        self.linear.weight.data.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
        self.linear.bias.data.zero_()

    def forward(self, patches: Tensor, cls: Tensor) -> Tensor:
        """Logits [B, T, C] of patches [B, T, D]; CLS is not read."""
        normalised = self.norm(patches.flatten(0, 1)).view_as(patches)
        return self.linear(normalised)


def segmentation_probe(
    train: DenseFeatures,
    test: DenseFeatures,
    config: SegmentationConfig,
    *,
    size: int,
    device: torch.device,
) -> ProbeResult:
    """Train a linear-BN head on `train`, segment the images of `test` at the size of their maps.

    The head of DINOv2's linear evaluation (Oquab et al. 2023, section 7.4) under its AdamW, on features of
    fixed windows rather than of random crops: a pixel reads the logits of its own patch in training. For an
    answer, windows' logits are enlarged bilinearly, averaged where windows overlap, and brought to the map's
    size as in mmsegmentation's sliding window. mIoU is the mean over classes that occur
    of intersection over union, both summed over images.

    Args:
        train: features of windows of `size` pixels, with segmentation maps.
        test: the same.
        config: the meaning of maps, and the training.
        size: side of a window, pixels.
        device: where the head is trained.

    Raises:
        UserError: no pixel of the train maps or of the test maps has a class, a class of the test maps is out
            of range, too few images, or a head that diverged.
    """
    numbering = config.numbering()
    classes = _count_classes(train, test, numbering, config)
    shares = [PatchShares.of(train, window, numbering, classes, size) for window in range(len(train.owner))]

    def loss(logits: Tensor, windows: Tensor) -> Tensor:
        counts = torch.stack([shares[window].dense(logits.shape[1], classes) for window in windows.tolist()])
        counts = counts.to(logits.device)
        return -(counts * logits.log_softmax(-1)).sum() / counts.sum().clamp_min(1)

    def confusions(head: nn.Module, features: DenseFeatures, images: Sequence[int]) -> Tensor:
        return torch.stack(
            [
                confusion(
                    segment(head, features, image, size), numbering[features.map(image).long()], classes
                )
                for image in images
            ]
        )

    def judge(head: nn.Module, images: Sequence[int]) -> float:
        return float(_ious(confusions(head, train, images).sum(0)).nanmean())

    picked = train_and_pick(
        train,
        config,
        make=lambda: LinearBN(train.patches.shape[-1], classes, config.seed),
        loss=loss,
        judge=judge,
        device=device,
    )
    return summarise(
        confusions(picked.head, test, range(len(test))),
        test.index,
        picked.learning_rate,
        {"validation_miou": picked.validation, "window": size},
    )


def segment(head: nn.Module, features: DenseFeatures, image: int, size: int) -> Tensor:
    """The class [H, W] that a head gives each pixel of an image's map, on the CPU."""
    logits = answers(head, features, image)
    windows = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    whole = merge(windows, features.places[features.windows(image)], features.frame(image))
    height, width = features.map_sizes[image].tolist()
    found = F.interpolate(whole[None], (height, width), mode="bilinear", align_corners=False)[0]
    return found.argmax(0).cpu()


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many pixels of each class (row) were given each class (column), int64 [C, C].

    `predicted` and `labels` are int64 [H, W]; a label below 0 does not count.
    """
    counted = labels >= 0
    pairs = labels[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def summarise(
    confusions: Tensor, index: Tensor, learning_rate: float, details: dict[str, object]
) -> ProbeResult:
    """Figures of confusion matrices [N, C, C] of images `index` [N]."""
    right = confusions.diagonal(dim1=1, dim2=2).double()
    labelled, given = confusions.sum(2).double(), confusions.sum(1).double()
    per_class = _ious(confusions.sum(0))
    shown = [None if torch.isnan(value) else value.item() for value in per_class]
    return ProbeResult(
        "segmentation, linear-BN",
        {
            "miou": MeanRatio(right, labelled + given - right),
            "pixel_accuracy": MeanRatio(right.sum(1, keepdim=True), labelled.sum(1, keepdim=True)),
            "class_accuracy": MeanRatio(right, labelled),
        },
        index,
        {"learning_rate": learning_rate},
        {**details, "iou_per_class": shown},
    )


class PatchShares(NamedTuple):
    """How many pixels of each class lie in each patch of a window, without the zeros."""

    places: Tensor  # [K] int64: patch * classes + class
    counts: Tensor  # [K] int64

    @classmethod
    def of(
        cls, features: DenseFeatures, window: int, numbering: Tensor, classes: int, size: int
    ) -> PatchShares:
        """Count the map's pixels under a window of `size` pixels by the patch that their centre lies in."""
        image = int(features.owner[window])
        labels = numbering[features.map(image).long()]
        side = round(features.patches.shape[1] ** 0.5)
        rows, columns = (
            _patch_of(extent, frame, start, size, side)
            for extent, frame, start in zip(
                labels.shape, features.frame(image), features.places[window].tolist(), strict=True
            )
        )
        inside = (rows >= 0)[:, None] & (columns >= 0) & (labels >= 0)
        patch = (rows[:, None] * side + columns)[inside]
        counted = torch.bincount(patch * classes + labels[inside], minlength=side**2 * classes)
        places = counted.nonzero()[:, 0]
        return cls(places, counted[places])

    def dense(self, patches: int, classes: int) -> Tensor:
        """Counts fp32 [T, C]."""
        flat = torch.zeros(patches * classes)
        flat[self.places] = self.counts.float()
        return flat.view(patches, classes)


def _patch_of(extent: int, frame: int, start: int, size: int, side: int) -> Tensor:
    """Along one axis: in which of `side` patches of a window each of a map's pixels lies, -1 outside it."""
    centres = (torch.arange(extent, dtype=torch.float64) + 0.5) * (frame / extent) - start
    patch = (centres * (side / size)).floor().long()
    return torch.where((patch >= 0) & (patch < side), patch, IGNORED)


def _count_classes(
    train: DenseFeatures, test: DenseFeatures, numbering: Tensor, config: SegmentationConfig
) -> int:
    largest_train, largest_test = (
        int(numbering[torch.unique(features.map_values).long()].max()) for features in (train, test)
    )
    classes = config.classes or max(2, largest_train + 1)
    for split, found in (("train", largest_train), ("test", largest_test)):
        if found == IGNORED:
            raise UserError(
                f"no pixel of the {split} maps has a class: look at the maps, and at what "
                "evaluation.segmentation.ignore leaves out."
            )
    largest = max(largest_train, largest_test)
    if largest >= classes:
        where = "train" if largest_train >= classes else "test"
        raise UserError(
            f"the {where} maps hold class {largest}, and there are classes 0 to {classes - 1}: set "
            "evaluation.segmentation.classes, or ignore that value."
        )
    return classes


def _ious(confusion: Tensor) -> Tensor:
    """Intersection over union fp64 [C] of a confusion matrix [C, C]; NaN for a class that never occurs."""
    right = confusion.diagonal().double()
    return right / (confusion.sum(1) + confusion.sum(0) - confusion.diagonal()).double()
