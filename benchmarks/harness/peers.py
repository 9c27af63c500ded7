"""Packages that do some of what a kernel does, each called as its users call it.

Each function imports its package: a missing one raises ModuleNotFoundError, and the benchmark goes on
without it.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from vpt_kernels import Photometrics

_ORDERS = list(permutations(range(4)))


def torchvision_views(
    images: Tensor, boxes: Tensor, flips: Tensor, photometrics: Photometrics, mean: Tensor, std: Tensor,
    size: int, blur_kernel: int, dtype: torch.dtype, *, as_float: bool,
) -> Tensor:  # fmt: skip
    """Render with torchvision.transforms.v2.functional, one view at a time.

    On float images it computes what `render_views` computes; on uint8 images, torchvision's fast path on the
    CPU, every step rounds to 8 bits. Strengths are read on the host, as v2's transforms draw them there.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as T

    corners, mirrored = boxes.round().int().tolist(), flips.tolist()
    fields = [field.tolist() for field in photometrics]
    means, stds = mean.tolist(), std.tolist()
    out = torch.empty(*boxes.shape[:2], 3, size, size, dtype=dtype, device=images.device)
    for image in range(len(images)):
        source = T.to_dtype(images[image], torch.float32, scale=True) if as_float else images[image]
        for view in range(len(boxes)):
            brightness, contrast, saturation, hue, order, grey, sigma, solarize = (
                field[view][image] for field in fields
            )
            pixels = T.resized_crop(
                source, *corners[view][image], [size, size], InterpolationMode.BICUBIC, antialias=True
            )
            if mirrored[view][image]:
                pixels = T.horizontal_flip(pixels)
            for step in _ORDERS[order]:
                if step == 0 and brightness != 1:
                    pixels = T.adjust_brightness(pixels, brightness)
                elif step == 1 and contrast != 1:
                    pixels = T.adjust_contrast(pixels, contrast)
                elif step == 2 and saturation != 1:
                    pixels = T.adjust_saturation(pixels, saturation)
                elif step == 3 and hue != 0:
                    pixels = T.adjust_hue(pixels, hue)
            if grey:
                pixels = T.rgb_to_grayscale(pixels, num_output_channels=3)
            if sigma > 0:
                pixels = T.gaussian_blur(pixels, [blur_kernel, blur_kernel], [sigma, sigma])
            if solarize <= 1:
                pixels = T.solarize(pixels, solarize if as_float else solarize * 255)
            if not as_float:
                pixels = T.to_dtype(pixels, torch.float32, scale=True)
            out[view, image] = T.normalize(pixels, means, stds)
    return out


def kornia_views(
    images: Tensor, boxes: Tensor, flips: Tensor, photometrics: Photometrics, mean: Tensor, std: Tensor,
    size: int, blur_kernel: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Render with kornia's batched functions, all views of all images at once.

    Its crop resamples without antialiasing, and the jitter has one order for the batch, as kornia's
    ColorJiggle has; a step is applied to every view and kept where it was asked for.
    """
    import kornia

    count, batch = boxes.shape[:2]
    top, left, tall, wide = boxes.flatten(0, 1).unbind(-1)
    right, bottom = left + wide - 1, top + tall - 1
    corners = torch.stack(
        (torch.stack((left, top), -1), torch.stack((right, top), -1),
         torch.stack((right, bottom), -1), torch.stack((left, bottom), -1)), 1,
    )  # fmt: skip
    source = (images.float() / 255).repeat(count, 1, 1, 1)
    views = kornia.geometry.transform.crop_and_resize(source, corners, (size, size), mode="bicubic")
    p = Photometrics(*(field.flatten() for field in photometrics))

    def where(chosen: Tensor, changed: Tensor) -> Tensor:
        return torch.where(chosen[:, None, None, None], changed, views)

    views = where(flips.flatten(), kornia.geometry.transform.hflip(views))
    views = kornia.enhance.adjust_brightness_accumulative(views, p.brightness)
    views = kornia.enhance.adjust_contrast_with_mean_subtraction(views, p.contrast)
    views = kornia.enhance.adjust_saturation_with_gray_subtraction(views, p.saturation)
    views = kornia.enhance.adjust_hue(views, p.hue * 2 * torch.pi)
    views = where(p.grey, kornia.color.rgb_to_grayscale(views).expand_as(views))
    sigma = p.sigma.clamp(min=1e-3)[:, None].expand(-1, 2)
    views = where(p.sigma > 0, kornia.filters.gaussian_blur2d(views, (blur_kernel, blur_kernel), sigma))
    views = where(p.solarize <= 1, kornia.enhance.solarize(views, p.solarize.clamp(max=1)))
    views = kornia.enhance.normalize(views, mean, std)
    return views.to(dtype).view(count, batch, 3, size, size)


def kornia_blend(views: Tensor, mask: Tensor, sigma: float, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blend with kornia's blur and total variation."""
    import kornia

    wide, mu = views.float(), mask[:, None].float()
    blurred = kornia.filters.gaussian_blur2d(wide, (kernel, kernel), (sigma, sigma))
    variation = kornia.losses.total_variation(mu, reduction="mean").flatten()
    return (mu * wide + (1 - mu) * blurred).to(views.dtype), variation, (1 - mask).mean((1, 2))


def torchvision_blend(
    views: Tensor, mask: Tensor, sigma: float, kernel: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend with torchvision's blur, the rest in plain torch."""
    from torchvision.transforms.v2 import functional as T

    wide, mu = views.float(), mask[:, None].float()
    blurred = T.gaussian_blur(wide, [kernel, kernel], [sigma, sigma])
    down, across = (mask[:, 1:] - mask[:, :-1]).abs(), (mask[:, :, 1:] - mask[:, :, :-1]).abs()
    blended = (mu * wide + (1 - mu) * blurred).to(views.dtype)
    return blended, down.mean((1, 2)) + across.mean((1, 2)), (1 - mask).mean((1, 2))


def liger_kl(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Give Σ_k q log(q / p) for stored targets [M, K] by Liger's KL kernel, which takes log-probabilities."""
    from liger_kernel.ops.kl_div import LigerKLDivLossFunction

    predicted = torch.log_softmax(student.float() / temperature, -1)
    return LigerKLDivLossFunction.apply(predicted, targets, "none", False, 1e-10).sum(-1)


def liger_fused_linear_kl(
    student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, temperature: float
) -> Tensor:
    """Give the mean of KL(teacher || student) from features and weights by Liger's fused linear JSD (beta 0).

    One temperature for both, softmax targets without potentials, no weight norm, no per-token weights; the
    logits are made in chunks of rows; the gradients are made in the forward pass.
    """
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    return LigerFusedLinearJSDFunction.apply(
        student, weight, teacher, teacher_weight, None, 0.0, -100, temperature
    )


def cut_cross_entropy(student: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Give -log softmax(student weightᵀ / temperature)[label] by cut cross-entropy: hard labels, no teacher.

    Half the matrix products of the soft-target loss and none of its targets: a lower bound. It leaves out
    gradients below bf16's resolution (its default).
    """
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(student / temperature, weight, labels, reduction="none")
