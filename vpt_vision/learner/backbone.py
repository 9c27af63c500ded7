"""Any timm ViT as a masked encoder: tokens can be hidden, and the last blocks can be run by themselves."""

from __future__ import annotations

import copy
import difflib
from typing import Any, NamedTuple

import timm
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.func import functional_call

from vpt_vision.errors import UserError
from vpt_vision.learner.precision import widened
from vpt_vision.learner.weights import load_strictly, read_weights, resize_position_embedding
from vpt_vision.schema import Config

_FAMILIES = ("vision_transformer", "eva", "deit")  # timm modules whose models have the parts used here
_OWN_OPTIONS = {  # set by `Backbone`, or against its contract of one token per patch
    "pretrained",
    "num_classes",
    "drop_path_rate",
    "dynamic_img_size",
    "dynamic_img_pad",
    "patch_drop_rate",
    "features_only",
}


class BackboneConfig(Config):
    """Which ViT, and what it starts from."""

    name: str = Field(
        "vit_small_patch16_224", description="timm name of a ViT (plain, DINOv2, DINOv3 or EVA)"
    )
    options: dict[str, Any] = Field(
        {}, description="timm.create_model arguments: patch_size, img_size, embed_dim, depth, num_heads, ..."
    )
    weights: str = Field(
        "none",
        description="start: none (random), timm (its pretrained weights, from the network), embedded (the "
        "package's own small backbone) or the path of a safetensors file in timm's names",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="the student's stochastic depth rate at the last block"
    )

    @field_validator("options")
    @classmethod
    def _leave_own_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OWN_OPTIONS & options.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set here; take it out")
        return options


class Features(NamedTuple):
    """What a backbone says of N images, after its final norm."""

    cls: Tensor  # [N, D]: the class token, or the mean of the patches where the model has none
    patches: Tensor  # [N, T, D], row by row from the top left


class TailInput(NamedTuple):
    """Everything the last blocks read: what `Backbone.trunk` returns and `Backbone.tail` takes."""

    tokens: Tensor  # [N, prefix + T, D]
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]  # per tail block, its further arguments (rope)

    def widened(self) -> TailInput:
        """Return the tokens in fp32; fp64 stays."""
        return self._replace(tokens=widened(self.tokens))


class Backbone(nn.Module):
    """A timm ViT and the mask token that stands for hidden patches.

    `vit` is timm's model as it made it, so its state_dict is what `timm.create_model` takes. The mask
    token enters by a hook on the patch embedding's output, before position embeddings, as in BEiT (Bao et
    al. 2022).

    Raises UserError for an unknown model, for options that timm refuses and for weights that do not fit.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = _create(config)
        self.dim: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.patch_size: int = self.vit.patch_embed.feat_ratio()
        self.num_prefix_tokens: int = self.vit.num_prefix_tokens
        self.mask_token = nn.Parameter(torch.empty(self.dim).normal_(std=0.02))
        self.weights_report = _load(self, config)
        self._hidden: Tensor | None = None
        self.vit.patch_embed.register_forward_hook(self._hide)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Features:
        """Encode normalised `images` [N, 3, s, s].

        `hidden` [N, T] says which patches are replaced by the mask token: bool, or fp32 in [0, 1], where
        the token is blended in by that share and the gradient reaches `hidden`.
        Raises UserError where patches do not tile the image.
        """
        return self._features(self.vit.fc_norm(self._encode(self.vit, images, hidden)))

    def attend(self, images: Tensor) -> tuple[Features, Tensor]:
        """Encode `images` [N, 3, s, s], and say how much the last class token attends to each patch.

        The attention is the last block's, the mean over heads, [N, T] fp32: see `attend_by_head`.
        """
        features, attention = self.attend_by_head(images)
        return features, attention.mean(1)

    def attend_by_head(self, images: Tensor) -> tuple[Features, Tensor]:
        """Encode `images` [N, 3, s, s]; return the attention of the last block's class token as well.

        [N, heads, T] fp32: what the prefix tokens get is left out. That block's attention is computed once
        more, by plain products, for a fused kernel keeps its weights to itself. Raises UserError where the
        model has no class token or no such attention.
        """
        inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        attention: Any = getattr(self.vit.blocks[-1], "attn", None)
        if self.vit.cls_token is None or not hasattr(attention, "attn_drop"):
            raise UserError(
                f"The last block of {self.config.name} has no attention of a class token to patches; choose "
                "a plain ViT, DINOv2 or DINOv3."
            )
        handle = attention.register_forward_pre_hook(
            lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
        )
        try:
            features = self(images)
        finally:
            handle.remove()
        args, kwargs = inputs[0]
        weights = _attention_weights(attention, *args, **kwargs)
        return features, weights[:, :, 0, self.num_prefix_tokens :].float()

    def trunk(self, images: Tensor, hidden: Tensor | None, tail_blocks: int) -> TailInput:
        """Run everything below the last `tail_blocks` blocks; `tail(trunk(...))` equals `forward(...)`."""
        vit, recorders = _without_tail(self.vit, self.depth - self._checked(tail_blocks))
        tokens = self._encode(vit, images, hidden)
        return TailInput(tokens, tuple((recorder.args, recorder.kwargs) for recorder in recorders))

    def tail(self, tail_input: TailInput, parameters: dict[str, Tensor] | None = None) -> Features:
        """Run the last blocks and the final norm.

        `parameters` stand in for those of the same names in `tail_parameters`, for this call alone.
        """
        tail = _Tail(self.vit, len(tail_input.calls))
        return self._features(functional_call(tail, parameters or {}, (tail_input,)))

    def last_blocks(self, images: Tensor, count: int) -> list[Features]:
        """Features after each of the last `count` blocks and the final norm; the last are `forward`'s.

        Raises UserError where patches do not tile the image or there are fewer blocks.
        """
        tokens, calls = self.trunk(images, None, count)
        features = []
        for block, (args, kwargs) in zip(self.vit.blocks[-count:], calls, strict=True):
            tokens = block(tokens, *args, **kwargs)
            features.append(self._features(self.vit.fc_norm(self.vit.norm(tokens))))
        return features

    def tail_parameters(self, tail_blocks: int) -> dict[str, nn.Parameter]:
        """Return the parameters of the last `tail_blocks` blocks and the final norm, named as in `vit`."""
        return dict(_Tail(self.vit, self._checked(tail_blocks)).named_parameters())

    def grid(self, size: int) -> int:
        """Return the number of patches along one side of a square view of `size` pixels.

        Raises UserError where the view is smaller than a patch or patches do not tile it.
        """
        if size < self.patch_size:
            raise UserError(
                f"A view of {size} pixels is smaller than the backbone's patch of {self.patch_size} pixels; "
                "make the view larger."
            )
        if size % self.patch_size:
            raise UserError(
                f"A view of {size} pixels is not a whole number of the backbone's patches; "
                f"set its size to a multiple of {self.patch_size} pixels."
            )
        return size // self.patch_size

    def _encode(self, vit: Any, images: Tensor, hidden: Tensor | None) -> Tensor:
        for side in images.shape[-2:]:
            self.grid(side)
        self._hidden = hidden
        try:
            return vit.forward_features(images)
        finally:
            self._hidden = None

    def _hide(self, module: nn.Module, inputs: tuple[Tensor, ...], patches: Tensor) -> Tensor:
        """Blend the mask token into the embedded patches [N, T, C] or [N, h, w, C]."""
        if self._hidden is None:
            return patches
        share = self._hidden.to(patches.dtype).reshape(*patches.shape[:-1], 1)
        return torch.lerp(patches, self.mask_token.to(patches.dtype), share)

    def _features(self, tokens: Tensor) -> Features:
        patches = tokens[:, self.num_prefix_tokens :]
        return Features(tokens[:, 0] if self.vit.cls_token is not None else patches.mean(1), patches)

    def _checked(self, tail_blocks: int) -> int:
        if not 1 <= tail_blocks <= self.depth:
            raise UserError(f"The backbone has {self.depth} blocks, so tail_blocks cannot be {tail_blocks}.")
        return tail_blocks


class _Recorder(nn.Module):
    """Stands in for a module: passes its input on, and keeps it and what else the module was called with."""

    tokens: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.tokens, self.args, self.kwargs = tokens, args, kwargs
        return tokens


class _Tail(nn.Module):
    """The last blocks and the final norm, sharing the parameters of `vit` under the same names.

    The final norm is `fc_norm` in models that pool before it, else `norm`; the other one is the identity.
    """

    def __init__(self, vit: Any, blocks: int) -> None:
        super().__init__()
        depth = len(vit.blocks)
        self.blocks = nn.ModuleDict({str(i): vit.blocks[i] for i in range(depth - blocks, depth)})
        self.norm, self.fc_norm = vit.norm, vit.fc_norm

    def forward(self, tail_input: TailInput) -> Tensor:
        tokens = tail_input.tokens
        for block, (args, kwargs) in zip(self.blocks.values(), tail_input.calls, strict=True):
            tokens = block(tokens, *args, **kwargs)
        return self.fc_norm(self.norm(tokens))


def _without_tail(vit: Any, first: int) -> tuple[Any, list[_Recorder]]:
    """Return a view of `vit` with recorders for the blocks from `first` on and without final norm."""
    recorders = {str(i): _Recorder() for i in range(first, len(vit.blocks))}
    blocks = copy.copy(vit.blocks)
    blocks._modules = {**vit.blocks._modules, **recorders}
    trunk = copy.copy(vit)
    trunk._modules = {**vit._modules, "blocks": blocks, "norm": nn.Identity()}
    return trunk, list(recorders.values())


def _attention_weights(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return what timm's `attention` multiplies its values by, [N, heads, tokens, tokens]."""
    recorder = _Recorder()
    plain = copy.copy(attention)
    plain._modules = {**attention._modules, "attn_drop": recorder}
    plain.fused_attn = False
    plain(*args, **kwargs)
    return recorder.tokens


def is_vit(name: str) -> bool:
    """Whether timm has a model of that name that `Backbone` can be made of."""
    return timm.models.is_model_in_modules(name, _FAMILIES)


def _create(config: BackboneConfig) -> Any:
    if not is_vit(config.name):
        architecture = config.name.partition(".")[0]
        near = difflib.get_close_matches(architecture, timm.list_models(module=_FAMILIES), n=1, cutoff=0.0)
        raise UserError(f"timm has no ViT named '{config.name}'; the nearest name is '{near[0]}'.")
    try:
        return timm.create_model(
            config.name,
            pretrained=config.weights == "timm",
            num_classes=0,
            dynamic_img_size=True,
            drop_path_rate=config.drop_path,
            **config.options,
        )
    except Exception as error:  # whatever options make timm trip over, such as a division by 0 heads
        raise UserError(
            f"timm cannot make {config.name} with {config.options}: {' '.join(str(error).split())}"
        ) from error


def _load(backbone: Backbone, config: BackboneConfig) -> str:
    """Load the weights that `config` asks for into `backbone`, and say so in one sentence."""
    if config.weights == "none":
        return "random initialisation"
    if config.weights == "timm":
        return f"timm's pretrained weights of {config.name}"
    tensors = read_weights(config.weights)
    mask_token = tensors.pop("mask_token", backbone.mask_token.detach())  # plain ViT files have none
    tensors = {
        name: tensor for name, tensor in tensors.items() if not name.startswith("head.")
    }  # the classifier
    report = load_strictly(backbone.vit, resize_position_embedding(tensors, backbone.vit), config.weights)
    backbone.mask_token.data.copy_(mask_token.flatten())
    return report
