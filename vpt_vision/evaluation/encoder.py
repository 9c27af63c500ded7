"""What a model must be able to do to be probed."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from vpt_vision.errors import UserError
from vpt_vision.learner.backbone import Features


class Encoder(Protocol):
    """The contract: an `nn.Module` with a `patch_size` that turns images into one vector and many.

    `Backbone` and `TimmEncoder` fulfil it. Around a model of your own it is a few lines:

        class Mine(nn.Module):
            patch_size = 16

            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, images):
                tokens = self.model(images)
                return tokens[:, 0], tokens[:, 1:]

    Probes run it in eval mode, without gradient, and put its mode back. One that can also give what stands
    after earlier blocks has a method `last_blocks` as `LayeredEncoder` says; the others are probed on
    their last block alone.
    """

    patch_size: int  # pixels along the side of the square that each of the patches stands for

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalised fp32 images [B, 3, s, s], s a multiple of the patch size.

        Returns:
            CLS [B, D]: one vector for each image; and patches [B, T, D'], T = (s / patch_size)², row by row
            from the top left.
        """


@runtime_checkable
class LayeredEncoder(Protocol):
    """An encoder made of blocks."""

    depth: int  # how many blocks there are

    def last_blocks(self, images: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """CLS and patches after each of the last `count` blocks and the final norm, last one last."""


def reachable_blocks(encoder: nn.Module, wanted: int) -> int:
    """How many of the last `wanted` blocks of `encoder` can be read."""
    return min(wanted, encoder.depth) if isinstance(encoder, LayeredEncoder) else 1


def encode(encoder: nn.Module, images: Tensor, blocks: int = 1) -> list[Features]:
    """CLS [B, D] and patches [B, T, D'] after each of the last `blocks` blocks, last one last.

    `blocks` above 1 takes a `LayeredEncoder`. Raises `UserError` where the encoder breaks its contract.
    """
    if blocks > 1:
        layered = cast(LayeredEncoder, encoder)
        return [_checked(encoder, images, output) for output in layered.last_blocks(images, blocks)]
    return [_checked(encoder, images, encoder(images))]


def device_of(encoder: nn.Module) -> torch.device:
    """Where the encoder's weights lie; the CPU where it has none."""
    first = next(encoder.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def patch_size_of(encoder: nn.Module) -> int:
    """The encoder's patch size in pixels; raises `UserError` where it tells of none."""
    size = getattr(encoder, "patch_size", None)
    if not isinstance(size, int) or size < 1:
        raise UserError(
            f"{type(encoder).__name__} has no patch_size: set it to the pixels along the side of a patch, as "
            "vpt_vision.evaluation.encoder.Encoder says."
        )
    return size


def _checked(encoder: nn.Module, images: Tensor, output: object) -> Features:
    batch, _, height, width = images.shape
    name, size = type(encoder).__name__, patch_size_of(encoder)
    patches = (height // size) * (width // size)
    wanted = f"CLS [{batch}, D] and patches [{batch}, {patches}, D] for {batch} images of {height} pixels"
    if not (isinstance(output, tuple) and len(output) == 2 and all(map(torch.is_tensor, output))):
        raise UserError(f"{name} returned {type(output).__name__}, and should return {wanted}.")
    cls, tokens = output
    if cls.shape[:-1] != (batch,) or tokens.shape[:-1] != (batch, patches):
        shapes = f"{list(cls.shape)} and {list(tokens.shape)}"
        raise UserError(f"{name} returned {shapes}, and should return {wanted}.")
    return Features(cls, tokens)
