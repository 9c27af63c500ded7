"""What operations allocate."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """Record how many numbers and bytes the largest tensor holds that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
                self.bytes = max(self.bytes, tensor.nbytes)
        return made
