"""The augmentor of V-pretraining as published: global views, softly mixed with their own blur."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

from vpt_kernels import blend_views
from vpt_vision.designers.designer import Observed, Refined
from vpt_vision.designers.fixed import FixedDesigner
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.unet import UNet
from vpt_vision.errors import UserError
from vpt_vision.schema import Config
from vpt_vision.task import Keys, RenderedViews, Task


class SoftMaskDesignerConfig(Config):
    """The vision augmentor of value-based pretraining (Ke & Fanti 2026, arXiv 2601.22108, appendix G.2).

    Published are the formula, the two kinds of generator, and in table 11 keep, the two weights and the
    learning rate, of which the defaults are the ViT-B run's for ADE20K. The generators' sizes, the blur and
    the form of the sparsity term are not published: they are ours.
    """

    kind: Literal["soft_mask"] = Field(description="global views mixed with their blur (V-pretraining)")
    generator: Literal["unet", "transformer"] = Field(
        "unet", description="of the mask: a U-Net, or a transformer with one value a patch"
    )
    width: int = Field(
        32,
        ge=8,
        multiple_of=8,
        description="channels of the U-Net's first level; the transformer has 8 times as many",
    )
    depth: int = Field(4, ge=1, description="blocks of the transformer")
    keep: float = Field(0.6, gt=0, lt=1, description="mean of the mask that the sparsity term holds it to")
    sparsity_weight: float = Field(0.131, ge=0, description="price of (mean of the mask - keep)²")
    tv_weight: float = Field(0.144, ge=0, description="price of the mask's total variation")
    blur_sigma: float = Field(4.0, gt=0, description="deviation of the blur, pixels of the view")
    blur_kernel: int = Field(25, ge=3, description="side of the blur's window, pixels of the view; odd")
    learning_rate: float = Field(1.54e-4, ge=0, description="of the designer's AdamW")
    weight_decay: float = Field(0.0, ge=0, description="of the designer's AdamW")

    @field_validator("blur_kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("the window has a middle, so its side is odd")
        return kernel


class SoftMaskDesigner(FixedDesigner):
    """Draws the recipe and mixes each global view v with its blur: μ ⊙ v + (1 - μ) ⊙ blur(v), μ = c_φ(v).

    Student and teacher both see the mixed views; local views and token masks stay the recipe's. The
    generator learns by value and pays sparsity_weight (mean μ - keep)² + tv_weight TV(μ), means over the
    global views. It starts at the constant mask `keep`.

    Raises `UserError` where the blur is too wide for the views.
    """

    learns_from: ClassVar = "value"

    def __init__(self, config: SoftMaskDesignerConfig, recipe: RecipeConfig, patch_size: int) -> None:
        super().__init__(recipe, patch_size)
        size = recipe.crops.global_size
        if config.blur_kernel // 2 >= size:
            raise UserError(
                f"designer.blur_kernel {config.blur_kernel} is too wide for views of {size} pixels, at whose "
                f"border it reflects: set it below {2 * size}."
            )
        self.config = config
        self.generator: UNet | PatchTransformer
        if config.generator == "unet":
            self.generator = UNet(size, config.width, 1, whole_view=False)
        else:
            self.generator = PatchTransformer(size // patch_size, patch_size, 8 * config.width, config.depth)
        nn.init.zeros_(self.generator.out.weight)
        assert self.generator.out.bias is not None
        nn.init.constant_(self.generator.out.bias, torch.tensor(config.keep).logit().item())

    def refine(
        self, task: Task, views: RenderedViews, keys: Keys, learner: Observed, temperature: float
    ) -> Refined:
        """Mix the global views with their blur."""
        config = self.config
        pixels = views.global_views.flatten(0, 1)
        with torch.autocast(pixels.device.type, enabled=False):
            mask = torch.sigmoid(self.generator(pixels).squeeze(1))
            blend = blend_views(pixels, mask, sigma=config.blur_sigma, blur_kernel=config.blur_kernel)
        kept = 1 - blend.sparsity
        return Refined(
            task,
            views._replace(global_views=blend.blended.view_as(views.global_views)),
            penalties={
                "sparsity": config.sparsity_weight * (kept - config.keep).square().mean(),
                "tv": config.tv_weight * blend.tv.mean(),
            },
            figures={"kept": kept.mean()},
        )

    def optimiser(self) -> Optimizer:
        """Return AdamW over the generator."""
        config = self.config
        return AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


class PatchTransformer(nn.Module):
    """A plain ViT from a view to one number a patch, spread over the patch's pixels."""

    places: Tensor

    def __init__(self, side: int, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.register_buffer("places", build_sincos2d_pos_embed([side, side], width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, num_heads=width // 32) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)

    def forward(self, views: Tensor) -> Tensor:
        """Map `views` [N, 3, S, S] to [N, 1, S, S]."""
        patches = self.embed(views)
        tokens = self.blocks(patches.flatten(2).mT + self.places)
        numbers = self.out(self.norm(tokens)).mT.reshape(len(views), 1, *patches.shape[2:])
        return functional.interpolate(numbers, scale_factor=self.patch, mode="nearest")
