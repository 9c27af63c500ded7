"""Recoloured shards: the same images with their channels in the order that the label names."""

import io
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from vpt_vision.data import Shards, ShardsConfig

COUNT = 60


@pytest.fixture
def recolour(steering):
    return steering("recolour")


@pytest.fixture
def shard(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 9, 7, 3), dtype=np.uint8)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, image in enumerate(pixels):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png.getvalue())
            tar.addfile(member, io.BytesIO(png.getvalue()))
    return tmp_path, torch.from_numpy(pixels)


def test_labels_name_the_order_of_the_channels(recolour, shard, monkeypatch):
    folder, pixels = shard
    monkeypatch.setattr(sys, "argv", ["recolour.py", str(folder), str(folder / "out")])
    recolour.main()
    found = Shards(ShardsConfig(kind="shards", path=str(folder / "out" / "a.tar")))
    assert len(found) == COUNT
    labels = [found[index].label for index in range(COUNT)]
    assert set(labels) == set(range(6))
    for index, label in enumerate(labels):
        assert torch.equal(found[index].image, pixels[index][..., list(recolour.ORDERS[label])])
