import os

import numpy as np
import pytest
from PIL import Image

from vpt_vision.data import build_source
from vpt_vision.data.config import SourceConfig
from vpt_vision.data.fingerprint import fingerprint, stamp
from vpt_vision.data.tools.opening import open_source
from vpt_vision.data.tools.shard import parse_size, write_shards


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        path = tmp_path / "photos" / ["cat", "dog"][number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "photos"


def of(path, **settings):
    return open_source(str(path), [f"{key}={value}" for key, value in settings.items()]).fingerprint()


def test_it_stays_as_long_as_the_folder_does(photos):
    first = of(photos)
    assert of(photos) == first
    path = photos / "cat" / "0.png"
    os.utime(path, ns=(1, stamp(path)[1] + 1))
    assert of(photos) != first


@pytest.mark.parametrize(
    "change",
    [
        lambda photos: Image.new("RGB", (9, 9)).save(photos / "cat" / "2.png"),
        lambda photos: Image.new("RGB", (8, 8)).save(photos / "cat" / "9.png"),
        lambda photos: (photos / "cat" / "0.png").rename(photos / "cat" / "1.png"),
        lambda photos: (photos / "dog").rename(photos / "animal"),
        lambda photos: (photos / "cat" / "0.png").unlink(),
        lambda photos: Image.new("L", (8, 8)).save(photos / "cat" / "0.seg.png"),
    ],
)
def test_any_change_of_a_folder_is_seen(photos, change):
    first = of(photos)
    change(photos)
    assert of(photos) != first


def test_shards_tell_of_themselves(photos, tmp_path):
    source = open_source(str(photos), [])
    write_shards(source, tmp_path / "shards", parse_size("2"), seed=0, in_order=False, workers=0)
    first = of(tmp_path / "shards")
    assert of(tmp_path / "shards") == first != of(photos)
    shard = sorted((tmp_path / "shards").glob("*.tar"))[0]
    os.utime(shard, ns=(1, 1))
    assert of(tmp_path / "shards") != first


def test_scenes_are_a_function_of_their_settings():
    settings = {"kind": "fashion_scenes", "split": "test", "count": 5}

    def scenes(**changes):
        from pydantic import TypeAdapter

        config = TypeAdapter(SourceConfig).validate_python({**settings, **changes})
        return build_source(config).fingerprint()

    assert scenes() == scenes()
    assert len({scenes(), scenes(count=6), scenes(seed=1), scenes(split="train")}) == 4


def test_parts_are_told_apart():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(np.zeros(2, np.int64)) != fingerprint(np.zeros(4, np.int32))
