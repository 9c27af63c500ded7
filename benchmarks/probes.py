"""Our probes beside scikit-learn's own, on the same frozen features: figures, and seconds beyond extraction.

    python benchmarks/probes.py vit_small_patch14_dinov2 --weights FILE --train PATH --test PATH --json

The model is named as for `vpt eval`; PATH is a folder of labelled images or of shards, or a pattern of
shards. Features are extracted as `vpt eval` does, once: a split that was done before an interruption comes
from the cache, and `--extract-only` ends there. The rate of extraction is measured on test images of their
own, which no cache holds. Beside each of our probes stands what scikit-learn gives:

`kNN`         `KNeighborsClassifier` by cosine distance, with DINO's weights exp(s / T).
`logistic`    `LogisticRegression` on `StandardScaler` features with the C of the l2 that ours picked.
`linear`      Of another kind on purpose: `LogisticRegression` of the same C on what the picked classifier of
              DINOv2's grid reads. DINOv2's SGD ends long before a convex fit does, so figures should be
              near, not equal.
`few-shot`    `LogisticRegression` of the same draws, by another solver (ours is scikit-learn's L-BFGS).
`retrieval`   `average_precision_score` of each test image's ranking.

"Alike" is the share of test images whose own figures (right or not, cross-entropy, average precision) differ
by at most 0.01. Seconds of ours include the bootstrap intervals; scikit-learn's are told for comparison, and
are of fp64. `--markdown FILE` writes the table, the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from decode import cpu
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from vpt_vision.commands.parsing import names_model, positive
from vpt_vision.data.source import Source
from vpt_vision.data.subset import Subset
from vpt_vision.data.tools.opening import open_source
from vpt_vision.errors import UserError
from vpt_vision.evaluation.cache import CacheConfig, FeatureCache
from vpt_vision.evaluation.extraction import Extractor
from vpt_vision.evaluation.features import ProbeFeatures, Reading
from vpt_vision.evaluation.few_shot import FewShotConfig, draw_shots, few_shot
from vpt_vision.evaluation.knn import knn
from vpt_vision.evaluation.linear import LinearProbeConfig, linear_probe
from vpt_vision.evaluation.logistic import LogisticProbeConfig, logistic_probe
from vpt_vision.evaluation.result import KINDS, Interval, ProbeResult
from vpt_vision.evaluation.retrieval import retrieval
from vpt_vision.evaluation.tables import Table
from vpt_vision.loading import config_of, load_encoder, renderer_for

TEMPERATURE = 0.07
ALIKE = 0.01
TIMED_IMAGES = 256  # by which the rate of extraction is told

Floats = NDArray[np.float64]
PerImage = dict[str, Floats]  # by figure, [N]


class Compared(NamedTuple):
    """A figure of ours and scikit-learn's."""

    probe: str
    figure: str
    ours: Interval
    theirs: float
    alike: float  # share of test images


class Timed(NamedTuple):
    """Seconds that a probe with all its results took, ours and scikit-learn's."""

    probe: str
    ours: float
    theirs: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names_model(parser)
    parser.add_argument("--train", required=True, help="labelled images that probes learn from")
    parser.add_argument("--test", required=True, help="labelled images that they are judged on")
    parser.add_argument("--image-size", type=positive, default=98, help="side that the encoder sees, pixels")
    parser.add_argument("--batch-size", type=positive, default=64, help="images per forward pass")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--cache", type=Path, default=CacheConfig().folder, help="folder of features")
    parser.add_argument("--extract-only", action="store_true", help="keep features and end")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--json", action="store_true", help="print the last line, and it alone")
    arguments = parser.parse_args()
    try:
        found = run(arguments)
    except UserError as error:
        parser.error(str(error))
    if arguments.markdown and "rows" in found:
        arguments.markdown.write_text(table(found), encoding="utf-8")
    if not arguments.json and "rows" in found:
        print(table(found))
    print(json.dumps(found))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)  # weights at random are the same at every call
    encoder = load_encoder(
        arguments.model, network="student" if arguments.student else "teacher", weights=arguments.weights
    )
    extractor = Extractor(
        encoder,
        renderer_for(arguments.model, config_of(arguments.model), encoder),
        reading=Reading(arguments.batch_size),
        cache=FeatureCache(CacheConfig(folder=arguments.cache)),
    )
    sources = {
        split: open_source(getattr(arguments, split), [], 2 * arguments.image_size)
        for split in ("train", "test")
    }
    blocks = max(LinearProbeConfig().blocks)
    rate = extraction_rate(extractor, sources["test"], arguments.image_size, blocks)
    features, extracted = {}, {}
    for split, source in sources.items():
        got = extractor.pooled(source, arguments.image_size, blocks=blocks)
        features[split] = got.features
        extracted[split] = None if got.seconds is None else round(got.seconds, 1)
    found = {
        "model": arguments.model,
        "parameters": sum(parameter.numel() for parameter in vit_of(encoder).parameters()),
        "image_size": arguments.image_size,
        "train_images": len(features["train"]),
        "test_images": len(features["test"]),
        "threads": arguments.threads,
        "extraction_images_per_second": round(rate, 1),
        "extraction_seconds": extracted,  # null: from the cache
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "timm", "scikit-learn", "numpy")},
    }
    if arguments.extract_only:
        return found
    rows: list[Compared] = []
    seconds: list[Timed] = []
    with threadpool_limits(arguments.threads):
        for timed, compared in comparisons(features["train"], features["test"]):
            seconds.append(timed)
            rows.extend(compared)
    return {
        **found,
        "seconds": [
            {"probe": probe, "ours": round(ours, 2), "scikit_learn": round(theirs, 2)}
            for probe, ours, theirs in seconds
        ],
        "seconds_beyond_extraction": round(sum(timed.ours for timed in seconds), 1),
        "rows": [
            {
                "probe": row.probe,
                "figure": row.figure,
                "ours": row.ours.mean,
                "low": row.ours.low,
                "high": row.ours.high,
                "scikit_learn": row.theirs,
                "difference": row.ours.mean - row.theirs,
                "alike": row.alike,
            }
            for row in rows
        ],
    }


def vit_of(encoder: nn.Module) -> nn.Module:
    """The model without what only training adds to it."""
    return getattr(encoder, "vit", encoder)


def extraction_rate(extractor: Extractor, source: Source, size: int, blocks: int) -> float:
    """Images per second of reading and encoding, of a source that nothing is kept of."""
    rows = np.linspace(0, len(source) - 1, min(TIMED_IMAGES, len(source))).astype(np.int64)
    few = Subset(source, rows.tolist())
    extractor.pooled(Subset(source, rows[:1].tolist()), size, blocks=blocks)  # the first is slower
    rate = extractor.pooled(few, size, blocks=blocks).images_per_second
    assert rate is not None
    return rate


def comparisons(train: ProbeFeatures, test: ProbeFeatures) -> Iterator[tuple[Timed, list[Compared]]]:
    """Each probe with its defaults, run and timed, beside its peer."""
    shots = FewShotConfig()
    yield compared("kNN", lambda: knn(train, test), lambda result: peer_knn(train, test, result))
    picked: list[float] = []

    def logistic() -> list[ProbeResult]:
        result = logistic_probe(train, test, LogisticProbeConfig())
        picked.append(result.settings["l2"])
        return [result]

    yield compared("logistic", logistic, lambda _: peer_logistic(train, test, picked[0]))
    yield compared(
        "linear",
        lambda: [linear_probe(train, test, LinearProbeConfig())],
        lambda result: peer_linear(train, test, result, picked[0]),
    )
    yield compared(
        "few-shot",
        lambda: few_shot(train, test, shots),
        lambda result: peer_few_shot(train, test, shots, result),
    )
    yield compared("retrieval", lambda: [retrieval(train, test)], lambda _: peer_retrieval(train, test))


def compared(
    name: str, ours: Callable[[], list[ProbeResult]], theirs: Callable[[ProbeResult], PerImage]
) -> tuple[Timed, list[Compared]]:
    started = time.perf_counter()
    results = ours()
    intervals = [{figure: result.interval(figure) for figure in result.figures} for result in results]
    between = time.perf_counter()
    peers = [theirs(result) for result in results]
    timed = Timed(name, between - started, time.perf_counter() - between)
    rows = []
    for result, own, peer in zip(results, intervals, peers, strict=True):
        for figure, values in peer.items():
            apart = np.abs(values - np.asarray(result.figures[figure].values, np.float64))
            rows.append(
                Compared(
                    result.probe, figure, own[figure], float(values.mean()), float((apart <= ALIKE).mean())
                )
            )
    return timed, rows


def peer_knn(train: ProbeFeatures, test: ProbeFeatures, result: ProbeResult) -> PerImage:
    peer = KNeighborsClassifier(
        int(result.probe.rpartition(" ")[2]),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
    )
    peer.fit(wide(train.cls), train.labels.numpy())
    return {"accuracy": (peer.predict(wide(test.cls)) == test.labels.numpy()).astype(np.float64)}


def peer_linear(train: ProbeFeatures, test: ProbeFeatures, result: ProbeResult, l2: float) -> PerImage:
    """A convex fit of what the picked classifier reads."""
    blocks, mean_patch = result.details["blocks"], bool(result.details["mean_patch"])
    assert isinstance(blocks, int)

    def inputs(features: ProbeFeatures) -> Floats:
        parts = [features.block_cls[:, -blocks:].flatten(1), *([features.mean_patch] if mean_patch else [])]
        return wide(torch.cat(parts, 1))

    fitted = regression(l2, len(train)).fit(inputs(train), train.labels.numpy())
    return judged(fitted, inputs(test), test)


def peer_logistic(train: ProbeFeatures, test: ProbeFeatures, l2: float) -> PerImage:
    def inputs(features: ProbeFeatures) -> Floats:
        return np.hstack([wide(features.cls), wide(features.mean_patch)])

    fitted = regression(l2, len(train)).fit(inputs(train), train.labels.numpy())
    return judged(fitted, inputs(test), test)


def regression(l2: float, images: int) -> Pipeline:
    """The problem that `fit_logistic` states: l2 on the mean cross-entropy is 1 / C on its sum."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / (l2 * images), tol=1e-4, max_iter=1000))


def peer_few_shot(
    train: ProbeFeatures, test: ProbeFeatures, config: FewShotConfig, result: ProbeResult
) -> PerImage:
    def inputs(features: ProbeFeatures) -> Floats:
        rows = wide(features.cls)
        return rows - rows.mean(1, keepdims=True)

    shots = result.details["shots"]
    assert isinstance(shots, int)
    draws = []
    for draw in range(config.draws):
        rows = draw_shots(train.labels, shots, draw)
        peer = make_pipeline(
            Normalizer(),
            LogisticRegression(
                C=1 / config.l2, fit_intercept=False, solver="newton-cg", tol=1e-6, max_iter=1000
            ),
        )
        peer.fit(inputs(train[rows]), train.labels[rows].numpy())
        draws.append(judged(peer, inputs(test), test))
    return {figure: np.mean([draw[figure] for draw in draws], 0) for figure in draws[0]}


def peer_retrieval(train: ProbeFeatures, test: ProbeFeatures) -> PerImage:
    unit = Normalizer()
    similarity = unit.transform(wide(test.cls)) @ unit.transform(wide(train.cls)).T
    labels = train.labels.numpy()
    return {
        "map": np.array(
            [
                average_precision_score(labels == label, scores)
                for label, scores in zip(test.labels.tolist(), similarity, strict=True)
            ]
        )
    }


def judged(fitted: Pipeline, inputs: Floats, test: ProbeFeatures) -> PerImage:
    labels = test.labels.numpy()
    columns = np.searchsorted(fitted.classes_, labels)
    log_probability = fitted.predict_log_proba(inputs)
    return {
        "accuracy": (fitted.classes_[log_probability.argmax(1)] == labels).astype(np.float64),
        "cross_entropy": -log_probability[np.arange(len(labels)), columns],
    }


def wide(features: torch.Tensor) -> Floats:
    return features.double().numpy()


def table(found: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    figures = Table(
        f"{found['train_images']:,} train and {found['test_images']:,} test images at {found['image_size']} "
        f"pixels, {found['model']}",
        ("probe", "figure", "ours [95 %]", "scikit-learn's", "difference", "images alike"),
        [figure_cells(row) for row in found["rows"]],
    )
    seconds = Table(
        f"Seconds beyond extraction, {found['threads']} threads",
        ("probe", "ours", "scikit-learn's"),
        [
            *((row["probe"], f"{row['ours']:.1f}", f"{row['scikit_learn']:.1f}") for row in found["seconds"]),
            (
                "all",
                f"{found['seconds_beyond_extraction']:.1f}",
                f"{sum(row['scikit_learn'] for row in found['seconds']):.1f}",
            ),
        ],
    )
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{figures.markdown()}{seconds.markdown()}"
        f"Extraction: {found['extraction_images_per_second']:.0f} images a second, "
        f"{found['parameters'] / 1e6:.1f} M parameters, fp32. {found['date']}, {found['cpu']}, "
        f"{found['cores']} cores, Python {found['python']}, {versions}.\n"
    )


def figure_cells(row: dict[str, Any]) -> tuple[str, ...]:
    kind = KINDS[row["figure"]]
    scale, decimals, unit = (100, 2, " %") if kind.unit == "%" else (1, 4, f" {kind.unit}")
    value, low, high, theirs, difference = (
        f"{scale * row[key]:{'+' if key == 'difference' else ''}.{decimals}f}"
        for key in ("ours", "low", "high", "scikit_learn", "difference")
    )
    return (
        row["probe"],
        kind.title,
        f"{value} [{low}, {high}]{unit}",
        theirs,
        difference,
        f"{row['alike']:.1%}",
    )


if __name__ == "__main__":
    main()
