"""Images: sources with random access behind one interface, and the loader that makes batches of them."""

from vpt_vision.data.batch import Batch
from vpt_vision.data.config import DataConfig, SourceConfig, build_source, share_images
from vpt_vision.data.device import on_device
from vpt_vision.data.folder import Folder, FolderConfig
from vpt_vision.data.huggingface import HuggingFace, HuggingFaceConfig
from vpt_vision.data.loader import Loader
from vpt_vision.data.scenes import FashionScenes, FashionScenesConfig
from vpt_vision.data.shards import Shards, ShardsConfig
from vpt_vision.data.source import Sample, Source, UnreadableSample

__all__ = [
    "Batch",
    "DataConfig",
    "FashionScenes",
    "FashionScenesConfig",
    "Folder",
    "FolderConfig",
    "HuggingFace",
    "HuggingFaceConfig",
    "Loader",
    "Sample",
    "Shards",
    "ShardsConfig",
    "Source",
    "SourceConfig",
    "UnreadableSample",
    "build_source",
    "on_device",
    "share_images",
]
