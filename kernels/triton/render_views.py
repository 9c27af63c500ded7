"""From uint8 sources to normalised views in four passes, and back to boxes and strengths.

A view goes through float scratch [n, 3, S, S]:

1. resample: each program makes a tile of 32 x 32 pixels of one view straight from the source, by T x T taps,
   T = ceil(2 radius max(1, scale)) of that view's own box; then the jitter up to contrast, and the tile's
   part of the grey mean. A view with neither contrast nor blur is finished here.
2. contrast and what follows it, finishing views without blur.
3. blur along rows.
4. blur along columns, solarise, normalise, cast.

Counted at 256 sources of 256 x 256, 2 x 224 + 8 x 96 views, DINOv2's recipe, bf16: 133.7 M values. Pass 1
reads the sources (50 MB, then from the L2 cache) and writes 0.53 GB; pass 2 (4 of 5 views) reads 0.43 GB and
writes 0.32 GB; pass 3 (half of the views) reads and writes 0.27 GB each; pass 4 reads 0.27 GB and writes
0.13 GB. Together 2.2 GB: 0.6 ms at 4 TB/s. Pass 1 is bound by instructions. In sm_90's code a pair of taps
takes 153 instructions for eight pixels of three channels (19 each: three loads of a byte, address, weight,
multiply and add), and a row of taps another 330 for its weights. Boxes average 4.5 taps an axis (4 where a
view enlarges), so a pixel takes about 570, and 44.6 M pixels 0.8 G warp instructions: 0.9 ms on 132
processors at 1.7 GHz that issue four each cycle. Byte loads are 84 M of them, within that time.
None of this has been timed on a GPU.

The way back computes everything again from the sources and boxes: resampling once for the pixels and once
for the slopes of their weights, and seven passes over scratch between them.

Scratch is two buffers (four on the way back) of at most _SCRATCH values however large the batch is: views are
rendered in chunks of as many as fit, and at least one. So an offset inside a chunk passes 2**31 only for a
side above 26,000; offsets into the sources do at 11,000 images of 256 x 256 and are of 64 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import cdiv, on_device_of
from .photometrics import (
    blur_backward_kernel,
    blur_columns_kernel,
    blur_rows_kernel,
    columns_backward_kernel,
    finish_jitter_kernel,
    jitter,
    jitter_backward_kernel,
    jitter_kernel,
    load_pixels,
    luma,
    normalise_and_store,
    place_of_contrast,
    store_pixels,
)

_SCRATCH = 2**25  # values of a scratch buffer: 128 MiB in fp32
_TILE = 32  # side of a tile of a view
_BLOCK = 1024  # pixels of a program that works on single pixels


@triton.jit
def _filter(x, BICUBIC: tl.constexpr):
    """Triangle, or the cubic of Keys (1981) with a = -1/2, at distances x >= 0."""
    inner = tl.maximum(1.0 - x, 0.0)
    if BICUBIC:
        outer = tl.maximum(2.0 - x, 0.0)
        inner = (outer - 1.0) * outer * outer * 0.5 + (1.0 - 2.0 * inner) * inner * inner
    return inner


@triton.jit
def _sign(x):
    """-1, 0 or 1."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def _filter_slope(x, BICUBIC: tl.constexpr):
    """Derivative of _filter at x >= 0; at a kink the mean of both sides."""
    if BICUBIC:
        inner = tl.maximum(1.0 - x, 0.0)
        outer = tl.maximum(2.0 - x, 0.0)
        slope = outer - 1.5 * outer * outer - 2.0 * inner + 6.0 * inner * inner
    else:
        slope = (_sign(x - 1.0) - 1.0) * 0.5
    return slope


@triton.jit
def _axis(start, length, output, pixels, S, BICUBIC: tl.constexpr):
    """Where the taps of `output` pixels lie along an axis of a source of `pixels`.

    Coordinates count from the pixel that the box starts in: small numbers, small rounding. Returns the
    origin of that count, the start and the end of the box, the centres and the first taps [like output],
    the number of taps and the stretch of the filter. The number is limited by the longest box
    that the source has room for, should a box be none.
    """
    RADIUS: tl.constexpr = 2 if BICUBIC else 1
    # An S of 1 comes as a number, not as a tensor, so it is added to one.
    scale = tl.div_rn(length, length * 0.0 + S) if length.dtype == tl.float32 else length / S
    stretch = tl.maximum(scale, 1.0)
    origin = tl.floor(start)
    start -= origin
    centre = start + (output + 0.5).to(length.dtype) * scale
    first = tl.floor(centre - RADIUS * stretch + 0.5)
    taps = tl.ceil(2 * RADIUS * stretch).to(tl.int32)
    most = 2 * RADIUS * ((pixels + S) // S + 1)
    return origin, start, start + length, centre, first, tl.minimum(taps, most), stretch


@triton.jit
def _overlap(pixel, start, end):
    """How much of each pixel lies inside the box."""
    return tl.minimum(tl.maximum(tl.minimum(pixel + 1.0, end) - tl.maximum(pixel, start), 0.0), 1.0)


@triton.jit
def _weight(pixel, centre, start, end, inverse, BICUBIC: tl.constexpr):
    """Weight of a tap, not yet normalised; `inverse` is 1 / stretch."""
    return _filter(tl.abs(pixel + 0.5 - centre) * inverse, BICUBIC) * _overlap(pixel, start, end)


@triton.jit
def _weight_slopes(pixel, centre, start, end, stretch, output, S, BICUBIC: tl.constexpr):
    """Weight of a tap and its derivatives by the box's start and length; at kinks the mean of both sides."""
    inverse = 1.0 / stretch
    difference = pixel + 0.5 - centre
    distance = tl.abs(difference) * inverse
    value = _filter(distance, BICUBIC)
    slope = _filter_slope(distance, BICUBIC)
    widens = tl.where(end - start >= S, inverse / S, inverse * 0.0)  # d stretch / d length, over stretch
    by_start = -slope * _sign(difference) * inverse
    by_length = by_start * ((output + 0.5).to(distance.dtype) / S) - slope * distance * widens
    overlap = _overlap(pixel, start, end)
    # An end of the box moves the weight of the pixel it lies in, and of both by half where it lies between.
    by_begin = (_sign(start - pixel) - _sign(start - pixel - 1.0)) * 0.5
    by_end = (_sign(end - pixel) - _sign(end - pixel - 1.0)) * 0.5
    of_start = by_start * overlap + value * (by_end - by_begin)
    of_length = by_length * overlap + value * by_end
    return value * overlap, of_start, of_length


@triton.jit
def _source(
    pixels_ptr, offsets_ptr, heights_ptr, widths_ptr, b, H, W, batch_stride, channel_stride, row_stride,
    column_stride, PACKED: tl.constexpr,
):  # fmt: skip
    """Where image b lies: pointer, height, width and strides, all of 64 bits."""
    if PACKED:
        start = tl.load(offsets_ptr + b)
        height = tl.load(heights_ptr + b)
        width = tl.load(widths_ptr + b)
        channels = (width * 0) + 1
        columns = channels * 3
        rows = width * 3
    else:
        start = b * batch_stride
        height = b * 0 + H
        width = b * 0 + W
        channels = b * 0 + channel_stride
        rows = b * 0 + row_stride
        columns = b * 0 + column_stride
    return pixels_ptr + start, height, width, channels, rows, columns


@triton.jit
def _place(pixel, origin, pixels, stride):
    """Offset of pixels along an axis, held inside the source."""
    index = tl.minimum(tl.maximum((origin + pixel).to(tl.int32), 0), (pixels - 1).to(tl.int32))
    return index.to(tl.int64) * stride


@triton.jit
def _value(byte, wide: tl.constexpr):
    """1 + byte / 256, exact. In fp32 the byte is put among the bits: cheaper than converting it."""
    if wide == tl.float32:
        value = (byte.to(tl.int32) * 32768 + 0x3F800000).to(tl.float32, bitcast=True)
    else:
        value = byte.to(wide) * 0.00390625 + 1.0
    return value


@triton.jit
def resample_kernel(
    pixels_ptr,  # uint8: [B, 3, H, W] with strides, or packed
    offsets_ptr,  # [B] int64, packed alone
    heights_ptr,  # [B] int64, packed alone
    widths_ptr,  # [B] int64, packed alone
    boxes_ptr,  # [n, 4] wide: top, left, height, width
    flips_ptr,  # [n] bool
    brightness_ptr,  # [n] wide
    contrast_ptr,  # [n] wide
    saturation_ptr,  # [n] wide
    hue_ptr,  # [n] wide
    order_ptr,  # [n] int64
    grey_ptr,  # [n] bool
    sigma_ptr,  # [n] wide
    solarize_ptr,  # [n] wide
    mean_ptr,  # [3] wide
    std_ptr,  # [3] wide
    scratch_ptr,  # [n, 3, S, S] wide
    out_ptr,  # [n, 3, S, S] float; not written if RAW
    part_ptr,  # [n, tiles tiles] wide: sums of grey before contrast
    first_view,  # of this chunk: view i of it is of image (first_view + i) % B
    B,
    H,
    W,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    S,
    tiles,  # along an axis
    BICUBIC: tl.constexpr,
    PACKED: tl.constexpr,
    RAW: tl.constexpr,
    TILE: tl.constexpr,
):
    """A tile of a view: resample, then jitter up to contrast. RAW leaves the resampled pixels in scratch."""
    n = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    tile = tl.program_id(0) % (tiles * tiles)
    base, height, width, channels, rows, columns = _source(
        pixels_ptr, offsets_ptr, heights_ptr, widths_ptr, (first_view + n) % B, H, W,
        batch_stride, channel_stride, row_stride, column_stride, PACKED,
    )  # fmt: skip
    y = (tile // tiles) * TILE + tl.arange(0, TILE)
    seen = (tile % tiles) * TILE + tl.arange(0, TILE)  # columns as in the source
    # Also tells Triton of no contiguity: a warp then takes a row, and its columns' weights serve many rows.
    x = tl.where(tl.load(flips_ptr + n), S - 1 - seen, seen)
    box = boxes_ptr + n * 4
    top, left, tall, broad = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    wide: tl.constexpr = top.dtype

    origin_y, start_y, end_y, centre_y, first_y, taps_y, stretch_y = _axis(top, tall, y, height, S, BICUBIC)
    origin_x, start_x, end_x, centre_x, first_x, taps_x, stretch_x = _axis(
        left, broad, seen, width, S, BICUBIC
    )
    inverse_y, inverse_x = 1.0 / stretch_y, 1.0 / stretch_x
    sum_x = tl.zeros([TILE], wide)
    for tap in range(taps_x):
        sum_x += _weight(first_x + tap, centre_x, start_x, end_x, inverse_x, BICUBIC)
    sum_y = tl.zeros([TILE], wide)
    red = tl.zeros([TILE, TILE], wide)
    green = tl.zeros([TILE, TILE], wide)
    blue = tl.zeros([TILE, TILE], wide)
    for tap_y in range(taps_y):
        pixel = first_y + tap_y
        weight = _weight(pixel, centre_y, start_y, end_y, inverse_y, BICUBIC)
        sum_y += weight
        line = base + _place(pixel, origin_y, height, rows)[:, None]
        row_red = tl.zeros([TILE, TILE], wide)
        row_green = tl.zeros([TILE, TILE], wide)
        row_blue = tl.zeros([TILE, TILE], wide)
        for tap_x in range(taps_x):
            pixel = first_x + tap_x
            across = _weight(pixel, centre_x, start_x, end_x, inverse_x, BICUBIC)[None, :]
            place = line + _place(pixel, origin_x, width, columns)[None, :]
            row_red += across * _value(tl.load(place), wide)
            row_green += across * _value(tl.load(place + channels), wide)
            row_blue += across * _value(tl.load(place + 2 * channels), wide)
        red += weight[:, None] * row_red
        green += weight[:, None] * row_green
        blue += weight[:, None] * row_blue
    # Pixels beyond the view may have no weight.
    sum_y, sum_x = tl.where(y < S, sum_y, 1.0), tl.where(seen < S, sum_x, 1.0)
    inverse = (1.0 / sum_y)[:, None] * (1.0 / sum_x)[None, :]
    red = (red * inverse - 1.0) * (256 / 255)
    green = (green * inverse - 1.0) * (256 / 255)
    blue = (blue * inverse - 1.0) * (256 / 255)

    mask = (y < S)[:, None] & (seen < S)[None, :]
    plane = S * S
    place = n * 3 * plane + y[:, None] * S + x[None, :]
    if RAW:
        store_pixels(scratch_ptr + place, plane, red, green, blue, mask)
    contrast = tl.load(contrast_ptr + n)
    order = tl.load(order_ptr + n).to(tl.int32)
    whole = contrast == 1  # no contrast: nothing to wait for
    end = tl.where(whole, 4, place_of_contrast(order))
    red, green, blue = jitter(
        red, green, blue, 0, end, order,
        tl.load(brightness_ptr + n), contrast, tl.load(saturation_ptr + n), tl.load(hue_ptr + n), top * 0.0,
    )  # fmt: skip
    grey = luma(red, green, blue)
    part = tl.sum(tl.sum(tl.where(mask, grey, 0.0), 1), 0)
    tl.store(part_ptr + tl.program_id(0), part)
    if not RAW:
        if whole & tl.load(grey_ptr + n):
            red = grey
            green = grey
            blue = grey
        if whole & (tl.load(sigma_ptr + n) <= 0):
            threshold = tl.load(solarize_ptr + n)
            normalise_and_store(out_ptr + place, plane, red, green, blue, threshold, mean_ptr, std_ptr, mask)
        else:
            store_pixels(scratch_ptr + place, plane, red, green, blue, mask)


@triton.jit
def boxes_backward_kernel(
    gradient_ptr,  # [n, 3, S, S] wide: of the resampled pixels
    pixels_ptr,  # uint8: [B, 3, H, W] with strides, or packed
    offsets_ptr,  # [B] int64, packed alone
    heights_ptr,  # [B] int64, packed alone
    widths_ptr,  # [B] int64, packed alone
    boxes_ptr,  # [n, 4] wide
    flips_ptr,  # [n] bool
    part_ptr,  # [n, tiles tiles, 4] wide
    first_view,
    B,
    H,
    W,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    S,
    tiles,  # along an axis
    BICUBIC: tl.constexpr,
    PACKED: tl.constexpr,
    TILE: tl.constexpr,
):
    """A tile's part of the gradient of its box.

    With weights a of rows and c of columns, their sums A and C, and the source s weighed by the gradient of
    each channel: the pixel gives P / (A C), P = Σ a c s, and its derivative by a row parameter is
    (Σ a' c s - P Σ a' / A) / (A C); likewise along columns.
    """
    n = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    tile = tl.program_id(0) % (tiles * tiles)
    base, height, width, channels, rows, columns = _source(
        pixels_ptr, offsets_ptr, heights_ptr, widths_ptr, (first_view + n) % B, H, W,
        batch_stride, channel_stride, row_stride, column_stride, PACKED,
    )  # fmt: skip
    y = (tile // tiles) * TILE + tl.arange(0, TILE)
    seen = (tile % tiles) * TILE + tl.arange(0, TILE)  # columns as in the source
    # Also tells Triton of no contiguity: a warp then takes a row, and its columns' weights serve many rows.
    x = tl.where(tl.load(flips_ptr + n), S - 1 - seen, seen)
    box = boxes_ptr + n * 4
    top, left, tall, broad = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    wide: tl.constexpr = top.dtype
    mask = (y < S)[:, None] & (seen < S)[None, :]
    plane = S * S
    given = gradient_ptr + n * 3 * plane + y[:, None] * S + x[None, :]
    of_red, of_green, of_blue = load_pixels(given, plane, mask)

    origin_y, start_y, end_y, centre_y, first_y, taps_y, stretch_y = _axis(top, tall, y, height, S, BICUBIC)
    origin_x, start_x, end_x, centre_x, first_x, taps_x, stretch_x = _axis(
        left, broad, seen, width, S, BICUBIC
    )
    sum_y = tl.zeros([TILE], wide)
    sum_top = tl.zeros([TILE], wide)
    sum_tall = tl.zeros([TILE], wide)
    sum_x = tl.zeros([TILE], wide)
    sum_left = tl.zeros([TILE], wide)
    sum_broad = tl.zeros([TILE], wide)
    for tap in range(taps_x):
        weight, by_start, by_length = _weight_slopes(
            first_x + tap, centre_x, start_x, end_x, stretch_x, seen, S, BICUBIC
        )
        sum_x += weight
        sum_left += by_start
        sum_broad += by_length
    value = tl.zeros([TILE, TILE], wide)
    by_top = tl.zeros([TILE, TILE], wide)
    by_tall = tl.zeros([TILE, TILE], wide)
    by_left = tl.zeros([TILE, TILE], wide)
    by_broad = tl.zeros([TILE, TILE], wide)
    for tap_y in range(taps_y):
        pixel = first_y + tap_y
        weight, by_start, by_length = _weight_slopes(
            pixel, centre_y, start_y, end_y, stretch_y, y, S, BICUBIC
        )
        sum_y += weight
        sum_top += by_start
        sum_tall += by_length
        line = base + _place(pixel, origin_y, height, rows)[:, None]
        row = tl.zeros([TILE, TILE], wide)
        row_left = tl.zeros([TILE, TILE], wide)
        row_broad = tl.zeros([TILE, TILE], wide)
        for tap_x in range(taps_x):
            pixel = first_x + tap_x
            across, across_start, across_length = _weight_slopes(
                pixel, centre_x, start_x, end_x, stretch_x, seen, S, BICUBIC
            )
            place = line + _place(pixel, origin_x, width, columns)[None, :]
            mixed = of_red * tl.load(place).to(wide)
            mixed += of_green * tl.load(place + channels).to(wide)
            mixed += of_blue * tl.load(place + 2 * channels).to(wide)
            row += across[None, :] * mixed
            row_left += across_start[None, :] * mixed
            row_broad += across_length[None, :] * mixed
        value += weight[:, None] * row
        by_top += by_start[:, None] * row
        by_tall += by_length[:, None] * row
        by_left += weight[:, None] * row_left
        by_broad += weight[:, None] * row_broad
    # Pixels beyond the view may have no weight.
    inverse_y, inverse_x = 1.0 / tl.where(y < S, sum_y, 1.0), 1.0 / tl.where(seen < S, sum_x, 1.0)
    inverse = tl.where(mask, inverse_y[:, None] * inverse_x[None, :], 0.0) * (1 / 255)
    by_top -= value * (sum_top * inverse_y)[:, None]
    by_tall -= value * (sum_tall * inverse_y)[:, None]
    by_left -= value * (sum_left * inverse_x)[None, :]
    by_broad -= value * (sum_broad * inverse_x)[None, :]
    part = part_ptr + tl.program_id(0).to(tl.int64) * 4
    tl.store(part, tl.sum(tl.sum(tl.where(mask, by_top * inverse, 0.0), 1), 0))
    tl.store(part + 1, tl.sum(tl.sum(tl.where(mask, by_left * inverse, 0.0), 1), 0))
    tl.store(part + 2, tl.sum(tl.sum(tl.where(mask, by_tall * inverse, 0.0), 1), 0))
    tl.store(part + 3, tl.sum(tl.sum(tl.where(mask, by_broad * inverse, 0.0), 1), 0))


def forward(
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
    """See `vpt_kernels.render_views.rendered_views`."""
    views, batch = boxes.shape[:2]
    count, plane = views * batch, size * size
    out = boxes.new_empty((views, batch, 3, size, size), dtype=dtype)
    if count == 0:
        return out
    source, layout = _layout(pixels, offsets, heights, widths, batch, size, interpolation)
    # Contiguous copies where they are not yet: a few bytes a view.
    boxes, flips = boxes.reshape(count, 4).contiguous(), flips.reshape(count).contiguous()
    given = (brightness, contrast, saturation, hue, order, grey, sigma, solarize)
    fields = tuple(field.reshape(count).contiguous() for field in given)
    mean, std = (value.to(boxes.dtype).contiguous() for value in (mean, std))
    flat = out.view(count, 3, size, size)
    step = max(1, _SCRATCH // (3 * plane))
    room = min(step, count)
    scratch, blurred = (boxes.new_empty((room, 3, size, size)) for _ in range(2))
    tiles, blocks = layout["tiles"] ** 2, cdiv(plane, _BLOCK)
    with on_device_of(pixels):
        for first in range(0, count, step):
            part = slice(first, first + step)
            rendered = flat[part]
            n = len(rendered)
            chosen = tuple(field[part] for field in fields)
            sigmas, thresholds = chosen[6], chosen[7]
            sums = boxes.new_empty((n, tiles))
            resample_kernel[(n * tiles,)](
                *source, boxes[part], flips[part], *chosen, mean, std, scratch, rendered, sums,
                first, **layout, RAW=False, TILE=_TILE, num_warps=4,
            )  # fmt: skip
            grid = (n * blocks,)
            finish_jitter_kernel[grid](
                scratch, rendered, sums.sum(1).div_(plane), *chosen, mean, std, plane, blocks,
                BLOCK=_BLOCK, num_warps=4,
            )  # fmt: skip
            blur_rows_kernel[grid](
                scratch, blurred, sigmas, size, plane, blocks, KERNEL=blur_kernel, BLOCK=_BLOCK, num_warps=4
            )
            blur_columns_kernel[grid](
                blurred, rendered, sigmas, thresholds, mean, std, size, plane, blocks,
                KERNEL=blur_kernel, BLOCK=_BLOCK, num_warps=4,
            )  # fmt: skip
    return out


def backward(
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
    """See `vpt_kernels.render_views.rendered_views_backward`."""
    views, batch = boxes.shape[:2]
    count, plane = views * batch, size * size
    of_boxes = boxes.new_empty((views, batch, 4))
    of_brightness, of_contrast, of_saturation, of_hue, of_sigma = (
        boxes.new_empty((views, batch)) for _ in range(5)
    )
    result = (of_boxes, of_brightness, of_contrast, of_saturation, of_hue, of_sigma)
    if count == 0:
        return result
    source, layout = _layout(pixels, offsets, heights, widths, batch, size, interpolation)
    boxes, flips = boxes.reshape(count, 4).contiguous(), flips.reshape(count).contiguous()
    given = (brightness, contrast, saturation, hue, order, grey, sigma, solarize)
    fields = tuple(field.reshape(count).contiguous() for field in given)
    std = std.to(boxes.dtype).contiguous()
    gradient = gradient.reshape(count, 3, size, size).contiguous()
    step = max(1, _SCRATCH // (3 * plane))
    room = min(step, count)
    raw, jittered, blurred, back = (boxes.new_empty((room, 3, size, size)) for _ in range(4))
    tiles, blocks = layout["tiles"] ** 2, cdiv(plane, _BLOCK)
    with on_device_of(pixels):
        for first in range(0, count, step):
            part = slice(first, first + step)
            chosen = tuple(field[part] for field in fields)
            jitters, greys, sigmas, thresholds = chosen[:5], chosen[5], chosen[6], chosen[7]
            n = len(sigmas)
            sums = boxes.new_empty((n, tiles))
            resample_kernel[(n * tiles,)](
                *source, boxes[part], flips[part], *chosen, std, std, raw, raw, sums,
                first, **layout, RAW=True, TILE=_TILE, num_warps=4,
            )  # fmt: skip
            grid, grey_mean = (n * blocks,), sums.sum(1).div_(plane)
            jitter_kernel[grid](raw, jittered, grey_mean, *chosen, plane, blocks, BLOCK=_BLOCK, num_warps=4)
            blur_rows_kernel[grid](
                jittered, blurred, sigmas, size, plane, blocks, KERNEL=blur_kernel, BLOCK=_BLOCK, num_warps=4
            )
            through_columns, through_rows = (boxes.new_empty((n, blocks)) for _ in range(2))
            columns_backward_kernel[grid](
                gradient[part], jittered, blurred, back, through_columns, sigmas, thresholds, std,
                size, plane, blocks, KERNEL=blur_kernel, BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
            # `blurred` is free now: it takes the gradient between the two axes.
            for columns, of_output, of_input in ((True, back, blurred), (False, blurred, back)):
                blur_backward_kernel[grid](
                    of_output, of_input, sigmas, jittered, through_rows, size, plane, blocks,
                    COLUMNS=columns, KERNEL=blur_kernel, BLOCK=_BLOCK, num_warps=8,
                )  # fmt: skip
            after, before = (boxes.new_empty((n, blocks, 5)) for _ in range(2))
            jitter_backward_kernel[grid](
                raw, back, after, grey_mean, grey_mean, *jitters, greys, plane, blocks,
                AFTER=True, BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
            summed = after.sum(1)
            jitter_backward_kernel[grid](
                raw, back, before, grey_mean, summed[:, 4].contiguous(), *jitters, greys, plane, blocks,
                AFTER=False, BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
            summed += before.sum(1)
            parts = boxes.new_empty((n, tiles, 4))
            boxes_backward_kernel[(n * tiles,)](
                back, *source, boxes[part], flips[part], parts, first, **layout, TILE=_TILE, num_warps=8
            )
            torch.sum(parts, 1, out=of_boxes.view(count, 4)[part])
            for index, of_field in enumerate((of_brightness, of_contrast, of_saturation, of_hue)):
                of_field.view(count)[part].copy_(summed[:, index])
            of_sigma.view(count)[part].copy_(through_columns.sum(1) + through_rows.sum(1))
    return result


def _layout(
    pixels: Tensor,
    offsets: Tensor | None,
    heights: Tensor | None,
    widths: Tensor | None,
    batch: int,
    size: int,
    interpolation: str,
) -> tuple[tuple[Tensor | None, ...], dict[str, int | bool]]:
    """Give the arguments of a kernel that say where the sources lie and how views are cut up."""
    packed = offsets is not None
    height, width, strides = (0, 0, (0, 0, 0, 0)) if packed else (*pixels.shape[2:], pixels.stride())
    layout = {
        "B": batch,
        "H": height,
        "W": width,
        "batch_stride": strides[0],
        "channel_stride": strides[1],
        "row_stride": strides[2],
        "column_stride": strides[3],
        "S": size,
        "tiles": cdiv(size, _TILE),
        "BICUBIC": interpolation == "bicubic",
        "PACKED": packed,
    }
    tensors = (offsets, heights, widths)
    return (pixels, *(None if t is None else t.contiguous() for t in tensors)), layout
