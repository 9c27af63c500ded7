"""What a shard holds and where: read from its tar headers once, and kept in a file beside it.

The index of `train-000.tar` is `train-000.tar.index`, UTF-8 text, one JSON value a line. The first line is
an object: `format` is "vpt-shard-index", `version` is 1, `bytes` the shard's length, `samples` their number,
`damage` the byte from which the shard is cut off or broken, or null, `classes` the names of the classes, or
null where they are known by number only. Then follows an array for each sample that has an image, in the
order of the shard: key, class number, and `[offset, length]` of its image, segmentation map and depth map;
null for what it has not.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from webdataset.tariterators import base_plus_ext

from vpt_vision.data.labels import LARGEST, parse_class
from vpt_vision.data.members import CLASS, DEPTH, DEPTH_METRES, IMAGES, SEGMENTATION
from vpt_vision.errors import UserError

SUFFIX = ".index"

Natural = Annotated[int, Field(ge=0)]


class Span(NamedTuple):
    """Where a member's bytes lie in its shard."""

    offset: Natural
    length: Natural


class Entry(NamedTuple):
    """One sample of a shard."""

    key: str
    label: Annotated[int, Field(ge=0, le=LARGEST)] | None
    image: Span
    segmentation: Span | None
    depth: Span | None


class ShardIndex(NamedTuple):
    """What one shard holds."""

    bytes: int  # the shard's length
    damage: int | None  # the byte from which the shard is cut off or broken
    entries: list[Entry]
    classes: list[str] | None = None


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["vpt-shard-index"] = "vpt-shard-index"
    version: Literal[1] = 1
    bytes: Natural
    samples: Natural
    damage: Natural | None = None
    classes: list[str] | None = None


_ENTRIES: TypeAdapter[list[Entry]] = TypeAdapter(list[Entry])


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + SUFFIX)


def write_index(path: Path, index: ShardIndex) -> None:
    """Write an index to `path`, which appears whole or not at all."""
    header = _Header(
        bytes=index.bytes, samples=len(index.entries), damage=index.damage, classes=index.classes
    )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(header.model_dump_json() + "\n")
        file.writelines(json.dumps(entry) + "\n" for entry in index.entries)
    part.replace(path)


def parse_index(text: bytes, name: str) -> ShardIndex:
    """Read the text of an index; raises `UserError` calling it `name` where it is none."""
    try:
        first, *rest = text.splitlines()
        header = _Header.model_validate_json(first)
        entries = _ENTRIES.validate_json(b"[" + b",".join(rest) + b"]", strict=False)
    except (ValueError, ValidationError):
        raise _foreign(name) from None
    if len(entries) != header.samples:
        raise _foreign(name)
    return ShardIndex(header.bytes, header.damage, entries, header.classes)


def index_shard(file: BinaryIO, name: str) -> ShardIndex:
    """Read the headers of a shard.

    A shard that is cut off is taken as far as it goes, and `damage` says so.

    Args:
        file: the shard, seekable.
        name: what an error calls it.

    Raises:
        UserError: it is no plain tar, a member's name is absolute or leads to a parent folder, a member is
            there twice, or a class is no number.
    """
    samples, damage = _samples(file, name)
    entries = []
    for key, members in samples.items():
        image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
        if image is None:
            continue
        try:
            text = read_span(file, members[CLASS]) if CLASS in members else None
        except EOFError:  # the shard is cut off here
            continue
        label = None if text is None else parse_class(text, f"{name}: {key}{CLASS}")
        if DEPTH in members and DEPTH_METRES in members:
            raise UserError(
                f"{name} holds {key}{DEPTH} and {key}{DEPTH_METRES}: keep one depth map per image."
            )
        depth = members.get(DEPTH, members.get(DEPTH_METRES))
        entries.append(Entry(key, label, image, members.get(SEGMENTATION), depth))
    return ShardIndex(file.seek(0, os.SEEK_END), damage, entries)


def read_span(file: BinaryIO, span: Span) -> bytes:
    """Read a member's bytes; raises `EOFError` where the shard ends inside them."""
    file.seek(span.offset)
    data = file.read(span.length)
    while len(data) < span.length:  # an unbuffered file may give less than it was asked for
        more = file.read(span.length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def common_classes(indexes: Sequence[ShardIndex]) -> list[str] | None:
    """The names of classes that all indexes agree on; None where they do not."""
    first = indexes[0].classes if indexes else None
    return first if all(index.classes == first for index in indexes) else None


def _samples(file: BinaryIO, name: str) -> tuple[dict[str, dict[str, Span]], int | None]:
    """Where the members of each sample lie, by the sample's key and the member's suffix; and the damage."""
    samples: dict[str, dict[str, Span]] = {}
    end = 0  # of the last member
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(
                        f"{name} holds a member {member.name}, which leads out of it: write the shard anew."
                    )
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                key, suffix = base_plus_ext(member.name)
                if key is None or not member.isreg():
                    continue
                members = samples.setdefault(key, {})
                if f".{suffix.lower()}" in members:
                    raise UserError(f"{name} holds {member.name} twice: write the shard anew.")
                members[f".{suffix.lower()}"] = Span(member.offset_data, member.size)
    except tarfile.ReadError as error:
        if not end:
            raise UserError(
                f"{name} is no plain tar file ({error}): unpack compressed shards first."
            ) from None
    length = file.seek(0, os.SEEK_END)
    file.seek(end)
    # A whole tar ends in blocks of zeros; tarfile passes over most of what is wrong here in silence.
    whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    return samples, None if whole else min(end, length)


def _foreign(name: str) -> UserError:
    return UserError(
        f"{name} is no index of a shard: delete it, or write the shards anew with 'vpt data shard'."
    )
