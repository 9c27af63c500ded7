"""From uint8 source images to normalised views: crop, resize, flip, change colours, blur, normalise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import BOOLEAN, FLOATS, INTEGER, expect
from .photometrics import Photometrics, apply_photometrics

_RADIUS = {"bilinear": 1, "bicubic": 2}  # of the resampling filter, pixels
_CHUNK = 2**22  # elements of the largest intermediate tensor, so that memory does not grow with the batch
_SLACK = 0.01  # pixels by which rounding may carry a box over the border


def render_views(
    images: Tensor,
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

    As DINO's transforms in their order: crop and antialiased resize, flip left to right, brightness,
    contrast, saturation and hue in the order that the view asks for, grey, Gaussian blur,
    solarise, normalise. Each step is torchvision's functional one on float images: resized_crop with
    antialias=True for integer boxes (which like torchvision leaves bicubic's overshoot beyond
    [0, 1]), adjust_brightness and so on, which clamp. A box of real numbers weighs the pixels at its
    border by the part of them inside it. Always computed in the dtype of `boxes`, under autocast too.

    Differentiable in boxes, brightness, contrast, saturation, hue and sigma. Strengths that say "none" are
    skipped and get no gradient.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: fp32 [V, B, 4], top, left, height, width in source pixels, real-valued, of positive size and
            inside the image; fp64 computes in fp64. V may be 0.
        flips: bool [V, B]: mirrored left to right.
        photometrics: fields [V, B], their strengths in the dtype of boxes.
        size: S, side of the views in pixels.
        mean: float [3] of the normalisation, for pixels in [0, 1].
        std: float [3] of the normalisation.
        interpolation: "bilinear" or "bicubic".
        blur_kernel: taps of the blur, odd and below 2 S.
        dtype: of the result.

    Returns:
        dtype [V, B, 3, S, S].

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device or is out of its range
            (boxes are looked at on the CPU alone).
    """
    _check(images, boxes, flips, photometrics, size, mean, std, interpolation, blur_kernel)
    views, batch = boxes.shape[:2]
    height, width = images.shape[2:]
    if views == 0 or batch == 0:
        return boxes.new_zeros((views, batch, 3, size, size), dtype=dtype)
    step = max(1, _CHUNK // (views * size * 3 * max(width, size) + 3 * height * width))
    mean, std = (value.to(boxes.dtype).view(3, 1, 1) for value in (mean, std))
    chunks = []
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, batch, step):
            part = slice(start, start + step)
            pixels = _resize(images[part], boxes[:, part], flips[:, part], size, interpolation)
            strengths = Photometrics(*(field[:, part].flatten() for field in photometrics))
            pixels = apply_photometrics(pixels, strengths, blur_kernel)
            chunks.append(((pixels - mean) / std).to(dtype).view(views, -1, 3, size, size))
    return torch.cat(chunks, 1)


def _check(
    images: Tensor,
    boxes: Tensor,
    flips: Tensor,
    photometrics: Photometrics,
    size: int,
    mean: Tensor,
    std: Tensor,
    interpolation: str,
    blur_kernel: int,
) -> None:
    name = "render_views"
    expect(name, "images", images, (torch.uint8,), ("B", 3, "H", "W"))
    batch, _, height, width = images.shape
    device = images.device
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
    if device.type == "cpu":  # elsewhere looking would wait for the device
        start, length = boxes.detach()[..., :2], boxes.detach()[..., 2:]
        limit = boxes.new_tensor((height, width)) + _SLACK
        inside = (length > 0) & (start >= -_SLACK) & (start + length <= limit)
        if not inside.all():
            box = [round(number, 3) for number in boxes[~inside.all(-1)][0].tolist()]
            raise ValueError(
                f"{name}: boxes must have positive size and lie inside the {height} x {width} image, "
                f"got top, left, height, width {box}."
            )


def _resize(images: Tensor, boxes: Tensor, flips: Tensor, size: int, interpolation: str) -> Tensor:
    """Crop, resize and flip uint8 `images` [B, 3, H, W] to [V B, 3, S, S] in [0, 1] and the dtype of `boxes`.

    Separable: first every row of every view is a weighted sum of a few source rows, then every
    column of a view one of a few columns. Embedding bags do exactly this.
    """
    batch, _, height, width = images.shape
    top, left, tall, wide = boxes.flatten(0, 1).unbind(-1)  # [n] with n = V B
    view = torch.arange(len(top), device=images.device)[:, None, None]

    rows, weights = _taps(top, tall, size, height, interpolation)  # [n, S, T]
    source = images.permute(0, 2, 1, 3).to(boxes.dtype).div_(255)
    vertical = F.embedding_bag(
        (rows + view % batch * height).flatten(0, 1),
        source.reshape(batch * height, 3 * width),
        per_sample_weights=weights.flatten(0, 1),
        mode="sum",
    )  # [n S, 3 W]

    columns, weights = _taps(left, wide, size, width, interpolation)
    weights = torch.where(flips.flatten()[:, None, None], weights.flip(1), weights)
    columns = torch.where(flips.flatten()[:, None, None], columns.flip(1), columns)
    both = F.embedding_bag(
        (columns + view * width).flatten(0, 1),
        vertical.view(-1, size, 3, width).permute(0, 3, 2, 1).reshape(-1, 3 * size),
        per_sample_weights=weights.flatten(0, 1),
        mode="sum",
    )  # [n S, 3 S]: column, channel, row
    return both.view(-1, size, 3, size).permute(0, 2, 3, 1).contiguous()


def _taps(start: Tensor, length: Tensor, size: int, pixels: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """Give which source pixels, and with which weights, make up each of `size` output pixels along one axis.

    Output pixel i is centred on start + (i + 1/2) length / size. The filter is widened by the scale
    where the view is smaller than its box (antialiasing) and cut off at the box, in proportion
    where the box ends inside a pixel, so that the weights are continuous in the box.

    Takes start and length [n] in pixels of an axis of `pixels`. Returns index int64 and weight, both
    [n, size, T]; the weights of an output pixel sum to 1.
    """
    radius = _RADIUS[interpolation]
    taps = math.ceil(2 * radius * max(1, pixels / size))  # enough for the longest box: known beforehand
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    stretch = scale.clamp(min=1)
    output = torch.arange(size, dtype=start.dtype, device=start.device)[:, None]
    # Coordinates from here on count from the pixel that the box starts in: small numbers, small rounding.
    origin = start.detach().floor()
    start = start - origin
    centre = start + (output + 0.5) * scale  # [n, size, 1]
    first = (centre.detach() - radius * stretch.detach() + 0.5).floor()
    pixel = first + torch.arange(taps, dtype=start.dtype, device=start.device)  # [n, size, T]
    inside = (torch.minimum(pixel + 1, start + length) - torch.maximum(pixel, start)).clamp(0, 1)
    weights = _filter((pixel + 0.5 - centre).abs() / stretch, interpolation) * inside
    return (origin + pixel).long().clamp(0, pixels - 1), weights / weights.sum(-1, keepdim=True)


def _filter(x: Tensor, interpolation: str) -> Tensor:
    """Triangle, or the cubic of Keys (1981) with a = -1/2, at distances x >= 0."""
    inner = (1 - x).clamp(min=0)
    if interpolation == "bilinear":
        return inner
    outer = (2 - x).clamp(min=0)
    return (outer - 1) * outer**2 / 2 + (1 - 2 * inner) * inner**2
