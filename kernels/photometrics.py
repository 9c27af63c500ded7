"""Photometric changes of a batch of views, each by strengths of its own: torchvision's on float images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_ORDERS = torch.tensor(list(permutations((_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE))))  # [24, 4]
_COUNTED_FREELY = ("cpu",)  # devices on which the number of True entries is known without waiting
_TINY = 1e-12  # keeps grey pixels, which have no hue, from dividing by 0
_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma, as PIL and torchvision round it


class Photometrics(NamedTuple):
    """How the colours of V views of each of B images change; every field is [V, B].

    Applied in the order jitter (brightness, contrast, saturation, hue as `order` says), grey, blur, solarise.
    """

    brightness: Tensor  # fp32 factor, 1 = none
    contrast: Tensor  # fp32 factor, 1 = none
    saturation: Tensor  # fp32 factor, 1 = none
    hue: Tensor  # fp32 turns in [-0.5, 0.5], 0 = none
    order: Tensor  # int64 0..23: index into itertools.permutations((brightness, contrast, saturation, hue))
    grey: Tensor  # bool: grey
    sigma: Tensor  # fp32 sigma of the blur in pixels of the rendered view, 0 = none
    solarize: Tensor  # fp32 threshold in [0, 1]: pixels at or above it are inverted; > 1 = none

    @classmethod
    def neutral(cls, shape: tuple[int, int], device: torch.device | str | None = None) -> Photometrics:
        """Photometrics [V, B] that change nothing."""
        return cls(
            brightness=torch.ones(shape, device=device),
            contrast=torch.ones(shape, device=device),
            saturation=torch.ones(shape, device=device),
            hue=torch.zeros(shape, device=device),
            order=torch.zeros(shape, dtype=torch.int64, device=device),
            grey=torch.zeros(shape, dtype=torch.bool, device=device),
            sigma=torch.zeros(shape, device=device),
            solarize=torch.full(shape, 2.0, device=device),
        )


def apply_photometrics(views: Tensor, photometrics: Photometrics, blur_kernel: int) -> Tensor:
    """Change `views` [n, 3, S, S], nominally in [0, 1] and overwritten, by `photometrics` with fields [n].

    A view of neutral photometrics comes back exactly as it is, even where resampling left [0, 1].
    """
    p = photometrics
    factors = torch.stack((p.brightness, p.contrast, p.saturation, torch.ones_like(p.hue)), 1)  # [n, 4]
    operations = _ORDERS.to(views.device, non_blocking=True)[p.order]  # [n, 4]
    views = _jitter(views, factors, p.hue, operations)
    views = _change_where(p.grey, _grey, views)
    views = _change_where(p.sigma > 0, partial(_blur, kernel=blur_kernel), views, p.sigma)
    return _change_where(p.solarize <= 1, _solarize, views, p.solarize)


def _change_where(active: Tensor, change: Callable[..., Tensor], views: Tensor, *strengths: Tensor) -> Tensor:
    """Change the views [n, 3, S, S] that are `active` [n] and leave the others exactly as they are.

    On the CPU only the active ones are computed, in place. Elsewhere, where counting them would wait
    for the device, all are computed.
    """
    if views.device.type not in _COUNTED_FREELY:
        return torch.where(active[:, None, None, None], change(views, *strengths), views)
    rows = active.nonzero()[:, 0]
    if len(rows) == len(active):
        return change(views, *strengths)
    if len(rows) == 0:
        return views
    changed = change(views.index_select(0, rows), *(strength.index_select(0, rows) for strength in strengths))
    return views.index_copy_(0, rows, changed)


def _jitter(views: Tensor, factors: Tensor, turns: Tensor, operations: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, at each place the view's own of `operations` [n, 4].

    `factors` [n, 4] belong to the operations 0..3, where hue's is 1; a factor of 1, or 0 turns, leaves the
    view as it is.
    """
    chosen = factors.gather(1, operations)  # [n, 4], in the order of application
    jittered = (factors != 1).any(1) | (turns != 0)
    if views.device.type not in _COUNTED_FREELY:
        turned = turns[:, None] * (operations == _HUE)
        for place in range(4):
            operation, factor, turn = operations[:, place], chosen[:, place], turned[:, place]
            views = _change_where(factor != 1, _blend, views, factor, operation)
            views = _change_where(turn != 0, _shift_hue, views, turn)
        return views
    # One group for each place of hue: a group is changed as a whole.
    groups = torch.where(jittered, (operations == _HUE).nonzero()[:, 1], -1)
    for hue_place in range(4):
        rows = (groups == hue_place).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        group = views.index_select(0, rows)
        turn, factor, operation = (each.index_select(0, rows) for each in (turns, chosen, operations))
        for place in range(4):
            if place == hue_place:
                group = _change_where(turn != 0, _shift_hue, group, turn)
            else:
                of_place = factor[:, place]
                group = _change_where(of_place != 1, _blend, group, of_place, operation[:, place])
        views.index_copy_(0, rows, group)
    return views


# Below, masks over pixels are made by sign() and applied by lerp(), which gives either end exactly:
# comparison and torch.where take ten times as long on the CPU. What an operation made itself it overwrites.


def _blend(views: Tensor, factor: Tensor, operation: Tensor) -> Tensor:
    """Brightness, contrast or saturation: toward (factor < 1) or away from black, mean grey, own grey."""
    operation = operation[:, None, None, None]
    grey = _luma(views)  # [n, 1, S, S]
    mean = grey.mean((2, 3), keepdim=True) * (operation == _CONTRAST)
    other = grey.mul_(operation == _SATURATION).add_(mean)
    return torch.lerp(other, views, factor[:, None, None, None]).clamp_(0, 1)


def _shift_hue(views: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue: RGB to hue, chroma and lowest channel, and back (Smith 1978, the HSV hexcone)."""
    high, low = views.amax(1, keepdim=True), views.amin(1, keepdim=True)  # [n, 1, S, S]
    chroma = high - low
    depth = (high - views).div_(chroma.clamp(min=_TINY))  # 0 for the highest channel, 1 for the lowest
    red, green, blue = depth.chunk(3, 1)
    # In sextants; first as if red were not the highest.
    hue = torch.lerp((red - blue).add_(2), (green - red).add_(4), green.sign())
    hue = torch.lerp(blue - green, hue, red.sign()).add_(6 * turns[:, None, None, None])
    hue = hue.sub_((hue / 6).floor_().mul_(6))
    share = torch.cat(((hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()), 1).clamp_(0, 1)
    shifted = torch.addcmul(low, chroma, share)
    if views.device.type in _COUNTED_FREELY and low.detach().min() >= 0 and high.detach().max() <= 1:
        return shifted
    # As in torchvision every channel but the highest is clamped: it matters where resampling left [0, 1].
    return torch.lerp(shifted, shifted.clamp(0, 1), (1 - share).sign())


def _grey(views: Tensor) -> Tensor:
    return _luma(views).repeat(1, 3, 1, 1)


def _luma(views: Tensor) -> Tensor:
    red, green, blue = views.chunk(3, 1)
    return (_GREY[0] * red).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _blur(views: Tensor, sigma: Tensor, *, kernel: int) -> Tensor:
    """Gaussian blur with `kernel` taps, reflected at the borders; sigma [n] in pixels."""
    reach = kernel // 2
    offset = torch.arange(reach + 1, dtype=views.dtype, device=views.device)
    sigma = torch.where(sigma > 0, sigma, 1)  # views that are not blurred must not divide by 0
    taps = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)  # [n, reach + 1]: the middle and one side
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)
    for axis, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = F.pad(views, padding, mode="reflect")
        views = views * taps[:, 0, None, None, None]
        for away in range(1, reach + 1):
            both = padded.narrow(axis, reach - away, views.shape[axis]) + padded.narrow(
                axis, reach + away, views.shape[axis]
            )
            views = views.addcmul_(both, taps[:, away, None, None, None])
    return views


def _solarize(views: Tensor, threshold: Tensor) -> Tensor:
    at_or_above = ((views - threshold[:, None, None, None]).sign() + 1).clamp(max=1)
    return torch.lerp(views, 1 - views, at_or_above)


def photometrics_gradients(
    views: Tensor, gradient: Tensor, photometrics: Photometrics, blur_kernel: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Take the gradient of what `apply_photometrics` makes of `views` back to views and strengths.

    Written out rather than left to autograd, which does not see inside an operator. Takes views and gradient
    [n, 3, S, S]; returns the gradient of views and those of brightness, contrast, saturation, hue and
    sigma [n].
    """
    p = photometrics
    factors = torch.stack((p.brightness, p.contrast, p.saturation, torch.ones_like(p.hue)), 1)
    operations = _ORDERS.to(views.device)[p.order]
    chosen = factors.gather(1, operations)
    turned = p.hue[:, None] * (operations == _HUE)
    before = []  # the pixels before each place of the jitter
    for place in range(4):
        before.append(views)
        blended, turn = chosen[:, place], turned[:, place]
        views = _change_where(blended != 1, _blend, views.clone(), blended, operations[:, place])
        views = _change_where(turn != 0, _shift_hue, views, turn)
    views = _change_where(p.grey, _grey, views.clone())

    of_sigma = torch.zeros_like(p.sigma)
    rows = (p.sigma > 0).nonzero()[:, 0]
    blur, slope = _blur_matrices(p.sigma[rows], views.shape[-1], blur_kernel)
    sharp = views[rows]
    views = views.index_copy(0, rows, blur @ sharp @ blur.mT)
    threshold = p.solarize[:, None, None, None]
    gradient = torch.where((views >= threshold) & (threshold <= 1), -gradient, gradient)
    outer = gradient[rows]
    of_sigma[rows] = (outer * (slope @ sharp @ blur.mT + blur @ sharp @ slope.mT)).sum((1, 2, 3))
    gradient[rows] = blur.mT @ outer @ blur

    luma = views.new_tensor(_GREY)[:, None, None]
    gradient[p.grey] = gradient[p.grey].sum(1, keepdim=True) * luma
    of_factors, of_hue = torch.zeros_like(factors), torch.zeros_like(p.hue)
    for place in reversed(range(4)):
        rows = (turned[:, place] != 0).nonzero()[:, 0]
        gradient[rows], of_hue[rows] = _hue_gradients(before[place][rows], gradient[rows], p.hue[rows])
        rows = (chosen[:, place] != 1).nonzero()[:, 0]
        operation, factor = operations[rows, place], chosen[rows, place]
        gradient[rows], of_factors[rows, operation] = _blend_gradients(
            before[place][rows], gradient[rows], factor, operation
        )
    of_brightness, of_contrast, of_saturation, _ = (each.clone() for each in of_factors.unbind(1))
    return gradient, of_brightness, of_contrast, of_saturation, of_hue, of_sigma


def _within(x: Tensor) -> Tensor:
    """1 where clamping to [0, 1] lets a gradient through: both ends belong to it."""
    return ((x >= 0) & (x <= 1)).to(x.dtype)


def _blend_gradients(
    views: Tensor, gradient: Tensor, factor: Tensor, operation: Tensor
) -> tuple[Tensor, Tensor]:
    factor, operation = factor[:, None, None, None], operation[:, None, None, None]
    grey = _luma(views)
    contrast, saturation = (operation == which for which in (_CONTRAST, _SATURATION))
    other = grey * saturation + grey.mean((2, 3), keepdim=True) * contrast
    gradient = gradient * _within(torch.lerp(other, views, factor))
    of_factor = (gradient * (views - other)).sum((1, 2, 3))
    of_other = (1 - factor) * gradient.sum(1, keepdim=True)
    of_grey = of_other * saturation + of_other.mean((2, 3), keepdim=True) * contrast
    return factor * gradient + of_grey * views.new_tensor(_GREY)[:, None, None], of_factor


def _hue_gradients(views: Tensor, gradient: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    high, low = views.amax(1, keepdim=True), views.amin(1, keepdim=True)
    chroma = high - low
    inverse = 1 / chroma.clamp(min=_TINY)
    depth = (high - views) * inverse
    red_highest, green_highest, _ = (depth <= 0).chunk(3, 1)
    # hue = Σ coefficient · depth + constant, in sextants, by which channel is the highest
    none, one = torch.zeros_like(chroma), torch.ones_like(chroma)
    if_red = torch.cat((none, -one, one), 1)
    if_green, if_blue = torch.cat((one, none, -one), 1), torch.cat((-one, one, none), 1)
    coefficient = torch.where(red_highest, if_red, torch.where(green_highest, if_green, if_blue))
    constant = torch.where(red_highest, 0, torch.where(green_highest, 2, 4))
    hue = (coefficient * depth).sum(1, keepdim=True) + constant + 6 * turns[:, None, None, None]
    hue = hue - 6 * (hue / 6).floor()
    middle = hue.new_tensor((3, 2, 4))[:, None, None]
    sign = hue.new_tensor((1, -1, -1))[:, None, None]
    raw = sign * ((hue - middle).abs() - hue.new_tensor((1, 2, 2))[:, None, None])
    share = raw.clamp(0, 1)
    gradient = torch.where(share < 1, gradient * _within(low + chroma * share), gradient)
    of_low = gradient.sum(1, keepdim=True)
    of_chroma = (gradient * share).sum(1, keepdim=True)
    of_hue = chroma * (gradient * _within(raw) * sign * (hue - middle).sign()).sum(1, keepdim=True)
    of_depth = coefficient * of_hue
    of_chroma = of_chroma - (of_depth * depth).sum(1, keepdim=True) * inverse * (chroma >= _TINY)
    of_high = of_chroma + of_depth.sum(1, keepdim=True) * inverse
    result = -of_depth * inverse
    for extreme, of_extreme in ((high, of_high), (low, of_low - of_chroma)):
        ties = (views == extreme).to(views.dtype)  # channels that share the extreme share its gradient
        result = result + of_extreme * ties / ties.sum(1, keepdim=True)
    return result, 6 * of_hue.sum((1, 2, 3))


def _blur_matrices(sigma: Tensor, size: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Give the blur along one axis as a matrix [n, 1, S, S], and the matrix's derivative by sigma."""
    reach = kernel // 2
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    squares = (offset / sigma[:, None]) ** 2  # [n, kernel]
    taps = torch.softmax(-0.5 * squares, 1)
    slopes = taps * (squares - (taps * squares).sum(1, keepdim=True)) / sigma[:, None]
    source = (torch.arange(size, device=sigma.device)[:, None] + offset).abs()
    source = torch.where(source < size, source, 2 * (size - 1) - source)  # [S, kernel], reflected
    index = source.expand(len(sigma), -1, -1)
    blur, slope = (
        sigma.new_zeros(len(sigma), size, size).scatter_add_(2, index, each[:, None].expand(index.shape))
        for each in (taps, slopes)
    )
    return blur[:, None], slope[:, None]
