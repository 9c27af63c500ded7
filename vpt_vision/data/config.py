"""Which data a run trains on, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vpt_vision.data.folder import Folder, FolderConfig
from vpt_vision.data.huggingface import HuggingFace, HuggingFaceConfig
from vpt_vision.data.scenes import FashionScenes, FashionScenesConfig
from vpt_vision.data.shards import Shards, ShardsConfig, shard_locations
from vpt_vision.data.source import Source
from vpt_vision.data.transfer import is_remote
from vpt_vision.schema import Config

SourceConfig = Annotated[
    FashionScenesConfig | FolderConfig | HuggingFaceConfig | ShardsConfig, Field(discriminator="kind")
]

Deviation = Annotated[float, Field(gt=0)]


class DataConfig(Config):
    """The unlabelled images that the learner sees, and what they become before a task is set on them."""

    train: SourceConfig
    shorter_side: int | None = Field(
        None,
        ge=1,
        description="pixels of an image's shorter side that are enough: a JPEG of 2, 4 or 8 times as many is "
        "decoded smaller and faster. Unset: as many as the recipe's smallest crop needs not to be enlarged",
    )
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406),
        description="subtracted from red, green and blue in [0, 1] (default: ImageNet's)",
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        (0.229, 0.224, 0.225), description="what red, green and blue are divided by after that"
    )
    workers: int = Field(4, ge=0, description="processes that decode; 0 decodes in the training process")
    max_unreadable: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of unreadable images, over at least 1,000 read, above which a run ends",
    )


def build_source(config: SourceConfig, at_least: int | None = None) -> Source:
    """Open the data that `config` describes; raises `UserError` if it cannot.

    Images keep their own sizes, but for JPEGs of at least twice the pixels that are enough: they are decoded
    to 1/2, 1/4 or 1/8, with neither side below `at_least` pixels. None decodes all of them in full.
    """
    match config:
        case FashionScenesConfig():
            return FashionScenes(config)
        case FolderConfig():
            return Folder(config, at_least)
        case HuggingFaceConfig():
            return HuggingFace(config, at_least)
        case ShardsConfig():
            return Shards(config, at_least)


def share_images(first: SourceConfig, second: SourceConfig) -> bool:
    """Whether two sources show the same photos, wholly or in part.

    Settings of the view (a scene's size, seed, goal and colours; names of columns; counts of samples and
    classes) make no other photos. A folder holds those of the folders below it. Files are known by their
    paths: copies elsewhere are not found out. Raises `UserError` where a pattern of shards names none.
    """
    match first, second:
        case FashionScenesConfig(), FashionScenesConfig():
            return first.split == second.split
        case FolderConfig(), FolderConfig():
            one, other = _whole(first.path), _whole(second.path)
            return one.is_relative_to(other) or other.is_relative_to(one)
        case HuggingFaceConfig(), HuggingFaceConfig():
            return _whole(first.path) == _whole(second.path) and first.split == second.split
        case ShardsConfig(), ShardsConfig():
            one_set, other_set = (
                {name if is_remote(name) else str(_whole(Path(name))) for name in shard_locations(each.path)}
                for each in (first, second)
            )
            return bool(one_set & other_set)
    return False


def _whole(path: Path) -> Path:
    return path.expanduser().resolve()
