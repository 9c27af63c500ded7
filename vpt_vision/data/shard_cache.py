"""Remote shards kept whole on a local disk, within a bound, shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from pydantic import Field

from vpt_vision.data.transfer import PatienceConfig, Unreachable, download
from vpt_vision.errors import UserError

GIVEN_UP_FOR = 600.0  # seconds for which a shard that could not be fetched is not asked for again
ABANDONED_AFTER = 3600.0  # seconds without a byte: whoever fetched this part is dead
GIGABYTE = 10**9


class RemoteConfig(PatienceConfig):
    """How shards that do not lie on this machine are read."""

    cache: Path = Field(
        Path("~/.cache/vpt-vision/shards"), description="folder that keeps fetched shards; runs may share it"
    )
    cache_gb: float = Field(
        100.0, gt=0, description="its bound in 10^9 bytes; the least recently used shards make room"
    )
    shuffle_shards: int = Field(
        8, ge=1, description="shards whose samples are mixed; the cache must hold twice as many"
    )


class ShardCache:
    """Fetches shards and keeps them as files.

    A shard is fetched once for all processes, under a lock; it appears in the cache whole or not at all. One
    that cannot be fetched is not tried again for ten minutes, by whatever process, or until it is forgiven:
    else each of its samples would take the whole patience.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.folder = config.cache.expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot keep shards ({error.strerror}): name another folder as 'remote.cache'."
            ) from None

    @staticmethod
    def key(location: str, version: str) -> str:
        """The name in the cache of what lies at a location as long as its version stays."""
        return hashlib.sha256(f"{location}\n{version}".encode()).hexdigest()[:32]

    def open(self, location: str, key: str, length: int | None) -> BinaryIO:
        """Open a shard, fetching it first if it is not here.

        Args:
            location: a URL or `pipe:command`.
            key: of `ShardCache.key`.
            length: of the shard, bytes; None where nobody knows.

        Raises:
            Unreachable: it cannot be fetched.
            UserError: the cache cannot be written.
        """
        path = self.folder / f"{key}.tar"
        while True:
            with suppress(FileNotFoundError):  # never fetched, or dropped by another process this moment
                file = path.open("rb")
                _note_use(file)
                return file
            self._fetch(location, path, length)

    def forgive(self, key: str) -> None:
        """Let a shard be asked for at once, though it could not be fetched before."""
        (self.folder / f"{key}.failed").unlink(missing_ok=True)

    def _fetch(self, location: str, path: Path, length: int | None) -> None:
        with FileLock(path.with_suffix(".lock")):
            if path.exists():  # another process was faster
                return
            failed = path.with_suffix(".failed")
            with suppress(FileNotFoundError):
                if time.time() - failed.stat().st_mtime < GIVEN_UP_FOR:
                    raise Unreachable(failed.read_text(encoding="utf-8"), passing=False)
            try:
                self._make_room(length or 0, path)
                download(location, path, length, self.config)
                self._make_room(0, path)  # the length of a command's output is known only now
            except Unreachable as error:
                failed.write_text(str(error), encoding="utf-8")
                raise
            except OSError as error:
                raise UserError(
                    f"{self.folder} cannot take the shard {location} ({error.strerror or error}): make room, "
                    "or name another folder as 'remote.cache'."
                ) from error
            failed.unlink(missing_ok=True)

    def _make_room(self, length: int, new: Path) -> None:
        """Drop the least recently used shards, but not the `new` one, until `length` more bytes fit."""
        with FileLock(self.folder / "drop.lock"):
            kept = sorted(self._files())
            excess = length + sum(size for _, size, _ in kept) - self.config.cache_gb * GIGABYTE
            for used, size, path in kept:
                if excess <= 0:
                    break
                under_way = path.suffix == ".part" and time.time() - used < ABANDONED_AFTER
                if path != new and not under_way:
                    path.unlink(missing_ok=True)
                    excess -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, length and path of each shard, and of each part of one that is being fetched."""
        for path in self.folder.iterdir():
            if path.suffix in {".tar", ".part"}:
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    yield stat.st_mtime, stat.st_size, path


def _note_use(file: BinaryIO) -> None:
    """Note the use of an open shard, for the order in which they are dropped.

    By its handle, not by its path: another process may have dropped it this moment, and touching a path that
    is not there would leave an empty shard.
    """
    with suppress(OSError):
        os.utime(file.fileno())
