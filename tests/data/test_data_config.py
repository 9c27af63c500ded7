import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from webdataset import TarWriter

from vpt_vision.data import DataConfig, FashionScenes, Folder, Shards, SourceConfig, build_source


def test_kind_chooses_the_source(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "png": (tmp_path / "a.png").read_bytes()})
    settings = {
        FashionScenes: {"kind": "fashion_scenes", "split": "train", "count": 1},
        Folder: {"kind": "folder", "path": str(tmp_path)},
        Shards: {"kind": "shards", "path": str(tmp_path / "*.tar")},
    }
    for source, train in settings.items():
        config = DataConfig.model_validate({"train": train})
        built = build_source(config.train, 4)
        assert type(built) is source
        assert len(built) == 1 and built[0].image.shape == (*(2 * [64 if source is FashionScenes else 8]), 3)


def test_unknown_kind():
    with pytest.raises(ValidationError, match="'fashion_scenes', 'folder', 'huggingface', 'shards'"):
        TypeAdapter(SourceConfig).validate_python({"kind": "lmdb", "path": "x"})
