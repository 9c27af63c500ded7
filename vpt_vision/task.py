"""`Task`: the self-supervised prediction problem that a designer sets for one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_kernels import PackedImages, Photometrics, pack_masks, render_views


class Keys(NamedTuple):
    """What every random number of a step is a function of.

    A draw depends on (seed, step, sample) alone, so it is the same whatever the batch layout, the
    number of workers or the world size, and a resumed run repeats it without stored RNG state.
    """

    seed: int
    step: int
    samples: Tensor  # [B] int64 on the CPU: each image's index in its data set


@dataclass(frozen=True)
class Views:
    """V views of one size of each of B source images."""

    size: int  # side of the square view, pixels
    boxes: Tensor  # [V, B, 4] fp32: top, left, height, width in source pixels, real-valued
    flips: Tensor  # [V, B] bool: mirrored left to right after cropping
    photometrics: Photometrics  # eight tensors [V, B]

    def detach(self) -> Views:
        """Return these views without the designer's gradient."""
        photometrics = Photometrics(*(field.detach() for field in self.photometrics))
        return replace(self, boxes=self.boxes.detach(), photometrics=photometrics)

    @classmethod
    def unchanged(cls, boxes: Tensor, size: int) -> Views:
        """Return one view of each image, by `boxes` [B, 4], neither mirrored nor changed in colour."""
        shape, device = (1, len(boxes)), boxes.device
        flips = torch.zeros(shape, dtype=torch.bool, device=device)
        return cls(size, boxes[None], flips, Photometrics.neutral(shape, device))

    def render(self, images: PackedImages, *, mean: Tensor, std: Tensor, interpolation: str) -> Tensor:
        """Render the views of `images` to normalised fp32 [V, B, 3, size, size]."""
        return render_views(
            images,
            self.boxes,
            self.flips,
            self.photometrics,
            size=self.size,
            mean=mean,
            std=std,
            interpolation=interpolation,
        )


@dataclass(frozen=True)
class Masks:
    """Which patch tokens of the global views the student does not see, as a mask and as a list."""

    hidden: Tensor  # [G, B, N] bool: True where the token is replaced by the mask token
    index: Tensor  # [total] int64: the hidden tokens' places in hidden.flatten(), ascending
    weights: Tensor  # [total] fp32: 1 / how many tokens the same view hides, iBOT's weights
    relaxed: Tensor | None = None  # [G, B, N] fp32, equal to `hidden` in value, with the designer's gradient
    padded: bool = False  # whether the list may end in padding: index 0, weight 0

    @property
    def total(self) -> int:
        """How many tokens are listed, known on the host without waiting for the device."""
        return len(self.index)

    @property
    def counted(self) -> Tensor | None:
        """By how much each token that iBOT compares is hidden, fp32; None where all are.

        It compares those listed, of which padding is 0, and with relaxed masks all of them, [G·B·N].
        """
        if self.relaxed is not None:
            return self.relaxed.flatten()
        return (self.weights > 0).float() if self.padded else None

    @classmethod
    def of(cls, hidden: Tensor, total: int) -> Masks:
        """List the `total` hidden tokens of `hidden` [G, B, N]; nothing waits for the device."""
        packed = pack_masks(hidden.flatten(0, 1), total)
        return cls(hidden, packed.indices, packed.weights)

    def detach(self) -> Masks:
        """These masks without the designer's gradient."""
        return replace(self, relaxed=None)


MIXED = ("dino", "ibot", "gram")  # the terms of the learner's loss that a task can mix anew


@dataclass(frozen=True)
class Targets:
    """How the losses of a batch are weighed, and how sharp the teacher's targets are.

    All are positive fp32. What is None is neutral, and costs nothing.
    """

    token_weights: Tensor | None = None  # [G, B, N], of tokens in iBOT's loss; mean 1 over a view's hidden
    sample_weights: Tensor | None = None  # [B], of images in the losses MIXED; mean 1 over the batch
    temperature: Tensor | None = None  # [B]: factors of the teacher's temperature
    mix: Tensor | None = None  # [3, B]: factors of the learner's weights of MIXED, up to a common factor

    def detach(self) -> Targets:
        """These targets without the designer's gradient."""
        return Targets(*(None if value is None else value.detach() for value in self._values()))

    @property
    def requires_grad(self) -> bool:
        """Whether anything here leads back to the designer."""
        return any(value is not None and value.requires_grad for value in self._values())

    def _values(self) -> tuple[Tensor | None, ...]:
        return self.token_weights, self.sample_weights, self.temperature, self.mix


@dataclass(frozen=True)
class Task:
    """A self-supervised prediction problem for one batch, as plain tensors.

    Made by a `Designer`, consumed by the `Learner`; nothing else passes between them.
    """

    global_views: Views
    local_views: Views  # V = 0 where the recipe has no local views
    masks: Masks
    targets: Targets = Targets()

    def detach(self) -> Task:
        """The task as the learner trains on it: nothing in it leads back to the designer."""
        return Task(
            self.global_views.detach(),
            self.local_views.detach(),
            self.masks.detach(),
            self.targets.detach(),
        )

    @torch.no_grad()
    def describe(self, images: PackedImages) -> dict[str, Tensor]:
        """Scalars to log: `mask_ratio`, of the views that are masked, and each kind's mean crop `KIND_scale`.

        A crop's scale is its share of its image's area.
        """
        hidden = self.masks.hidden.float().mean(-1)
        described = {"mask_ratio": hidden.sum() / (hidden > 0).sum().clamp(min=1)}
        area = images.heights * images.widths
        for kind, views in (("global", self.global_views), ("local", self.local_views)):
            if len(views.boxes):
                described[f"{kind}_scale"] = (views.boxes[..., 2:].prod(-1) / area).mean()
        return described

    @property
    def has_gradient(self) -> bool:
        """Whether its losses are differentiable in its masks or targets, which no pixels show."""
        return self.masks.relaxed is not None or self.targets.requires_grad


class RenderedViews(NamedTuple):
    """The pixels of a task: normalised images of every view.

    The student may be shown the global views changed, in n versions one after the other; `teacher_views` are
    then those that the teacher sees.
    """

    global_views: Tensor  # [n·G, B, 3, S, S]; n = 1 as a rule
    local_views: Tensor  # [L, B, 3, s, s]
    teacher_views: Tensor | None = None  # [G, B, 3, S, S]; None: the global views

    @property
    def for_teacher(self) -> Tensor:
        """The global views as the teacher sees them, [G, B, 3, S, S]."""
        return self.global_views if self.teacher_views is None else self.teacher_views


@dataclass(frozen=True)
class Renderer:
    """Turns (source images, task) into pixels with one normalisation and one interpolation."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"

    def __call__(self, images: PackedImages, task: Task) -> RenderedViews:
        """Render `images` as `task` says."""
        return RenderedViews(*(self.render(images, views) for views in (task.global_views, task.local_views)))

    def render(self, images: PackedImages, views: Views) -> Tensor:
        """Render `views` of `images` to normalised fp32 [V, B, 3, size, size]."""
        mean = torch.tensor(self.mean, device=images.device)
        std = torch.tensor(self.std, device=images.device)
        return views.render(images, mean=mean, std=std, interpolation=self.interpolation)

    def whole(self, images: PackedImages, size: int) -> Tensor:
        """Render the largest centred square of each image, as probes and feedback see it.

        Returns normalised fp32 [B, 3, size, size], resized with antialiasing and otherwise unchanged.
        `data.maps.whole_map` shows the same of a map.
        """
        heights, widths = images.heights.double(), images.widths.double()
        side = torch.minimum(heights, widths)
        boxes = torch.stack([(heights - side) / 2, (widths - side) / 2, side, side], -1).float()
        return self.render(images, Views.unchanged(boxes, size))[0]
