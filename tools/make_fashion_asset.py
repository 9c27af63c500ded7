"""Make the photos that ship in the package from Fashion-MNIST's IDX files.

    python tools/make_fashion_asset.py IDX_DIR

`IDX_DIR` holds `train-images-idx3-ubyte.gz` and `train-labels-idx1-ubyte.gz`, as published at
https://github.com/zalandoresearch/fashion-mnist. Written are `fashion_mnist_subset.png`, a lossless grey
mosaic of the first 1000 distinct photos of each class, class after class, 250 photos a row; and
`FASHION_MNIST_LICENSE`. The same input gives the same pixels.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

ASSETS = Path(__file__).resolve().parents[1] / "vpt_vision" / "assets"
CLASSES, PER_CLASS, COLUMNS, SIDE = 10, 1000, 250, 28

LICENSE = """\
fashion_mnist_subset.png is a selection from Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist), its photos unchanged, under this licence:

The MIT License (MIT) Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the “Software”), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def read_idx(path: Path, header: int) -> np.ndarray:
    """Read the bytes of a gzipped IDX file after its `header` bytes."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def main() -> None:
    """Read the IDX files named on the command line and write the assets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("idx_dir", type=Path, help="folder of the Fashion-MNIST IDX files")
    folder = parser.parse_args().idx_dir
    photos = read_idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, SIDE, SIDE)
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz", 8)

    # One photo of each exact duplicate, so that no photo can stand in two splits.
    distinct = np.sort(np.unique(photos.reshape(len(photos), -1), axis=0, return_index=True)[1])
    chosen = [distinct[labels[distinct] == label][:PER_CLASS] for label in range(CLASSES)]
    grid = photos[np.concatenate(chosen)].reshape(-1, COLUMNS, SIDE, SIDE)
    mosaic = grid.transpose(0, 2, 1, 3).reshape(-1, COLUMNS * SIDE)

    Image.fromarray(mosaic).save(ASSETS / "fashion_mnist_subset.png", optimize=True)
    (ASSETS / "FASHION_MNIST_LICENSE").write_text(LICENSE, encoding="utf-8")


if __name__ == "__main__":
    main()
