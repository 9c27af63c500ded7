"""A backbone as one safetensors file that timm loads by itself, with all it takes to build it again."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vpt_vision.errors import UserError
from vpt_vision.learner.backbone import Backbone, BackboneConfig
from vpt_vision.task import Renderer


class BackboneMetadata(NamedTuple):
    """What an exported file says about itself, each entry JSON in the safetensors header."""

    name: str  # timm's name of the model
    options: dict[str, Any]  # further arguments of timm.create_model
    mean: tuple[float, float, float]  # of the normalisation it was trained with, pixels in [0, 1]
    std: tuple[float, float, float]
    interpolation: str  # of the views it was trained on
    versions: dict[str, str]  # of the packages that wrote it

    def renderer(self) -> Renderer:
        """Return the renderer that normalises images as in training."""
        return Renderer(self.mean, self.std, self.interpolation)


def save_backbone(backbone: Backbone, path: Path, renderer: Renderer) -> None:
    """Write `backbone` to `path`, whole or not at all, over a file that is already there.

    The file holds exactly the state dict of `backbone.vit`, so that
    `timm.create_model(name, num_classes=0, **options).load_state_dict(load_file(path))` takes it; the mask
    token, which timm's model has no place for, stays behind.
    """
    metadata = BackboneMetadata(
        name=backbone.config.name,
        options=backbone.config.options,
        mean=renderer.mean,
        std=renderer.std,
        interpolation=renderer.interpolation,
        versions={
            "vpt-vision": version("vpt-vision"),
            "timm": timm.__version__,
            "torch": str(torch.__version__),
        },
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.vit.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    header = {key: json.dumps(value) for key, value in metadata._asdict().items()}
    with part.open("wb") as file:  # not save_file, which leaves a file that its owner alone may read
        file.write(save(tensors, header))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_backbone_file(path: Path) -> Backbone:
    """Build the backbone that `save_backbone` wrote to `path`, on the CPU, with a mask token of its own.

    Raises `UserError` where the file is missing, is no export of ours, or its tensors do not fit.
    """
    metadata = read_metadata(path)
    return Backbone(BackboneConfig(name=metadata.name, options=metadata.options, weights=str(path)))


def read_metadata(path: Path) -> BackboneMetadata:
    """Read what an exported file says about itself; raises `UserError` as `load_backbone_file` does."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        fields = {key: json.loads(header[key]) for key in BackboneMetadata._fields}
    except FileNotFoundError as error:
        raise UserError(f"There is no backbone at {path}: name a file that a run wrote.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}): name another.") from error
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not say which timm model it holds: name a file that a run wrote, or set name, "
            "options and weights of the backbone in a config."
        ) from error
    return BackboneMetadata(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
