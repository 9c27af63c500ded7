"""Features of a source, from the cache where they are there and still right, else from the encoder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Generic, TypeVar

from torch import Tensor, nn

from vpt_vision.data.source import Fingerprinted, Source
from vpt_vision.data.subset import Subset
from vpt_vision.evaluation.cache import FeatureCache, digest_of_module
from vpt_vision.evaluation.dense import DenseFeatures, MapKind, extract_dense
from vpt_vision.evaluation.encoder import reachable_blocks
from vpt_vision.evaluation.features import Precision, ProbeFeatures, Reading, extract
from vpt_vision.task import Renderer

_LOG = logging.getLogger(__name__)

FORMAT = 1  # of the entries: another number finds none of the old ones
TOLERANCE = 0.02  # relative error of a kept image's features against fresh ones: devices differ, models more

Features = TypeVar("Features")


@dataclass(frozen=True)
class Extracted(Generic[Features]):
    """Features, and what they took."""

    features: Features
    images: int
    seconds: float | None  # None: they came from the cache

    @property
    def images_per_second(self) -> float | None:
        """The rate of decoding and encoding; None where nothing was."""
        return None if self.seconds is None else self.images / self.seconds


class Extractor:
    """One encoder, and how it sees images. Reads and writes features through a cache where there is one.

    An entry's key is made of the encoder's structure and weights, the view and its normalisation, and the
    data's fingerprint. Because code that is part of no weight may have changed too, the first image of an
    entry is encoded again, and must agree.

    Args:
        encoder: see `vpt_vision.evaluation.encoder.Encoder`; in whatever mode, on whatever device.
        renderer: its normalisation and interpolation are those that the encoder was trained with.
        precision: fp32, or bf16 autocast.
        reading: how images are read.
        cache: None extracts always and keeps nothing.
    """

    def __init__(
        self,
        encoder: nn.Module,
        renderer: Renderer,
        *,
        precision: Precision = "fp32",
        reading: Reading | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.encoder = encoder
        self.renderer = renderer
        self.precision = precision
        self.reading = reading or Reading()
        self.cache = cache

    def pooled(
        self, source: Source, size: int, *, blocks: int, labelled: bool = True
    ) -> Extracted[ProbeFeatures]:
        """`extract` the features of `source` at `size` pixels, of up to `blocks` blocks."""
        reached = reachable_blocks(self.encoder, blocks)

        def fresh(source: Source) -> dict[str, Tensor]:
            found = extract(
                self.encoder,
                source,
                self.renderer,
                size,
                blocks=reached,
                precision=self.precision,
                reading=self.reading,
                labelled=labelled,
            )
            return {field.name: getattr(found, field.name) for field in fields(found)}

        view = {"kind": "pooled", "size": size, "blocks": reached, "labelled": labelled}
        tensors, seconds = self.through_cache(source, view, fresh, canaries=("block_cls", "mean_patch"))
        return Extracted(ProbeFeatures(**tensors), len(tensors["index"]), seconds)

    def dense(
        self, source: Source, size: int, *, kind: MapKind, stride: int, batch_size: int
    ) -> Extracted[DenseFeatures]:
        """`extract_dense` the features of windows of `size` pixels over `source`, with its maps."""

        def fresh(source: Source) -> dict[str, Tensor]:
            found = extract_dense(
                self.encoder,
                source,
                self.renderer,
                size,
                kind=kind,
                stride=stride,
                batch_size=batch_size,
                precision=self.precision,
                reading=self.reading,
            )
            return {field.name: getattr(found, field.name) for field in fields(found)}

        view = {"kind": kind, "size": size, "stride": stride}
        tensors, seconds = self.through_cache(source, view, fresh, canaries=("patches", "cls"))
        return Extracted(DenseFeatures(**tensors), len(tensors["index"]), seconds)

    def through_cache(
        self,
        source: Source,
        view: Mapping[str, object],
        fresh: Callable[[Source], dict[str, Tensor]],
        *,
        canaries: Sequence[str],
    ) -> tuple[dict[str, Tensor], float | None]:
        """What `fresh` gives of `source`, from the cache where it is there.

        Args:
            source: what to read.
            view: all that `fresh` depends on besides the encoder, the renderer, the precision and the source.
            fresh: makes the tensors; `index` among them holds each image's number.
            canaries: the tensors by whose first rows, of image `index[0]`, an entry is compared with what the
                encoder gives now.

        Returns:
            The tensors, and the seconds it took to make them, None if they were kept.
        """
        key = self._key(source, view)
        if self.cache is not None and key is not None:
            kept = self.cache.read(key)
            if kept is not None:
                again = fresh(Subset(source, [int(kept["index"][0])]))
                doubts = [_disagreement(kept[name][0], again[name][0]) for name in canaries]
                if not any(doubts):
                    return kept, None
                _LOG.warning(
                    "%s does not hold what the encoder gives (%s): its features are extracted anew",
                    self.cache.path(key),
                    next(filter(None, doubts)),
                )
        started = time.perf_counter()
        made = fresh(source)
        seconds = time.perf_counter() - started
        if self.cache is not None and key is not None:
            self.cache.write(key, made)
        return made, seconds

    def _key(self, source: Source, view: Mapping[str, object]) -> dict[str, object] | None:
        if self.cache is None:
            return None
        if not isinstance(source, Fingerprinted):
            _LOG.info("%s has no fingerprint, so its features are not kept", type(source).__name__)
            return None
        return {
            "format": FORMAT,
            "encoder": self._digest,
            "renderer": asdict(self.renderer),
            "precision": self.precision,
            "view": dict(view),
            "data": source.fingerprint(),
        }

    @cached_property
    def _digest(self) -> str:
        return digest_of_module(self.encoder)


def _disagreement(kept: Tensor, fresh: Tensor) -> str | None:
    """How an image's kept features differ from fresh ones by more than devices do; None where they do not."""
    if kept.shape != fresh.shape:
        return f"a shape of {list(kept.shape)}, and not of {list(fresh.shape)}"
    again = fresh.double()
    error = ((kept.double() - again).norm() / again.norm().clamp_min(1e-12)).item()
    return None if error < TOLERANCE else f"relative error {error:.2g}"
