"""WebDataset shards on a local disk, with random access to every sample."""

from __future__ import annotations

import glob
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from pydantic import Field
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from vpt_vision.data.decode import decode
from vpt_vision.data.labels import number_names, parse_class
from vpt_vision.data.members import CLASS, DEPTH, IMAGES, SEGMENTATION
from vpt_vision.data.source import Sample, UnreadableSample
from vpt_vision.errors import UserError
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)


class ShardsConfig(Config):
    """Samples in WebDataset tar files, labelled by the members beside the image."""

    kind: Literal["shards"]
    path: str = Field(
        description="local tar files, by a glob or braces: data/train-*.tar, data/train-{000000..000009}.tar"
    )
    classes: int | None = Field(
        None, ge=1, description="number of classes that .cls members name; unset: one more than the largest"
    )


class Span(NamedTuple):
    """Where a member's bytes lie in its shard."""

    offset: int
    length: int


NOWHERE = Span(-1, -1)


class Shards:
    """Every sample with an image in a set of shards, in the order of the shards and of their members.

    A sample is what shares the name before its first dot (WebDataset's convention): `.jpg .jpeg .png .webp`
    is its image, `.cls` its class in text, `.seg.png` its segmentation map, `.depth.png` its depth map in
    millimetres. Other members are never read. All headers are read once at the start; an image is then one
    seek and one read. A shard that is cut off is named in the log and used as far as it goes.

    Raises:
        UserError: a shard is missing or no plain tar, a member's name is absolute or leads to a parent
            folder, a class is not a number or out of range, or there is no image at all.
    """

    def __init__(self, config: ShardsConfig, size: int) -> None:
        self.size = size
        self.paths = _expand(config.path)
        found = [(shard, entry) for shard, path in enumerate(self.paths) for entry in _entries(path)]
        if not found:
            raise UserError(f"{config.path} holds no image: its tars need {', '.join(IMAGES)} members.")
        labels = [entry.label for _, entry in found]
        self.classes = number_names(labels, config.classes, config.path)
        # Arrays, not lists: worker processes then share one copy, as no reference count is ever written.
        self._shards = np.array([shard for shard, _ in found])
        self._names = np.array([os.fsencode(entry.name) for _, entry in found])
        self._labels = np.array([-1 if label is None else label for label in labels])
        # [N, 3, 2]: image, segmentation and depth; offset and length
        self._spans = np.array([(entry.image, entry.segmentation, entry.depth) for _, entry in found])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[self._shards[index]]
        name = f"{path}: {os.fsdecode(self._names[index])}"
        spans = [Span(*span) for span in self._spans[index].tolist()]
        try:
            with path.open("rb") as file:  # opened anew for every sample: no handle is shared by processes
                image = _read(file, spans[0])
                maps = [None if span == NOWHERE else _read(file, span) for span in spans[1:]]
        except OSError as error:
            raise UnreadableSample(name, error.strerror or str(error)) from error
        except EOFError:
            raise UnreadableSample(name, "the shard ends inside this sample") from None
        label = int(self._labels[index])
        decoded = decode(name, self.size, image, *maps)
        return Sample(index=index, label=None if label < 0 else label, **decoded._asdict())


class _Entry(NamedTuple):
    """One sample of a shard."""

    name: str
    label: int | None
    image: Span
    segmentation: Span
    depth: Span


def _expand(pattern: str) -> list[Path]:
    try:
        names = expand_urls(str(Path(pattern).expanduser()))
    except (ValueError, AssertionError):  # unbalanced braces; an unset ${NAME}
        raise UserError(
            f"'{pattern}' is no pattern of shards: close its braces, as in train-{{000..009}}.tar."
        ) from None
    paths = []
    for name in names:
        # Path.glob cannot start at the root of the disk
        found = [name] if Path(name).exists() else sorted(glob.glob(name))  # noqa: PTH207
        if not found:
            raise UserError(f"no shard is at {name}: correct the path, or put the (local) tar file there.")
        paths += [Path(path) for path in found]
    return paths


def _entries(path: Path) -> Iterator[_Entry]:
    """List the samples of one shard that have an image."""
    samples = _samples(path)
    with path.open("rb") as file:
        for key, members in samples.items():
            image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
            if image is None:
                continue
            try:
                text = _read(file, members[CLASS]) if CLASS in members else None
            except EOFError:  # the shard is cut off here, as `_samples` has said
                continue
            label = None if text is None else parse_class(text, f"{path}: {key}{CLASS}")
            yield _Entry(key, label, image, members.get(SEGMENTATION, NOWHERE), members.get(DEPTH, NOWHERE))


def _samples(path: Path) -> dict[str, dict[str, Span]]:
    """Where the members of each sample lie, by the sample's key and the member's suffix."""
    samples: dict[str, dict[str, Span]] = {}
    end = 0  # of the last member
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError(
                        f"{path} holds a member {member.name}, which leads out of it: write the shard anew."
                    )
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                key, suffix = base_plus_ext(member.name)
                if key is None or not member.isreg():
                    continue
                members = samples.setdefault(key, {})
                if f".{suffix.lower()}" in members:
                    raise UserError(f"{path} holds {member.name} twice: write the shard anew.")
                members[f".{suffix.lower()}"] = Span(member.offset_data, member.size)
    except tarfile.ReadError as error:
        if not end:
            raise UserError(
                f"{path} is no plain tar file ({error}): unpack compressed shards first."
            ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): correct the path or its rights."
        ) from None
    with path.open("rb") as file:
        file.seek(end)
        # A whole tar ends in blocks of zeros; tarfile passes over most of what is wrong here in silence.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            _LOG.warning("%s is cut off or damaged from byte %d on", path, min(end, path.stat().st_size))
    return samples


def _read(file: BinaryIO, span: Span) -> bytes:
    file.seek(span.offset)
    data = file.read(span.length)
    if len(data) < span.length:
        raise EOFError
    return data
