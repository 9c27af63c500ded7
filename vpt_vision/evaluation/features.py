"""Frozen features of a labelled source, extracted once and read by every probe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from vpt_vision.data.batch import Batch
from vpt_vision.data.source import Sample, Source, UnreadableSample
from vpt_vision.data.workers import Watch, read_ahead
from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import device_of, encode
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.task import Renderer

_LOG = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]

UNLABELLED = -1

Gathered = TypeVar("Gathered")


@dataclass(frozen=True)
class ProbeFeatures:
    """What a probe reads: features and labels of N images, on the CPU; fp32, or fp16 of a bf16 encoder."""

    block_cls: Tensor  # [N, K, D]: CLS after each of the last K blocks and the final norm, last one last
    mean_patch: Tensor  # [N, D']: mean of the patch tokens after the last block and the final norm
    labels: Tensor  # [N] int64; -1 where an image needs none and has none
    index: Tensor  # [N] int64: each image's number in its source

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cls(self) -> Tensor:
        """CLS tokens after the last block [N, D], fp32."""
        return self.block_cls[:, -1].float()

    def __getitem__(self, rows: Tensor) -> ProbeFeatures:
        """The images that `rows`, bool [N] or int64, picks."""
        return ProbeFeatures(self.block_cls[rows], self.mean_patch[rows], self.labels[rows], self.index[rows])


@dataclass(frozen=True)
class Reading:
    """How the images of a source are read."""

    batch_size: int = 256  # images per forward pass
    workers: int = 0  # processes that decode; 0: this one
    max_unreadable: float = 0.01  # share of a source above which nothing is probed
    bar: bool = True  # whether a terminal shows how far it is


def extract(
    encoder: nn.Module,
    source: Source,
    renderer: Renderer,
    size: int,
    *,
    blocks: int = 1,
    precision: Precision = "fp32",
    reading: Reading | None = None,
    labelled: bool = True,
) -> ProbeFeatures:
    """Features of every readable image of `source`, seen whole at `size` pixels.

    The largest centred square of each is resized with antialiasing, by the renderer that training uses,
    without photometric change. The encoder runs in eval mode where its parameters lie; its mode is put
    back afterwards.

    Args:
        encoder: see `vpt_vision.evaluation.encoder.Encoder`.
        source: labelled images.
        renderer: its normalisation and interpolation are those that the encoder was trained with.
        size: side of the view, pixels.
        blocks: how many of the last blocks CLS is kept of; above 1 it takes a `LayeredEncoder`.
        precision: fp32, or bf16 autocast, of which fp16 is kept.
        reading: how images are read.
        labelled: whether every image must have a class.

    Raises:
        UserError: an image has no label, the source has no readable image or too many unreadable ones
            (each is named in the log), a worker died, the encoder breaks its contract, or a feature is
            not finite.
    """
    device = device_of(encoder)
    kept = torch.float16 if precision == "bf16" else torch.float32
    block_cls: list[Tensor] = []
    mean_patch: list[Tensor] = []
    labels: list[int] = []
    index: list[int] = []
    with evaluating(encoder), torch.no_grad(), autocast(device, precision):
        for batch, batch_labels in read_batches(source, reading or Reading(), GatherLabels(labelled)):
            outputs = encode(encoder, renderer.whole(batch.images.to(device), size), blocks)
            block_cls.append(torch.stack([output.cls for output in outputs], 1).to(kept).cpu())
            mean_patch.append(outputs[-1].patches.float().mean(1).to(kept).cpu())
            labels.extend(batch_labels)
            index.extend(batch.index.tolist())
    features = ProbeFeatures(
        torch.cat(block_cls), torch.cat(mean_patch), torch.tensor(labels), torch.tensor(index)
    )
    expect_finite(features.block_cls, features.mean_patch)
    return features


def read_batches(
    source: Source, reading: Reading, gather: Callable[[list[Sample]], Gathered]
) -> Iterator[Gathered]:
    """What `gather` makes of every readable sample of a source in its order, some at a time.

    `gather` runs in the workers. On a terminal a bar tells how far it is. Raises `UserError` where too many
    samples cannot be read; each of them is named in the log.
    """
    reads = read_ahead(
        _Reader(source, reading.batch_size, gather),
        range(0, len(source), reading.batch_size),
        workers=reading.workers,
        name=source.name,
    )
    lost = 0
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not (reading.bar and console.is_terminal)
    ) as progress:
        bar = progress.add_task("features", total=len(source))
        for gathered, count, unreadable in reads:
            for skipped in unreadable:
                _LOG.warning("Skipped an unreadable image: %s", skipped)
            lost += len(unreadable)
            progress.advance(bar, count + len(unreadable))
            if gathered is not None:
                yield gathered
    if lost == len(source) or lost > reading.max_unreadable * len(source):
        raise UserError(
            f"{lost} of the {len(source)} images to probe on cannot be read: mend them (the log names "
            "each), or raise evaluation.max_unreadable."
        )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The arithmetic in which an encoder runs."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def expect_finite(*features: Tensor) -> None:
    """Raise `UserError` unless all `features` are finite."""
    if not all(bool(part.isfinite().all()) for part in features):
        raise UserError(
            "the encoder's features are not finite: load other weights, or set evaluation.precision to fp32."
        )


class _Reader(Generic[Gathered]):
    """Reads some of a source's samples, in whatever process."""

    def __init__(self, source: Source, batch_size: int, gather: Callable[[list[Sample]], Gathered]) -> None:
        self.source = source
        self.batch_size = batch_size
        self.gather = gather

    def __call__(self, first: int, watch: Watch) -> tuple[Gathered | None, int, list[str]]:
        """Give what became of the samples from `first` on, their number, and what cannot be read."""
        samples: list[Sample] = []
        unreadable: list[str] = []
        for index in range(first, min(first + self.batch_size, len(self.source))):
            watch.reading(index)
            try:
                samples.append(self.source[index])
            except UnreadableSample as error:
                unreadable.append(str(error))
        return (self.gather(samples) if samples else None), len(samples), unreadable


class GatherLabels:
    """Packs the images of samples, beside their labels."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __call__(self, samples: list[Sample]) -> tuple[Batch, list[int]]:
        """Pack `samples`; raises `UserError` where one lacks a label that is needed."""
        return Batch.of(samples, []), [_label(sample, self.labelled) for sample in samples]


def _label(sample: Sample, needed: bool) -> int:
    if sample.label is None:
        if not needed:
            return UNLABELLED
        raise UserError(
            f"Image {sample.index} of the source has no class label, which a probe needs: name a labelled "
            "source under 'evaluation'."
        )
    return sample.label
