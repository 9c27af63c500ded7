"""A source by what stands on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpt_vision.config import load_source
from vpt_vision.data import build_source
from vpt_vision.data.stored import StoredSource


def open_source(where: str, overrides: Sequence[str], at_least: int | None = None) -> StoredSource:
    """Open the images that `where` names.

    Args:
        where: a folder of images, of shards (`*.tar`) or of Hugging Face's `save_to_disk`, or else a pattern
            or URL of shards.
        overrides: `key=value` settings of the source.
        at_least: the shorter side in pixels that is enough, as for `build_source`.

    Raises:
        UserError: where the source cannot be opened.
    """
    config = load_source({"kind": _kind(where), "path": _path(where)}, overrides)
    source = build_source(config, at_least)
    assert isinstance(source, StoredSource)  # as every kind that has a path
    return source


def _kind(where: str) -> str:
    folder = Path(where).expanduser()
    if not folder.is_dir() or any(folder.glob("*.tar")):
        return "shards"
    return "huggingface" if _saved(folder) else "folder"


def _path(where: str) -> str:
    folder = Path(where).expanduser()
    return str(folder / "*.tar") if folder.is_dir() and any(folder.glob("*.tar")) else where


def _saved(folder: Path) -> bool:
    """Whether `datasets` saved a data set, or several splits, to this folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists()
