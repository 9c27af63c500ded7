"""The learned designer: a small network that bends the recipe's laws, image by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vpt_kernels import PackedImages, keyed_uniform
from vpt_vision.designers.crops import CropBend
from vpt_vision.designers.designer import Designer
from vpt_vision.designers.distributions import Kumaraswamy
from vpt_vision.designers.mask_ratio import RatioBend
from vpt_vision.designers.masks import MaskBend
from vpt_vision.designers.network import STRIDE, Constant, NoNetwork, ThumbnailNetwork
from vpt_vision.designers.photometrics import EVENTS, STRENGTHS, PhotometricBend
from vpt_vision.designers.policy import Policy, RecipeLaws, Surface
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.designers.streams import Stream
from vpt_vision.designers.targets import TargetBend
from vpt_vision.designers.views import ViewBend
from vpt_vision.schema import Config
from vpt_vision.task import MIXED, Keys, Task

_KINDS = 2  # of views: global and local
_SHAPES = 4  # log a and log b of area and of aspect


class TargetsConfig(Config):
    """How far the surface of targets may go from neutral; a bound of 0 leaves that part alone."""

    tokens: float = Field(
        1.0, ge=0, description="largest |log weight| of a hidden token before its mean is 1"
    )
    samples: float = Field(1.0, ge=0, description="largest |log weight| of an image before their mean is 1")
    temperature: float = Field(0.3, ge=0, description="largest |log| of the teacher's temperature's factor")
    mix: float = Field(0.7, ge=0, description="largest |log factor| of the weights of DINO, iBOT and Gram")

    @model_validator(mode="after")
    def _does_something(self) -> TargetsConfig:
        if not any((self.tokens, self.samples, self.temperature, self.mix)):
            raise ValueError("every bound is 0; take targets from designer.surfaces instead")
        return self


class BentPhotometricsConfig(Config):
    """How many numbers the surface of photometrics has: 15 for each kind of view unless told otherwise."""

    strengths: bool = Field(
        True,
        description="false: strengths stay the recipe's, and only the 5 probabilities of flip, jitter, grey, "
        "blur and solarising are bent",
    )
    shared: bool = Field(
        False, description="true: global and local views are bent by the same numbers; false: each by its own"
    )


class LearnedDesignerConfig(Config):
    """A network that bends the recipe, and how it learns."""

    kind: Literal["learned"] = Field(description="a network that bends the recipe for every image")
    surfaces: tuple[Surface, ...] = Field(
        ("crops", "photometrics", "masks"),
        min_length=1,
        description="what it controls, of crops, photometrics, masks (which patches), mask_ratio (how many) "
        "and targets; the rest stays the recipe's",
    )
    reads: Literal["image", "nothing"] = Field(
        "image",
        description="nothing: one law for all images, with a parameter for each of its numbers; places in "
        "the image, of crops and tokens, stay the recipe's",
    )
    thumbnail: int = Field(
        64,
        ge=16,
        multiple_of=STRIDE,
        description="side of the thumbnail it reads, pixels; 32 is enough for images of 48",
    )
    width: int = Field(
        48, ge=8, multiple_of=8, description="channels of its first layer; the later have twice"
    )
    blocks: int = Field(
        2, ge=1, description="residual blocks; 2 of width 48 make 0.4 M parameters, 1 of width 24 0.06 M"
    )
    shape_bound: float = Field(1.5, gt=0, description="largest |log a| and |log b| of a Kumaraswamy law")
    logit_bound: float = Field(2.0, gt=0, description="largest shift of a probability's logit")
    field_bound: float = Field(4.0, gt=0, description="largest |logit| of a place in the image")
    mask_temperature: float = Field(
        0.5, gt=0, description="of the relaxed mask that carries the gradient, in logits"
    )
    mask_candidates: int = Field(
        8, ge=2, le=256, description="block masks drawn for each view, of which the designer's logits choose"
    )
    ratio_bound: float = Field(
        0.7,
        gt=0,
        description="largest |log a| and |log b| of the mask ratio's law; more of it pads iBOT's rows more",
    )
    photometrics: BentPhotometricsConfig = Field(
        BentPhotometricsConfig(), description="how many numbers the surface of photometrics has"
    )
    targets: TargetsConfig = Field(TargetsConfig(), description="bounds of the surface targets")
    optimiser: Literal["adamw", "sgd"] = Field(
        "adamw",
        description="adamw: every number moves as far, whatever value says of it; sgd: as far as value says, "
        "so that labels which say little move the designer little; set value.normalise to none, and the "
        "learning rate anew",
    )
    learning_rate: float = Field(1e-3, ge=0, description="of the optimiser; 0 leaves it at the recipe")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    recipe_share: float = Field(
        0.0, ge=0, le=1, description="share of the images whose task is always the fixed recipe's"
    )
    kl_weight: float = Field(0.01, ge=0, description="price in value of one nat of KL from the recipe")

    @model_validator(mode="after")
    def _has_something_to_say(self) -> LearnedDesignerConfig:
        if self.reads == "nothing":
            if "masks" in self.surfaces:
                raise ValueError(
                    "reads: nothing cannot say which patches of an image to hide; take masks from surfaces "
                    "(mask_ratio is how many)"
                )
            if set(self.surfaces) == {"targets"} and not (self.targets.temperature or self.targets.mix):
                raise ValueError(
                    "reads: nothing cannot weigh tokens or images; give targets.temperature or targets.mix "
                    "a bound above 0"
                )
        return self


class LearnedDesigner(Designer):
    """Bends crops, photometrics, masks and targets by what it sees in the image, starting at the recipe.

    The last layers start at zero, and zero bends nothing: the first task is exactly the fixed designer's
    for the same keys. Every output passes through bound * tanh(x / bound), so the law never leaves the
    recipe's ranges nor any outcome's probability vanishes.
    """

    learns_from: ClassVar = "value"
    surface_of: ClassVar[Mapping[str, Surface]] = {
        "crop_shapes": "crops",
        "crop_fields": "crops",
        "photometrics": "photometrics",
        "masks": "masks",
        "mask_ratio": "mask_ratio",
        "token_weights": "targets",
        "target_numbers": "targets",
    }

    def __init__(self, config: LearnedDesignerConfig, recipe: RecipeConfig, patch_size: int) -> None:
        super().__init__()
        self.config = config
        self.surfaces = frozenset(config.surfaces)
        self.kl_weight = config.kl_weight
        self.laws = RecipeLaws(recipe, patch_size)
        sees = config.reads == "image"
        self.network: ThumbnailNetwork | NoNetwork = (
            ThumbnailNetwork(config.thumbnail, config.width, config.blocks) if sees else NoNetwork()
        )
        self.heads = nn.ModuleDict()
        pooled = self.network.features
        numbers: Callable[[int], nn.Module] = partial(nn.Linear, pooled) if sees else Constant
        if "crops" in self.surfaces:
            self.heads["crop_shapes"] = numbers(_KINDS * _SHAPES)
            if sees:
                self.heads["crop_fields"] = nn.Conv2d(pooled, _KINDS, 1)
        if "photometrics" in self.surfaces:
            bent = config.photometrics
            of_kind = 2 * len(STRENGTHS) * bent.strengths + len(EVENTS)
            self.heads["photometrics"] = numbers((1 if bent.shared else _KINDS) * of_kind)
        if "masks" in self.surfaces:
            self.heads["masks"] = nn.Conv2d(pooled, 1, 1)
        if "mask_ratio" in self.surfaces:
            self.heads["mask_ratio"] = numbers(2)
        if "targets" in self.surfaces:
            bounds = config.targets
            if bounds.tokens and sees:
                self.heads["token_weights"] = nn.Conv2d(pooled, 1, 1)
            if bounds.samples or bounds.temperature or bounds.mix:
                self.heads["target_numbers"] = numbers(2 + len(MIXED))
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def optimiser(self) -> torch.optim.Optimizer:
        """Return AdamW or SGD over all parameters."""
        kind = torch.optim.AdamW if self.config.optimiser == "adamw" else torch.optim.SGD
        return kind(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,  # honours `found_inf`
        )

    def features(self, images: PackedImages) -> dict[str, Tensor]:
        """Return pooled features [B, D] for heads of numbers, their map [B, D, R, C] for those of fields."""
        pooled, features = self.network(images)
        return {
            name: features if isinstance(head, nn.Conv2d) else pooled for name, head in self.heads.items()
        }

    def outputs(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what each last layer says of its features."""
        outputs = {}
        for name, head in self.heads.items():
            with torch.autocast(features[name].device.type, enabled=False):
                outputs[name] = head(features[name])
        return outputs

    def forward(self, images: PackedImages, keys: Keys) -> Task:
        """Draw one task for each of `images`, a share of them from the recipe itself."""
        outputs = self.outputs(self.features(images))
        if self.config.recipe_share > 0:
            outputs = self._keep(outputs, keys, images.device)
        return self.policy_of(images, outputs).sample(keys)

    @torch.no_grad()
    def scale_outputs(self, share: Tensor) -> None:
        """Multiply the last layers, which are linear, by `share`."""
        for parameter in self.heads.parameters():
            parameter.mul_(share)

    def _keep(self, outputs: dict[str, Tensor], keys: Keys, device: torch.device) -> dict[str, Tensor]:
        """Set to 0, which is the recipe, the outputs of the images that the keys choose."""
        samples = keys.samples.to(device, non_blocking=True)
        drawn = keyed_uniform(keys.seed, keys.step, samples, 2 * Stream.RECIPE, 1)[:, 0]
        kept = drawn >= self.config.recipe_share  # [B]
        return {
            name: torch.where(kept.view(-1, *(1,) * (output.ndim - 1)), output, 0.0)
            for name, output in outputs.items()
        }

    def policy_of(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """Return the recipe, bent by `outputs` for each of `images`."""
        recipe = ViewBend.none(len(images), images.device)
        with torch.autocast(images.device.type, enabled=False):
            crops, photometrics = self._crops(outputs), self._photometrics(outputs)
            bends = [
                ViewBend(
                    crops[kind] if crops else recipe.crops,
                    photometrics[kind] if photometrics else recipe.photometrics,
                )
                for kind in range(_KINDS)
            ]
            return Policy(
                laws=self.laws,
                surfaces=self.surfaces,
                global_bend=bends[0],
                local_bend=bends[1],
                mask_bend=self._masks(outputs),
                ratio_bend=self._mask_ratio(outputs),
                target_bend=self._targets(outputs),
                heights=images.heights,
                widths=images.widths,
            )

    def _crops(self, outputs: dict[str, Tensor]) -> list[CropBend]:
        """One bend for global and one for local views; none where crops stay the recipe's."""
        if "crops" not in self.surfaces:
            return []
        shapes = _bounded(outputs["crop_shapes"], self.config.shape_bound)
        shapes = shapes.T.reshape(_KINDS, _SHAPES, -1)
        if "crop_fields" in outputs:
            fields = _bounded(outputs["crop_fields"], self.config.field_bound).unbind(1)
        else:
            fields = shapes.new_zeros(_KINDS, shapes.shape[-1], 1, 1).unbind()
        return [
            CropBend(Kumaraswamy(area_a, area_b), Kumaraswamy(aspect_a, aspect_b), field)
            for (area_a, area_b, aspect_a, aspect_b), field in zip(shapes, fields, strict=True)
        ]

    def _photometrics(self, outputs: dict[str, Tensor]) -> list[PhotometricBend]:
        """One bend for global and one for local views; none where photometrics stay the recipe's."""
        if "photometrics" not in self.surfaces:
            return []
        raw, bent = outputs["photometrics"], self.config.photometrics
        bends = []
        for kind in raw.T.reshape(1 if bent.shared else _KINDS, -1, len(raw)):
            shapes, offsets = kind.split([len(kind) - len(EVENTS), len(EVENTS)])
            if bent.strengths:
                strengths = Kumaraswamy(*_bounded(shapes, self.config.shape_bound).chunk(2))
            else:
                strengths = Kumaraswamy.uniform(len(STRENGTHS), len(raw), device=raw.device)
            bends.append(PhotometricBend(strengths, _bounded(offsets, self.config.logit_bound)))
        return bends * _KINDS if bent.shared else bends

    def _masks(self, outputs: dict[str, Tensor]) -> MaskBend | None:
        if "masks" not in self.surfaces:
            return None
        field = _bounded(outputs["masks"][:, 0], self.config.field_bound)
        return MaskBend(field, self.config.mask_temperature, self.config.mask_candidates)

    def _mask_ratio(self, outputs: dict[str, Tensor]) -> RatioBend | None:
        if "mask_ratio" not in self.surfaces:
            return None
        bound = self.config.ratio_bound
        log_a, log_b = _bounded(outputs["mask_ratio"], bound).unbind(1)
        return RatioBend(Kumaraswamy(log_a, log_b), bound)

    def _targets(self, outputs: dict[str, Tensor]) -> TargetBend | None:
        if "targets" not in self.surfaces:
            return None
        bounds = self.config.targets
        sample = temperature = mix = None
        if "target_numbers" in outputs:
            raw_sample, raw_temperature, *raw_mix = outputs["target_numbers"].unbind(1)
            sample = _bounded(raw_sample, bounds.samples) if bounds.samples else None
            temperature = _bounded(raw_temperature, bounds.temperature) if bounds.temperature else None
            mix = _bounded(torch.stack(raw_mix), bounds.mix) if bounds.mix else None
        field = (
            _bounded(outputs["token_weights"][:, 0], bounds.tokens) if "token_weights" in outputs else None
        )
        return TargetBend(field, sample, temperature, mix)


def _bounded(x: Tensor, bound: float) -> Tensor:
    """Squash to [-bound, bound], with slope 1 at 0."""
    return bound * torch.tanh(x / bound)
