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
    factors = torch.stack((p.brightness, p.contrast, p.saturation, torch.ones_like(p.hue)))  # [4, n]
    operations = _ORDERS.to(views.device, non_blocking=True)[p.order]  # [n, 4]
    for operation in operations.unbind(1):
        factor = factors.gather(0, operation[None])[0]
        views = _change_where(factor != 1, _blend, views, factor, operation)
        turns = p.hue * (operation == _HUE)
        views = _change_where(turns != 0, _shift_hue, views, turns)
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
    return views.index_put_((rows,), changed)


# Below, masks over pixels are made by sign() and applied by lerp(), which gives either end exactly:
# comparison and torch.where take ten times as long on the CPU.


def _blend(views: Tensor, factor: Tensor, operation: Tensor) -> Tensor:
    """Brightness, contrast or saturation: toward (factor < 1) or away from black, mean grey, own grey."""
    operation = operation[:, None, None, None]
    grey = _luma(views)  # [n, 1, S, S]
    mean = grey.mean((2, 3), keepdim=True) * (operation == _CONTRAST)
    other = torch.addcmul(mean, grey, (operation == _SATURATION).to(grey.dtype))
    return torch.lerp(other, views, factor[:, None, None, None]).clamp(0, 1)


def _shift_hue(views: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue: RGB to hue, chroma and lowest channel, and back (Smith 1978, the HSV hexcone)."""
    high, low = views.amax(1, keepdim=True), views.amin(1, keepdim=True)  # [n, 1, S, S]
    chroma = high - low
    depth = (high - views) / chroma.clamp(min=_TINY)  # 0 for the highest channel, 1 for the lowest
    red, green, blue = depth.chunk(3, 1)
    hue = torch.lerp(2 + red - blue, 4 + green - red, green.sign())  # in sextants, if red is not the highest
    hue = torch.lerp(blue - green, hue, red.sign())
    hue = hue + 6 * turns[:, None, None, None]
    hue = hue - 6 * (hue / 6).floor()
    red, green, blue = (hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()
    share = torch.cat((red, green, blue), 1).clamp(0, 1)
    shifted = low + chroma * share
    # As in torchvision every channel but the highest is clamped: it matters where resampling left [0, 1].
    return torch.lerp(shifted, shifted.clamp(0, 1), (1 - share).sign())


def _grey(views: Tensor) -> Tensor:
    return _luma(views).expand_as(views)


def _luma(views: Tensor) -> Tensor:
    red, green, blue = views.chunk(3, 1)
    return (_GREY[0] * red).add(green, alpha=_GREY[1]).add(blue, alpha=_GREY[2])


def _blur(views: Tensor, sigma: Tensor, *, kernel: int) -> Tensor:
    """Gaussian blur with `kernel` taps, reflected at the borders; sigma [n] in pixels."""
    reach = kernel // 2
    offset = torch.arange(-reach, reach + 1, dtype=views.dtype, device=views.device)
    sigma = torch.where(sigma > 0, sigma, 1)  # views that are not blurred must not divide by 0
    taps = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, dim=1)  # [n, kernel]
    taps = taps.repeat_interleave(3, 0)[:, None]  # [n * 3, 1, kernel]
    planes = F.pad(views, (reach,) * 4, mode="reflect").flatten(0, 1)[None]  # [1, n * 3, ...]
    planes = F.conv2d(planes, taps[..., None], groups=len(taps))
    return F.conv2d(planes, taps[:, :, None], groups=len(taps)).view_as(views)


def _solarize(views: Tensor, threshold: Tensor) -> Tensor:
    at_or_above = ((views - threshold[:, None, None, None]).sign() + 1).clamp(max=1)
    return torch.lerp(views, 1 - views, at_or_above)
