"""Photometrics in Triton: colour jitter in any order, grey, blur and solarise, and the way back.

Pixels are three planes (red, green, blue), nominally in [0, 1]. Only contrast and blur look beyond the
pixel: contrast needs the mean grey of its view, so the jitter is cut in two at it; blur is a pass along rows
and one along columns. Each program belongs to one view and branches on that view's strengths, the same for
all its threads, so a view pays for its own operations alone.

The backward kernels keep nothing from the forward pass: pixels are computed again up to each operation. Sums
over a view are partial sums of fixed blocks, added up by one later operation: the same result every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

_RED = tl.constexpr(0.2989)  # ITU-R 601-2 luma, as PIL and torchvision round it
_GREEN = tl.constexpr(0.587)
_BLUE = tl.constexpr(0.114)
_TINY = tl.constexpr(1e-12)  # keeps grey pixels, which have no hue, from dividing by 0


@triton.jit
def luma(red, green, blue):
    """Grey of pixels."""
    return _RED * red + _GREEN * green + _BLUE * blue


@triton.jit
def operation_at(order, k):
    """Which of brightness 0, contrast 1, saturation 2 and hue 3 stands at place k of permutation `order`."""
    first = order // 6
    second = (order % 6) // 2
    second += (second >= first).to(tl.int32)
    low = ((first == 0) | (second == 0)).to(tl.int32)  # the smallest number that is left
    low += ((low == 1) & ((first == 1) | (second == 1))).to(tl.int32)
    high = 6 - first - second - low
    third = tl.where(order % 2 == 0, low, high)
    last = 6 - first - second - third
    return tl.where(k == 0, first, tl.where(k == 1, second, tl.where(k == 2, third, last)))


@triton.jit
def place_of_contrast(order):
    """At which place of permutation `order` contrast stands."""
    place = (operation_at(order, 1) == 1).to(tl.int32)
    place += 2 * (operation_at(order, 2) == 1).to(tl.int32)
    return place + 3 * (operation_at(order, 3) == 1).to(tl.int32)


@triton.jit
def clamped(x):
    """Clamp to [0, 1]."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def within(x):
    """1 where clamping to [0, 1] lets a gradient through: both ends belong to it."""
    return ((x >= 0.0) & (x <= 1.0)).to(x.dtype)


@triton.jit
def hue_of(red, green, blue):
    """Give hue in sextants [0, 6), chroma, lowest channel, and the three channels' depths under the highest.

    Smith (1978), the HSV hexcone.
    """
    high = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    inverse = 1.0 / tl.maximum(chroma, _TINY)
    of_red, of_green, of_blue = (high - red) * inverse, (high - green) * inverse, (high - blue) * inverse
    others = tl.where(of_green > 0, 4.0 + of_green - of_red, 2.0 + of_red - of_blue)
    hue = tl.where(of_red > 0, others, of_blue - of_green)
    return hue, chroma, low, of_red, of_green, of_blue


@triton.jit
def shift_hue(red, green, blue, turns):
    """Turn the hue. As in torchvision every channel but the highest is clamped."""
    hue, chroma, low, _, _, _ = hue_of(red, green, blue)
    hue += 6.0 * turns
    hue -= 6.0 * tl.floor(hue * (1.0 / 6.0))
    share = clamped(tl.abs(hue - 3.0) - 1.0)
    red = low + chroma * share
    red = tl.where(share < 1.0, clamped(red), red)
    share = clamped(2.0 - tl.abs(hue - 2.0))
    green = low + chroma * share
    green = tl.where(share < 1.0, clamped(green), green)
    share = clamped(2.0 - tl.abs(hue - 4.0))
    blue = low + chroma * share
    blue = tl.where(share < 1.0, clamped(blue), blue)
    return red, green, blue


@triton.jit
def jitter(red, green, blue, begin, end, order, brightness, contrast, saturation, hue, mean):
    """Apply the operations at places begin..end-1 of the order; `mean` is the grey mean for contrast."""
    for k in range(begin, end):
        operation = operation_at(order, k)
        if operation == 3:
            if hue != 0:
                red, green, blue = shift_hue(red, green, blue, hue)
        else:
            factor = tl.where(operation == 0, brightness, tl.where(operation == 1, contrast, saturation))
            if factor != 1:
                fixed = tl.where(operation == 1, mean, mean * 0.0)
                share = (operation == 2).to(red.dtype)
                other = fixed + share * luma(red, green, blue)
                red = clamped(other + factor * (red - other))
                green = clamped(other + factor * (green - other))
                blue = clamped(other + factor * (blue - other))
    return red, green, blue


@triton.jit
def solarized(x, threshold):
    """Invert pixels at or above the threshold."""
    return tl.where(x >= threshold, 1.0 - x, x)


@triton.jit
def normalise_and_store(place, plane, red, green, blue, threshold, mean_ptr, std_ptr, mask):
    """Solarise, normalise, cast and store three planes; `mean_ptr` and `std_ptr` are [3] wide."""
    if threshold <= 1:
        red, green, blue = solarized(red, threshold), solarized(green, threshold), solarized(blue, threshold)
    dtype = place.dtype.element_ty
    red = (red - tl.load(mean_ptr)) / tl.load(std_ptr)
    green = (green - tl.load(mean_ptr + 1)) / tl.load(std_ptr + 1)
    blue = (blue - tl.load(mean_ptr + 2)) / tl.load(std_ptr + 2)
    tl.store(place, red.to(dtype), mask=mask)
    tl.store(place + plane, green.to(dtype), mask=mask)
    tl.store(place + 2 * plane, blue.to(dtype), mask=mask)


@triton.jit
def load_pixels(place, plane, mask):
    """Load three planes."""
    red = tl.load(place, mask=mask, other=0.0)
    green = tl.load(place + plane, mask=mask, other=0.0)
    blue = tl.load(place + 2 * plane, mask=mask, other=0.0)
    return red, green, blue


@triton.jit
def store_pixels(place, plane, red, green, blue, mask):
    """Store three planes."""
    tl.store(place, red, mask=mask)
    tl.store(place + plane, green, mask=mask)
    tl.store(place + 2 * plane, blue, mask=mask)


@triton.jit
def reflected(position, size):
    """Mirror a position of -size < position < 2 size - 1 at the borders, which are not repeated."""
    position = tl.abs(position)
    return tl.where(position < size, position, 2 * (size - 1) - position)


@triton.jit
def finish_jitter_kernel(
    pixels_ptr,  # [n, 3, S, S] wide, read and overwritten: pixels before contrast
    out_ptr,  # [n, 3, S, S] float
    grey_mean_ptr,  # [n] wide: mean grey before contrast
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
    plane,  # S S
    blocks,  # of a plane
    BLOCK: tl.constexpr,
):
    """Contrast and what comes after it; finishes the views that are not blurred. Only views with contrast."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    contrast = tl.load(contrast_ptr + n)
    if contrast == 1:
        return
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < plane
    place = n * 3 * plane + pixel
    red, green, blue = load_pixels(pixels_ptr + place, plane, mask)
    order = tl.load(order_ptr + n).to(tl.int32)
    red, green, blue = jitter(
        red, green, blue, place_of_contrast(order), 4, order,
        tl.load(brightness_ptr + n), contrast, tl.load(saturation_ptr + n), tl.load(hue_ptr + n),
        tl.load(grey_mean_ptr + n),
    )  # fmt: skip
    if tl.load(grey_ptr + n):
        red = luma(red, green, blue)
        green = red
        blue = red
    if tl.load(sigma_ptr + n) > 0:
        store_pixels(pixels_ptr + place, plane, red, green, blue, mask)
    else:
        threshold = tl.load(solarize_ptr + n)
        normalise_and_store(out_ptr + place, plane, red, green, blue, threshold, mean_ptr, std_ptr, mask)


@triton.jit
def blur_rows_kernel(
    pixels_ptr,  # [n, 3, S, S] wide
    out_ptr,  # [n, 3, S, S] wide
    sigma_ptr,  # [n] wide
    S,
    plane,  # S S
    blocks,  # of a plane
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Blur along rows, borders reflected. Only views with a sigma above 0."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    sigma = tl.load(sigma_ptr + n)
    if sigma > 0:
        REACH: tl.constexpr = KERNEL // 2
        pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < plane
        x = pixel % S
        start = n * 3 * plane + pixel - x
        red = tl.zeros([BLOCK], sigma.dtype)
        green = tl.zeros([BLOCK], sigma.dtype)
        blue = tl.zeros([BLOCK], sigma.dtype)
        total = sigma * 0.0
        for k in range(KERNEL):
            ratio = (k - REACH) / sigma
            tap = tl.exp(-0.5 * ratio * ratio)
            total += tap
            place = pixels_ptr + start + reflected(x + (k - REACH), S)
            r, g, b = load_pixels(place, plane, mask)
            red += tap * r
            green += tap * g
            blue += tap * b
        inverse = 1.0 / total
        place = out_ptr + n * 3 * plane + pixel
        store_pixels(place, plane, red * inverse, green * inverse, blue * inverse, mask)


@triton.jit
def blur_columns_kernel(
    pixels_ptr,  # [n, 3, S, S] wide: blurred along rows
    out_ptr,  # [n, 3, S, S] float
    sigma_ptr,  # [n] wide
    solarize_ptr,  # [n] wide
    mean_ptr,  # [3] wide
    std_ptr,  # [3] wide
    S,
    plane,  # S S
    blocks,  # of a plane
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Blur along columns, solarise, normalise. Only views with a sigma above 0."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    sigma = tl.load(sigma_ptr + n)
    if sigma > 0:
        REACH: tl.constexpr = KERNEL // 2
        pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < plane
        y = pixel // S
        start = n * 3 * plane + pixel % S
        red = tl.zeros([BLOCK], sigma.dtype)
        green = tl.zeros([BLOCK], sigma.dtype)
        blue = tl.zeros([BLOCK], sigma.dtype)
        total = sigma * 0.0
        for k in range(KERNEL):
            ratio = (k - REACH) / sigma
            tap = tl.exp(-0.5 * ratio * ratio)
            total += tap
            place = pixels_ptr + start + reflected(y + (k - REACH), S) * S
            r, g, b = load_pixels(place, plane, mask)
            red += tap * r
            green += tap * g
            blue += tap * b
        inverse = 1.0 / total
        normalise_and_store(
            out_ptr + n * 3 * plane + pixel, plane, red * inverse, green * inverse, blue * inverse,
            tl.load(solarize_ptr + n), mean_ptr, std_ptr, mask,
        )  # fmt: skip


# From here on the way back.


@triton.jit
def jitter_kernel(
    raw_ptr,  # [n, 3, S, S] wide: resampled pixels
    out_ptr,  # [n, 3, S, S] wide
    grey_mean_ptr,  # [n] wide
    brightness_ptr,  # [n] wide
    contrast_ptr,  # [n] wide
    saturation_ptr,  # [n] wide
    hue_ptr,  # [n] wide
    order_ptr,  # [n] int64
    grey_ptr,  # [n] bool
    sigma_ptr,  # [n] wide
    solarize_ptr,  # [n] wide
    plane,  # S S
    blocks,  # of a plane
    BLOCK: tl.constexpr,
):
    """All of the jitter, and grey: the pixels before the blur. Only views that are blurred or solarised."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    if (tl.load(sigma_ptr + n) > 0) | (tl.load(solarize_ptr + n) <= 1):
        pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < plane
        place = n * 3 * plane + pixel
        red, green, blue = load_pixels(raw_ptr + place, plane, mask)
        order = tl.load(order_ptr + n).to(tl.int32)
        red, green, blue = jitter(
            red, green, blue, 0, 4, order,
            tl.load(brightness_ptr + n), tl.load(contrast_ptr + n), tl.load(saturation_ptr + n),
            tl.load(hue_ptr + n), tl.load(grey_mean_ptr + n),
        )  # fmt: skip
        if tl.load(grey_ptr + n):
            red = luma(red, green, blue)
            green = red
            blue = red
        store_pixels(out_ptr + place, plane, red, green, blue, mask)


@triton.jit
def _through_solarize(gradient, pixels, threshold, std):
    gradient = gradient / std
    return tl.where(pixels >= threshold, -gradient, gradient)


@triton.jit
def columns_backward_kernel(
    gradient_ptr,  # [n, 3, S, S] float: of the views
    jittered_ptr,  # [n, 3, S, S] wide: before the blur, where a view is solarised
    rows_ptr,  # [n, 3, S, S] wide: blurred along rows, where a view is blurred
    out_ptr,  # [n, 3, S, S] wide: gradient of the blurred pixels
    part_ptr,  # [n, blocks] wide: of sigma, through the blur along columns
    sigma_ptr,  # [n] wide
    solarize_ptr,  # [n] wide
    std_ptr,  # [3] wide
    S,
    plane,  # S S
    blocks,  # of a plane
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Back through normalising and solarising; sigma's gradient through the blur along columns."""
    n = (tl.program_id(0) // blocks).to(tl.int64)
    sigma = tl.load(sigma_ptr + n)
    threshold = tl.load(solarize_ptr + n)
    wide = sigma.dtype
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < plane
    place = n * 3 * plane + pixel
    part = sigma * 0.0
    for channel in range(3):
        at = place + channel * plane
        gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0).to(wide)
        std = tl.load(std_ptr + channel)
        if sigma > 0:
            REACH: tl.constexpr = KERNEL // 2
            y = pixel // S
            start = n * 3 * plane + channel * plane + pixel % S
            blurred = tl.zeros([BLOCK], wide)
            second = tl.zeros([BLOCK], wide)  # second moment of the taps about the middle
            total = sigma * 0.0
            moment = sigma * 0.0
            for k in range(KERNEL):
                ratio = (k - REACH) / sigma
                tap = tl.exp(-0.5 * ratio * ratio)
                square = ratio * ratio * tap
                total += tap
                moment += square
                value = tl.load(rows_ptr + start + reflected(y + (k - REACH), S) * S, mask=mask, other=0.0)
                blurred += tap * value
                second += square * value
            blurred /= total
            gradient = _through_solarize(gradient, blurred, threshold, std)
            slope = (second / total - moment / total * blurred) / sigma
            part += tl.sum(gradient * slope, 0)
        else:
            if threshold <= 1:
                value = tl.load(jittered_ptr + at, mask=mask, other=0.0)
                gradient = _through_solarize(gradient, value, threshold, std)
            else:
                gradient = gradient / std
        tl.store(out_ptr + at, gradient, mask=mask)
    tl.store(part_ptr + tl.program_id(0), part)


@triton.jit
def blur_backward_kernel(
    gradient_ptr,  # [n, 3, S, S] wide: of the blurred pixels
    out_ptr,  # [n, 3, S, S] wide: of the pixels before this axis's blur
    sigma_ptr,  # [n] wide
    jittered_ptr,  # [n, 3, S, S] wide: before the blur. Read along columns alone
    part_ptr,  # [n, blocks] wide: of sigma, through the blur along rows. Written along columns alone
    S,
    plane,  # S S
    blocks,  # of a plane
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Back through the blur of one axis: its transpose. Only views with a sigma above 0.

    A pixel has given to its neighbours, and near a border to those that saw its mirror image too. Back
    through the columns the gradient of the pixels blurred along rows is known, and with it sigma's.
    """
    n = (tl.program_id(0) // blocks).to(tl.int64)
    sigma = tl.load(sigma_ptr + n)
    wide = sigma.dtype
    part = sigma * 0.0
    if sigma > 0:
        REACH: tl.constexpr = KERNEL // 2
        pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        mask = pixel < plane
        x = pixel % S
        y = pixel // S
        if COLUMNS:
            step, along = S, y
        else:
            step, along = 1, x
        for channel in range(3):
            base = (n * 3 + channel) * plane
            line = gradient_ptr + base + pixel - along * step
            gradient = tl.zeros([BLOCK], wide)
            blurred = tl.zeros([BLOCK], wide)
            second = tl.zeros([BLOCK], wide)
            total = sigma * 0.0
            moment = sigma * 0.0
            for k in range(KERNEL):
                ratio = (k - REACH) / sigma
                tap = tl.exp(-0.5 * ratio * ratio)
                square = ratio * ratio * tap
                total += tap
                moment += square
                at = along + (k - REACH)
                value = tl.load(line + at * step, mask=mask & (at >= 0) & (at < S), other=0.0)
                at = (k - REACH) - along  # mirrored at the first pixel
                value += tl.load(line + at * step, mask=mask & (at >= 0) & (along > 0), other=0.0)
                at = 2 * (S - 1) - along + (k - REACH)  # mirrored at the last
                value += tl.load(line + at * step, mask=mask & (at < S) & (along < S - 1), other=0.0)
                gradient += tap * value
                if COLUMNS:
                    seen = base + y * S + reflected(x + (k - REACH), S)
                    value = tl.load(jittered_ptr + seen, mask=mask, other=0.0)
                    blurred += tap * value
                    second += square * value
            gradient /= total
            tl.store(out_ptr + base + pixel, gradient, mask=mask)
            if COLUMNS:
                slope = (second - moment / total * blurred) / (total * sigma)
                part += tl.sum(tl.where(mask, gradient * slope, 0.0), 0)
    if COLUMNS:
        tl.store(part_ptr + tl.program_id(0), part)


@triton.jit
def _ties(red, green, blue, extreme):
    """Share of each channel in an extreme: equal among those that reach it, as torch.amax does."""
    of_red = (red == extreme).to(red.dtype)
    of_green = (green == extreme).to(red.dtype)
    of_blue = (blue == extreme).to(red.dtype)
    inverse = 1.0 / (of_red + of_green + of_blue)
    return of_red * inverse, of_green * inverse, of_blue * inverse


@triton.jit
def _channel_backward(gradient, low, chroma, share):
    """Back through low + chroma · share, clamped unless it is the highest channel."""
    inside = within(low + chroma * share)
    return tl.where(share < 1.0, gradient * inside, gradient)


@triton.jit
def hue_backward(red, green, blue, of_red, of_green, of_blue, turns):
    """Give the gradients of the three channels and of the turns [...], from those of the shifted channels."""
    hue, chroma, low, depth_red, depth_green, depth_blue = hue_of(red, green, blue)
    hue += 6.0 * turns
    hue -= 6.0 * tl.floor(hue * (1.0 / 6.0))
    raw_red, raw_green, raw_blue = tl.abs(hue - 3.0) - 1.0, 2.0 - tl.abs(hue - 2.0), 2.0 - tl.abs(hue - 4.0)
    share_red, share_green, share_blue = clamped(raw_red), clamped(raw_green), clamped(raw_blue)
    of_red = _channel_backward(of_red, low, chroma, share_red)
    of_green = _channel_backward(of_green, low, chroma, share_green)
    of_blue = _channel_backward(of_blue, low, chroma, share_blue)
    of_low = of_red + of_green + of_blue
    of_chroma = of_red * share_red + of_green * share_green + of_blue * share_blue
    slope = of_red * within(raw_red) * tl.where(hue > 3.0, 1.0, -1.0)
    slope -= of_green * within(raw_green) * tl.where(hue > 2.0, 1.0, -1.0)
    slope -= of_blue * within(raw_blue) * tl.where(hue > 4.0, 1.0, -1.0)
    of_hue = chroma * slope
    # From hue to the depths: which two make it up depends on the highest channel.
    red_highest = depth_red <= 0
    green_highest = (depth_red > 0) & (depth_green <= 0)
    zero = of_hue * 0.0
    of_depth_red = tl.where(red_highest, zero, tl.where(green_highest, of_hue, -of_hue))
    of_depth_green = tl.where(red_highest, -of_hue, tl.where(green_highest, zero, of_hue))
    of_depth_blue = tl.where(red_highest, of_hue, tl.where(green_highest, -of_hue, zero))
    inverse = 1.0 / tl.maximum(chroma, _TINY)
    weighted = of_depth_red * depth_red + of_depth_green * depth_green + of_depth_blue * depth_blue
    of_chroma -= tl.where(chroma >= _TINY, weighted * inverse, zero)
    of_high = of_chroma + (of_depth_red + of_depth_green + of_depth_blue) * inverse
    of_low -= of_chroma
    high = tl.maximum(tl.maximum(red, green), blue)
    top_red, top_green, top_blue = _ties(red, green, blue, high)
    bottom_red, bottom_green, bottom_blue = _ties(red, green, blue, low)
    of_red = of_high * top_red + of_low * bottom_red - of_depth_red * inverse
    of_green = of_high * top_green + of_low * bottom_green - of_depth_green * inverse
    of_blue = of_high * top_blue + of_low * bottom_blue - of_depth_blue * inverse
    return of_red, of_green, of_blue, 6.0 * of_hue


@triton.jit
def jitter_backward_kernel(
    raw_ptr,  # [n, 3, S, S] wide: resampled pixels
    gradient_ptr,  # [n, 3, S, S] wide, read and overwritten
    part_ptr,  # [n, blocks, 5] wide: of brightness, contrast, saturation, hue and the grey mean
    grey_mean_ptr,  # [n] wide
    of_mean_ptr,  # [n] wide: gradient of the grey mean; read before contrast alone
    brightness_ptr,  # [n] wide
    contrast_ptr,  # [n] wide
    saturation_ptr,  # [n] wide
    hue_ptr,  # [n] wide
    order_ptr,  # [n] int64
    grey_ptr,  # [n] bool
    plane,  # S S
    blocks,  # of a plane
    AFTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Back through the jitter: from its end to contrast (AFTER), or from there to the resampled pixels.

    Views without contrast go all the way in the second part.
    """
    n = (tl.program_id(0) // blocks).to(tl.int64)
    brightness = tl.load(brightness_ptr + n)
    contrast = tl.load(contrast_ptr + n)
    saturation = tl.load(saturation_ptr + n)
    turns = tl.load(hue_ptr + n)
    order = tl.load(order_ptr + n).to(tl.int32)
    mean = tl.load(grey_mean_ptr + n)
    of_brightness = brightness * 0.0
    of_contrast = brightness * 0.0
    of_saturation = brightness * 0.0
    of_turns = brightness * 0.0
    of_mean = brightness * 0.0
    cut = place_of_contrast(order)
    if AFTER:
        begin = cut
        end = tl.where(contrast == 1, cut, 4)
    else:
        begin = 0
        end = tl.where(contrast == 1, 4, cut)
    last = AFTER | (contrast == 1)  # this part holds the end of the jitter
    pixel = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < plane
    place = n * 3 * plane + pixel
    if (end > begin) | (not AFTER):
        raw_red, raw_green, raw_blue = load_pixels(raw_ptr + place, plane, mask)
        of_red, of_green, of_blue = load_pixels(gradient_ptr + place, plane, mask)  # 0 beyond the view
        if last:
            if tl.load(grey_ptr + n):
                together = of_red + of_green + of_blue
                of_red = _RED * together
                of_green = _GREEN * together
                of_blue = _BLUE * together
        else:
            through_mean = tl.load(of_mean_ptr + n) / plane
            of_red += tl.where(mask, _RED * through_mean, 0.0)
            of_green += tl.where(mask, _GREEN * through_mean, 0.0)
            of_blue += tl.where(mask, _BLUE * through_mean, 0.0)
        for back in range(begin, end):
            k = begin + end - 1 - back
            operation = operation_at(order, k)
            red, green, blue = jitter(
                raw_red, raw_green, raw_blue, 0, k, order, brightness, contrast, saturation, turns, mean
            )
            if operation == 3:
                if turns != 0:
                    of_red, of_green, of_blue, each = hue_backward(
                        red, green, blue, of_red, of_green, of_blue, turns
                    )
                    of_turns += tl.sum(each, 0)
            else:
                factor = tl.where(operation == 0, brightness, tl.where(operation == 1, contrast, saturation))
                if factor != 1:
                    fixed = tl.where(operation == 1, mean, mean * 0.0)
                    share = (operation == 2).to(red.dtype)
                    other = fixed + share * luma(red, green, blue)
                    of_red *= within(other + factor * (red - other))
                    of_green *= within(other + factor * (green - other))
                    of_blue *= within(other + factor * (blue - other))
                    each = of_red * (red - other) + of_green * (green - other) + of_blue * (blue - other)
                    of_factor = tl.sum(each, 0)
                    of_brightness += tl.where(operation == 0, of_factor, of_factor * 0.0)
                    of_contrast += tl.where(operation == 1, of_factor, of_factor * 0.0)
                    of_saturation += tl.where(operation == 2, of_factor, of_factor * 0.0)
                    of_other = (1.0 - factor) * (of_red + of_green + of_blue)
                    added = tl.sum(of_other, 0)
                    of_mean += tl.where(operation == 1, added, added * 0.0)
                    of_red = factor * of_red + _RED * share * of_other
                    of_green = factor * of_green + _GREEN * share * of_other
                    of_blue = factor * of_blue + _BLUE * share * of_other
        store_pixels(gradient_ptr + place, plane, of_red, of_green, of_blue, mask)
    part = part_ptr + tl.program_id(0).to(tl.int64) * 5
    tl.store(part, of_brightness)
    tl.store(part + 1, of_contrast)
    tl.store(part + 2, of_saturation)
    tl.store(part + 3, of_turns)
    tl.store(part + 4, of_mean)
