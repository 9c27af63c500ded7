"""The probes of one encoder, as a config asks for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from torch import nn

from vpt_vision.data import SourceConfig, build_source
from vpt_vision.evaluation.cache import CacheConfig, FeatureCache
from vpt_vision.evaluation.dense import DenseConfig, DenseFeatures, MapKind
from vpt_vision.evaluation.depth import DepthConfig, depth_probe
from vpt_vision.evaluation.encoder import device_of, patch_size_of
from vpt_vision.evaluation.extraction import Extracted, Extractor
from vpt_vision.evaluation.features import Precision, ProbeFeatures, Reading
from vpt_vision.evaluation.few_shot import FewShotConfig, few_shot
from vpt_vision.evaluation.ground_truth import read_ground_truth
from vpt_vision.evaluation.knn import knn
from vpt_vision.evaluation.linear import LinearProbeConfig, linear_probe
from vpt_vision.evaluation.logistic import LogisticProbeConfig, logistic_probe
from vpt_vision.evaluation.online import OnlineConfig
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.evaluation.retrieval import retrieval
from vpt_vision.evaluation.revisited import (
    QueryBoxes,
    RetrievalConfig,
    find_images,
    instance_retrieval,
    rows_of,
)
from vpt_vision.evaluation.segmentation import SegmentationConfig, segmentation_probe
from vpt_vision.schema import Config
from vpt_vision.task import Renderer

_LOG = logging.getLogger(__name__)

Probe = Literal["knn", "linear", "logistic", "few_shot", "retrieval", "segmentation", "depth"]

Features = TypeVar("Features")


class EvaluationConfig(Config):
    """Labelled data and settings of the probes on frozen features."""

    train: SourceConfig = Field(description="labelled images that the probes learn from")
    test: SourceConfig = Field(description="labelled images that the probes are judged on")
    image_size: int = Field(
        224, ge=1, description="side of the whole-image view that the encoder sees, pixels"
    )
    batch_size: int = Field(256, ge=1, description="images per forward pass")
    precision: Precision = Field("fp32", description="arithmetic of the encoder: fp32, or bf16 autocast")
    workers: int = Field(0, ge=0, description="processes that decode; 0 for none beside the main one")
    max_unreadable: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images of a source above which nothing is probed"
    )
    cache: CacheConfig | None = Field(
        CacheConfig(), description="where extracted features are kept; null keeps none"
    )
    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 20, 100), min_length=1, description="values of k of the kNN probe"
    )
    linear: LinearProbeConfig = LinearProbeConfig()
    logistic: LogisticProbeConfig = LogisticProbeConfig()
    few_shot: FewShotConfig = FewShotConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    depth: DepthConfig = DepthConfig()
    online: OnlineConfig | None = Field(None, description="probes of the teacher while it trains")

    def shorter_side(self) -> int:
        """Return the pixels of an image's shorter side that are enough; the renderer halves them."""
        return 2 * self.image_size


def probe(
    encoder: nn.Module,
    config: EvaluationConfig,
    probes: Sequence[Probe],
    *,
    renderer: Renderer,
) -> dict[Probe, list[ProbeResult]]:
    """Run `probes` on frozen features of `encoder`, where its weights lie.

    Features are extracted once for all of them, or come from the cache. kNN gives one result per k,
    few-shot one per number of shots, instance retrieval one per protocol, the others one.

    Args:
        encoder: see `vpt_vision.evaluation.encoder.Encoder`.
        config: data and settings.
        probes: which ones.
        renderer: its normalisation and interpolation are those that the encoder was trained with.

    Raises:
        UserError: as the sources, the cache and the probes do.
    """
    running = _Running(encoder, config, renderer)
    return {name: running.run(name) for name in probes}


class _Running:
    """Probes of one encoder; features that several read are extracted when the first asks for them."""

    def __init__(self, encoder: nn.Module, config: EvaluationConfig, renderer: Renderer) -> None:
        self.encoder = encoder
        self.config = config
        self.device = device_of(encoder)
        self.extractor = Extractor(
            encoder,
            renderer,
            precision=config.precision,
            reading=Reading(config.batch_size, config.workers, config.max_unreadable),
            cache=None if config.cache is None else FeatureCache(config.cache),
        )

    def run(self, name: Probe) -> list[ProbeResult]:
        config, device = self.config, self.device
        match name:
            case "knn":
                return knn(*self._pooled, neighbours=config.neighbours, device=device)
            case "linear":
                return [linear_probe(*self._pooled, config.linear, device=device)]
            case "logistic":
                return [logistic_probe(*self._pooled, config.logistic, device=device)]
            case "few_shot":
                return few_shot(*self._pooled, config.few_shot)
            case "retrieval":
                path = config.retrieval.ground_truth
                return [retrieval(*self._pooled)] if path is None else self._instances(path)
            case "segmentation":
                size = config.segmentation.window(self.encoder, config.image_size)
                train, test = self._dense(config.segmentation, "segmentation", size)
                return [segmentation_probe(train, test, config.segmentation, size=size, device=device)]
            case "depth":
                size = config.depth.window(self.encoder, config.image_size)
                train, test = self._dense(config.depth, "depth", size)
                return [depth_probe(train, test, config.depth, size=size, device=device)]

    @cached_property
    def _pooled(self) -> tuple[ProbeFeatures, ProbeFeatures]:
        config = self.config
        train, test = (
            _told(self.extractor.pooled(source, config.image_size, blocks=max(config.linear.blocks)), split)
            for split, source in (
                ("train", build_source(config.train, config.shorter_side())),
                ("test", build_source(config.test, config.shorter_side())),
            )
        )
        return train, test

    def _instances(self, path: Path) -> list[ProbeResult]:
        truth = read_ground_truth(path)
        size, images = self.config.image_size, self.config.retrieval.images or self.config.train
        small, full = build_source(images, self.config.shorter_side()), build_source(images)
        database = find_images(small, truth.imlist)
        boxes = QueryBoxes(full, find_images(full, truth.qimlist), [judged.bbx for judged in truth.gnd])
        whole, queries = (
            _told(self.extractor.pooled(source, size, blocks=1, labelled=False), what)
            for what, source in (("database", small), ("query", boxes))
        )
        return instance_retrieval(
            rows_of(whole, database, truth.imlist),
            rows_of(queries, range(len(boxes)), truth.qimlist),
            truth,
        )

    def _dense(self, dense: DenseConfig, kind: MapKind, size: int) -> tuple[DenseFeatures, DenseFeatures]:
        stride = max(1, round(dense.stride * size))
        sources = {
            split: build_source(source, 2 * size)
            for split, source in (
                ("train", dense.train or self.config.train),
                ("test", dense.test or self.config.test),
            )
        }
        counts = {split: len(source) for split, source in sources.items()}
        _LOG.info(
            "%s: windows of %d pixels (%d patches), %d pixels apart: %s or more, one for each of %s images "
            "if all are square",
            kind,
            size,
            (size // patch_size_of(self.encoder)) ** 2,
            stride,
            f"{sum(counts.values()):,}",
            " and ".join(f"{count:,} {split}" for split, count in counts.items()),
        )
        train, test = (
            _told(
                self.extractor.dense(source, size, kind=kind, stride=stride, batch_size=dense.batch_size),
                split,
            )
            for split, source in sources.items()
        )
        return train, test


def _told(extracted: Extracted[Features], split: str) -> Features:
    rate = extracted.images_per_second
    how = "from the cache" if rate is None else f"at {rate:.0f} images a second"
    _LOG.info("features of %s %s images %s", f"{extracted.images:,}", split, how)
    return extracted.features


def summary(results: list[ProbeResult]) -> dict[str, object]:
    """What `--json` prints: each figure of the first result by its name, and all `results`.

    Each entry of `results` has its probe's name, test images, settings, details, and for each figure its
    value with the ends of its bootstrap 95 % interval.
    """
    entries = [_entry(result) for result in results]
    return {**{name: entries[0][name] for name in results[0].figures}, "results": entries}


def _entry(result: ProbeResult) -> dict[str, object]:
    entry: dict[str, object] = {"probe": result.probe, "test_images": len(result.index)}
    entry |= {**result.settings, **result.details}
    for name in result.figures:
        figure = result.interval(name)
        entry |= {name: figure.mean, f"{name}_low": figure.low, f"{name}_high": figure.high}
    return entry
