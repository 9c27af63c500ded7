"""A source read through: what it holds, and what of it is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from vpt_vision.data.image import open_image, readable
from vpt_vision.data.shard_index import index_path, index_shard, parse_index
from vpt_vision.data.shards import Shards
from vpt_vision.data.source import UnreadableSample
from vpt_vision.data.stored import StoredSource
from vpt_vision.data.transfer import is_remote
from vpt_vision.data.workers import Watch, read_ahead

CHUNK = 64  # samples that a worker reads at a time
SMALL = 16  # pixels: a JPEG is read to its end, and decoded no larger than it must
NAMED = 20  # broken samples that the report names; --json names all


class Broken(NamedTuple):
    """A sample that cannot be read."""

    name: str
    reason: str
    shard: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class CheckReport:
    """What a source holds."""

    classes: list[str] | None
    faults: list[str]  # of the source itself, a sentence each
    samples: int = 0  # broken ones included
    bytes: int = 0
    broken: list[Broken] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)  # as Pillow names them
    labels: Counter[int] = field(default_factory=Counter)
    unlabelled: int = 0
    segmentation: int = 0  # samples with such a map
    depth: int = 0
    widths: list[int] = field(default_factory=list)  # pixels, of each readable image
    heights: list[int] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken and not self.faults

    def summary(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return {
            "samples": self.samples,
            "bytes": self.bytes,
            "broken": [broken._asdict() for broken in self.broken],
            "broken_by_shard": dict(self._by_shard()),
            "faults": self.faults,
            "formats": dict(self.formats),
            "modes": dict(self.modes),
            "width": _spread(self.widths),
            "height": _spread(self.heights),
            "labels": {self._class(label): count for label, count in sorted(self.labels.items())},
            "unlabelled": self.unlabelled,
            "segmentation": self.segmentation,
            "depth": self.depth,
        }

    def lines(self) -> Iterable[str]:
        """The report as a person reads it."""
        yield f"samples  {self.samples}, {self.bytes / 1e6:.1f} MB"
        yield f"formats  {_counts(self.formats)}"
        yield f"modes    {_counts(self.modes)}"
        for name, sides in (("width", self.widths), ("height", self.heights)):
            if sides:
                spread = _spread(sides)
                yield f"{name:8} {spread['min']} to {spread['max']} pixels, median {spread['median']:g}"
        if self.segmentation or self.depth:
            yield f"maps     {self.segmentation} of segmentation, {self.depth} of depth"
        if self.labels:
            classes = len(self.classes or ())
            yield f"labels   {len(self.labels)} of {classes} classes; {self.unlabelled} samples have none"
            longest = max(self.labels.values())
            width = max(len(self._class(label)) for label in self.labels)
            for label, count in sorted(self.labels.items()):
                bar = "█" * round(40 * count / longest)
                yield f"  {self._class(label):{width}} {count:8} {bar}"
        else:
            yield "labels   none"
        yield f"broken   {len(self.broken)}"
        for shard, count in self._by_shard().most_common():
            yield f"  {count} in {shard}"
        yield from (f"  {broken}" for broken in self.broken[:NAMED])
        if len(self.broken) > NAMED:
            yield f"  and {len(self.broken) - NAMED} more, which --json names"
        yield from (f"  {fault}" for fault in self.faults)

    def add(self, chunk: CheckReport) -> None:
        """Take in what was found in some of the samples."""
        for counter in ("formats", "modes", "labels"):
            getattr(self, counter).update(getattr(chunk, counter))
        for total in ("samples", "bytes", "unlabelled", "segmentation", "depth"):
            setattr(self, total, getattr(self, total) + getattr(chunk, total))
        for values in ("broken", "widths", "heights"):
            getattr(self, values).extend(getattr(chunk, values))

    def _by_shard(self) -> Counter[str]:
        return Counter(broken.shard for broken in self.broken if broken.shard is not None)

    def _class(self, label: int) -> str:
        return str(label) if self.classes is None or label >= len(self.classes) else self.classes[label]


def check(source: StoredSource, *, workers: int = 0, console: Console | None = None) -> CheckReport:
    """Read and decode every sample of `source`.

    Args:
        source: what to read.
        workers: processes that read; 0 reads in this one.
        console: shows a progress bar; None for none.

    Raises:
        UserError: a worker died; its last sample is named.
    """
    report = CheckReport(source.classes, [*source.faults, *_index_faults(source)])
    chunks = range(0, len(source), CHUNK)
    found = read_ahead(_Checker(source), chunks, workers=workers, name=source.name)
    for chunk in track(found, "reading", len(chunks), console=console, disable=console is None):
        report.add(chunk)
    return report


class _Checker:
    """Reads some of the samples, in whatever process."""

    def __init__(self, source: StoredSource) -> None:
        self.source = source

    def __call__(self, first: int, watch: Watch) -> CheckReport:
        report = CheckReport(None, [])
        for index in range(first, min(first + CHUNK, len(self.source))):
            watch.reading(index)
            report.samples += 1
            try:
                self._read(index, report)
            except UnreadableSample as error:
                report.broken.append(Broken(error.name, error.reason, error.shard))
        return report

    def _read(self, index: int, report: CheckReport) -> None:
        stored = self.source.stored(index)
        name = self.source.name(index)
        files = [file for file in (stored.image, stored.segmentation, stored.depth) if file is not None]
        report.bytes += sum(len(file) for file in files)
        stored.decoded(name, index, SMALL)
        with readable(name):
            image = open_image(stored.image)
        report.formats[image.format or "?"] += 1
        report.modes[image.mode] += 1
        report.widths.append(image.width)
        report.heights.append(image.height)
        report.segmentation += stored.segmentation is not None
        report.depth += stored.depth is not None
        if stored.label is None:
            report.unlabelled += 1
        else:
            report.labels[stored.label] += 1


def _index_faults(source: StoredSource) -> list[str]:
    """Local shards whose index says something else than their headers."""
    if not isinstance(source, Shards):
        return []
    faults = []
    for path in (Path(location) for location in source.locations if not is_remote(location)):
        beside = index_path(path)
        if beside.exists():
            with path.open("rb") as file:
                said = parse_index(beside.read_bytes(), str(beside))
                if index_shard(file, str(path))._replace(classes=said.classes) != said:
                    faults.append(f"{beside} does not tell what its shard holds: delete it")
    return faults


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


def _spread(sides: list[int]) -> dict[str, float]:
    return {} if not sides else {"min": min(sides), "median": float(np.median(sides)), "max": max(sides)}
