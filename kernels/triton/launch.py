"""What every launch needs: Triton of a sufficient version, and the right device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

_OLDEST = (3, 6)

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"vpt_kernels needs Triton {_OLDEST[0]}.{_OLDEST[1]} or newer, found {triton.__version__}: "
        "install a newer one, or run on the CPU, which needs none."
    )


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Give the context in which a launch goes to the device of `tensor`, not to the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def block(size: int, most: int, least: int = 16) -> int:
    """Return the power of two, between `least` and `most`, that covers `size` where it can."""
    return max(least, min(most, triton.next_power_of_2(max(size, 1))))
