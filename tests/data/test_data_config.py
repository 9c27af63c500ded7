import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from webdataset import TarWriter

from vpt_vision.data import (
    DataConfig,
    FashionScenes,
    Folder,
    Shards,
    SourceConfig,
    build_source,
    share_images,
)


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


def test_sources_that_show_the_same_photos(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "a-2.tar"):
        (tmp_path / name).touch()
    scenes = {"kind": "fashion_scenes", "split": "train", "count": 9}
    folder = {"kind": "folder", "path": f"{tmp_path}/photos"}
    rows = {"kind": "huggingface", "path": f"{tmp_path}/rows", "split": "train"}
    shards = {"kind": "shards", "path": f"{tmp_path}/a-{{0..1}}.tar"}
    far = {"kind": "shards", "path": "https://example.org/a-{0..1}.tar"}
    same = [
        (scenes, {**scenes, "count": 3, "seed": 4, "size": 96, "goal": "colour", "texture": 0.0}),
        (folder, {**folder, "classes": 3}),
        (folder, {**folder, "path": f"{tmp_path}/other/../photos/cats"}),
        (rows, {**rows, "label_column": "class"}),
        (shards, {**shards, "path": f"{tmp_path}/*-1.tar"}),
        (far, {**far, "path": "https://example.org/a-1.tar", "remote": {"cache_gb": 1}}),
    ]
    others = [
        (scenes, {**scenes, "split": "feedback"}),
        (folder, {**folder, "path": f"{tmp_path}/photos2"}),
        (rows, {**rows, "split": "test"}),
        (shards, {**shards, "path": f"{tmp_path}/a-2.tar"}),
        (shards, far),
        (far, {**far, "path": "https://example.org/a-2.tar"}),
        (scenes, folder),
    ]
    for pairs, expected in ((same, True), (others, False)):
        for pair in pairs:
            one, other = (TypeAdapter(SourceConfig).validate_python(each) for each in pair)
            assert share_images(one, other) == share_images(other, one) == expected, pair
