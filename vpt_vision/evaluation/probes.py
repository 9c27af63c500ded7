"""The probes of one backbone, as a config asks for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vpt_vision.data import SourceConfig, build_source
from vpt_vision.evaluation.features import ProbeFeatures, extract
from vpt_vision.evaluation.knn import knn
from vpt_vision.evaluation.linear import LinearProbeConfig, linear_probe
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.learner.backbone import Backbone
from vpt_vision.schema import Config
from vpt_vision.task import Renderer

Probe = Literal["knn", "linear"]


class EvaluationConfig(Config):
    """Labelled data and settings of the probes on frozen features."""

    train: SourceConfig = Field(description="labelled images that the probes learn from")
    test: SourceConfig = Field(description="labelled images that the probes are judged on")
    image_size: int = Field(
        224, ge=1, description="side of the whole-image view that the backbone sees, pixels"
    )
    batch_size: int = Field(256, ge=1, description="images per forward pass")
    workers: int = Field(0, ge=0, description="processes that decode; 0 for none beside the main one")
    max_unreadable: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images of a source above which nothing is probed"
    )
    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 20), min_length=1, description="values of k of the kNN probe"
    )
    linear: LinearProbeConfig = LinearProbeConfig()

    def shorter_side(self) -> int:
        """Return the pixels of an image's shorter side that are enough; the renderer halves them."""
        return 2 * self.image_size


def probe(
    backbone: Backbone,
    config: EvaluationConfig,
    probes: tuple[Probe, ...],
    *,
    renderer: Renderer,
) -> dict[Probe, list[ProbeResult]]:
    """Run `probes` on frozen features of `backbone`; kNN gives one result per k, linear gives one.

    Features are extracted once for all of them. Raises `UserError` as the sources and the
    probes do.
    """
    train, test = (
        extract(
            backbone,
            build_source(source, config.shorter_side()),
            renderer,
            config.image_size,
            batch_size=config.batch_size,
            workers=config.workers,
            max_unreadable=config.max_unreadable,
        )
        for source in (config.train, config.test)
    )
    return {name: _run(name, train, test, config) for name in probes}


def _run(
    name: Probe, train: ProbeFeatures, test: ProbeFeatures, config: EvaluationConfig
) -> list[ProbeResult]:
    if name == "knn":
        return knn(train, test, neighbours=config.neighbours)
    return [linear_probe(train, test, config.linear)]


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
