"""WebDataset shards, here or far away, with random access to every sample."""

from __future__ import annotations

import glob
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from webdataset.shardlists import expand_urls

from vpt_vision.data.fingerprint import fingerprint, stamp
from vpt_vision.data.labels import number_names
from vpt_vision.data.members import IMAGES
from vpt_vision.data.order import Groups
from vpt_vision.data.shard_cache import GIGABYTE, RemoteConfig, ShardCache
from vpt_vision.data.shard_index import (
    SUFFIX,
    ShardIndex,
    Span,
    common_classes,
    index_path,
    index_shard,
    parse_index,
    read_span,
    write_index,
)
from vpt_vision.data.source import Sample, UnreadableSample
from vpt_vision.data.stored import Stored
from vpt_vision.data.transfer import Unreachable, check_reach, is_remote, read, version
from vpt_vision.errors import UserError
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)

NOWHERE = Span(-1, -1)
ASKED_AT_A_TIME = 16  # remote shards whose indexes are fetched at once


class ShardsConfig(Config):
    """Samples in WebDataset tar files, labelled by the members beside the image."""

    kind: Literal["shards"]
    path: str = Field(
        description="tar files: a glob (data/train-*.tar), braces (data/train-{000000..000009}.tar), or with "
        "braces http(s)://, s3:// or another URL of fsspec, or pipe:command; several are joined by '::'"
    )
    classes: int | None = Field(
        None, ge=1, description="number of classes that .cls members name; unset: one more than the largest"
    )
    remote: RemoteConfig = Field(RemoteConfig(), description="how shards that lie elsewhere are read")


class Shards:
    """Every sample with an image in a set of shards, in the order of the shards and of their members.

    A sample is what shares the name before its first dot (WebDataset's convention): `.jpg .jpeg .png .webp`
    is its image, `.cls` its class in text, `.seg.png` its segmentation map, `.depth.png` its depth map in
    millimetres or `.depth.npy` in metres. Other members are never read, and nothing is ever unpickled.

    Where each member lies is read from the index beside a shard, or else from the shard's headers, once; an
    image is then one seek and one read. A remote shard without an index is read through once for it, and
    the index is kept. Samples of remote shards are read from whole shards in a cache on disk. A shard that
    is cut off is named in the log and used as far as it goes.

    Raises:
        UserError: a shard is missing, out of reach or no plain tar, a member's name is absolute or leads to
            a parent folder, a class is not a number or out of range, there is no image at all, or the cache
            cannot hold what is mixed.
    """

    def __init__(self, config: ShardsConfig, at_least: int | None = None) -> None:
        self.at_least = at_least
        self.locations = shard_locations(config.path)
        remote = any(is_remote(location) for location in self.locations)
        self._cache = ShardCache(config.remote) if remote else None
        with ThreadPoolExecutor(ASKED_AT_A_TIME if remote else 1) as pool:
            found = list(pool.map(self._find, self.locations))
        indexes = [shard.holds for shard in found]
        self._keys = [shard.key for shard in found]
        self._paths = [Path(location) for location in self.locations]  # of those on this machine
        self._bytes = np.array([index.bytes for index in indexes])
        self.faults = [
            f"{location} is cut off or damaged from byte {index.damage} on"
            for location, index in zip(self.locations, indexes, strict=True)
            if index.damage is not None
        ]
        for fault in self.faults:
            _LOG.warning("%s", fault)
        entries = [entry for index in indexes for entry in index.entries]
        if not entries:
            raise UserError(f"{config.path} holds no image: its tars need {', '.join(IMAGES)} members.")
        named = common_classes(indexes) if config.classes is None else None
        count = config.classes if named is None else len(named)
        numbered = number_names([entry.label for entry in entries], count, config.path)
        self.classes = numbered if named is None else named
        # Arrays, not lists: worker processes then share one copy, as no reference count is ever written.
        counts = [len(index.entries) for index in indexes]
        self._shards = np.repeat(np.arange(len(indexes)), counts)
        self._names = np.array([os.fsencode(entry.key) for entry in entries])
        self._labels = np.array([-1 if entry.label is None else entry.label for entry in entries])
        members = (
            member or NOWHERE
            for entry in entries
            for member in (entry.image, entry.segmentation, entry.depth)
        )
        # [N, 3, 2]: image, segmentation and depth; offset and length
        self._spans = np.fromiter((number for span in members for number in span), np.int64).reshape(-1, 3, 2)
        self.groups = (
            Groups(np.concatenate([[0], np.cumsum(counts)]), config.remote.shuffle_shards) if remote else None
        )
        if remote:
            self._expect_room(config.remote)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        return self.stored(index).decoded(self.name(index), index, self.at_least)

    def name(self, index: int) -> str:
        """The shard and the sample's key in it."""
        return f"{self.locations[self._shards[index]]}: {os.fsdecode(self._names[index])}"

    def stored(self, index: int) -> Stored:
        """Read the members of one sample; raises `UnreadableSample` where it cannot."""
        shard = int(self._shards[index])
        location = self.locations[shard]
        image_span, *map_spans = map(Span._make, self._spans[index].tolist())
        try:
            with self._open(shard) as file:  # opened anew for every sample: no handle is shared by processes
                image = read_span(file, image_span)
                segmentation, depth = (
                    None if span == NOWHERE else read_span(file, span) for span in map_spans
                )
        except OSError as error:
            raise UnreadableSample(self.name(index), error.strerror or str(error), location) from error
        except Unreachable as error:
            raise UnreadableSample(self.name(index), str(error), location) from error
        except EOFError:
            raise UnreadableSample(self.name(index), "the shard ends inside this sample", location) from None
        label = int(self._labels[index])
        return Stored(
            key=os.fsdecode(self._names[index]),
            image=image,
            label=None if label < 0 else label,
            segmentation=segmentation,
            depth=depth,
            shard=location,
        )

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of image, segmentation map and depth map of each sample [N, 3]; 0 for what it has not."""
        return np.maximum(self._spans[:, :, 1], 0)

    def fingerprint(self) -> str:
        """A hash of the shards' versions, of all names, places and labels."""
        versions = [
            f"{location} {stamp(Path(location)) if key is None else key}"
            for location, key in zip(self.locations, self._keys, strict=True)
        ]
        return fingerprint(f"shards {self.at_least}", *versions, self._names, self._labels, self._spans)

    def prefetch(self, group: int) -> None:
        """Fetch a remote shard into the cache; one that cannot be had is told of when a sample is read."""
        with suppress(Unreachable, OSError, UserError):
            self._open(group).close()

    def _open(self, shard: int) -> BinaryIO:
        key = self._keys[shard]
        if key is None:
            return self._paths[shard].open("rb", buffering=0)  # one read is all that follows
        assert self._cache is not None
        return self._cache.open(self.locations[shard], key, int(self._bytes[shard]))

    def _find(self, location: str) -> _Found:
        if not is_remote(location):
            return _Found(_local_index(Path(location)), None)
        assert self._cache is not None
        try:
            return _remote_index(location, self._cache)
        except Unreachable as error:
            raise UserError(
                f"the shard {location} cannot be had ({error}): correct the path, or try again later."
            ) from None

    def _expect_room(self, remote: RemoteConfig) -> None:
        """Refuse a cache that would drop shards before their samples are read."""
        far = [number for number, key in enumerate(self._keys) if key is not None]
        needed = int(np.sort(self._bytes[far])[-2 * remote.shuffle_shards :].sum())
        if needed > remote.cache_gb * GIGABYTE:
            raise UserError(
                f"a cache of remote.cache_gb = {remote.cache_gb:g} cannot hold the shards that are mixed "
                f"and those fetched ahead, {needed / GIGABYTE:.3g} × 10^9 bytes: raise it, or lower "
                "remote.shuffle_shards."
            )


class _Found(NamedTuple):
    """A shard that is there."""

    holds: ShardIndex
    key: str | None  # of a remote shard in the cache


def shard_locations(pattern: str) -> list[str]:
    """The paths and URLs that a pattern of shards names; raises `UserError` where there is none."""
    try:
        names = expand_urls(pattern)
    except (ValueError, AssertionError):  # unbalanced braces; an unset ${NAME}
        raise UserError(
            f"'{pattern}' is no pattern of shards: close its braces, as in train-{{000..009}}.tar."
        ) from None
    locations: list[str] = []
    for name in names:
        if is_remote(name):
            check_reach(name)
            locations.append(name)
            continue
        path = str(Path(name).expanduser())
        # Path.glob cannot start at the root of the disk
        found = [path] if Path(path).exists() else sorted(glob.glob(path))  # noqa: PTH207
        if not found:
            raise UserError(f"no shard is at {name}: correct the path, or put the tar file there.")
        locations += found
    return locations


def _local_index(path: Path) -> ShardIndex:
    """The index beside a shard where it fits the shard, else what the shard's headers say."""
    beside = index_path(path)
    try:
        with path.open("rb") as file:
            if beside.exists():
                index = parse_index(beside.read_bytes(), str(beside))
                shard = path.stat()
                if index.bytes == shard.st_size and shard.st_mtime <= beside.stat().st_mtime:
                    return index
                _LOG.warning("%s does not fit its shard, whose headers are read in its place", beside)
            return index_shard(file, str(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): correct the path or its rights."
        ) from None


def _remote_index(location: str, cache: ShardCache) -> _Found:
    """The index beside a remote shard, or else one made from the shard; either is kept in the cache."""
    if not location.startswith("pipe:"):
        beside = location + SUFFIX
        try:
            key = cache.key(beside, version(beside, cache.config))
            kept = cache.folder / f"{key}{SUFFIX}"
            if not kept.exists():
                write_index(kept, parse_index(read(beside, cache.config), beside))
        except Unreachable as error:
            if error.passing:  # else there is none; some services forbid to ask for what is not there
                raise
        else:
            shard = cache.key(location, key)
            cache.forgive(shard)  # what failed an earlier run may be well again
            return _Found(parse_index(kept.read_bytes(), str(kept)), shard)
    key = cache.key(location, version(location, cache.config))
    cache.forgive(key)
    kept = cache.folder / f"{key}{SUFFIX}"
    if not kept.exists():
        _LOG.warning("%s has no index beside it, so it is read through once to make one", location)
        with cache.open(location, key, None) as file:
            write_index(kept, index_shard(file, location))
    return _Found(parse_index(kept.read_bytes(), str(kept)), key)
