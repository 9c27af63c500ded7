"""u without meaning: the control that says what the feedback's own gradient is worth."""

from __future__ import annotations

import torch

from vpt_kernels import keyed_uniform
from vpt_vision.feedback.gradient import Direction, inner
from vpt_vision.task import Keys

RANDOM_STREAM = 904  # of `keyed_uniform`
_ROW = 2**16  # numbers drawn under one key


def random_direction(like: Direction, keys: Keys) -> Direction:
    """Draw a direction of `like`'s length, even over all directions; a function of seed and step.

    It stands in for u as the "random gradient" of the published ablations (Ke & Fanti, arXiv 2601.22108).
    """
    drawn: Direction = {}
    row = 0
    for name, value in like.items():
        rows = -(-value.numel() // _ROW)
        names = torch.arange(row, row + rows, device=value.device)
        uniform = keyed_uniform(keys.seed, keys.step, names, RANDOM_STREAM, min(_ROW, value.numel()))
        normal = torch.special.ndtri(uniform).flatten()[: value.numel()]
        drawn[name] = normal.view_as(value).to(value.dtype)
        row += rows
    scale = (inner(like, like) / inner(drawn, drawn)).sqrt()
    return {name: scale * value for name, value in drawn.items()}
