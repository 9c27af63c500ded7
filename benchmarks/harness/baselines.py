"""What the kernels are compared with where no package does the work: plain torch, as DINOv2 goes about it.

Written from the published descriptions, in fp32 and with every intermediate stored, which is how the anchors
work; batched wherever torch can batch. `torch.compile` gets the same functions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_kernels import Photometrics

# Targets and losses.


def sinkhorn_targets(teacher: Tensor, temperature: float, iterations: int) -> Tensor:
    """Balance exp(teacher / temperature) by dividing by its column and row sums in turn: q [M, K] in fp32."""
    q = torch.exp(teacher.float() / temperature)
    q /= q.sum()
    rows, columns = q.shape
    for _ in range(iterations):
        q /= q.sum(dim=0, keepdim=True)
        q /= columns
        q /= q.sum(dim=1, keepdim=True)
        q /= rows
    return q * rows


def potential_targets(teacher: Tensor, row: Tensor, column: Tensor, temperature: float) -> Tensor:
    """Make the targets q [M, K] of potentials, stored in fp32."""
    return torch.exp(teacher.float() / temperature + row[:, None] + column)


def soft_cross_entropy(student: Tensor, targets: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Give weights[m] Σ_k -q[m, k] log softmax(student[m] / temperature)_k."""
    return -(targets * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1) * weights


def distillation(
    student: Tensor, teacher: Tensor, row: Tensor, column: Tensor, weights: Tensor, own: float, theirs: float
) -> Tensor:
    """Give the masked loss from teacher logits and potentials."""
    return soft_cross_entropy(student, potential_targets(teacher, row, column, theirs), own, weights)


def sinkhorn_distillation(
    student: Tensor, teacher: Tensor, weights: Tensor, own: float, theirs: float, iterations: int
) -> Tensor:
    """Give the masked loss with Sinkhorn's targets, stored once."""
    with torch.no_grad():
        targets = sinkhorn_targets(teacher, theirs, iterations)
    return soft_cross_entropy(student, targets, own, weights)


def head(features: Tensor, weight: Tensor) -> Tensor:
    """The last layer of DINO's head: logits against prototypes of length 1."""
    return F.linear(features, F.normalize(weight, dim=1))


def prototype_distillation(
    student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, row: Tensor, column: Tensor,
    weights: Tensor, own: float, theirs: float,
) -> Tensor:  # fmt: skip
    """Give the masked loss from features and prototypes, the logits stored."""
    with torch.no_grad():
        teacher_logits = head(teacher, teacher_weight)
    return distillation(head(student, weight), teacher_logits, row, column, weights, own, theirs)


def prototype_sinkhorn_distillation(
    student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, weights: Tensor,
    own: float, theirs: float, iterations: int,
) -> Tensor:  # fmt: skip
    """Give the same with Sinkhorn's targets."""
    with torch.no_grad():
        teacher_logits = head(teacher, teacher_weight)
    return sinkhorn_distillation(head(student, weight), teacher_logits, weights, own, theirs, iterations)


# Masks.


def python_block_masks(counts: list[int], grid: tuple[int, int], generator: random.Random) -> Tensor:
    """Draw block masks image by image in NumPy arrays, as BEiT, iBOT and DINOv2 do in their data loaders.

    Cell by cell, comparing each with 0, as theirs do: that comparison is most of the time. The law is that of
    `vpt_kernels.block_masks`, from another generator of random numbers.
    """
    height, width = grid
    masks = []
    for count in counts:
        mask = np.zeros((height, width), dtype=bool)
        remaining = count
        while remaining > 0:
            block = _draw_block(remaining, height, width, generator, lambda part, mask=mask: mask[part].sum())
            if block is None:
                break
            part, new = block
            for y in range(part[0].start, part[0].stop):
                for x in range(part[1].start, part[1].stop):
                    if mask[y, x] == 0:
                        mask[y, x] = 1
            remaining -= new
        if remaining > 0:
            free = np.flatnonzero(~mask)
            mask.reshape(-1)[generator.sample(free.tolist(), remaining)] = True
        masks.append(torch.from_numpy(mask))
    return torch.stack(masks)


def list_block_masks(counts: list[int], grid: tuple[int, int], generator: random.Random) -> Tensor:
    """Do the same in lists of Python, which are faster than NumPy at such small grids."""
    height, width = grid
    masks = torch.zeros(len(counts), height, width, dtype=torch.bool)
    for image, count in enumerate(counts):
        hidden = [[False] * width for _ in range(height)]

        def covered(part: tuple[slice, slice], hidden: list[list[bool]] = hidden) -> int:
            return sum(sum(line[part[1]]) for line in hidden[part[0]])

        remaining = count
        while remaining > 0:
            block = _draw_block(remaining, height, width, generator, covered)
            if block is None:
                break
            (tall, wide), new = block
            for line in hidden[tall]:
                line[wide] = [True] * (wide.stop - wide.start)
            remaining -= new
        if remaining > 0:
            free = [(y, x) for y in range(height) for x in range(width) if not hidden[y][x]]
            for y, x in generator.sample(free, remaining):
                hidden[y][x] = True
        masks[image] = torch.tensor(hidden)
    return masks


def _draw_block(
    remaining: int, height: int, width: int, generator: random.Random,
    covered: Callable[[tuple[slice, slice]], int],
) -> tuple[tuple[slice, slice], int] | None:  # fmt: skip
    """Try ten times for a rectangle that hides something new and no more than remains."""
    for _ in range(10):
        area = generator.uniform(4, remaining)
        aspect = math.exp(generator.uniform(math.log(0.3), -math.log(0.3)))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if tall >= height or wide >= width:
            continue
        top, left = generator.randint(0, height - tall), generator.randint(0, width - wide)
        part = slice(top, top + tall), slice(left, left + wide)
        new = tall * wide - int(covered(part))
        if 0 < new <= remaining:
            return part, new
    return None


def gumbel_masks(logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Hide the counts[n] highest of logits + Gumbel noise, by a sort: batched torch, unkeyed noise."""
    perturbed = logits - torch.empty_like(logits).exponential_().log()
    places = perturbed.argsort(dim=1, descending=True)
    chosen = torch.arange(logits.shape[1], device=logits.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter(1, places, chosen), perturbed


def python_random_masks(counts: list[int], patches: int, generator: random.Random) -> Tensor:
    """Hide uniformly random patches, image by image, as MAE's and SimMIM's data loaders do."""
    masks = torch.zeros(len(counts), patches, dtype=torch.bool)
    for image, count in enumerate(counts):
        masks[image, generator.sample(range(patches), count)] = True
    return masks


def pack(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give masks [N, T], the indices of all that is hidden and their weights, as DINOv2 collates them."""
    masks = masks.flatten(1)
    weights = (1 / masks.sum(1).clamp(min=1.0))[:, None].expand_as(masks)[masks]
    return masks, masks.flatten().nonzero().flatten(), weights


def order_log_probability(logits: Tensor, perturbed: Tensor, counts: Tensor) -> Tensor:
    """Log-probability [N] of drawing the counts[n] highest of `perturbed` [N, T], highest first."""
    order = perturbed.argsort(dim=1, descending=True)
    drawn = logits.gather(1, order)
    left = drawn.flip(1).logcumsumexp(1).flip(1)
    first = torch.arange(logits.shape[1], device=logits.device) < counts[:, None]
    return ((drawn - left) * first).sum(1)


# Views.


def render(
    images: Tensor, boxes: Tensor, flips: Tensor, photometrics: Photometrics, mean: Tensor, std: Tensor,
    size: int, blur_kernel: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Render all views by two batched matrix products, then change their colours in fp32: [V, B, 3, S, S]."""
    count, batch = boxes.shape[:2]
    top, left, tall, wide = boxes.unbind(-1)  # [V, B]
    vertical = resampling(top, tall, size, images.shape[2])
    horizontal = resampling(left, wide, size, images.shape[3])
    horizontal = torch.where(flips[..., None, None], horizontal.flip(2), horizontal)
    pixels = torch.einsum("vbsh,bchw->vbcsw", vertical, images.to(boxes.dtype) / 255)
    pixels = torch.einsum("vbcsw,vbtw->vbcst", pixels, horizontal).flatten(0, 1)
    pixels = change_colours(pixels, Photometrics(*(field.flatten() for field in photometrics)), blur_kernel)
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return pixels.to(dtype).view(count, batch, 3, size, size)


def resampling(start: Tensor, length: Tensor, size: int, pixels: int) -> Tensor:
    """Give the antialiased bicubic weights [V, B, size, pixels] of a box along one axis."""
    start, length = start[..., None, None], length[..., None, None]
    scale = length / size
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(pixels, device=start.device)
    x = ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x < 1, inner, torch.where(x < 2, outer, 0))
    part = (torch.minimum(pixel + 1, start + length) - torch.maximum(pixel + 0.0 * start, start)).clamp(0, 1)
    weights = weights * part
    return weights / weights.sum(-1, keepdim=True)


def change_colours(views: Tensor, p: Photometrics, blur_kernel: int) -> Tensor:
    """Change views [n, 3, S, S] by strengths [n]: every step on all, kept where it was asked for."""
    orders = torch.tensor(_ORDERS, device=views.device)[p.order]  # [n, 4]
    for place in range(4):
        operation = orders[:, place, None, None, None]
        grey = luma(views)
        for number, (factor, other) in enumerate(
            (
                (p.brightness, torch.zeros_like(grey)),
                (p.contrast, grey.mean((2, 3), True)),
                (p.saturation, grey),
            )
        ):
            factor = factor[:, None, None, None]
            blended = (views * factor + other * (1 - factor)).clamp(0, 1)
            views = torch.where((operation == number) & (factor != 1), blended, views)
        turns = p.hue[:, None, None, None]
        views = torch.where((operation == 3) & (turns != 0), turn_hue(views, turns), views)
    views = torch.where(p.grey[:, None, None, None], luma(views).expand_as(views), views)
    views = torch.where((p.sigma > 0)[:, None, None, None], blur(views, p.sigma, blur_kernel), views)
    threshold = p.solarize[:, None, None, None]
    return torch.where((threshold <= 1) & (views >= threshold), 1 - views, views)


_ORDERS = [
    [a, b, c, 6 - a - b - c] for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3
]


def luma(views: Tensor) -> Tensor:
    """Give the grey picture [n, 1, S, S]."""
    red, green, blue = views.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def turn_hue(views: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue through HSV."""
    value, index = views.max(1)
    chroma = value - views.amin(1)
    safe = chroma.clamp(min=1e-12)
    red, green, blue = views.unbind(1)
    sextant = torch.stack(
        (((green - blue) / safe) % 6, (blue - red) / safe + 2, (red - green) / safe + 4), 1
    ).gather(1, index[:, None])
    k = (torch.tensor([5.0, 3.0, 1.0], device=views.device)[:, None, None] + sextant + 6 * turns) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(views: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each view [n, C, H, W] by its own sigma [n], in two grouped convolutions."""
    reach = kernel // 2
    offset = torch.arange(-reach, reach + 1, device=views.device)
    taps = torch.softmax(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2, 1)  # [n, kernel]
    n, channels = views.shape[:2]
    taps = taps.repeat_interleave(channels, 0)[:, None].to(views.dtype)
    planes = F.pad(views, (reach,) * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, taps[..., None], groups=n * channels)
    return F.conv2d(planes, taps[:, :, None], groups=n * channels)[0].unflatten(0, (n, channels))


def blend(views: Tensor, mask: Tensor, sigma: float, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give μ⊙v + (1−μ)⊙blur(v), and the mean total variation and darkness of each mask."""
    wide = views.float()
    blurred = blur(wide, torch.full((len(views),), sigma, device=views.device), kernel)
    mu = mask[:, None].float()
    blended = (mu * wide + (1 - mu) * blurred).to(views.dtype)
    down, across = (mask[:, 1:] - mask[:, :-1]).abs(), (mask[:, :, 1:] - mask[:, :, :-1]).abs()
    return blended, down.mean((1, 2)) + across.mean((1, 2)), (1 - mask).mean((1, 2))
