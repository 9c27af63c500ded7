r"""How value changes with each number of a designer, and how much of that is noise.

    python benchmarks/steering/slopes.py SPEC.yaml --step 40 --json slopes.json --set seed=2

SPEC.yaml is a run's config, with a learned designer that reads nothing. The fixed recipe is trained up to the
value step after update `--step`, as a run would be; there each number of the designer is moved by one to
either side by itself, on many batches. Told are, for u of the given labels and of labels dealt at random, the
mean slope of value with its standard error over batches, and half the difference between u's two halves.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vpt_vision.config import RunConfig, load_config
from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.feedback import (
    Direction,
    Feedback,
    FeedbackConfig,
    FeedbackGradient,
    build_feedback,
    evaluating,
)
from vpt_vision.task import Keys
from vpt_vision.training.schedules import scheduled_values
from vpt_vision.training.trainer import Trainer
from vpt_vision.value.gradient import pretraining_gradients
from vpt_vision.value.lead import led
from vpt_vision.value.oracle import values
from vpt_vision.value.setting import Setting

Found = dict[str, dict[str, dict[str, float]]]  # by labels and number


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--step", type=int, default=40, help="of the value step, as value.since counts")
    parser.add_argument("--batches", type=int, default=24, help="of value.batch images")
    parser.add_argument("--random", type=int, default=3, help="u's of labels dealt at random")
    parser.add_argument("--json", type=Path, help="where to keep what was measured")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="changes to the config")
    options = parser.parse_args()
    try:
        found = measure(
            load_config(options.config, options.set), options.step, options.batches, options.random
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return 0


def measure(config: RunConfig, step: int, batches: int, random: int) -> Found:
    """Train the recipe up to the value step after update `step`, and take the slopes there."""
    if batches < 2:
        raise UserError("an error over batches needs 2 of them: raise --batches.")
    trainer = Trainer(config)
    if trainer.value_step is None or config.feedback is None:
        raise UserError("value needs labelled examples: give the config a 'feedback' part.")
    feedback = trainer.value_step.feedback_gradient
    weights = trainer.value_step.objective.weights
    designer, trainer.value_step = trainer.designer, None
    if any(output.ndim > 2 for output in designer.outputs(_features(trainer)).values()):
        raise UserError("this designer has fields: one whose outputs are numbers is needed (reads: nothing).")
    backbone, blocks = trainer.learner.student.backbone, config.value.tail_blocks
    trainer.designer = FixedDesigner(config.recipe, backbone.patch_size).to(trainer.device)
    for batch in islice(trainer.loader, step + 1):
        trainer.train_step(batch.to(trainer.device))

    keys = Keys(config.seed, step, torch.arange(0))
    gradients = {"given": feedback}
    for number in range(random):
        gradients[f"random {number}"] = FeedbackGradient(_feedback(trainer, config, number), blocks)
    lead = trainer.optimiser.adamw if config.value.lead else None
    along: list[Direction] = []
    with led(backbone.tail_parameters(blocks), lead):
        for gradient in gradients.values():
            gradient.update(backbone, keys)
            halves = [
                gradient.combine({name: average.half(half) for name, average in gradient.averages.items()})
                for half in (0, 1)
            ]
            along += [{name: value.clone() for name, value in half.items()} for half in halves]

    scheduled = scheduled_values(config.schedule, step, config.steps)
    taken: list[Tensor] = []  # of each batch: [numbers, 2 halves for each of the labels]
    names: list[str] = []
    for batch in islice(trainer.loader.upcoming(config.value.batch), batches):
        images = batch.images.to(trainer.device)
        setting = Setting(trainer.learner, trainer.renderer, images, scheduled.teacher_temperature, blocks)
        at = keys._replace(samples=batch.index)
        with evaluating(trainer.learner), torch.no_grad():
            centre = designer.outputs(designer.features(images))
            rows = []
            for name, output in centre.items():
                for number in range(output.shape[1]):
                    up, down = (_moved(output, number, sign) for sign in (1.0, -1.0))
                    policies = [designer.policy_of(images, centre | {name: moved}) for moved in (up, down)]
                    sides = []
                    for policy in policies:
                        task = policy.sample(at)
                        terms = values(
                            pretraining_gradients(setting, task, trainer.renderer(images, task)), along
                        )
                        sides.append(sum(weights[term] * terms[term] for term in terms if weights[term]))
                    rows.append((sides[0] - sides[1]) / 2)
                    if not taken:
                        names.append(_name(policies[0].describe(), policies[1].describe()))
        taken.append(torch.stack(rows))
    slopes = torch.stack(taken).double().cpu().unflatten(2, (len(gradients), 2))
    return {labels: _told(slopes[:, :, n], names) for n, labels in enumerate(gradients)}


def _features(trainer: Trainer) -> dict[str, Tensor]:
    (batch,) = islice(trainer.loader.upcoming(2), 1)
    return trainer.designer.features(batch.images.to(trainer.device))


def _feedback(trainer: Trainer, config: RunConfig, number: int) -> Feedback:
    assert config.feedback is not None
    dealt: FeedbackConfig = config.feedback.model_copy(update={"labels": "permuted"})
    return build_feedback(
        dealt,
        renderer=trainer.renderer,
        size=config.recipe.crops.global_size,
        patch_size=trainer.learner.student.backbone.patch_size,
        seed=config.seed + 1000 * (number + 1),
    )


def _moved(output: Tensor, number: int, by: float) -> Tensor:
    moved = output.clone()
    moved[:, number] += by
    return moved


def _name(above: dict[str, Tensor], below: dict[str, Tensor]) -> str:
    """What of the policy a number moves most, by its own size."""
    return max(
        above, key=lambda name: float((above[name] - below[name]).abs() / above[name].abs().clamp(min=1e-6))
    )


def _told(slopes: Tensor, names: list[str]) -> dict[str, dict[str, float]]:
    """Of slopes [batches, numbers, halves of u]."""
    whole, apart = slopes.mean(2), (slopes[..., 0] - slopes[..., 1]) / 2
    error = whole.std(0) / len(whole) ** 0.5
    columns = {"slope": whole.mean(0), "error": error, "half_difference": apart.mean(0)}
    return {
        name: {column: float(figures[number]) for column, figures in columns.items()}
        for number, name in enumerate(names)
    }


def markdown(found: Found) -> str:
    """A row for each of the labels, a column for each number, in 1e-4."""
    numbers = list(next(iter(found.values())))
    lines = ["| labels | " + " | ".join(numbers) + " |", "| --- |" + " ---: |" * len(numbers)]
    for labels, told in found.items():
        cells = [
            f"{1e4 * told[name]['slope']:+.2f} ± {1e4 * told[name]['error']:.2f} "
            f"({1e4 * told[name]['half_difference']:+.2f})"
            for name in numbers
        ]
        lines.append(f"| {labels} | " + " | ".join(cells) + " |")
    return (
        "\n".join(lines)
        + "\n\n1e-4 per unit ± standard error over batches (half the difference of u's halves)"
    )


if __name__ == "__main__":
    sys.exit(main())
