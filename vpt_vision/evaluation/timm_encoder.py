"""Any timm model behind the contract of `Encoder`: convolutional networks, Swin, CaiT, ..."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.learner.backbone import Features
from vpt_vision.learner.weights import load_strictly, read_weights
from vpt_vision.task import Renderer


class TimmEncoder(nn.Module):
    """A timm model of any family; ViTs that can be trained here are `Backbone`s.

    CLS is what timm's own head pools, before the classifier. Patches are the cells of the last feature map.

    Args:
        name: timm's name, with its tag where wanted.
        weights: `timm` (pretrained, from the network), `none` (random), or a safetensors file in
            timm's names.

    Raises:
        UserError: no such model, no such weights, weights that do not fit, or a model without a feature map.
    """

    def __init__(self, name: str, weights: str = "timm") -> None:
        super().__init__()
        if not timm.is_model(name):
            architecture = name.partition(".")[0]
            near = difflib.get_close_matches(architecture, timm.list_models(), n=1, cutoff=0.0)
            raise UserError(f"timm has no model named '{name}'; the nearest name is '{near[0]}'.")
        try:
            self.model: Any = timm.create_model(name, pretrained=weights == "timm", num_classes=0)
        except Exception as error:  # no network, no weights of that tag: timm raises what its parts raise
            raise UserError(f"timm cannot make {name}: {' '.join(str(error).split())}") from error
        self.name = name
        self.patch_size = _reduction(self.model, name)
        self.weights_report = f"{weights} weights of {name}"
        if weights not in ("timm", "none"):
            tensors = read_weights(weights)
            head = set(tensors) - set(self.model.state_dict())
            if all(tensor.startswith(("head.", "fc.", "classifier.")) for tensor in head):
                tensors = {key: value for key, value in tensors.items() if key not in head}
            self.weights_report = load_strictly(self.model, tensors, weights)

    def forward(self, images: Tensor) -> Features:
        """Encode normalised images [B, 3, s, s]; raises `UserError` for a size that the model refuses."""
        try:
            maps = self.model.forward_features(images)
            pooled = self.model.forward_head(maps, pre_logits=True)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            height, width = images.shape[-2:]
            raise UserError(
                f"{self.name} cannot encode images of {height} × {width} pixels "
                f"({' '.join(str(error).split())}): set evaluation.image_size to its own, "
                f"{self.model.default_cfg['input_size'][-1]}."
            ) from error
        patches = (images.shape[-2] // self.patch_size) * (images.shape[-1] // self.patch_size)
        return Features(pooled, _cells(maps, self.model)[:, -patches:])


def timm_renderer(model: nn.Module) -> Renderer:
    """The renderer that normalises and interpolates as the weights of a timm model were trained."""
    data = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    interpolation = data["interpolation"]
    return Renderer(
        tuple(data["mean"]), tuple(data["std"]), interpolation if interpolation == "bilinear" else "bicubic"
    )


def _cells(maps: Tensor, model: nn.Module) -> Tensor:
    """Feature maps [B, C, h, w], [B, h, w, C] or [B, T, C] as [B, T, C]."""
    if maps.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return maps.flatten(1, 2) if channels_last else maps.flatten(2).mT
    return maps


def _reduction(model: nn.Module, name: str) -> int:
    info = getattr(model, "feature_info", None)
    try:
        assert info is not None
        return int(info[-1]["reduction"])
    except (AssertionError, IndexError, KeyError, TypeError):
        raise UserError(
            f"timm does not tell the stride of {name}'s last feature map, so it cannot be probed."
        ) from None
