"""Reading weights that a backbone starts from; a tensor that does not fit is an error, with the counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from vpt_vision.errors import UserError

EMBEDDED = Path(__file__).parents[1] / "assets" / "backbone.safetensors"


def read_weights(weights: str) -> dict[str, Tensor]:
    """Read the safetensors file at the path `weights`, or the package's own where it says `embedded`.

    Raises UserError where the file is missing or is not safetensors.
    """
    path = EMBEDDED if weights == "embedded" else Path(weights)
    if not path.is_file():
        raise UserError(f"There is no weights file at {path}; set backbone.weights to a safetensors file.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"The weights file {path} is not readable as safetensors ({error}).") from error


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], origin: str) -> str:
    """Copy `tensors` into `module`, every name and shape agreeing, and return a sentence with the count.

    Raises UserError with the number of matching tensors, and one that does not match, otherwise.
    """
    own = module.state_dict()
    matched = [name for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape]
    unmatched = sorted((own.keys() | tensors.keys()) - set(matched))
    if unmatched:
        raise UserError(
            f"{origin} is of another architecture: {len(matched)} of the model's {len(own)} tensors match "
            f"({len(tensors)} in the file; first mismatch: {_mismatch(unmatched[0], own, tensors)}); "
            "set the backbone's name and options to those of the weights."
        )
    module.load_state_dict(tensors)
    return f"{len(matched)} of {len(own)} tensors loaded from {origin}"


def resize_position_embedding(tensors: dict[str, Tensor], vit: Any) -> dict[str, Tensor]:
    """Return `tensors` with a learned position embedding of another image size resampled to that of `vit`."""
    source, target = tensors.get("pos_embed"), vit.state_dict().get("pos_embed")
    if source is None or target is None or source.ndim != 3 or source.shape[2] != target.shape[2]:
        return tensors
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    side = round(max(0, source.shape[1] - prefix) ** 0.5)
    if source.shape == target.shape or side**2 + prefix != source.shape[1]:
        return tensors
    resized = resample_abs_pos_embed(source, list(vit.patch_embed.grid_size), [side, side], prefix)
    return {**tensors, "pos_embed": resized}


def _mismatch(name: str, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    if name not in tensors:
        return f"{name} is missing"
    if name not in own:
        return f"{name} is not in the model"
    return f"{name} has shape {list(tensors[name].shape)}, the model {list(own[name].shape)}"
