"""Controls: the labels that the feedback uses, spent directly on a classifier."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn

from vpt_kernels import PackedImages
from vpt_vision.config import RunConfig
from vpt_vision.data import build_source
from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare.spec import FineTuneConfig
from vpt_vision.evaluation.features import ProbeFeatures, Reading, extract
from vpt_vision.evaluation.result import ProbeResult
from vpt_vision.feedback import ClassificationConfig, ClassificationFeedback, Examples, evaluating
from vpt_vision.learner import Backbone
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import fit_logistic
from vpt_vision.task import Keys, Renderer

L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
WARMUP = 0.1  # share of the steps over which the learning rate rises
READ_AT_ONCE = 256  # images


@dataclass(frozen=True)
class LabelBudget:
    """The labelled images of one run's classification feedback, and the images that judge."""

    fitted: Examples  # its head and meta splits
    heldout: Examples  # picks settings; never fitted on
    classes: int
    config: RunConfig

    @classmethod
    def of(cls, config: RunConfig) -> LabelBudget:
        """Read the very examples that a run of `config` reads.

        Raises `UserError` where its feedback is not one classification task: what else the labels could be
        spent on is known for classes alone.
        """
        tasks = {} if config.feedback is None else config.feedback.tasks
        found = [task for task in tasks.values() if isinstance(task, ClassificationConfig)]
        if len(found) != 1:
            raise UserError(
                "controls spend the feedback's labels on a classifier, and the primary arm's feedback has "
                f"{len(found)} classification tasks: set controls to null."
            )
        task, size = found[0], config.recipe.crops.global_size
        feedback = ClassificationFeedback.from_source(
            task.model_copy(update={"folds": 1}),  # the examples before any are pooled
            build_source(task.source, 2 * size),  # as `build_feedback` reads it
            renderer=config.renderer(),
            size=size,
            seed=config.seed,
        )
        splits = feedback.splits
        return cls(splits.head + splits.meta, splits.heldout, feedback.classes, config)

    @property
    def labels(self) -> int:
        """How many labels there are to spend."""
        return len(self.fitted) + len(self.heldout)

    def test(self, backbone: Backbone) -> ProbeFeatures:
        """Features of the test images."""
        evaluation = self.config.evaluation
        assert evaluation is not None, "a comparison's configs have one"
        return extract(
            backbone,
            build_source(evaluation.test, evaluation.shorter_side()),
            self.config.renderer(),
            evaluation.image_size,
            precision=evaluation.precision,
            reading=Reading(evaluation.batch_size, evaluation.workers, evaluation.max_unreadable),
        )

    def features(self, backbone: Backbone, examples: Examples) -> Tensor:
        """CLS and mean patch token side by side [N, 2 D], of images seen whole as the test's are."""
        evaluation = self.config.evaluation
        assert evaluation is not None, "a comparison's configs have one"
        device = next(backbone.parameters()).device
        rows = []
        with torch.no_grad(), evaluating(backbone):
            for first in range(0, len(examples), READ_AT_ONCE):
                images = examples.images[first : first + READ_AT_ONCE].to(device)
                views = self.config.renderer().whole(images, evaluation.image_size)
                rows.append(_pooled(backbone, views).cpu())
        return torch.cat(rows)


def linear_on_labels(backbone: Backbone, budget: LabelBudget) -> ProbeResult:
    """Logistic regression on frozen features of the feedback's examples, judged on the test images.

    l2 is the one of least cross-entropy on the feedback's held-out split.
    """
    head, l2 = _fit(backbone, budget)
    return _judged("linear on the feedback's labels", head, budget.test(backbone), {"l2": l2})


def fine_tune_on_labels(
    start: Backbone, budget: LabelBudget, config: FineTuneConfig
) -> tuple[Backbone, ProbeResult]:
    """Fine-tune a copy of `start` with a linear head on the feedback's labels; judge it on the test images.

    The head starts at the logistic regression on the frozen features (Kumar et al. 2022). Images are the
    recipe's first global view; AdamW with layer decay, warm-up and half a cosine. Learning rate and epoch
    are those of least cross-entropy on the feedback's held-out split, where no training is among the
    candidates too.
    """
    head, _ = _fit(start, budget)
    device = next(start.parameters()).device
    best = Classifier(copy.deepcopy(start), head).to(device)
    best_loss, best_rate, best_epoch = _heldout_loss(best, budget), 0.0, 0
    for rate in config.learning_rates:
        classifier = Classifier(copy.deepcopy(start), head).to(device)
        for epoch in _epochs(classifier, budget, config, rate):
            loss = _heldout_loss(classifier, budget)
            if loss < best_loss:
                best, best_loss, best_rate, best_epoch = copy.deepcopy(classifier), loss, rate, epoch
    settings = {"learning_rate": best_rate, "epoch": best_epoch}
    result = _judged(FINE_TUNED_PROBE, best.linear_map(), budget.test(best.backbone), settings)
    return best.backbone, result


FINE_TUNED_PROBE = "full fine-tuning on the feedback's labels"


class Classifier(nn.Module):
    """A backbone and a linear head on its CLS and mean patch token."""

    def __init__(self, backbone: Backbone, head: LinearMap) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(head.weight)
            self.head.bias.copy_(head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] of normalised images [N, 3, s, s]."""
        return self.head(_pooled(self.backbone, images))

    def linear_map(self) -> LinearMap:
        """The head as it stands."""
        return LinearMap(self.head.weight.detach().cpu(), self.head.bias.detach().cpu())


def _epochs(
    classifier: Classifier, budget: LabelBudget, config: FineTuneConfig, rate: float
) -> Iterator[int]:
    """Train `classifier`, handing out the number of each epoch as it ends."""
    run, examples = budget.config, budget.fitted
    device = classifier.head.weight.device
    recipe = run.recipe.model_copy(update={"crops": run.recipe.crops.model_copy(update={"local_views": 0})})
    designer, renderer = FixedDesigner(recipe, classifier.backbone.patch_size), run.renderer()
    optimiser = create_optimizer_v2(
        classifier.backbone.vit,
        "adamw",
        lr=rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
    )
    optimiser.add_param_group({"params": list(classifier.head.parameters()), "lr_scale": 1.0})
    per_epoch = math.ceil(len(examples) / config.batch_size)
    for epoch in range(1, config.epochs + 1):
        generator = torch.Generator().manual_seed((run.seed << 20) + epoch)
        order = torch.randperm(len(examples), generator=generator)
        classifier.train()
        for number, members in enumerate(torch.split(order, config.batch_size)):
            done = ((epoch - 1) * per_epoch + number) / (config.epochs * per_epoch)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0) * _schedule(done)
            views = _first_view(
                designer, renderer, examples.images[members].to(device), Keys(run.seed, epoch, members)
            )
            with torch.random.fork_rng():  # stochastic depth draws from the global generator
                torch.manual_seed((run.seed << 32) + epoch * per_epoch + number)
                logits = classifier(views)
            loss = F.cross_entropy(logits, examples.labels[members].to(device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        yield epoch


def _first_view(designer: FixedDesigner, renderer: Renderer, images: PackedImages, keys: Keys) -> Tensor:
    with torch.no_grad():
        return renderer(images, designer(images, keys)).global_views[0]


def _schedule(done: float) -> float:
    """Factor on the learning rate at a share of the steps: linear warm-up, then half a cosine."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def _fit(backbone: Backbone, budget: LabelBudget) -> tuple[LinearMap, float]:
    """The logistic regression on the fitted examples of the l2 that the held-out ones pick."""
    features, heldout = (budget.features(backbone, part) for part in (budget.fitted, budget.heldout))
    fits: list[tuple[float, float, LinearMap]] = []
    head: LinearMap | None = None
    for l2 in L2_GRID:  # each solution is a good start for the next, looser one
        head = fit_logistic(features, budget.fitted.labels, budget.classes, l2=l2, start=head)
        loss = float(F.cross_entropy(head(heldout).double(), budget.heldout.labels))
        if fits and loss > fits[-1][0]:
            break  # looser ones over-fit more
        fits.append((loss, l2, head))
    _, l2, head = min(fits, key=lambda fit: fit[0])
    return head, l2


def _heldout_loss(classifier: Classifier, budget: LabelBudget) -> float:
    logits = classifier.linear_map()(budget.features(classifier.backbone, budget.heldout))
    return float(F.cross_entropy(logits.double(), budget.heldout.labels))


def _judged(probe: str, head: LinearMap, test: ProbeFeatures, settings: dict[str, float]) -> ProbeResult:
    logits = head(torch.cat([test.cls, test.mean_patch.float()], dim=1)).double()
    losses = F.cross_entropy(logits, test.labels, reduction="none")
    return ProbeResult.of_classes(probe, logits.argmax(1) == test.labels, losses, test.index, settings)


def _pooled(backbone: Backbone, images: Tensor) -> Tensor:
    features = backbone(images)
    return torch.cat([features.cls, features.patches.mean(1)], dim=1).float()
