"""Arithmetic that autocast does not reach."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Run an operator's body in the dtypes that it chooses, though autocast is on where it is called.

    Its first tensor says on which device that is. torch looks up the types in an operator's signature in this
    module, so any other than those of tensors and numbers must be imported here.
    """

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        device = next(argument for argument in arguments if isinstance(argument, Tensor)).device.type
        if not torch.amp.is_autocast_available(device):  # meta
            return function(*arguments, **options)
        with torch.autocast(device, enabled=False):
            return function(*arguments, **options)

    return run
