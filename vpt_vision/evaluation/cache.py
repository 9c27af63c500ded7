"""Extracted features kept on disk, under a name made of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)

GIGABYTE = 10**9
SUFFIX = ".safetensors"

Key = Mapping[str, object]  # JSON-able: what the tensors of an entry are a function of


class CacheConfig(Config):
    """Where extracted features are kept."""

    folder: Path = Field(
        Path("~/.cache/vpt-vision/features"), description="folder of the entries; runs may share it"
    )
    gb: float = Field(
        20.0, gt=0, description="its bound in 10^9 bytes; the least recently used entries make room"
    )


class FeatureCache:
    """Named tensors by key, one safetensors file each.

    An entry appears whole or not at all. Its header holds its key and a checksum; one that is cut off,
    altered or another's is told of in the log and counts as absent. Nothing is ever unpickled.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = config.folder.expanduser()
        self.limit = config.gb * GIGABYTE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot keep features ({error.strerror}): name another folder as "
                "evaluation.cache.folder, or give --no-cache."
            ) from None

    def path(self, key: Key) -> Path:
        """The file of the entry of `key`."""
        return self.folder / (hashlib.sha256(_text(key).encode()).hexdigest()[:32] + SUFFIX)

    def read(self, key: Key) -> dict[str, Tensor] | None:
        """The tensors of an entry on the CPU; None where there is none that is whole and of this key."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            _LOG.warning("%s is damaged (%s): its features are extracted anew", path, error)
            return None
        if header.get("key") != _text(key):
            _LOG.warning("%s holds something else: its features are extracted anew", path)
            return None
        if header.get("sha256") != digest_of(tensors):
            _LOG.warning("%s was altered after it was written: its features are extracted anew", path)
            return None
        with suppress(OSError):
            path.touch()  # for the order in which entries are dropped
        return tensors

    def write(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors`, and drop the least recently used entries above the bound.

        A cache that cannot be written to is told of in the log: the features themselves are there.
        """
        path = self.path(key)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                part,
                {"key": _text(key), "sha256": digest_of(tensors)},
            )
            part.replace(path)
            self._make_room(path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            _LOG.warning("%s could not be written (%s): these features are not kept", path, error)

    def _make_room(self, new: Path) -> None:
        with FileLock(self.folder / "drop.lock"):
            kept = sorted(self._files())
            excess = sum(size for _, size, _ in kept) - self.limit
            for _, size, path in kept:
                if excess <= 0:
                    break
                if path != new:
                    path.unlink(missing_ok=True)
                    excess -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, length and path of each entry."""
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def digest_of_module(module: nn.Module) -> str:
    """SHA-256 over a module's structure, as it prints itself, and its state."""
    structure = f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}\n"
    return hashlib.sha256((structure + digest_of(module.state_dict())).encode()).hexdigest()


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True)
