"""Views blended with their own blur by a soft mask: the augmentation that V-pretraining learns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autocast import outside_autocast
from .checks import LOGITS, expect


class Blend(NamedTuple):
    """What `blend_views` gives."""

    blended: Tensor  # [N, C, H, W] in the dtype of the views
    tv: Tensor  # fp32 [N], the mask's total variation
    sparsity: Tensor  # fp32 [N], the share of the view that the mask hides


def blend_views(views: Tensor, mask: Tensor, *, sigma: float, blur_kernel: int) -> Blend:
    """Keep views where the mask is 1 and blur them where it is 0; measure how rough and how dark the mask is.

    The soft-mask augmentor of value-based pretraining (Ke & Fanti 2026, arXiv 2601.22108):

        blended  = mask · view + (1 - mask) · blur(view)
        tv       = mean |mask[y + 1, x] - mask[y, x]| + mean |mask[y, x + 1] - mask[y, x]|
        sparsity = mean (1 - mask)

    The means run over the differences, or pixels, of one view; a side of length 1 has no differences and adds
    0. Which sign and weight the two terms get in a loss is the caller's choice. The blur is Gaussian and
    reflects at the border, as torchvision's `gaussian_blur`.

    Gradients reach the mask through all three outputs, the total variation's by sign(difference), which is 0
    for equal neighbours; and the views. Second derivatives work, by plain torch operations.

    Args:
        views: [N, C, H, W], any float dtype; computed in fp32, under autocast too (fp64 for fp64).
        mask: [N, H, W] float, in [0, 1] by intention: values are not looked at.
        sigma: the blur's standard deviation in pixels, above 0.
        blur_kernel: width and height of the blur's window in pixels: odd, its half smaller than H and W.

    Returns:
        `Blend`. Terms are fp32 (fp64 for views of fp64).

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device, or is out of its range.
    """
    name = "blend_views"
    expect(name, "views", views, LOGITS, ("N", "C", "H", "W"))
    height, width = views.shape[2:]
    expect(name, "mask", mask, LOGITS, (len(views), height, width), views.device)
    if not sigma > 0:
        raise ValueError(f"{name}: sigma must be above 0, got {sigma}.")
    if not isinstance(blur_kernel, int) or blur_kernel < 1 or blur_kernel % 2 == 0:
        raise ValueError(f"{name}: blur_kernel must be an odd integer, at least 1, got {blur_kernel}.")
    if blur_kernel // 2 >= min(height, width):
        raise ValueError(
            f"{name}: half of blur_kernel must be smaller than the view, which it reflects at the border; "
            f"got {blur_kernel} for {height} x {width} pixels."
        )
    return Blend(*blended_views(views, mask, float(sigma), blur_kernel))


@torch.library.custom_op("vpt::blended_views", mutates_args=())
@outside_autocast
def blended_views(
    views: Tensor, mask: Tensor, sigma: float, blur_kernel: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the blended views and the mask's two terms; see `blend_views`."""
    blended, tv, sparsity = _blend(views, mask, sigma, blur_kernel)
    return blended.contiguous(), tv, sparsity


@blended_views.register_kernel("cuda")
def _(views: Tensor, mask: Tensor, sigma: float, blur_kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    from .triton import blend_views as device

    return device.forward(views, mask, gaussian(sigma, blur_kernel, views))


@blended_views.register_fake
def _(views: Tensor, mask: Tensor, sigma: float, blur_kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    term = views.new_empty(len(views), dtype=_wide(views))
    return views.new_empty(views.shape), term, torch.empty_like(term)


@torch.library.custom_op("vpt::blended_views_gradients", mutates_args=())
@outside_autocast
def blended_views_gradients(
    to_blended: Tensor,
    to_tv: Tensor,
    to_sparsity: Tensor,
    views: Tensor,
    mask: Tensor,
    sigma: float,
    blur_kernel: int,
    for_views: bool,
    for_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Give the gradients to views and mask; [0, ...] where not wanted.

    With g the gradient to `blended` they are mask · g + blurᵀ((1 - mask) · g), and Σ_c g (view - blur(view))
    with what the terms add. blurᵀ, the adjoint, brings back what was reflected.
    """
    wide = _wide(views)
    rows, columns = (_blur_matrix(side, sigma, blur_kernel, views) for side in views.shape[2:])
    upstream, kept = to_blended.to(wide), mask.to(wide)
    of_views, of_mask = views.new_empty(0, *views.shape[1:]), mask.new_empty(0, *mask.shape[1:])
    if for_views:
        hidden = rows.T @ ((1 - kept[:, None]) * upstream) @ columns
        of_views = (kept[:, None] * upstream + hidden).to(views.dtype)
    if for_mask:
        wide_views = views.to(wide)
        change = (upstream * (wide_views - rows @ wide_views @ columns.T)).sum(1)
        change -= to_sparsity[:, None, None] / (kept.shape[1] * kept.shape[2])
        for axis in (1, 2):
            signs = kept.diff(dim=axis).sign()
            signs *= to_tv[:, None, None] / max(1, signs.shape[1] * signs.shape[2])
            change.narrow(axis, 1, signs.shape[axis]).add_(signs)
            change.narrow(axis, 0, signs.shape[axis]).sub_(signs)
        of_mask = change.to(mask.dtype)
    return of_views.contiguous(), of_mask.contiguous()


@blended_views_gradients.register_kernel("cuda")
def _(
    to_blended: Tensor,
    to_tv: Tensor,
    to_sparsity: Tensor,
    views: Tensor,
    mask: Tensor,
    sigma: float,
    blur_kernel: int,
    for_views: bool,
    for_mask: bool,
) -> tuple[Tensor, Tensor]:
    from .triton import blend_views as device

    weights = gaussian(sigma, blur_kernel, views)
    return (
        device.views_gradient(to_blended, mask, weights, views.dtype) if for_views else views[:0].clone(),
        device.mask_gradient(to_blended, to_tv, to_sparsity, views, mask, weights)
        if for_mask
        else mask[:0].clone(),
    )


@blended_views_gradients.register_fake
def _(
    to_blended: Tensor,
    to_tv: Tensor,
    to_sparsity: Tensor,
    views: Tensor,
    mask: Tensor,
    sigma: float,
    blur_kernel: int,
    for_views: bool,
    for_mask: bool,
) -> tuple[Tensor, Tensor]:
    return (
        views.new_empty(len(views) if for_views else 0, *views.shape[1:]),
        mask.new_empty(len(mask) if for_mask else 0, *mask.shape[1:]),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    views, mask, *ctx.blur = inputs
    ctx.save_for_backward(views, mask)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    for_views, for_mask, _, _ = ctx.needs_input_grad
    of_views, of_mask = blended_views_gradients(
        *gradients, *ctx.saved_tensors, *ctx.blur, for_views, for_mask
    )
    return of_views if for_views else None, of_mask if for_mask else None, None, None


blended_views.register_autograd(_backward, setup_context=_save)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, sigma, blur_kernel, for_views, for_mask = inputs
    ctx.blur, ctx.wanted = (sigma, blur_kernel), (for_views, for_mask)
    ctx.save_for_backward(*tensors)


@outside_autocast
def _backward_gradients(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradients once more, in plain torch operations: it is rarely asked for."""

    def first(*tensors: Tensor) -> tuple[Tensor, ...]:
        *gradients, views, mask = tensors
        back = torch.func.vjp(lambda views, mask: _blend(views, mask, *ctx.blur), views, mask)[1]
        return tuple(
            found for found, wanted in zip(back(tuple(gradients)), ctx.wanted, strict=True) if wanted
        )

    back = torch.func.vjp(first, *ctx.saved_tensors)[1]
    return *back(tuple(s for s, wanted in zip(seconds, ctx.wanted, strict=True) if wanted)), *[None] * 4


blended_views_gradients.register_autograd(_backward_gradients, setup_context=_save_gradients)


def gaussian(sigma: float, blur_kernel: int, like: Tensor) -> Tensor:
    """Give the weights of the blur's window, [blur_kernel], which sum to 1."""
    far = blur_kernel // 2
    offsets = torch.arange(-far, far + 1, dtype=_wide(like), device=like.device)
    return torch.softmax(-0.5 * (offsets / sigma) ** 2, 0)


def _blend(views: Tensor, mask: Tensor, sigma: float, blur_kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, with the blur as one matrix product for each side."""
    wide = _wide(views)
    rows, columns = (_blur_matrix(side, sigma, blur_kernel, views) for side in views.shape[2:])
    wide_views, kept = views.to(wide), mask.to(wide)
    blurred = rows @ wide_views @ columns.T
    blended = blurred + kept[:, None] * (wide_views - blurred)
    tv = torch.zeros(len(mask), dtype=wide, device=mask.device)
    for axis in (1, 2):
        if mask.shape[axis] > 1:
            tv = tv + kept.diff(dim=axis).abs().mean((1, 2))
    return blended.to(views.dtype), tv, (1 - kept).mean((1, 2))


def _blur_matrix(side: int, sigma: float, blur_kernel: int, like: Tensor) -> Tensor:
    """Give the blur along a side as a matrix [side, side]: row i says what pixel i is made of."""
    weights = gaussian(sigma, blur_kernel, like)
    far = blur_kernel // 2
    pixel = torch.arange(side, device=like.device)[:, None]
    source = (pixel + torch.arange(-far, far + 1, device=like.device)).abs()
    source = side - 1 - (side - 1 - source).abs()
    matrix = weights.new_zeros(side, side)
    return matrix.scatter_add(1, source, weights.expand(side, -1))


def _wide(views: Tensor) -> torch.dtype:
    return torch.promote_types(views.dtype, torch.float32)
