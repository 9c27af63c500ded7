"""What every designer is: a network from source images to a policy over their tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from vpt_kernels import PackedImages
from vpt_vision.designers.policy import Policy, Surface
from vpt_vision.errors import UserError
from vpt_vision.task import Keys, RenderedViews, Task


class Observed(Protocol):
    """What a designer may ask of the learner as it stands, without gradient. Asking changes nothing in it."""

    def cls_attention(self, global_views: Tensor) -> Tensor:
        """Return how much the teacher's class token attends to each patch of each view, [G, B, N] fp32.

        It is the last block's, the mean over heads, for normalised `global_views` [G, B, 3, S, S]. Raises
        UserError where the backbone has no such attention.
        """

    def cross_entropies(self, views: RenderedViews, temperature: float) -> Tensor:
        """Return DINO's loss of each view under each global view, [G + L, G, B] fp32.

        That of (v, g) is the student's class token of whole view v, the global ones first, under the
        teacher's target for g.
        """


class Refined(NamedTuple):
    """A task that has seen its pixels: what the learner trains on, and what value is measured on."""

    task: Task
    views: RenderedViews
    penalties: Mapping[str, Tensor] = MappingProxyType({})  # weighted scalars that the designer pays
    figures: Mapping[str, Tensor] = MappingProxyType({})  # scalars for the log


class Designer(nn.Module, ABC):
    """Makes a `Task` from a batch of source images.

    A step calls it twice: `designer(images, keys)` draws the task from the images alone, the task is
    rendered, and `refine` may change it by its pixels and by the learner. Most designers leave it as it is.

    A learned policy goes from the images to features, from these by the heads (the last layers) to outputs,
    and from the outputs to the policy: estimators of value enter at each of the three.
    """

    learns_from: ClassVar[Literal["nothing", "value", "loss"]] = "nothing"  # what its own step ascends
    surfaces: frozenset[Surface] = frozenset()  # what of the recipe it controls
    surface_of: ClassVar[Mapping[str, Surface]] = {}  # which surface each head's output shapes
    kl_weight: float = 0.0  # price in value of one nat of KL from the recipe, where value teaches it

    def features(self, images: PackedImages) -> dict[str, Tensor]:
        """Return what each head reads of `images`: [B, D] or [B, D, R, C] by its name."""
        return {}

    def outputs(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what each head says, [B, C] or [B, C, R, C'] by its name, fp32; zeros are the recipe."""
        return {}

    def scale_outputs(self, share: Tensor) -> None:
        """Multiply every output by `share`, a scalar, for good: 0 is the recipe, 1 changes nothing.

        A designer with outputs that are to be held by `value.leash.kl_bound` implements it.
        """
        raise UserError(
            f"value.leash.kl_bound is set, and {type(self).__name__} has no scale_outputs to be held by: "
            "write that method, or leave the bound out."
        )

    @abstractmethod
    def policy_of(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """Return the law of the tasks of `images`, each image's by its own outputs."""

    def policy(self, images: PackedImages) -> Policy:
        """Return the law of the tasks of `images`, each image's by itself."""
        return self.policy_of(images, self.outputs(self.features(images)))

    def forward(self, images: PackedImages, keys: Keys) -> Task:
        """Draw one task for `images`, `keys.samples` [B] naming them."""
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

    def optimiser(self) -> Optimizer | None:
        """Return a new optimiser of the designer's parameters; None where nothing is trained.

        It honours `found_inf`: where that is 1 it leaves everything alone, without waiting for the device.
        """
        return None
