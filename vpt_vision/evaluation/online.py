"""Probes of an encoder that is being trained: nearest neighbours and a linear classifier, now and then."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vpt_kernels import keyed_uniform
from vpt_vision.data.source import Sample, Source
from vpt_vision.data.subset import Subset
from vpt_vision.errors import UserError
from vpt_vision.evaluation.encoder import device_of
from vpt_vision.evaluation.features import (
    GatherLabels,
    Precision,
    ProbeFeatures,
    Reading,
    extract,
    read_batches,
)
from vpt_vision.evaluation.knn import knn
from vpt_vision.evaluation.splits import count_classes, validation_part
from vpt_vision.logistic import fit_logistic
from vpt_vision.schema import Config
from vpt_vision.task import Renderer

DRAW_STREAM = 910  # of `keyed_uniform`: which images are probed on
ITERATIONS = 200  # of L-BFGS: enough to tell a curve by, and a bound on what a probe costs


class OnlineConfig(Config):
    """How often the teacher is probed during training, and on how many images."""

    every: int = Field(1000, ge=1, description="steps between probes; the last step always has one")
    images: int = Field(
        3000, ge=2, description="labelled images, drawn from evaluation.train and kept in memory"
    )
    validation: float = Field(
        1 / 3, gt=0, le=0.5, description="share of each class on which the probes are judged"
    )
    neighbours: int = Field(20, ge=1, description="k of the kNN probe")
    l2: float = Field(
        1e-2, gt=0, description="weight decay of the linear probe's standardised problem, mean CE + l2/2 |W|²"
    )


class OnlineProbe:
    """kNN and logistic regression on frozen features, fitted anew at each call.

    Both learn from one part of the labelled train split and are judged on another: the test split is never
    looked at, so a run may be watched and stopped by these figures. Nothing of one call is kept for the next,
    nothing is drawn at random, and features are detached: a run with probes trains exactly as one without,
    and a resumed run finds the same figures.

    A call runs between steps, on the encoder's device: one forward pass of all images and two small fits.
    The images are read once, when the probe is made, and kept as 8-bit views: `size`² · 3 bytes each.

    Args:
        config: how many images, and the probes' settings.
        source: labelled images; all of them where there are fewer than asked for.
        renderer: that of the run.
        size: side of the views, pixels.
        precision: arithmetic of the encoder.
        reading: how images are read.
        seed: of the draw of images.

    Raises:
        UserError: an image without label, too few images for a validation part or for k neighbours.
    """

    def __init__(
        self,
        config: OnlineConfig,
        source: Source,
        renderer: Renderer,
        *,
        size: int,
        precision: Precision,
        reading: Reading,
        seed: int,
    ) -> None:
        self.config = config
        self.renderer = renderer
        self.size = size
        self.precision = precision
        self.reading = replace(reading, workers=0, bar=False)  # the images are in memory
        draws = keyed_uniform(seed, 0, torch.arange(len(source)), DRAW_STREAM, 1)[:, 0]
        rows = draws.argsort(stable=True)[: config.images].sort().values
        self.views = _Views(Subset(source, rows.tolist()), renderer, size, replace(reading, bar=False))
        self.held = validation_part(self.views.labels, config.validation)
        fitted = int((~self.held).sum())
        if fitted < config.neighbours:
            raise UserError(
                f"online kNN with k = {config.neighbours} has {fitted} images to look among: raise "
                "evaluation.online.images, or lower its neighbours."
            )

    def due(self, step: int) -> bool:
        """Whether to probe after `step` learner updates."""
        return step % self.config.every == 0

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Probe `encoder` as it stands; waits for the device.

        X
        """
        began = time.perf_counter()
        features = extract(
            encoder, self.views, self.renderer, self.size, precision=self.precision, reading=self.reading
        )
        train, validation = features[~self.held], features[self.held]
        device = device_of(encoder)
        (nearest,) = knn(train, validation, neighbours=(self.config.neighbours,), device=device)
        accuracy, loss = self._linear(train, validation, device)
        return {
            "online/knn_accuracy": nearest.value("accuracy"),
            "online/linear_accuracy": accuracy,
            "online/linear_cross_entropy": loss,
            "online/seconds": time.perf_counter() - began,
        }

    def _linear(
        self, train: ProbeFeatures, validation: ProbeFeatures, device: torch.device
    ) -> tuple[float, float]:
        inputs, labels = _read(train).to(device), train.labels.to(device)
        classes = count_classes(train.labels, validation.labels)
        classifier = fit_logistic(
            inputs, labels, classes, l2=self.config.l2, tolerance=1e-4, iterations=ITERATIONS
        )
        logits = classifier(_read(validation).to(device)).double().cpu()
        accuracy = (logits.argmax(1) == validation.labels).double().mean()
        return accuracy.item(), F.cross_entropy(logits, validation.labels).item()


class _Views:
    """A source in memory: whole images at the size that the encoder sees, 8-bit."""

    def __init__(self, source: Source, renderer: Renderer, size: int, reading: Reading) -> None:
        plain = Renderer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), renderer.interpolation)
        pixels: list[Tensor] = []
        labels: list[int] = []
        for batch, batch_labels in read_batches(source, reading, GatherLabels(labelled=True)):
            views = plain.whole(batch.images, size).clamp(0, 1)
            pixels.append((255 * views).round().byte().permute(0, 2, 3, 1))
            labels += batch_labels
        self.classes = source.classes
        self.pixels = torch.cat(pixels).contiguous()  # [N, s, s, 3]
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.pixels[index], index, int(self.labels[index]))

    def name(self, index: int) -> str:
        return f"image {index} of the online probe"


def _read(features: ProbeFeatures) -> Tensor:
    """CLS beside the mean patch [N, D], fp32."""
    return torch.cat([features.cls, features.mean_patch.float()], 1)
