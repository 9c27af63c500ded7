"""Backbones by what names them: a run, a checkpoint, an exported file, or a timm model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import timm
from torch import nn

from vpt_vision.config import RunConfig, load_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.timm_encoder import TimmEncoder, timm_renderer
from vpt_vision.export import load_backbone_file, read_metadata
from vpt_vision.learner import Backbone, BackboneConfig
from vpt_vision.learner.backbone import is_vit
from vpt_vision.task import Renderer
from vpt_vision.training.checkpoint import read_checkpoint
from vpt_vision.training.run_folder import newest_state

Network = Literal["teacher", "student"]


def load_backbone(source: str | Path, *, network: Network = "teacher", weights: str = "timm") -> Backbone:
    """Load a backbone on the CPU, in eval mode.

    Args:
        source: a run's output folder (its newest checkpoint), a checkpoint (`.pt`), an exported backbone
            (`.safetensors`), or the name of a timm ViT.
        network: which of a run's two networks; the teacher is the one that is exported and probed.
        weights: for a timm model, where its weights come from, as `BackboneConfig.weights` says.

    Raises:
        UserError: where nothing of that name exists or can be read.
    """
    path = Path(source)
    if network == "student" and not (path.is_dir() or path.suffix == ".pt"):
        raise UserError(f"'{source}' has no student: only a run or a checkpoint has one.")
    if path.is_dir():
        state = newest_state(path)
        if state is None:
            raise UserError(
                f"{path} holds no checkpoint of a run: name a run's output folder, or wait for its first."
            )
        backbone = _from_checkpoint(state, network, path)
    elif path.suffix == ".pt":
        backbone = _from_checkpoint(read_checkpoint(path), network, path)
    elif path.suffix == ".safetensors":
        backbone = load_backbone_file(path)
    else:
        try:
            backbone = Backbone(BackboneConfig(name=str(source), weights=weights))
        except UserError as error:
            raise UserError(
                f"'{source}' is no folder, .pt or .safetensors file here, and as a model: {error}"
            ) from error
    return backbone.eval()


def expect_model(source: str | Path) -> None:
    """Raise `UserError` where `source` is neither there nor the name of a timm model."""
    if not Path(source).exists() and not timm.is_model(str(source)):
        raise UserError(
            f"'{source}' does not exist, and timm has no model of that name: name a run's folder, a "
            "checkpoint (.pt), a backbone (.safetensors) or a timm model."
        )


def config_of(source: str | Path) -> RunConfig | None:
    """The config of the run that `source` is or came from; None where it tells of none."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".pt" and path.is_file():
        return load_config(_part(read_checkpoint(path), "config", path))
    stored = folder / "config.yaml"
    return load_config(stored) if path.exists() and stored.is_file() else None


def _from_checkpoint(state: dict[str, Any], network: Network, path: Path) -> Backbone:
    settings = load_config(_part(state, "config", path)).learner.backbone
    backbone = Backbone(settings.model_copy(update={"weights": "none", "drop_path": 0.0}))
    prefix = f"{network}.backbone."
    learner = _part(state, "learner", path)
    backbone.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in learner.items() if name.startswith(prefix)}
    )
    return backbone


def _part(state: dict[str, Any], name: str, path: Path) -> Any:
    if name not in state:
        raise UserError(f"{path} is not a checkpoint of vpt-vision: it has no '{name}' entry.")
    return state[name]


def load_encoder(source: str | Path, *, network: Network = "teacher", weights: str = "timm") -> nn.Module:
    """Load what probes read: a `Backbone` as `load_backbone` does, or any other timm model by its name.

    Raises `UserError` as `load_backbone`.
    """
    if not Path(source).exists() and timm.is_model(str(source)) and not is_vit(str(source)):
        return TimmEncoder(str(source), weights).eval()
    return load_backbone(source, network=network, weights=weights)


def native_size(encoder: nn.Module) -> int:
    """Side in pixels of the images that a loaded encoder was made for."""
    if isinstance(encoder, TimmEncoder):
        return int(encoder.model.default_cfg["input_size"][-1])
    vit = cast(Backbone, encoder).vit
    own = getattr(vit.patch_embed, "img_size", None)  # None where a model takes any
    return int((own or vit.default_cfg["input_size"])[-1])


def renderer_for(source: str | Path, config: RunConfig | None, encoder: nn.Module) -> Renderer:
    """Return the renderer of the pixels that an encoder was trained on, as far as that is known.

    That of the run where `source` is one or came from one; what timm says of a model of its own; else that of
    `config`, where there is one.
    """
    path = Path(source)
    if path.suffix == ".safetensors" and path.is_file():
        return read_metadata(path).renderer()
    own = config_of(path)
    if own is not None:
        return own.renderer()
    if path.exists():
        return Renderer() if config is None else config.renderer()
    return timm_renderer(encoder.model if isinstance(encoder, TimmEncoder) else cast(Backbone, encoder).vit)
