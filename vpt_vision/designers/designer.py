"""What every designer is: a network from source images to a policy over their tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from vpt_vision.designers.policy import Policy
from vpt_vision.task import Keys, RenderedViews, Task


class Observed(Protocol):
    """What a designer may ask of the learner as it stands. Asking changes nothing in the learner."""


class Refined(NamedTuple):
    """A task that has seen its pixels: what the learner trains on, and what value is measured on."""

    task: Task
    views: RenderedViews
    penalties: Mapping[str, Tensor] = MappingProxyType({})  # weighted scalars that the designer pays


class Designer(nn.Module, ABC):
    """Makes a `Task` from a batch of source images.

    A step calls it twice: `designer(images, keys)` draws the task from the images alone, the task is
    rendered, and `refine` may change it by its pixels and by the learner. Most designers leave it as it is.
    """

    learns_from: ClassVar[Literal["nothing", "value"]] = "nothing"  # what its own step ascends

    @abstractmethod
    def policy(self, images: Tensor) -> Policy:
        """Return the law of the tasks of uint8 `images` [B, 3, H, W], each image's by itself."""

    def forward(self, images: Tensor, keys: Keys) -> Task:
        """Draw one task for uint8 `images` [B, 3, H, W], `keys.samples` [B] naming them."""
        return self.policy(images).sample(keys)

    def refine(
        self, task: Task, views: RenderedViews, keys: Keys, learner: Observed, temperature: float
    ) -> Refined:
        """Finish `task`, given its `views` and the learner as it stands; the default changes nothing.

        Differentiable in the designer's parameters where gradients are recorded. `temperature` is the
        teacher's. A kind of view's size never changes, nor does the number of global views that the learner
        compares.
        """
        return Refined(task, views)

    def search_parameters(self) -> dict[str, nn.Parameter]:
        """Return what population search perturbs, under the names of `named_parameters`; none by default."""
        return {}

    def optimiser(self) -> Optimizer | None:
        """Return a new optimiser of the designer's parameters; None where nothing is trained.

        It honours `found_inf`: where that is 1 it leaves everything alone, without waiting for the device.
        """
        return None
