"""Colour scenes composed on the fly from Fashion-MNIST photos that ship in the package."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from itertools import permutations
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from vpt_vision.data.fingerprint import fingerprint
from vpt_vision.data.source import Sample
from vpt_vision.schema import Config

CLASSES = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip
TINTS = list(permutations("rgb"))  # from the darkest channel to the lightest
PHOTO = 28  # side of a photo, pixels
PER_CLASS = 1000  # photos of each class in the mosaic
SPLITS = {"train": (0, 600), "feedback": (600, 800), "test": (800, 1000)}  # photos of each class, disjoint
SPECK = 16  # grey levels below this do not stand out from a photo's black background
OCTAVES = (4, 10, 24)  # cells along the side of a scene of each octave of the ground's texture
SMALLEST = 32  # side of a scene, pixels

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Share = Annotated[float, Field(gt=0, lt=1)]


class FashionScenesConfig(Config):
    """Scenes of garments over a ground, each a function of (seed, split, index) alone."""

    kind: Literal["fashion_scenes"]
    split: Literal["train", "feedback", "test"] = Field(description="whose photos: no photo is in two splits")
    count: int = Field(ge=1, description="scenes in the source")
    size: int = Field(64, ge=SMALLEST, description="side of a scene, pixels")
    goal: Literal["class", "colour"] = Field(
        "class", description="what the label tells of the salient garment: its class, or its colour's order"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="another seed gives other scenes of the same photos")
    garments: tuple[int, int] = Field(
        (3, 6), description="fewest and most garments of a scene, salient one included"
    )
    salient_area: tuple[Share, Share] = Field(
        (0.10, 0.25), description="range of the salient garment's area, as a share of the scene's"
    )
    other_area: tuple[Share, Share] = Field(
        (0.2, 0.6), description="range of every other garment's area, as a share of the salient one's"
    )
    min_visible: Share = Field(0.7, description="least share of the salient garment that is not hidden")
    colour: float = Field(
        1.0,
        ge=0,
        le=1,
        description="1: random colours; 0: the photos' own grey on black; between: both mixed in that share",
    )
    texture: float = Field(
        0.5, ge=0, le=1, description="contrast of the ground's texture; 0 is one plain colour"
    )

    @model_validator(mode="after")
    def _consistent(self) -> FashionScenesConfig:
        for name in ("garments", "salient_area", "other_area"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the range {low} to {high} is empty; give the smaller number first")
        if self.garments[0] < 1:
            raise ValueError("garments: a scene has at least one, the salient garment")
        if self.other_area[1] >= self.min_visible:
            raise ValueError(
                f"other_area: up to {self.other_area[1]} of the salient garment's area is not below "
                f"min_visible {self.min_visible}, so another one could be the largest seen; lower other_area"
            )
        return self


class Garment(NamedTuple):
    """One garment as it lies in a scene."""

    label: int  # its class
    tint: int  # the order of its colour's channels, in TINTS
    top: int  # of the square cell that holds the photo; may lie outside the scene
    left: int
    colour: Floats  # [3, s, s] in [0, 255]
    alpha: Floats  # [s, s] in [0, 1]

    @property
    def area(self) -> int:
        """Pixels that the garment covers, hidden ones and those outside the scene included."""
        return int((self.alpha > 0.5).sum())


class FashionScenes:
    """A source of scenes: several garments at random places, scales and tints, in front of one another.

    A sample's label tells of its salient garment: the one with the largest visible area, which lies wholly
    inside the scene and shows at least `min_visible` of itself. It is the garment's class or, for the goal
    "colour", which of its red, green and blue is the darkest and which the lightest (6 orders, equally
    often; a pixel's lightness does not change them). Its segmentation map is 0 on the
    ground and 1 + class on a garment. Its depth map counts layers, as metres: 1 for the foremost garment,
    one more for each garment behind it, and `garments[1] + 1` for the ground.
    """

    def __init__(self, config: FashionScenesConfig) -> None:
        self.config = config
        self.classes: list[str] | None = CLASSES if config.goal == "class" else ["".join(t) for t in TINTS]
        self.size = config.size

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.config.count:
            raise IndexError(f"scene {index} of {self.config.count}")
        image, segmentation, depth, label = self._compose(index)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(image.transpose(1, 2, 0))),
            index=index,
            label=label,
            segmentation=torch.from_numpy(segmentation),
            depth=torch.from_numpy(depth),
        )

    def name(self, index: int) -> str:
        """The number of the scene."""
        return f"scene {index}"

    def fingerprint(self) -> str:
        """A hash of the scenes' settings and of the package's version, whose code composes them."""
        return fingerprint(f"scenes {version('vpt-vision')} {self.config.model_dump_json()}")

    def _compose(self, index: int) -> tuple[Bytes, Bytes, Floats, int]:
        config = self.config
        split = list(SPLITS).index(config.split)
        key = np.array([config.seed, index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, split]))

        ground = self._ground(rng)
        area = rng.uniform(*config.salient_area) * self.size**2
        salient = self._garment(rng, area, inside=True)
        layers = [
            self._garment(rng, salient.area * rng.uniform(*config.other_area), inside=False)
            for _ in range(int(rng.integers(config.garments[0] - 1, config.garments[1])))
        ]  # back to front
        place = int(rng.integers(len(layers) + 1))
        layers.insert(place, salient)
        image, top = self._paint(ground, layers)
        if (top == place).sum() < config.min_visible * salient.area:
            layers.append(layers.pop(place))
            image, top = self._paint(ground, layers)

        labels = np.array(
            [garment.label + 1 for garment in layers] + [0], np.uint8
        )  # top == -1 is the ground
        depths = np.array([*range(len(layers), 0, -1), config.garments[1] + 1], np.float32)
        return (
            image.astype(np.uint8),
            labels[top],
            depths[top],
            salient.label if config.goal == "class" else salient.tint,
        )

    def _ground(self, rng: np.random.Generator) -> Floats:
        """Draw a ground [3, size, size]: a colour, and value noise of several octaves around it."""
        colour = self.config.colour * rng.uniform(40, 215, (3, 1, 1))
        ground: Floats = np.broadcast_to(colour.astype(np.float32), (3, self.size, self.size)).copy()
        if self.config.texture:
            for cells in OCTAVES:
                resize = _resize_matrix(cells, self.size)
                noise = resize @ rng.uniform(-0.5, 0.5, (cells, cells)).astype(np.float32) @ resize.T
                strength = 255 * self.config.texture * rng.random() * rng.uniform(0.3, 1, (3, 1, 1))
                ground += noise * strength.astype(np.float32)
        np.clip(ground, 0, 255, out=ground)
        return ground

    def _garment(self, rng: np.random.Generator, area: float, *, inside: bool) -> Garment:
        """Draw a garment that covers about `area` pixels; `inside` keeps its whole cell in the scene."""
        photos, areas = _photos(self.config.split)
        label, photo = int(rng.integers(len(CLASSES))), int(rng.integers(photos.shape[1]))
        side = min(max(int((area / areas[label, photo]) ** 0.5), 4), self.size)
        resize = _resize_matrix(PHOTO, side)
        shade, alpha = resize @ photos[label, photo] @ resize.T
        if rng.random() < 0.5:
            shade, alpha = shade[:, ::-1], alpha[:, ::-1]

        hue = rng.random((3, 1, 1))  # its order is that of the channels in every pixel
        dark, light = hue * rng.uniform(0.1, 0.5), 1 - (1 - hue) * rng.uniform(0.1, 0.6)
        if rng.random() < 0.5:
            dark, light = light, dark
        share = self.config.colour
        dark, light = share * dark, share * light + (1 - share)
        colour = (255 * dark).astype(np.float32) + shade * (255 * (light - dark)).astype(np.float32)

        margin = 0 if inside else side // 2
        top, left = rng.integers(-margin, self.size - side + margin, 2, endpoint=True)
        tint = TINTS.index(tuple("rgb"[channel] for channel in hue.ravel().argsort()))
        return Garment(label, tint, int(top), int(left), colour, alpha)

    def _paint(self, ground: Floats, layers: list[Garment]) -> tuple[Floats, Ints]:
        """Lay garments over a ground, back to front; also give each pixel's foremost layer, -1 for none."""
        image, foremost = ground.copy(), np.full((self.size, self.size), -1)
        for number, garment in enumerate(layers):
            side = len(garment.alpha)
            rows = slice(max(garment.top, 0), min(garment.top + side, self.size))
            columns = slice(max(garment.left, 0), min(garment.left + side, self.size))
            own = (
                slice(rows.start - garment.top, rows.stop - garment.top),
                slice(columns.start - garment.left, columns.stop - garment.left),
            )
            alpha, below = garment.alpha[own], image[:, rows, columns]
            below += alpha * (garment.colour[:, own[0], own[1]] - below)
            foremost[rows, columns][alpha > 0.5] = number
        return image, foremost


@lru_cache(maxsize=len(SPLITS))
def _photos(split: str) -> tuple[Floats, Floats]:
    """Read a split's photos beside their silhouettes [class, photo, 2, 28, 28] and the latter's mean."""
    with files("vpt_vision").joinpath("assets/fashion_mnist_subset.png").open("rb") as file:
        mosaic = np.asarray(Image.open(file))
    rows, columns = mosaic.shape[0] // PHOTO, mosaic.shape[1] // PHOTO
    cells = mosaic.reshape(rows, PHOTO, columns, PHOTO).transpose(0, 2, 1, 3)
    photos = cells.reshape(len(CLASSES), PER_CLASS, PHOTO, PHOTO)[:, slice(*SPLITS[split])]
    silhouettes = _silhouettes(photos)
    pairs = np.stack([photos.astype(np.float32) / 255, silhouettes], axis=2, dtype=np.float32)
    return pairs, silhouettes.mean((-1, -2), dtype=np.float32)


def _silhouettes(photos: Bytes) -> NDArray[np.bool_]:
    """Mark what the background does not reach from outside the photo [..., h, w].

    The background is 0 but for faint specks around the garments; inside a garment dark pixels are its own.
    """
    border: Any = [(0, 0)] * (photos.ndim - 2) + [(1, 1), (1, 1)]
    empty = np.pad(photos < SPECK, border, constant_values=True)
    outside = np.pad(np.zeros(photos.shape, bool), border, constant_values=True)
    reached = 0
    while reached != (reached := int(outside.sum())):
        outside[..., 1:, :] |= outside[..., :-1, :]
        outside[..., :-1, :] |= outside[..., 1:, :]
        outside[..., 1:] |= outside[..., :-1]
        outside[..., :-1] |= outside[..., 1:]
        outside &= empty
    return ~outside[..., 1:-1, 1:-1]


@lru_cache(maxsize=1024)
def _resize_matrix(source: int, target: int) -> Floats:
    """Weights [target, source] of antialiased bilinear resizing along one axis: a triangle filter."""
    scale = source / target
    centres = (np.arange(target)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(np.arange(source) - centres) / max(scale, 1.0), 0)
    normalised: Floats = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised
