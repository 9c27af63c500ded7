"""Patch features and label maps of a source, for probes that answer for every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vpt_vision.data import SourceConfig
from vpt_vision.data.batch import Batch
from vpt_vision.data.source import Sample, Source
from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import device_of, encode, patch_size_of
from vpt_vision.evaluation.features import Precision, Reading, autocast, expect_finite, read_batches
from vpt_vision.evaluation.windows import Frame, boxes_in_source
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.schema import Config
from vpt_vision.task import Renderer, Views

MapKind = Literal["segmentation", "depth"]

LARGEST_WINDOW = 512  # pixels, where no size is set: DINOv2's
MAP_NAMES: dict[MapKind, str] = {"segmentation": "segmentation map (.seg.png)", "depth": "depth map"}


class DenseConfig(Config):
    """What the probes of pixels have in common: data, windows, and the training of a linear head."""

    train: SourceConfig | None = Field(
        None, description="images with maps that the head learns from; unset: evaluation.train"
    )
    test: SourceConfig | None = Field(
        None, description="images with maps that the head is judged on; unset: evaluation.test"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        description="side of a window, pixels; an image's shorter side is resized to it. Unset: "
        f"evaluation.image_size, at most {LARGEST_WINDOW}, less what is no whole patch",
    )
    stride: float = Field(
        2 / 3, gt=0, le=1, description="from one window to the next, as a share of its side"
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (3e-4, 1e-3, 3e-3), min_length=1, description="AdamW's learning rates; one is picked on validation"
    )
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's weight decay")
    epochs: int = Field(20, ge=1, description="passes over the train split's windows")
    batch_size: int = Field(16, ge=2, description="windows per step, and per forward pass of the encoder")
    validation: float = Field(
        0.1, gt=0, le=0.5, description="share of the train images on which a learning rate is picked"
    )
    seed: int = Field(0, ge=0, description="of initial weights, order and validation part")

    def window(self, encoder: nn.Module, view: int) -> int:
        """Side of a window for `encoder`, pixels; raises `UserError` where patches do not tile it.

        `view` is the side of the whole-image view of the other probes, which bounds it where none is set.
        """
        patch = patch_size_of(encoder)
        if self.image_size is None:
            return max(1, min(view, LARGEST_WINDOW) // patch) * patch
        if self.image_size % patch:
            raise UserError(
                f"a window of {self.image_size} pixels is not a whole number of the encoder's patches: set "
                f"image_size to a multiple of {patch}."
            )
        return self.image_size


@dataclass(frozen=True)
class DenseFeatures:
    """V windows over N images, and the N maps at their own sizes, all on the CPU."""

    patches: Tensor  # [V, T, D] fp16: patch tokens after the last block and the final norm
    cls: Tensor  # [V, D'] fp16
    owner: Tensor  # [V] int64, ascending: whose window it is, 0 .. N - 1
    places: Tensor  # [V, 2] int64: top and left of the window in its image's frame
    frames: Tensor  # [N, 2] int64: height and width of the frame
    map_sizes: Tensor  # [N, 2] int64: height and width of the map
    map_values: Tensor  # [sum of height * width]: uint8 classes, or fp32 metres
    index: Tensor  # [N] int64: each image's number in its source

    def __len__(self) -> int:
        return len(self.index)

    def map(self, image: int) -> Tensor:
        """The map [H, W] of an image."""
        height, width = self.map_sizes[image].tolist()
        start = int(self._starts[image])
        return self.map_values[start : start + height * width].view(height, width)

    @cached_property
    def _starts(self) -> Tensor:
        lengths = self.map_sizes.prod(1)
        return lengths.cumsum(0) - lengths

    def frame(self, image: int) -> Frame:
        """The frame of an image."""
        return Frame(*self.frames[image].tolist())

    def windows(self, image: int) -> slice:
        """The windows of an image."""
        first, end = torch.searchsorted(self.owner, torch.tensor([image, image + 1])).tolist()
        return slice(first, end)


def extract_dense(
    encoder: nn.Module,
    source: Source,
    renderer: Renderer,
    size: int,
    *,
    kind: MapKind,
    stride: int,
    batch_size: int,
    precision: Precision = "fp32",
    reading: Reading | None = None,
) -> DenseFeatures:
    """Patch features of windows over every readable image of `source`, and the images' maps.

    An image is resized so that its shorter side is `size` pixels, and covered by windows `stride` pixels
    apart. Windows are rendered straight from the source's pixels, `batch_size` at a time.

    Raises `UserError` as `extract` does, and where an image has no map of this kind.
    """
    device = device_of(encoder)
    patches: list[Tensor] = []
    cls: list[Tensor] = []
    owner: list[Tensor] = []
    places: list[Tensor] = []
    frames: list[Frame] = []
    maps: list[Tensor] = []
    index: list[int] = []
    with evaluating(encoder), torch.no_grad(), autocast(device, precision):
        for batch, batch_maps in read_batches(source, reading or Reading(), _GatherMaps(kind)):
            images = batch.images
            sizes = list(zip(images.heights.tolist(), images.widths.tolist(), strict=True))
            batch_frames = [Frame.of(height, width, size) for height, width in sizes]
            batch_places = [torch.tensor(frame.places(size, stride)) for frame in batch_frames]
            boxes = torch.cat(
                [
                    boxes_in_source(place, size, frame, *hw)
                    for place, frame, hw in zip(batch_places, batch_frames, sizes, strict=True)
                ]
            )
            of_image = torch.arange(len(sizes)).repeat_interleave(
                torch.tensor([len(p) for p in batch_places])
            )
            on_device = images.to(device)
            for rows in torch.split(torch.arange(len(boxes)), batch_size):
                views = renderer.render(
                    on_device[of_image[rows].to(device)], Views.unchanged(boxes[rows].to(device), size)
                )
                (output,) = encode(encoder, views[0])
                patches.append(output.patches.half().cpu())
                cls.append(output.cls.half().cpu())
            owner.append(of_image + len(index))
            places += batch_places
            frames += batch_frames
            maps += batch_maps
            index += batch.index.tolist()
    features = DenseFeatures(
        patches=torch.cat(patches),
        cls=torch.cat(cls),
        owner=torch.cat(owner),
        places=torch.cat(places),
        frames=torch.tensor(frames),
        map_sizes=torch.tensor([map_.shape for map_ in maps]),
        map_values=torch.cat([map_.flatten() for map_ in maps]),
        index=torch.tensor(index),
    )
    expect_finite(features.patches, features.cls)
    return features


class _GatherMaps:
    """Packs the images of samples, beside their maps."""

    def __init__(self, kind: MapKind) -> None:
        self.kind = kind

    def __call__(self, samples: list[Sample]) -> tuple[Batch, list[Tensor]]:
        return Batch.of(samples, []), [self._map(sample) for sample in samples]

    def _map(self, sample: Sample) -> Tensor:
        found = sample.segmentation if self.kind == "segmentation" else sample.depth
        if found is None:
            raise UserError(
                f"Image {sample.index} of the source has no {MAP_NAMES[self.kind]}, which the probe needs: "
                f"name a source with such maps under 'evaluation.{self.kind}'."
            )
        return found
