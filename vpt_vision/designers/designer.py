"""What every designer is: a network from source images to a policy over their tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vpt_vision.designers.policy import Policy
from vpt_vision.task import Keys, Task


class Designer(nn.Module, ABC):
    """Makes a `Task` from a batch of source images."""

    @abstractmethod
    def policy(self, images: Tensor) -> Policy:
        """Return the law of the tasks of uint8 `images` [B, 3, H, W], each image's by itself."""

    def forward(self, images: Tensor, keys: Keys) -> Task:
        """Draw one task for uint8 `images` [B, 3, H, W], `keys.samples` [B] naming them."""
        return self.policy(images).sample(keys)

    def search_parameters(self) -> dict[str, nn.Parameter]:
        """Return what population search perturbs, under the names of `named_parameters`; none by default."""
        return {}
