"""u: the direction in the learner's last blocks along which downstream loss rises fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vpt_kernels import keyed_uniform
from vpt_vision.collectives import all_reduce_mean, rank
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.feedback.task import Feedback, FeedbackTask, Split, through_fit_of
from vpt_vision.learner.backbone import Backbone, Features
from vpt_vision.task import Keys

BATCH_STREAM = 902  # of `keyed_uniform`: which meta examples a step draws
CHUNK = 256  # images per forward pass

Direction = dict[str, Tensor]  # one tensor per tail parameter, by `Backbone.tail_parameters`' names
Halves = tuple[Direction, Direction]  # the same of either half of a meta split


def inner(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """⟨first, second⟩ over all tensors, a scalar; both have the same keys."""
    return torch.stack([(first[name] * second[name]).sum() for name in first]).sum()


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Cosine between two directions, a scalar; 0 where one of them is 0."""
    norms = inner(first, first).sqrt() * inner(second, second).sqrt()
    return inner(first, second) / norms.clamp(min=torch.finfo(norms.dtype).tiny)


class LossAndGradient(NamedTuple):
    """A downstream loss and its gradient in the tail, both detached."""

    loss: Tensor  # scalar
    gradient: Direction


@torch.no_grad()
def all_features(task: FeedbackTask, backbone: Backbone, split: Split) -> Features:
    """Features of every example of a split, in order, by the backbone in eval mode."""
    device = backbone.mask_token.device
    with evaluating(backbone):
        chunks = [
            backbone(task.images(split, index, device), None)
            for index in torch.split(torch.arange(task.count(split)), CHUNK)
        ]
    return Features(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


@torch.no_grad()
def whole_loss(task: FeedbackTask, backbone: Backbone, split: Split) -> Tensor:
    """Mean loss over a whole split, the head as last fitted; a scalar on the device."""
    return task.loss(all_features(task, backbone, split), split, torch.arange(task.count(split)))


def feedback_gradient(
    task: FeedbackTask, backbone: Backbone, split: Split, index: Tensor, tail_blocks: int
) -> LossAndGradient:
    """L_down of examples `index` (int64, on the CPU) and ∇_{θ_S} of it, by the backbone in eval mode.

    S = the last `tail_blocks` blocks and the final norm. No `.grad` is written.
    """
    parameters = backbone.tail_parameters(tail_blocks)
    with evaluating(backbone):
        chunks = []
        for chunk in torch.split(index, CHUNK):
            with torch.no_grad():
                images = task.images(split, chunk, backbone.mask_token.device)
                tail_input = backbone.trunk(images, None, tail_blocks)
            with torch.enable_grad():
                chunks.append(backbone.tail(tail_input))
        with torch.enable_grad():
            loss = task.loss(
                Features(*(torch.cat(parts) for parts in zip(*chunks, strict=True))), split, index
            )
        gradient = torch.autograd.grad(loss, list(parameters.values()))
    return LossAndGradient(loss.detach(), dict(zip(parameters, gradient, strict=True)))


def gradients_over(
    tasks: Sequence[FeedbackTask],
    backbone: Backbone,
    split: Split,
    index: Tensor,
    parameters: Mapping[str, Tensor],
) -> list[LossAndGradient]:
    """L_down of many examples `index`, and its gradient in `parameters`, for tasks on the same images.

    The backbone, in eval mode, sees a chunk of images at a time, and each chunk's graph serves all tasks: the
    slopes of every loss in the features are taken first, over all examples at once.

    Args:
        tasks: the images are the first one's; the labels each one's own, such as permuted ones.
        backbone: no `.grad` of it is written.
        split: of the examples.
        index: int64 [n], on the CPU.
        parameters: of the backbone, by name.
    """
    device, names = backbone.mask_token.device, list(parameters)
    chunks = torch.split(index, CHUNK)
    with evaluating(backbone):
        with torch.no_grad():
            parts = [backbone(tasks[0].images(split, chunk, device), None) for chunk in chunks]
        features = Features(*(torch.cat(part).requires_grad_() for part in zip(*parts, strict=True)))
        with torch.enable_grad():
            losses = [task.loss(features, split, index) for task in tasks]
        slopes = [torch.autograd.grad(loss, list(features), allow_unused=True) for loss in losses]
        totals = [{name: torch.zeros_like(parameters[name]) for name in names} for _ in tasks]
        for number, chunk in enumerate(chunks):
            with torch.enable_grad():
                outputs = backbone(tasks[0].images(split, chunk, device), None)
            for total, slope in zip(totals, slopes, strict=True):
                read = [pair for pair in zip(outputs, slope, strict=True) if pair[1] is not None]
                gradient = torch.autograd.grad(
                    [output for output, _ in read],
                    [parameters[name] for name in names],
                    [torch.split(part, CHUNK)[number] for _, part in read],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for name, part in zip(names, gradient, strict=True):
                    total[name] += part
    return [LossAndGradient(loss.detach(), total) for loss, total in zip(losses, totals, strict=True)]


def gradients_through_fit(
    task: FeedbackTask, backbone: Backbone, parts: Sequence[Tensor], tail_blocks: int
) -> list[LossAndGradient]:
    """L_down of each of the disjoint `parts` of meta, and its gradient through the heads' fit to all of them.

    Otherwise as `feedback_gradient`; raises `UserError` where the task cannot follow its heads.
    """
    parameters, index = backbone.tail_parameters(tail_blocks), torch.cat(list(parts))
    part = torch.cat([torch.full_like(each, number) for number, each in enumerate(parts)])
    loss_through_fit = through_fit_of(task)
    found = []
    with evaluating(backbone):
        chunks = []
        for chunk in torch.split(index, CHUNK):
            with torch.no_grad():
                images = task.images("meta", chunk, backbone.mask_token.device)
                tail_input = backbone.trunk(images, None, tail_blocks)
            with torch.enable_grad():
                chunks.append(backbone.tail(tail_input))
        with torch.enable_grad():
            features = Features(*(torch.cat(each) for each in zip(*chunks, strict=True)))
        for number in range(len(parts)):
            loss = loss_through_fit(features, index, part == number)
            gradient = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
            found.append(LossAndGradient(loss.detach(), dict(zip(parameters, gradient, strict=True))))
    return found


class _Average:
    """What is remembered of one task: an average for each half of `meta`, and how long gradients are."""

    def __init__(self) -> None:
        self.halves: Halves = ({}, {})
        self.square = torch.zeros(())  # of a batch's gradient
        self.mass = torch.zeros(())  # of past gradients in the averages, below 1

    def update(self, halves: Halves, decay: float) -> None:
        """Take in the gradients of a batch's halves; ones that are not finite leave everything as it was."""
        mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
        square = inner(mean, mean)
        finite = square.isfinite()
        kept = torch.where(finite, decay, 1.0)

        def blend(before: Tensor, now: Tensor) -> Tensor:
            return kept * before.to(now.device) + (1 - kept) * torch.where(finite, now, 0.0)

        for average, gradient in zip(self.halves, halves, strict=True):
            for name, value in gradient.items():
                average[name] = blend(average.get(name, torch.zeros_like(value)), value)
        self.square = blend(self.square, square)
        self.mass = blend(self.mass, torch.ones_like(square))

    def half(self, number: int) -> Direction:
        """The average of one half, its bias towards 0 in the first steps taken out."""
        mass = self.mass.clamp(min=1e-30)
        return {name: value / mass for name, value in self.halves[number].items()}

    @property
    def length(self) -> Tensor:
        """Root mean square length of past batches' gradients, above 0."""
        return (self.square / self.mass.clamp(min=1e-30)).sqrt().clamp(min=1e-30)

    def state_dict(self) -> dict[str, Any]:
        return {"halves": [dict(half) for half in self.halves], "square": self.square, "mass": self.mass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        first, second = state["halves"]
        self.halves = (dict(first), dict(second))
        self.square, self.mass = state["square"], state["mass"]


class FeedbackGradient:
    """u = Σ_t w_t/W (n̄/n_t) ∇_{θ_S} L_t over tasks t, each averaged over feedback gradients.

    n_t is the root mean square length of task t's gradients and n̄ = Σ_t w_t/W n_t, so that a task has its
    weight whatever the unit of its loss, and one task alone gives its gradient as it is. Lengths are those of
    single batches: a task whose batches disagree averages to a short vector, and has little say. Without
    `feedback.normalise` u is Σ_t w_t/W ∇_{θ_S} L_t.

    The meta split of each task is cut in two once and for all, and each half keeps an average of its own: u
    is their mean, and the cosine between them says how much of u the labelled sample decides (its
    reliability). u is detached, and no `.grad` is written. Each rank takes a batch of its own.

    Raises:
        UserError: through a task, where its head cannot be fitted.
    """

    def __init__(self, feedback: Feedback, tail_blocks: int) -> None:
        self.feedback = feedback
        self.tail_blocks = tail_blocks
        self.count = 0
        self.latest: dict[str, Tensor] = {}
        self.averages = {name: _Average() for name in feedback.tasks}
        # When last looked at; NaN until the heads are first fitted.
        self.heldout_losses = {name: torch.tensor(float("nan")) for name in feedback.tasks}

    def update(self, backbone: Backbone, keys: Keys) -> dict[str, Tensor]:
        """Fit the heads, and take the gradients of one meta batch of every task into the averages.

        Only every `feedback.every`-th call does so; the others leave everything as it is, and return what
        the last one did. A head that the backbone has moved away from would give another u than the best
        head's, so there is no gradient without a fit.

        Returns scalars: `meta_loss` and `heldout_loss` (weighted means over tasks; the latter when last
        looked at), `u_norm`, `u_reliability` (cosine of the two halves' averages) and
        `u_reliability_batch` (cosine of this batch's two halves); and the same for each task, under
        `meta_loss/NAME` and so on.
        """
        fits, between = divmod(self.count, self.feedback.every)
        self.count += 1
        if between:
            return dict(self.latest)
        self.fit(backbone)
        if fits % self.feedback.heldout_every == 0:
            self._look_at_heldout(backbone)
        losses: dict[str, Tensor] = {}
        batches: dict[str, Halves] = {}
        for name, entry in self.feedback.tasks.items():
            drawn = [self._draw(name, half, keys) for half in (0, 1)]
            if self.feedback.through_fit:
                halves = gradients_through_fit(entry.task, backbone, drawn, self.tail_blocks)
            else:
                halves = [
                    feedback_gradient(entry.task, backbone, "meta", half, self.tail_blocks) for half in drawn
                ]
            losses[name] = all_reduce_mean(torch.stack([half.loss for half in halves]).mean())
            first, second = (
                {key: all_reduce_mean(value) for key, value in half.gradient.items()} for half in halves
            )
            batches[name] = (first, second)
            self.averages[name].update(batches[name], self.feedback.ema)

        report = {"meta_loss": self._weighted(losses), "heldout_loss": self._weighted(self.heldout_losses)}
        halves_of = {name: (average.half(0), average.half(1)) for name, average in self.averages.items()}
        report |= self._described("", self.u, self._combined(halves_of), self._combined(batches))
        for name, by_task in self.by_task.items():
            report[f"meta_loss/{name}"] = losses[name]
            report[f"heldout_loss/{name}"] = self.heldout_losses[name]
            report |= self._described(f"/{name}", by_task, halves_of[name], batches[name])
        self.latest = report
        return dict(report)

    def fit(self, backbone: Backbone) -> None:
        """Fit every task's head to `backbone` as it stands (waits for the device)."""
        for entry in self.feedback.tasks.values():
            entry.task.fit(all_features(entry.task, backbone, "head"))

    def _look_at_heldout(self, backbone: Backbone) -> None:
        for name, entry in self.feedback.tasks.items():
            self.heldout_losses[name] = whole_loss(entry.task, backbone, "heldout")

    @property
    def u(self) -> Direction:
        """The combined gradient, detached."""
        return self.combine(self.by_task)

    @property
    def by_task(self) -> dict[str, Direction]:
        """Each task's own gradient, averaged over steps, in the unit of its loss; detached."""
        return {
            name: _mean(average.half(0), average.half(1))
            for name, average in self.averages.items()
            if average.halves[0]
        }

    def combine(self, by_task: Mapping[str, Direction]) -> Direction:
        """Weigh one direction of each task as `u` does those of `by_task`."""
        scales = self._scales()
        names = next(iter(by_task.values()))
        return {
            name: torch.stack([scales[task] * direction[name] for task, direction in by_task.items()]).sum(0)
            for name in names
        }

    def heldout(self, backbone: Backbone, keys: Keys) -> dict[str, Direction]:
        """Gradient of each task on a batch of its held-out examples, by the heads as last fitted.

        For watching only: `combine` makes of it what u would be, had it been taken on examples that no
        designer has learned from.
        """
        gradients = {}
        for name, entry in self.feedback.tasks.items():
            count = entry.task.count("heldout")
            index = self._chosen(name, torch.arange(count), 2, keys)
            gradient = feedback_gradient(entry.task, backbone, "heldout", index, self.tail_blocks).gradient
            gradients[name] = {key: all_reduce_mean(value) for key, value in gradient.items()}
        return gradients

    def meta_loss(self, backbone: Backbone) -> Tensor:
        """L_down of all meta examples by the heads as last fitted, its tasks weighed as in `u`; a scalar."""
        scales = self._scales()
        losses = [
            scales[name] * whole_loss(entry.task, backbone, "meta")
            for name, entry in self.feedback.tasks.items()
        ]
        return torch.stack(losses).sum()

    def _combined(self, by_task: Mapping[str, Halves]) -> Halves:
        first, second = ({name: halves[i] for name, halves in by_task.items()} for i in (0, 1))
        return self.combine(first), self.combine(second)

    def _described(
        self,
        suffix: str,
        u: Direction,
        halves: Halves,
        batch: Halves,
    ) -> dict[str, Tensor]:
        return {
            f"u_norm{suffix}": inner(u, u).sqrt(),
            f"u_reliability{suffix}": cosine(*halves),
            f"u_reliability_batch{suffix}": cosine(*batch),
        }

    def _scales(self) -> dict[str, Tensor]:
        """What each task's gradient is multiplied by in u."""
        weights = self._weights()
        if not self.feedback.normalise:
            return {name: torch.tensor(weight) for name, weight in weights.items()}
        lengths = {name: average.length for name, average in self.averages.items()}
        mean = torch.stack([weights[name] * length for name, length in lengths.items()]).sum()
        return {name: weights[name] * mean / length for name, length in lengths.items()}

    def _weights(self) -> dict[str, float]:
        """The tasks' weights, summing to 1."""
        total = sum(entry.weight for entry in self.feedback.tasks.values())
        return {name: entry.weight / total for name, entry in self.feedback.tasks.items()}

    def _weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([weight * losses[name] for name, weight in self._weights().items()]).sum()

    def _draw(self, name: str, half: int, keys: Keys) -> Tensor:
        """Draw half a batch from one half of a task's meta split, without replacement."""
        count = self.feedback.tasks[name].task.count("meta")
        return self._chosen(name, torch.arange(half, count, 2), half, keys)

    def _chosen(self, name: str, members: Tensor, part: int, keys: Keys) -> Tensor:
        """Choose half a batch of `members`; other tasks, parts and ranks choose by other numbers."""
        place = 3 * rank() + part
        number = place * len(self.feedback.tasks) + list(self.feedback.tasks).index(name)
        draws = keyed_uniform(
            keys.seed, keys.step, number * len(members) + torch.arange(len(members)), BATCH_STREAM, 1
        )
        return members[draws[:, 0].argsort(stable=True)[: self.feedback.tasks[name].batch // 2]]

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, the count, the last report, and the heads with their held-out losses."""
        return {
            "count": self.count,
            "latest": dict(self.latest),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "heldout_losses": dict(self.heldout_losses),
            "tasks": {name: entry.task.state_dict() for name, entry in self.feedback.tasks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.count = state["count"]
        self.latest = dict(state["latest"])
        self.heldout_losses = dict(state["heldout_losses"])
        for name, entry in self.feedback.tasks.items():
            self.averages[name].load_state_dict(state["averages"][name])
            entry.task.load_state_dict(state["tasks"][name])


def _mean(first: Direction, second: Direction) -> Direction:
    return {name: (first[name] + second[name]) / 2 for name in first}
