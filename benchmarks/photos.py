"""Write JPEGs that cost as much to decode as photos, where no photos are at hand.

    python benchmarks/photos.py FOLDER --count 512

Colour noise whose spectrum falls as that of photos does (amplitude over frequency), of 500 × 375 pixels, at
the quality that brings it to about 100 kB: as large as files of ImageNet, and undoing their entropy code is
most of the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (375, 500)
QUALITY = 86


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=512)
    arguments = parser.parse_args()
    for number in range(arguments.count):
        save_photo(arguments.folder / f"{number:05d}.jpg", number)


def save_photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(seed)).save(path, quality=QUALITY, subsampling="4:2:0")


def photo(seed: int) -> np.ndarray:
    """Noise of a photo's spectrum, [375, 500, 3] uint8, a function of `seed`; every other one is upright."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(SIDES[0])[:, None], np.fft.rfftfreq(SIDES[1])
    frequency = np.maximum(np.hypot(rows, columns), 1 / max(SIDES))[..., None]
    shape = (*frequency.shape[:2], 3)
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / frequency
    spectrum = spectrum @ np.array([[1, 0.9, 0.8], [0.2, 0, -0.2], [0.1, -0.1, 0.1]])  # colours go together
    image = np.fft.irfft2(spectrum, SIDES, axes=(0, 1))
    pixels = np.clip(128 + 55 * image / image.std(), 0, 255).astype(np.uint8)
    return pixels if seed % 2 else np.ascontiguousarray(pixels.transpose(1, 0, 2))


if __name__ == "__main__":
    main()
