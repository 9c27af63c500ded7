"""From uint8 source images to normalised views: crop, resize, flip, change colours, blur, normalise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import BOOLEAN, FLOATS, INTEGER, expect
from .packed_images import PackedImages
from .photometrics import Photometrics, apply_photometrics, photometrics_gradients

_RADIUS = {"bilinear": 1, "bicubic": 2}  # of the resampling filter, pixels
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of the views
_CHUNK = 2**20  # elements of the views rendered at once, so that memory does not grow with the batch
_CACHED = 2**18  # elements between the two passes of a resize, so that they stay in a processor's cache
_BLOCK = 32  # columns of the source; a resize reads only the blocks that a box touches
_SLACK = 0.01  # pixels by which rounding may carry a box over the border


def render_views(
    images: Tensor | PackedImages,
    boxes: Tensor,
    flips: Tensor,
    photometrics: Photometrics,
    *,
    size: int,
    mean: Tensor,
    std: Tensor,
    interpolation: str = "bicubic",
    blur_kernel: int = 9,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Render V square views of each of B images, each view by a box, a flip and photometrics of its own.

    As DINO's transforms in their order (Caron et al. 2021, arXiv 2104.14294): crop and antialiased resize,
    flip left to right, brightness, contrast, saturation and hue in the order that the view asks for,
    grey, Gaussian blur, solarise, normalise. Each step is torchvision's functional one on float
    images: resized_crop with antialias=True for integer boxes (which like torchvision leaves bicubic's
    overshoot beyond [0, 1]), adjust_brightness and so on, which clamp. A box of real numbers weighs the
    pixels at its border by the part of them inside it. Always computed in the dtype of `boxes`, under
    autocast too.

    Differentiable in boxes, brightness, contrast, saturation, hue and sigma, once. Strengths that say "none"
    are skipped and get no gradient. The backward pass keeps nothing of the forward pass but its inputs.

    Args:
        images: uint8 [B, 3, H, W], or `PackedImages` of different sizes.
        boxes: fp32 [V, B, 4], top, left, height, width in source pixels, real-valued, of positive size and
            inside the image; fp64 computes in fp64. V may be 0.
        flips: bool [V, B]: mirrored left to right.
        photometrics: fields [V, B], their strengths in the dtype of boxes.
        size: S, side of the views in pixels.
        mean: float [3] of the normalisation, for pixels in [0, 1].
        std: float [3] of the normalisation.
        interpolation: "bilinear" or "bicubic".
        blur_kernel: taps of the blur, odd and below 2 S.
        dtype: of the result: float32, float16, bfloat16 or float64.

    Returns:
        dtype [V, B, 3, S, S].

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device or is out of its range
            (boxes, orders and sizes of packed images are looked at on the CPU alone).
    """
    _check(images, boxes, flips, photometrics, size, mean, std, interpolation, blur_kernel, dtype)
    source = images.tensors if isinstance(images, PackedImages) else (images, None, None, None)
    return rendered_views(
        *source, boxes, flips, *photometrics, mean, std, size, interpolation, blur_kernel, dtype
    )


def _check(
    images: Tensor | PackedImages,
    boxes: Tensor,
    flips: Tensor,
    photometrics: Photometrics,
    size: int,
    mean: Tensor,
    std: Tensor,
    interpolation: str,
    blur_kernel: int,
    dtype: torch.dtype,
) -> None:
    name = "render_views"
    if isinstance(images, PackedImages):
        device = images.pixels.device
        expect(name, "images.pixels", images.pixels, (torch.uint8,), ("total",))
        expect(name, "images.offsets", images.offsets, INTEGER, ("B",), device)
        batch = len(images.offsets)
        expect(name, "images.heights", images.heights, INTEGER, (batch,), device)
        expect(name, "images.widths", images.widths, INTEGER, (batch,), device)
    else:
        expect(name, "images", images, (torch.uint8,), ("B", 3, "H", "W"))
        batch, device = len(images), images.device
    expect(name, "boxes", boxes, FLOATS, ("V", batch, 4), device)
    shape = (len(boxes), batch)
    expect(name, "flips", flips, BOOLEAN, shape, device)
    others = {"order": INTEGER, "grey": BOOLEAN}
    for field, value in photometrics._asdict().items():
        expect(name, f"photometrics.{field}", value, others.get(field, (boxes.dtype,)), shape, device)
    expect(name, "mean", mean, FLOATS, (3,), device)
    expect(name, "std", std, FLOATS, (3,), device)
    if interpolation not in _RADIUS:
        raise ValueError(f"{name}: interpolation must be one of {', '.join(_RADIUS)}, got {interpolation!r}.")
    if size < 1:
        raise ValueError(f"{name}: size must be at least 1, got {size}.")
    if blur_kernel < 1 or blur_kernel % 2 == 0 or blur_kernel >= 2 * size:
        raise ValueError(
            f"{name}: blur_kernel must be odd and below twice the size {size}, got {blur_kernel}."
        )
    if dtype not in _DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in _DTYPES)
        raise TypeError(f"{name}: dtype must be one of {names}, got {dtype}.")
    if device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere looking waits for the device
        _check_values(images, boxes, photometrics.order)


def _check_values(images: Tensor | PackedImages, boxes: Tensor, order: Tensor) -> None:
    name = "render_views"
    boxes = boxes.detach()
    if isinstance(images, PackedImages):
        pixels, offsets, heights, widths = images.tensors
        fits = (heights > 0) & (widths > 0) & (offsets >= 0)
        fits &= offsets + 3 * heights * widths <= len(pixels)
        if not fits.all():
            at = int((~fits).nonzero()[0])
            raise ValueError(
                f"{name}: packed images must lie inside their {len(pixels)} pixel values, got image {at} "
                f"of {int(heights[at])} x {int(widths[at])} at offset {int(offsets[at])}."
            )
        limit = torch.stack((heights, widths), -1).to(boxes.dtype)  # [B, 2]
    else:
        limit = boxes.new_tensor(images.shape[2:])
    start, length = boxes[..., :2], boxes[..., 2:]
    end = start + length
    inside = (start >= -_SLACK) & (end <= limit + _SLACK)
    inside &= end.minimum(limit) > start.clamp(min=0)  # not so where rounding swallows a length
    if not inside.all():
        first = (~inside.all(-1)).nonzero()[0]
        box = [round(number, 3) for number in boxes[tuple(first)].tolist()]
        height, width = (int(side) for side in limit.expand(*boxes.shape[:2], 2)[tuple(first)])
        raise ValueError(
            f"{name}: boxes must have positive size, also once rounded, and lie inside the {height} x "
            f"{width} image, got top, left, height, width {box}."
        )
    if ((order < 0) | (order > 23)).any():
        raise ValueError(
            f"{name}: photometrics.order must lie in 0..23, got {int(order.min())}..{int(order.max())}."
        )


@torch.library.custom_op("vpt::render_views", mutates_args=())
def rendered_views(
    pixels: Tensor,
    offsets: Tensor | None,
    heights: Tensor | None,
    widths: Tensor | None,
    boxes: Tensor,
    flips: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
    grey: Tensor,
    sigma: Tensor,
    solarize: Tensor,
    mean: Tensor,
    std: Tensor,
    size: int,
    interpolation: str,
    blur_kernel: int,
    dtype: torch.dtype,
) -> Tensor:
    """Give the views [V, B, 3, S, S]; without offsets, heights and widths `pixels` is [B, 3, H, W]."""
    photometrics = Photometrics(brightness, contrast, saturation, hue, order, grey, sigma, solarize)
    images = (pixels, offsets, heights, widths)
    return _render(images, boxes, flips, photometrics, mean, std, size, interpolation, blur_kernel, dtype)


@rendered_views.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from .triton import render_views as device

    return device.forward(*arguments)


@rendered_views.register_fake
def _(pixels: Tensor, offsets: Any, heights: Any, widths: Any, boxes: Tensor, *others: Any) -> Tensor:
    *_, size, _, _, dtype = others
    views, batch = boxes.shape[:2]
    return boxes.new_empty((views, batch, 3, size, size), dtype=dtype)


@torch.library.custom_op("vpt::render_views_backward", mutates_args=())
def rendered_views_backward(
    gradient: Tensor,
    pixels: Tensor,
    offsets: Tensor | None,
    heights: Tensor | None,
    widths: Tensor | None,
    boxes: Tensor,
    flips: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
    grey: Tensor,
    sigma: Tensor,
    solarize: Tensor,
    std: Tensor,
    size: int,
    interpolation: str,
    blur_kernel: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the gradients of boxes [V, B, 4] and of brightness, contrast, saturation, hue, sigma [V, B]."""
    views, batch = boxes.shape[:2]
    std = std.to(boxes.dtype).view(3, 1, 1)
    photometrics = Photometrics(brightness, contrast, saturation, hue, order, grey, sigma, solarize)
    of_boxes = boxes.new_zeros(boxes.shape)
    one, two, three, four, five = (boxes.new_zeros(views, batch) for _ in range(5))
    result = (of_boxes, one, two, three, four, five)
    if views == 0 or batch == 0:
        return result
    with torch.autocast(pixels.device.type, enabled=False):
        for part, group in _groups(pixels, offsets, heights, widths, views, batch, size):
            chosen, mirrored = boxes[:, part], flips[:, part]
            strengths = Photometrics(*(field[:, part].flatten() for field in photometrics))
            of_views = (gradient[:, part].to(boxes.dtype) / std).flatten(0, 1)
            resized = _resize(group, chosen, mirrored, size, interpolation)
            of_resized, *found = photometrics_gradients(resized, of_views, strengths, blur_kernel)
            for of_field, of_part in zip(result[1:], found, strict=True):
                of_field[:, part] = of_part.view(views, -1)
            of_boxes[:, part] = _resize_gradient(
                group, chosen, mirrored, size, interpolation, of_resized
            ).view(views, -1, 4)
    return result


@rendered_views_backward.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from .triton import render_views as device

    return device.backward(*arguments)


@rendered_views_backward.register_fake
def _(
    gradient: Tensor, pixels: Tensor, offsets: Any, heights: Any, widths: Any, boxes: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    one, two, three, four, five = (boxes.new_empty(boxes.shape[:2]) for _ in range(5))
    return boxes.new_empty(boxes.shape), one, two, three, four, five


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, std, size, interpolation, blur_kernel, _ = inputs
    ctx.save_for_backward(*tensors, std)
    ctx.settings = (size, interpolation, blur_kernel)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found = rendered_views_backward(gradient, *ctx.saved_tensors, *ctx.settings)
    of_boxes, of_brightness, of_contrast, of_saturation, of_hue, of_sigma = found
    of_jitter = (of_brightness, of_contrast, of_saturation, of_hue)
    return *[None] * 4, of_boxes, None, *of_jitter, None, None, of_sigma, *[None] * 7


rendered_views.register_autograd(_backward, setup_context=_save)


def _render(
    images: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    boxes: Tensor,
    flips: Tensor,
    photometrics: Photometrics,
    mean: Tensor,
    std: Tensor,
    size: int,
    interpolation: str,
    blur_kernel: int,
    dtype: torch.dtype,
) -> Tensor:
    """Render in plain torch operations: the reference, and what runs on the CPU."""
    views, batch = boxes.shape[:2]
    if views == 0 or batch == 0:
        return boxes.new_zeros((views, batch, 3, size, size), dtype=dtype)
    mean, std = (value.to(boxes.dtype).view(3, 1, 1) for value in (mean, std))
    result = boxes.new_empty((views, batch, 3, size, size), dtype=dtype)
    with torch.autocast(images[0].device.type, enabled=False):
        for part, group in _groups(*images, views, batch, size):
            rendered = _resize(group, boxes[:, part], flips[:, part], size, interpolation)
            strengths = Photometrics(*(field[:, part].flatten() for field in photometrics))
            rendered = apply_photometrics(rendered, strengths, blur_kernel)
            result[:, part] = rendered.sub_(mean).div_(std).view(views, -1, 3, size, size)
    return result


def _groups(
    pixels: Tensor,
    offsets: Tensor | None,
    heights: Tensor | None,
    widths: Tensor | None,
    views: int,
    batch: int,
    size: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Give which images to render at once, and their pixels [b, 3, H, W].

    Packed images are taken together as far as those of one size follow one another: groups cost calls.
    """
    step = max(1, _CHUNK // (views * 3 * size**2))
    if offsets is None or heights is None or widths is None:
        for start in range(0, batch, step):
            yield slice(start, start + step), pixels[start : start + step]
        return
    sizes = list(zip(heights.tolist(), widths.tolist(), strict=True))
    starts = offsets.tolist()
    start = 0
    while start < batch:
        height, width = sizes[start]
        end = start + 1
        while end < min(batch, start + step) and sizes[end] == (height, width):
            end += 1
        images = _side_by_side(pixels, starts[start:end], 3 * height * width)
        yield slice(start, end), images.view(end - start, height, width, 3).permute(0, 3, 1, 2)
        start = end


def _side_by_side(pixels: Tensor, offsets: list[int], length: int) -> Tensor:
    """Give images of `length` bytes each, [b, length]: as they lie where they lie end to end, else a copy."""
    first = offsets[0]
    if offsets == list(range(first, first + len(offsets) * length, length)):
        return pixels[first : first + len(offsets) * length].view(len(offsets), length)
    return torch.stack([pixels[offset : offset + length] for offset in offsets])


def _resize(images: Tensor, boxes: Tensor, flips: Tensor, size: int, interpolation: str) -> Tensor:
    """Crop, resize and flip uint8 `images` [B, 3, H, W] to [V B, 3, S, S] in [0, 1], dtype as `boxes`."""
    (row, height), (column, width) = _axes(images, boxes, flips, size)
    views, batch = boxes.shape[:2]
    rows, down = _taps(*row, size, height, interpolation)  # [n, S, T] each
    columns, across = _taps(*column, size, width, interpolation)
    step = max(1, _CACHED // (views * size * 3 * width))
    result = boxes.new_empty(views, batch, 3, size, size)
    for start in range(0, batch, step):
        part = slice(start, start + step)
        first, second, third, fourth = (
            each.view(views, batch, size, -1)[:, part].flatten(0, 1) for each in (rows, down, columns, across)
        )
        *blocks, third = _blocks(third)
        vertical = _weigh_rows(images[part], first, second, *blocks)
        result[:, part] = _weigh_columns(vertical, third, fourth).view(views, -1, 3, size, size)
    return result.flatten(0, 1)


def _resize_gradient(
    images: Tensor, boxes: Tensor, flips: Tensor, size: int, interpolation: str, gradient: Tensor
) -> Tensor:
    """Give the gradient of boxes [V B, 4] from that of what `_resize` makes [V B, 3, S, S].

    Linear in the weights of either axis: with their slopes in place of the weights it gives the slopes of the
    pixels.
    """
    (row, height), (column, width) = _axes(images, boxes, flips, size)
    rows, weights, by_top, by_tall = _taps_and_slopes(*row, size, height, interpolation)
    columns, across, by_left, by_wide = _taps_and_slopes(*column, size, width, interpolation)
    *blocks, columns = _blocks(columns)
    vertical = _weigh_rows(images, rows, weights, *blocks)
    slopes = [
        _weigh_columns(_weigh_rows(images, rows, by_top, *blocks), columns, across),
        _weigh_columns(vertical, columns, by_left),
        _weigh_columns(_weigh_rows(images, rows, by_tall, *blocks), columns, across),
        _weigh_columns(vertical, columns, by_wide),
    ]
    return torch.stack([(gradient * slope).sum((1, 2, 3)) for slope in slopes], -1)


_Axis = tuple[
    Tensor, Tensor, Tensor
]  # start and length of boxes [n, 1, 1], numbers of the output pixels [.., S, 1]


def _axes(
    images: Tensor, boxes: Tensor, flips: Tensor, size: int
) -> tuple[tuple[_Axis, int], tuple[_Axis, int]]:
    """Give rows' and columns' axis, and how many pixels the source has along each."""
    top, left, tall, wide = boxes.flatten(0, 1)[:, :, None, None].unbind(1)  # [n, 1, 1], n = V B
    output = torch.arange(size, dtype=boxes.dtype, device=images.device)[:, None]
    mirrored = torch.where(flips.flatten()[:, None, None], size - 1 - output, output)  # [n, S, 1]
    height, width = images.shape[2:]
    return ((top, tall, output), height), ((left, wide, mirrored), width)


def _blocks(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the blocks of the source that hold the `columns` [n, S, T] of n views, P in all.

    Returns the view that each block is for and its number in the image, int32 [P], and where `columns`
    lie once these blocks stand side by side.
    """
    ends = columns[:, 0], columns[:, -1]  # [n, T]; columns ascend with T, and ascend or descend with S
    first = torch.minimum(*(each[:, 0] for each in ends)) // _BLOCK
    count = torch.maximum(*(each[:, -1] for each in ends)) // _BLOCK - first + 1
    moved = count.cumsum(0, dtype=count.dtype) - count - first  # from a block's number to its place
    view = torch.repeat_interleave(count)
    place = torch.arange(len(view), dtype=view.dtype, device=view.device)
    return view, place - moved.index_select(0, view), columns + moved[:, None, None] * _BLOCK


def _weigh_rows(images: Tensor, rows: Tensor, weights: Tensor, view: Tensor, block: Tensor) -> Tensor:
    """Make every row of every view of a few source rows [n, S, T]: an embedding bag does exactly this.

    Only in the blocks that `_blocks` chose. Returns [P _BLOCK, 3 S], columns first, in [0, 1].
    """
    batch, _, height, width = images.shape
    number = math.ceil(width / _BLOCK)
    if width % _BLOCK:  # never read, but a block must be whole
        images = F.pad(images, (0, number * _BLOCK - width))
    # Channels stay inside or outside of the columns, as they lie: reading in another order is slow.
    planes = 1 if images.stride(1) == 1 else 3
    source = images.permute(0, 2, 3, 1) if planes == 1 else images
    plane = view[:, None] % batch * planes + torch.arange(planes, dtype=view.dtype, device=view.device)
    start = plane * (height * number) + block[:, None]  # [P, planes]
    index = (rows * number).index_select(0, view)[:, None] + start[:, :, None, None]
    bags = F.embedding_bag(
        index.flatten(0, 2),
        source.to(weights.dtype).reshape(-1, 3 // planes * _BLOCK),
        per_sample_weights=(weights / 255).index_select(0, view).repeat_interleave(planes, 0).flatten(0, 1),
        mode="sum",
    )  # [P planes S, 32 or 32 3]
    bags = bags.view(len(view), planes, rows.shape[1], _BLOCK, 3 // planes)
    return bags.permute(0, 3, 1, 4, 2).reshape(len(view) * _BLOCK, -1)


def _weigh_columns(vertical: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Make every column of every view of a few columns [n, S, T] of `vertical`: [n, 3, S, S]."""
    count, size, _ = columns.shape
    bags = F.embedding_bag(
        columns.flatten(0, 1), vertical, per_sample_weights=weights.flatten(0, 1), mode="sum"
    )  # [n S, 3 S]: column, channel, row
    return bags.view(count, size, 3, size).permute(0, 2, 3, 1)


def _taps(
    start: Tensor, length: Tensor, output: Tensor, size: int, pixels: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Give which source pixels, and with which weights, make up output pixels along one axis.

    Pixel `output` of `size` is centred on start + (output + 1/2) length / size. The filter is widened by the
    scale where the view is smaller than its box (antialiasing) and cut off at the box, in proportion
    where the box ends inside a pixel, so that the weights are continuous in the box.

    Takes start and length [n, 1, 1] in pixels of an axis of `pixels`, output [S, 1] or [n, S, 1]. Returns
    index int32 and weight, both [n, S, T]; the weights of an output pixel sum to 1.
    """
    origin, pixel, start, centre, stretch = _positions(start, length, output, size, pixels, interpolation)
    inside = (torch.minimum(pixel + 1, start + length) - torch.maximum(pixel, start)).clamp(0, 1)
    weights = _filter((pixel + 0.5 - centre).abs() / stretch, interpolation) * inside
    # Pixels outside of the box weigh nothing and are not worth reading.
    pixel = torch.minimum(pixel.clamp(min=0), (start + length).ceil() - 1)
    return (origin + pixel).int().clamp_(0, pixels - 1), weights / weights.sum(-1, keepdim=True)


def _taps_and_slopes(
    start: Tensor, length: Tensor, output: Tensor, size: int, pixels: int, interpolation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give what `_taps` gives, and the derivatives by start and length; at kinks the mean of both sides."""
    origin, pixel, start, centre, stretch = _positions(start, length, output, size, pixels, interpolation)
    difference = pixel + 0.5 - centre
    distance = difference.abs() / stretch
    value, slope = _filter(distance, interpolation), _filter_slope(distance, interpolation)
    by_start = -slope * difference.sign() / stretch
    by_length = by_start * (output + 0.5) / size
    by_length = by_length - slope * distance / stretch * (length / size >= 1).to(slope.dtype) / size
    end = start + length
    inside = (torch.minimum(pixel + 1, end) - torch.maximum(pixel, start)).clamp(0, 1)
    # An end of the box moves the weight of the pixel it lies in, and of both by half where it lies between.
    by_begin, by_end = (value * ((at - pixel).sign() - (at - pixel - 1).sign()) / 2 for at in (start, end))
    weights = value * inside
    by_start = by_start * inside + by_end - by_begin
    by_length = by_length * inside + by_end
    total = weights.sum(-1, keepdim=True)
    weights = weights / total
    by_start, by_length = (
        (each - weights * each.sum(-1, keepdim=True)) / total for each in (by_start, by_length)
    )
    return (origin + pixel).int().clamp_(0, pixels - 1), weights, by_start, by_length


def _positions(
    start: Tensor, length: Tensor, output: Tensor, size: int, pixels: int, interpolation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the origin of coordinates and, from there, pixels [n, S, T], start, centres and stretch."""
    radius = _RADIUS[interpolation]
    longest = float(length.detach().max()) if length.device.type == "cpu" else pixels  # no waiting elsewhere
    taps = math.ceil(2 * radius * max(1, min(longest, pixels) / size))  # enough for the longest box
    scale = length / size
    stretch = scale.clamp(min=1)
    # Coordinates count from the pixel that the box starts in: small numbers, small rounding.
    origin = start.detach().floor()
    start = start - origin
    centre = start + (output + 0.5) * scale  # [n, S, 1]
    first = (centre.detach() - radius * stretch.detach() + 0.5).floor()
    pixel = first + torch.arange(taps, dtype=start.dtype, device=start.device)
    return origin, pixel, start, centre, stretch


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """Triangle, or the cubic of Keys (1981) with a = -1/2, at distances x >= 0."""
    inner = (1 - x).clamp(min=0)
    if interpolation == "bilinear":
        return inner
    outer = (2 - x).clamp(min=0)
    return (outer - 1) * outer**2 / 2 + (1 - 2 * inner) * inner**2


def _filter_slope(x: Tensor, interpolation: str) -> Tensor:
    """Derivative of `_filter`; at a kink the mean of both sides."""
    if interpolation == "bilinear":
        return ((x - 1).sign() - 1) / 2
    inner, outer = (1 - x).clamp(min=0), (2 - x).clamp(min=0)
    return outer - 1.5 * outer**2 - 2 * inner + 6 * inner**2
