"""Blur by two passes, the second of which blends and measures the mask; and the way back.

Counted at 64 views [3, 224, 224] in bf16 (9.6 M values) with a mask in fp32 (3.2 M): the first pass reads
the views (19 MB) and writes them, blurred along rows, as fp32 scratch (39 MB); the second reads scratch,
views and mask (71 MB) and writes the result (19 MB): 148 MB in all, 0.04 ms at 4 TB/s. The window's other
reads come from the L1 cache: rows of a view are neighbours in memory, columns are read along them. The mask's
gradient makes the blur again rather than keep it: 58 MB, then 103 MB. The views' gradient is the adjoint,
columns first: 148 MB, and up to three reads a tap, of which two are masked out but at the border.

Terms of the mask are added up for each program and then by torch, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block, cdiv, on_device_of


@triton.jit
def _reflect(place, side):
    """Where a place up to `side` - 1 outside of 0..side-1 lies, reflected."""
    place = tl.abs(place)
    return side - 1 - tl.abs(side - 1 - place)


@triton.jit
def _blur(base, fixed, place, step, side, inside, weights_ptr, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    """Blur along one side what lies at base + fixed + place * step: [BLOCK] wide."""
    total = tl.zeros([BLOCK], weights_ptr.dtype.element_ty)
    for tap in range(2 * RADIUS + 1):
        source = _reflect(place + tap - RADIUS, side)
        value = tl.load(base + fixed + source * step, mask=inside, other=0.0)
        total += tl.load(weights_ptr + tap) * value.to(total.dtype)
    return total


@triton.jit
def _term(base, offset, there, own, out):
    """Difference of a mask's pixel to a neighbour, 0 where there is none."""
    other = tl.load(base + offset, mask=there, other=0.0).to(out)
    return tl.where(there, other - own, 0.0)


@triton.jit
def _sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def blur_rows_kernel(
    views_ptr,  # [planes, H, W] float
    weights_ptr,  # [2 RADIUS + 1] wide
    out_ptr,  # [planes, H, W] wide
    H,
    W,
    blocks,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Blur BLOCK pixels of a plane along its rows."""
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H * W
    x = pixel % W
    start = plane * H * W
    blurred = _blur(views_ptr + start, pixel - x, x, 1, W, inside, weights_ptr, RADIUS, BLOCK)
    tl.store(out_ptr + start + pixel, blurred, mask=inside)


@triton.jit
def blend_kernel(
    views_ptr,  # [N, C, H, W] float
    mask_ptr,  # [N, H, W] float
    rows_ptr,  # [N, C, H, W] wide, the views blurred along rows
    weights_ptr,  # [2 RADIUS + 1] wide
    out_ptr,  # [N, C, H, W] as views
    parts_ptr,  # [2, N, blocks] wide: total variation, hidden share
    C,
    H,
    W,
    blocks,
    verticals,  # number of differences, at least 1
    horizontals,
    part_stride,  # N blocks
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Finish BLOCK pixels of a view, all channels: blur along columns, blend; and measure the mask there."""
    view = (tl.program_id(0) // blocks).to(tl.int64)
    part = tl.program_id(0) % blocks
    pixel = part * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H * W
    y, x = pixel // W, pixel % W
    wide = weights_ptr.dtype.element_ty
    mask = mask_ptr + view * H * W
    kept = tl.load(mask + pixel, mask=inside, other=1.0).to(wide)
    down = _term(mask, pixel + W, inside & (y + 1 < H), kept, wide)
    right = _term(mask, pixel + 1, inside & (x + 1 < W), kept, wide)
    variation = tl.sum(tl.abs(down), 0) / verticals + tl.sum(tl.abs(right), 0) / horizontals
    hidden = tl.sum(1.0 - kept, 0) / (H * W)
    place = parts_ptr + view * blocks + part
    tl.store(place, variation.to(wide))
    tl.store(place + part_stride, hidden.to(wide))
    for channel in range(C):
        start = (view * C + channel) * H * W
        blurred = _blur(rows_ptr + start, x, y, W, H, inside, weights_ptr, RADIUS, BLOCK)
        value = tl.load(views_ptr + start + pixel, mask=inside, other=0.0).to(wide)
        blended = blurred + kept * (value - blurred)
        tl.store(out_ptr + start + pixel, blended.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def mask_gradient_kernel(
    gradient_ptr,  # [N, C, H, W] float
    to_tv_ptr,  # [N] wide
    to_sparsity_ptr,  # [N] wide
    views_ptr,  # [N, C, H, W] float
    mask_ptr,  # [N, H, W] float
    rows_ptr,  # [N, C, H, W] wide, the views blurred along rows
    weights_ptr,  # [2 RADIUS + 1] wide
    out_ptr,  # [N, H, W] as mask
    C,
    H,
    W,
    blocks,
    verticals,  # number of differences, at least 1
    horizontals,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient to BLOCK pixels of a mask."""
    view = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H * W
    y, x = pixel // W, pixel % W
    wide = weights_ptr.dtype.element_ty
    mask = mask_ptr + view * H * W
    kept = tl.load(mask + pixel, mask=inside, other=0.0).to(wide)
    vertical = -_sign(_term(mask, pixel + W, inside & (y + 1 < H), kept, wide))
    vertical -= _sign(_term(mask, pixel - W, inside & (y > 0), kept, wide))
    horizontal = -_sign(_term(mask, pixel + 1, inside & (x + 1 < W), kept, wide))
    horizontal -= _sign(_term(mask, pixel - 1, inside & (x > 0), kept, wide))
    to_tv = tl.load(to_tv_ptr + view)
    total = to_tv * (vertical / verticals + horizontal / horizontals)
    total -= tl.load(to_sparsity_ptr + view) / (H * W)
    for channel in range(C):
        start = (view * C + channel) * H * W
        blurred = _blur(rows_ptr + start, x, y, W, H, inside, weights_ptr, RADIUS, BLOCK)
        value = tl.load(views_ptr + start + pixel, mask=inside, other=0.0).to(wide)
        gradient = tl.load(gradient_ptr + start + pixel, mask=inside, other=0.0).to(wide)
        total += gradient * (value - blurred)
    tl.store(out_ptr + view * H * W + pixel, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def adjoint_kernel(
    x_ptr,  # [N, C, H, W] float: the gradient, or, along rows, what the first pass made of it
    gradient_ptr,  # [N, C, H, W] float
    mask_ptr,  # [N, H, W] float
    weights_ptr,  # [2 RADIUS + 1] wide
    out_ptr,  # [N, C, H, W]: wide along columns, then as views
    C,
    H,
    W,
    blocks,
    ROWS: tl.constexpr,  # along rows, the last pass; along columns, the first, if not
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The blur's adjoint along one side, for BLOCK pixels of a plane.

    A pixel at p went, with tap t, into the one at p - t; and, seen in the mirror at either border, so did -p
    and 2 (side - 1) - p, which are p itself at the border: that one counts once.
    """
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < H * W
    wide = weights_ptr.dtype.element_ty
    mask = mask_ptr + (plane // C) * H * W
    start = plane * H * W
    if ROWS:
        side = W
        step = 1
        p = pixel % W
    else:
        side = H
        step = W
        p = pixel // W
    rest = pixel - p * step
    total = tl.zeros([BLOCK], wide)
    for tap in range(2 * RADIUS + 1):
        t = tap - RADIUS
        weight = tl.load(weights_ptr + tap)
        for image in tl.static_range(3):
            if image == 0:
                source = p - t
                there = inside
            elif image == 1:
                source = -p - t
                there = inside & (p > 0)
            else:
                source = 2 * (side - 1) - p - t
                there = inside & (p < side - 1)
            there = there & (source >= 0) & (source < side)
            place = rest + source * step
            value = tl.load(x_ptr + start + place, mask=there, other=0.0).to(wide)
            if not ROWS:
                value *= 1.0 - tl.load(mask + place, mask=there, other=0.0).to(wide)
            total += weight * value
    if ROWS:
        gradient = tl.load(gradient_ptr + start + pixel, mask=inside, other=0.0).to(wide)
        total += tl.load(mask + pixel, mask=inside, other=0.0).to(wide) * gradient
    tl.store(out_ptr + start + pixel, total.to(out_ptr.dtype.element_ty), mask=inside)


def forward(views: Tensor, mask: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `vpt_kernels.blend_views.blended_views`; `weights` are of the blur's window."""
    views, mask = views.contiguous(), mask.contiguous()  # read in many places, whole cache lines at a time
    count, channels, height, width = views.shape
    out = torch.empty(views.shape, dtype=views.dtype, device=views.device)
    if mask.numel() == 0:
        return out, weights.new_zeros(count), weights.new_zeros(count)
    size, blocks = _blocks(height, width)
    parts = weights.new_empty(2, count, blocks)
    with on_device_of(views):
        rows = _blurred_along_rows(views, weights)
        blend_kernel[(count * blocks,)](
            views, mask, rows, weights, out, parts, channels, height, width, blocks,
            *_differences(height, width), count * blocks, RADIUS=len(weights) // 2, BLOCK=size, num_warps=8,
        )  # fmt: skip
    return out, parts[0].sum(1), parts[1].sum(1)


def mask_gradient(
    to_blended: Tensor, to_tv: Tensor, to_sparsity: Tensor, views: Tensor, mask: Tensor, weights: Tensor
) -> Tensor:
    """See `vpt_kernels.blend_views.blended_views_gradients`: the mask's."""
    views, mask, to_blended = views.contiguous(), mask.contiguous(), to_blended.contiguous()
    count, channels, height, width = views.shape
    out = torch.empty(mask.shape, dtype=mask.dtype, device=mask.device)
    if mask.numel() > 0:
        size, blocks = _blocks(height, width)
        with on_device_of(views):
            rows = _blurred_along_rows(views, weights)
            mask_gradient_kernel[(count * blocks,)](
                to_blended, to_tv.contiguous(), to_sparsity.contiguous(), views, mask, rows, weights, out,
                channels, height, width, blocks, *_differences(height, width),
                RADIUS=len(weights) // 2, BLOCK=size, num_warps=8,
            )  # fmt: skip
    return out


def views_gradient(to_blended: Tensor, mask: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """See `vpt_kernels.blend_views.blended_views_gradients`: the views', in `dtype`."""
    to_blended, mask = to_blended.contiguous(), mask.contiguous()
    count, channels, height, width = to_blended.shape
    out = torch.empty(to_blended.shape, dtype=dtype, device=mask.device)
    if out.numel() > 0:
        size, blocks = _blocks(height, width)
        scratch = weights.new_empty(to_blended.shape)
        with on_device_of(mask):
            for along_rows, x, made in ((False, to_blended, scratch), (True, scratch, out)):
                adjoint_kernel[(count * channels * blocks,)](
                    x, to_blended, mask, weights, made, channels, height, width, blocks,
                    ROWS=along_rows, RADIUS=len(weights) // 2, BLOCK=size, num_warps=8,
                )  # fmt: skip
    return out


def _blurred_along_rows(views: Tensor, weights: Tensor) -> Tensor:
    count, channels, height, width = views.shape
    size, blocks = _blocks(height, width)
    out = weights.new_empty(views.shape)
    if out.numel() > 0:
        blur_rows_kernel[(count * channels * blocks,)](
            views, weights, out, height, width, blocks, RADIUS=len(weights) // 2, BLOCK=size, num_warps=8
        )
    return out


def _blocks(height: int, width: int) -> tuple[int, int]:
    """Return how many pixels of a plane a program takes, and how many programs that is a plane."""
    size = block(height * width, 1024)
    return size, cdiv(height * width, size)


def _differences(height: int, width: int) -> tuple[int, int]:
    """Return how many vertical and horizontal differences there are to divide by; 1 where there are none."""
    return max(1, (height - 1) * width), max(1, height * (width - 1))
