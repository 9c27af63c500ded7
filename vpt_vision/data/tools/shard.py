"""Any source of files as balanced, indexed shards."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from webdataset import TarWriter

from vpt_vision.data.decode import NPY
from vpt_vision.data.order import Order
from vpt_vision.data.shard_index import index_path, index_shard, parse_index, write_index
from vpt_vision.data.source import UnreadableSample
from vpt_vision.data.stored import Stored, StoredSource
from vpt_vision.data.workers import Watch, read_ahead
from vpt_vision.errors import UserError

PLAN = "plan.json"
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
NAME = 60  # characters of a sample's name that go into its key


class ShardSize(NamedTuple):
    """How large a shard may become, by one of two measures."""

    samples: int | None
    bytes: int | None


@dataclass
class ShardReport:
    """What was written."""

    destination: Path
    shards: int
    kept: int  # shards that an earlier run had written
    samples: int
    bytes: int
    left_out: int  # samples that could not be read
    named: list[str] = field(default_factory=list)  # of those, what this run met, with the reason

    def __str__(self) -> str:
        again = f" ({self.kept} were there already)" if self.kept else ""
        total = self.samples + self.left_out
        lost = (
            f"; {self.left_out} of {total} samples could not be read and are left out"
            if self.left_out
            else ""
        )
        return (
            f"{self.destination}: {self.shards} shards{again}, {self.samples} samples, "
            f"{self.bytes / 1e6:.1f} MB{lost}."
        )


def parse_size(text: str) -> ShardSize:
    """Read `1000` as samples, `256MB` (or kB, GB; powers of ten) as bytes; raises `UserError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(kb|mb|gb)?", text.strip().lower())
    number = float(match[1]) if match else 0
    if match is None or number <= 0 or (match[2] is None and number != int(number)):
        raise UserError(
            f"'{text}' is no size of a shard: write samples, such as 1000, or bytes, such as 256MB."
        )
    if match[2] is None:
        return ShardSize(int(number), None)
    return ShardSize(None, int(number * UNITS[match[2]]))


def write_shards(
    source: StoredSource,
    destination: Path,
    size: ShardSize,
    *,
    seed: int = 0,
    in_order: bool = False,
    workers: int = 0,
    console: Console | None = None,
) -> ShardReport:
    """Write every readable sample of `source` to shards in a folder, each with an index beside it.

    Images and maps are copied byte for byte. A sample's key is its number in the source and its name. The
    samples are shuffled, so that a few shards are as good as a draw from the whole set. After a kill the same
    call goes on with the shards that are missing; a shard appears whole or not at all.

    Args:
        source: what to write.
        destination: a new or empty folder, or one that this call has begun to fill.
        size: the shards' upper bound; they come out as equal as whole samples allow.
        seed: of the shuffle.
        in_order: keep the source's order in place of the shuffle.
        workers: processes that write, a shard each; 0 writes in this one.
        console: shows a progress bar; None for none.

    Raises:
        UserError: the folder holds something else or cannot be written, or a worker died.
    """
    order = np.arange(len(source)) if in_order else Order(seed, len(source)).samples(0, len(source))
    edges = _edges(source, order, size)
    writer = _Writer(source, destination, order, edges)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        _claim(destination, _plan(source, order, edges))
        missing = [shard for shard in range(len(edges) - 1) if not writer.is_done(shard)]
        report = ShardReport(destination, len(edges) - 1, len(edges) - 1 - len(missing), 0, 0, 0)
        written = read_ahead(writer, missing, workers=workers, name=source.name)
        for unreadable in track(
            written, "writing shards", len(missing), console=console, disable=console is None or not missing
        ):
            report.named += unreadable
        for shard in range(len(edges) - 1):
            index = parse_index(index_path(writer.path(shard)).read_bytes(), str(writer.path(shard)))
            report.samples += len(index.entries)
            report.bytes += index.bytes
    except OSError as error:
        raise UserError(
            f"{destination} cannot be written ({error.strerror or error}): make room, or name another folder."
        ) from error
    report.left_out = len(source) - report.samples
    return report


class _Writer:
    """Writes one shard, in whatever process."""

    def __init__(
        self, source: StoredSource, destination: Path, order: NDArray[np.int64], edges: NDArray[np.int64]
    ) -> None:
        self.source = source
        self.destination = destination
        self.order = order
        self.edges = edges

    def __call__(self, shard: int, watch: Watch) -> list[str]:
        """Write a shard and its index; return what could not be read."""
        path = self.path(shard)
        part = path.with_suffix(".part")
        unreadable: list[str] = []
        digits = len(str(len(self.source) - 1))
        with TarWriter(str(part), encoder=False, mtime=0, user="", group="") as tar:
            for index in self.order[self.edges[shard] : self.edges[shard + 1]].tolist():
                watch.reading(index)
                try:
                    stored = self.source.stored(index)
                    name = self.source.name(index)
                    tar.write({"__key__": _key(index, digits, stored.key), **_members(stored, name)})
                except UnreadableSample as error:
                    unreadable.append(str(error))
        with part.open("rb") as file:
            found = index_shard(file, str(path))
        part.replace(path)
        write_index(index_path(path), found._replace(classes=self._class_names()))
        return unreadable

    def _class_names(self) -> list[str] | None:
        names = self.source.classes
        return None if names == [str(number) for number in range(len(names or ()))] else names

    def path(self, shard: int) -> Path:
        """Where a shard of this number lies."""
        digits = max(len(str(len(self.edges) - 2)), 6)
        return self.destination / f"shard-{shard:0{digits}d}.tar"

    def is_done(self, shard: int) -> bool:
        """Whether a shard was written whole: its index comes last."""
        return self.path(shard).exists() and index_path(self.path(shard)).exists()


def _edges(source: StoredSource, order: NDArray[np.int64], size: ShardSize) -> NDArray[np.int64]:
    """Where in `order` each shard begins, and the end: [shards + 1]."""
    if size.samples is not None:
        shards = -(-len(order) // size.samples)
        return np.linspace(0, len(order), shards + 1).round().astype(np.int64)
    assert size.bytes is not None
    sizes = _tar_bytes(source)[order]
    ends = np.cumsum(sizes)
    # Equal shares end inside a sample, which goes whole into the shard before; a tar ends in empty blocks.
    share = max(size.bytes - int(sizes.max()) - 2 * tarfile.RECORDSIZE, int(sizes.max()))
    shards = int(-(-ends[-1] // share))
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, shards) / shards)
    return np.unique(np.concatenate([[0], inner, [len(order)]]))


def _tar_bytes(source: StoredSource) -> NDArray[np.int64]:
    """Bytes that each sample takes in a tar [N]: its members in blocks, each with a header; and its class."""
    files = source.lengths()
    members = np.where(files > 0, -(-files // tarfile.BLOCKSIZE) + 1, 0).sum(1) + 2
    return members * tarfile.BLOCKSIZE


def _plan(source: StoredSource, order: NDArray[np.int64], edges: NDArray[np.int64]) -> dict[str, object]:
    """What tells this task from another one, so that two never share a folder."""
    digest = hashlib.sha256(order.tobytes() + edges.tobytes())
    for index in range(len(source)):
        digest.update(f"{source.name(index)}\n".encode("utf-8", "surrogateescape"))
    return {"samples": len(source), "shards": len(edges) - 1, "task": digest.hexdigest()}


def _claim(destination: Path, plan: dict[str, object]) -> None:
    path = destination / PLAN
    if path.exists():
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == plan
        except ValueError:
            same = False
        if same:
            return
    elif not any(destination.iterdir()):
        path.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        return
    raise UserError(
        f"{destination} holds other files, or shards of another source or with other settings: name an "
        "empty folder."
    )


def _key(index: int, digits: int, name: str) -> str:
    """A key of its own for each sample: webdataset's may not hold a dot, and names may be alike."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[-NAME:]
    return f"{index:0{digits}d}-{safe}" if safe else f"{index:0{digits}d}"


def _members(stored: Stored, name: str) -> dict[str, bytes]:
    members = {_suffix(stored.image, name): stored.image}
    if stored.label is not None:
        members["cls"] = str(stored.label).encode()
    if stored.segmentation is not None:
        members["seg.png"] = stored.segmentation
    if stored.depth is not None:
        members["depth.npy" if stored.depth.startswith(NPY) else "depth.png"] = stored.depth
    return members


def _suffix(image: bytes, name: str) -> str:
    """What the bytes say, whatever the file was called."""
    if image.startswith(b"\xff\xd8"):
        return "jpg"
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "webp"
    raise UnreadableSample(name, "not a JPEG, PNG or WebP image")
