"""Inputs of the kernels at the sizes that matter, made on any device.

`SPECIMENS` is the table of what `compile_report.py` compiles: each entry calls a public function, forward and
backward, so that every launch of training is met. The makers of inputs serve `kernels.py` as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vpt_kernels
from vpt_kernels import Photometrics, Potentials

# The shapes of one step of ViT-L/16 at batch 64, as DINOv2 trains: masked tokens, prototypes, bottleneck.
TOKENS, PROTOTYPES, WIDTH = 3763, 65536, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.07, 0.1
SHORT = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}

Device = torch.device | str


class Views(NamedTuple):
    """Arguments of `render_views` for the views of one size."""

    boxes: Tensor  # [V, B, 4]
    flips: Tensor  # [V, B] bool
    photometrics: Photometrics  # fields [V, B]
    size: int


def sources(device: Device, batch: int, side: int = 256) -> Tensor:
    """Give smooth uint8 images [batch, 3, side, side]: noise alone would be unlike any photo."""
    if torch.device(device).type == "meta":
        return torch.empty(batch, 3, side, side, dtype=torch.uint8, device=device)
    coarse = torch.rand(batch, 3, max(2, side // 8), max(2, side // 8), device=device)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return (smooth * 245 + torch.rand_like(smooth) * 10).to(torch.uint8)


def views(
    device: Device,
    batch: int,
    count: int,
    size: int,
    *,
    side: int = 256,
    scale: tuple[float, float] = (0.32, 1.0),
    photometrics: str = "all",
    dtype: torch.dtype = FP32,
) -> Views:
    """Draw `count` views of each of `batch` images of side x side pixels.

    Boxes have an integer corner and size, which torchvision's crop needs. `photometrics` is "all" (every
    step on every view; half are solarised, and grey takes a fifth, for a grey view hides what hue did),
    "recipe" (each with the probability that DINOv2 gives it) or "none".
    """
    shape = (count, batch)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(shape, dtype=dtype, device=device) * (high - low) + low

    area = uniform(*scale) * side**2
    aspect = uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    tall = (area / aspect).sqrt().round().clamp(1, side)
    wide = (area * aspect).sqrt().round().clamp(1, side)
    top = (uniform(0, 1) * (side - tall + 1)).floor()
    left = (uniform(0, 1) * (side - wide + 1)).floor()
    boxes = torch.stack((top, left, tall, wide), -1)
    flips = uniform(0, 1) < 0.5
    if photometrics == "none":
        return Views(boxes, flips, Photometrics.neutral(shape, device), size)
    everything = photometrics == "all"
    jittered = uniform(0, 1) < (1.0 if everything else 0.8)
    blurred = uniform(0, 1) < (1.0 if everything else 0.5)
    solarised = uniform(0, 1) < (0.5 if everything else 0.1)

    def where(chosen: Tensor, strength: Tensor, none: float) -> Tensor:
        return torch.where(chosen, strength, torch.full_like(strength, none))

    strengths = Photometrics(
        brightness=where(jittered, uniform(0.6, 1.4), 1),
        contrast=where(jittered, uniform(0.6, 1.4), 1),
        saturation=where(jittered, uniform(0.8, 1.2), 1),
        hue=where(jittered, uniform(-0.1, 0.1), 0),
        order=torch.randint(24, shape, device=device),
        grey=uniform(0, 1) < 0.2,
        sigma=where(blurred, uniform(0.1, 2.0), 0),
        solarize=where(solarised, torch.full(shape, 0.5, dtype=dtype, device=device), 2),
    )
    return Views(boxes, flips, strengths, size)


def grown(views: Views) -> list[Tensor]:
    """Give what `render_views` has a gradient of."""
    p = views.photometrics
    return [views.boxes, p.brightness, p.contrast, p.saturation, p.hue, p.sigma]


def statistics(device: Device, dtype: torch.dtype = FP32) -> dict[str, Tensor]:
    """Give the mean and std of the normalisation."""
    return {
        "mean": torch.tensor(MEAN, dtype=dtype, device=device),
        "std": torch.tensor(STD, dtype=dtype, device=device),
    }


def logits(device: Device, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Give logits [rows, columns] as cosine prototypes give them: within ±1, most within ±0.3."""
    made = torch.randn(rows, columns, device=device, dtype=dtype)
    return made.mul_(0.15).clamp_(-1, 1)


def potentials(device: Device, rows: int, columns: int) -> Potentials:
    """Give potentials [rows] and [columns] under which a target row sums to about 1."""
    spread = (0.15 / TEACHER_TEMPERATURE) ** 2 / 2
    row = torch.full((rows,), -math.log(max(columns, 1)) - spread, device=device)
    return Potentials(row, 0.1 * torch.randn(columns, device=device))


def token_weights(device: Device, rows: int) -> Tensor:
    """Give weights [rows] near those of iBOT: one over the masked tokens of the image."""
    return (torch.rand(rows, device=device) + 0.5) / 60


def pairs(device: Device, students: int, teachers: int) -> Tensor:
    """Give the rows [students, 2] of DINO's view pairs: each with both teachers but for its own view (-1)."""
    student = torch.arange(students, device=device)
    batch = max(1, teachers // 2)
    partner = torch.stack((student % batch, student % batch + teachers // 2), 1)
    return torch.where(partner == student[:, None], -1, partner).contiguous()


def counts(device: Device, batch: int, patches: int) -> Tensor:
    """Give counts [batch] of hidden patches as iBOT draws them: a tenth to a half of the patches."""
    share = torch.linspace(0.1, 0.5, max(batch, 1), device=device)[:batch]
    return (share * patches).long()


# What each specimen runs. Each calls the public function and takes the gradient of everything that has one.


def _backward(output: Tensor, wrt: list[Tensor]) -> None:
    torch.autograd.grad(output, wrt, torch.empty_like(output), allow_unused=True)


def _render(
    device: Device, batch: int, count: int, size: int, dtype: torch.dtype, *, side: int = 256, **options: Any
) -> None:
    made = views(device, batch, count, size, side=side)
    wrt = [tensor.requires_grad_() for tensor in grown(made)]
    out = vpt_kernels.render_views(
        sources(device, batch, side), made.boxes, made.flips, made.photometrics,
        size=size, dtype=dtype, **statistics(device), **options,
    )  # fmt: skip
    _backward(out, wrt)


def _render_packed(device: Device, batch: int, count: int, size: int, dtype: torch.dtype) -> None:
    images = [
        torch.empty(256 - n % 50, 200 + n % 50, 3, dtype=torch.uint8, device=device) for n in range(batch)
    ]
    made = views(device, batch, count, size, side=200)
    wrt = [tensor.requires_grad_() for tensor in grown(made)]
    out = vpt_kernels.render_views(
        vpt_kernels.PackedImages.pack(images), made.boxes, made.flips, made.photometrics,
        size=size, dtype=dtype, **statistics(device),
    )  # fmt: skip
    _backward(out, wrt)


def _block_masks(device: Device, batch: int, side: int) -> None:
    vpt_kernels.block_masks(
        counts(device, batch, side * side), (side, side), total=batch * side * side * 3 // 10, seed=1, step=2,
        sample=torch.arange(batch, device=device),
    )  # fmt: skip


def _sample_masks(device: Device, batch: int, patches: int) -> None:
    vpt_kernels.sample_masks(
        torch.randn(batch, patches, device=device), counts(device, batch, patches),
        total=batch * patches * 3 // 10, seed=1, step=2, sample=torch.arange(batch, device=device),
    )  # fmt: skip


def _plackett_luce(device: Device, batch: int, patches: int) -> None:
    scores = torch.randn(batch, patches, device=device, requires_grad=True)
    perturbed = torch.randn(batch, patches, device=device)
    made = vpt_kernels.plackett_luce_log_prob(scores, perturbed, counts(device, batch, patches))
    _backward(made, [scores])


def _keyed_uniform(device: Device, batch: int, count: int) -> None:
    vpt_kernels.keyed_uniform(1, 2, torch.arange(batch, device=device), 3, count)


def _sinkhorn(device: Device, rows: int, columns: int, dtype: torch.dtype) -> None:
    teacher = logits(device, rows, columns, dtype)
    vpt_kernels.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE, weights=torch.ones(rows, device=device))
    vpt_kernels.centre_potentials(teacher, TEACHER_TEMPERATURE, torch.zeros(columns, device=device))


def _distillation(device: Device, rows: int, columns: int, dtype: torch.dtype, *, cls: bool = False) -> None:
    teachers = max(2, rows // 5) if cls else rows
    student = logits(device, rows, columns, dtype).requires_grad_()
    own = torch.full((rows,), STUDENT_TEMPERATURE, device=device, requires_grad=True)
    theirs = torch.full((teachers,), TEACHER_TEMPERATURE, device=device, requires_grad=True)
    weights = token_weights(device, rows).requires_grad_()
    out = vpt_kernels.masked_distillation_loss(
        student, logits(device, teachers, columns, dtype), potentials(device, teachers, columns),
        student_temperature=own, teacher_temperature=theirs, weights=weights,
        rows=pairs(device, rows, teachers) if cls else None,
    )  # fmt: skip
    _backward(out, [student, own, theirs, weights])


def prototypes(
    device: Device, rows: int, columns: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Give normalised features [rows, width] and prototype weights [columns, width]."""
    features = torch.nn.functional.normalize(torch.randn(rows, width, device=device), dim=1)
    weight = torch.randn(columns, width, device=device) * 0.02
    return features.to(dtype), weight.to(dtype)


def _prototype(
    device: Device, rows: int, columns: int, width: int, dtype: torch.dtype, *, cls: bool = False,
    weight_norm: bool = True,
) -> None:  # fmt: skip
    teachers = max(2, rows // 5) if cls else rows
    student, weight = prototypes(device, rows, columns, width, dtype)
    teacher, teacher_weight = prototypes(device, teachers, columns, width, dtype)
    vpt_kernels.prototype_potentials(teacher, teacher_weight, TEACHER_TEMPERATURE, weight_norm=weight_norm)
    own = torch.full((rows,), STUDENT_TEMPERATURE, device=device, requires_grad=True)
    theirs = torch.full((teachers,), TEACHER_TEMPERATURE, device=device, requires_grad=True)
    weights = token_weights(device, rows).requires_grad_()
    out = vpt_kernels.prototype_loss(
        student.requires_grad_(), weight.requires_grad_(), teacher, teacher_weight,
        potentials(device, teachers, columns), student_temperature=own, teacher_temperature=theirs,
        weights=weights, rows=pairs(device, rows, teachers) if cls else None, weight_norm=weight_norm,
    )  # fmt: skip
    _backward(out, [student, weight, own, theirs, weights])


def _blend(device: Device, batch: int, side: int, dtype: torch.dtype) -> None:
    images = torch.randn(batch, 3, side, side, device=device).to(dtype).requires_grad_()
    mask = torch.rand(batch, side, side, device=device).requires_grad_()
    made = vpt_kernels.blend_views(images, mask, sigma=4.0, blur_kernel=17)
    total = made.blended.float().sum() + made.tv.sum() + made.sparsity.sum()
    torch.autograd.grad(total, [images, mask], retain_graph=True)
    torch.autograd.grad(total, [mask])  # as a designer of masks asks


class Specimen(NamedTuple):
    """One call of a public function, forward and backward."""

    function: str  # of vpt_kernels
    label: str
    run: Callable[[Device], None]
    main: bool = True  # among the fewest that meet every launch


def _of(
    function: str, label: str, run: Callable[..., None], *sizes: Any, main: bool = True, **options: Any
) -> Specimen:  # fmt: skip
    return Specimen(function, label, lambda device: run(device, *sizes, **options), main)


DISTILLATION, PROTOTYPE = "masked_distillation_loss", "prototype_loss"
BILINEAR = {"interpolation": "bilinear"}
MORE, PAIRS, RAW = {"main": False}, {"cls": True}, {"weight_norm": False}
SPECIMENS = (
    _of("render_views", "256x 2x224 bf16 bicubic", _render, 256, 2, 224, BF16, **MORE),
    _of("render_views", "256x 8x96 bf16 bicubic", _render, 256, 8, 96, BF16, **MORE),
    _of("render_views", "256x 2x224 fp32 bilinear", _render, 256, 2, 224, FP32, **BILINEAR, **MORE),
    _of("render_views", "128x 2x32 fp32 bicubic, 64px", _render, 128, 2, 32, FP32, side=64),
    _of("render_views", "1x 1x1 fp32 bicubic, 8px", _render, 1, 1, 1, FP32, side=8, blur_kernel=1, **MORE),
    _of("render_views", "packed 64x 2x224 fp16", _render_packed, 64, 2, 224, FP16),
    _of("keyed_uniform", "512x 256", _keyed_uniform, 512, 256),
    _of("block_masks", "512x 16x16", _block_masks, 512, 16),
    _of("block_masks", "128x 32x32", _block_masks, 128, 32, **MORE),
    _of("sample_masks", "512x 256", _sample_masks, 512, 256),
    _of("sample_masks", "128x 1024", _sample_masks, 128, 1024, **MORE),
    _of("plackett_luce_log_prob", "512x 256", _plackett_luce, 512, 256),
    _of("sinkhorn_potentials", "3763x65536 bf16", _sinkhorn, TOKENS, PROTOTYPES, BF16),
    _of("sinkhorn_potentials", "3763x65536 fp32", _sinkhorn, TOKENS, PROTOTYPES, FP32, **MORE),
    _of("sinkhorn_potentials", "128x65536 bf16", _sinkhorn, 128, PROTOTYPES, BF16, **MORE),
    _of(DISTILLATION, "3763x65536 bf16", _distillation, TOKENS, PROTOTYPES, BF16),
    _of(DISTILLATION, "3763x65536 fp32", _distillation, TOKENS, PROTOTYPES, FP32, **MORE),
    _of(DISTILLATION, "pairs 640x65536 bf16", _distillation, 640, PROTOTYPES, BF16, **PAIRS, **MORE),
    _of(PROTOTYPE, "3763x65536x256 bf16", _prototype, TOKENS, PROTOTYPES, WIDTH, BF16),
    _of(PROTOTYPE, "3763x65536x256 fp16", _prototype, TOKENS, PROTOTYPES, WIDTH, FP16),
    _of(PROTOTYPE, "3763x65536x256 fp32", _prototype, TOKENS, PROTOTYPES, WIDTH, FP32, **MORE),
    _of(PROTOTYPE, "pairs 640x65536x256 bf16", _prototype, 640, PROTOTYPES, WIDTH, BF16, **PAIRS, **MORE),
    _of(PROTOTYPE, "1000x8192x384 bf16, raw", _prototype, 1000, 8192, 384, BF16, **RAW, **MORE),
    _of(PROTOTYPE, "1000x8192x250 bf16", _prototype, 1000, 8192, 250, BF16, **MORE),
    _of("blend_views", "256x224x224 bf16", _blend, 256, 224, BF16),
    _of("blend_views", "256x224x224 fp32", _blend, 256, 224, FP32, **MORE),
)  # fmt: skip
