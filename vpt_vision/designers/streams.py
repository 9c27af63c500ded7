"""The table of random streams: which numbers each drawn quantity of the recipe is a function of."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from vpt_kernels import keyed_uniform
from vpt_vision.designers.recipe import ViewKind
from vpt_vision.task import Keys


class Stream(IntEnum):
    """Every quantity a designer draws; a number once given is never given to another.

    The stream handed to `keyed_uniform` is twice this number, plus 1 for local views.
    """

    AREA = 0
    ASPECT = 1
    ROW = 2
    COLUMN = 3
    FLIP = 4
    JITTER = 5
    GREY = 6
    BLUR = 7
    SOLARIZE = 8
    BRIGHTNESS = 9
    CONTRAST = 10
    SATURATION = 11
    HUE = 12
    SIGMA = 13
    JITTER_ORDER = 14
    MASKED = 15
    MASK_RATIO = 16
    HINT = 17
    OCCLUSION = 18
    HARD_PAIR = 19
    HARD_LOCALS = 20
    MASK_CHOICE = 21
    RECIPE = 22


def draw(keys: Keys, stream: Stream, kind: ViewKind, attempts: int = 1) -> Tensor:
    """Draw uniforms [V, B, attempts] in (0, 1), fp32, on the device of `keys.samples`.

    View v's numbers do not depend on how many views there are.
    """
    u = keyed_uniform(keys.seed, keys.step, keys.samples, 2 * stream + kind.index, kind.views * attempts)
    return u.view(len(keys.samples), kind.views, attempts).transpose(0, 1)


def draw_each(keys: Keys, streams: tuple[Stream, ...], kind: ViewKind) -> Tensor:
    """Draw uniforms [len(streams), V, B], one row a stream."""
    return torch.stack([draw(keys, stream, kind).squeeze(-1) for stream in streams])
