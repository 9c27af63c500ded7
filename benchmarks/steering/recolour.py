"""Give every image of labelled shards a random order of its colour channels, and that order as its label.

    python benchmarks/steering/recolour.py data/cifar10 data/cifar10-colour

Each `NAME.tar` under SRC becomes one under DST, image by image, as PNG. The order is one of the six of red,
green and blue, drawn anew for every image: what an image shows says nothing of its label, only in which
colours it is shown.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from vpt_vision.data import Shards, ShardsConfig

ORDERS = list(permutations(range(3)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of .tar shards")
    parser.add_argument("destination", type=Path, help="folder to write them to")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default: 0)")
    options = parser.parse_args()
    options.destination.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(sorted(options.source.glob("*.tar"))):
        recolour(shard, options.destination / shard.name, np.random.default_rng([options.seed, number]))


def recolour(source: Path, destination: Path, generator: np.random.Generator) -> None:
    """Write the shard `destination`: the images of `source` with their channels in another order."""
    images = Shards(ShardsConfig(kind="shards", path=str(source)))
    with tarfile.open(destination, "w") as shard:
        for index in range(len(images)):
            order = int(generator.integers(len(ORDERS)))
            pixels = images[index].image.numpy()[..., ORDERS[order]]
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(png, "png")
            _add(shard, f"{index:06d}.png", png.getvalue())
            _add(shard, f"{index:06d}.cls", str(order).encode())


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
