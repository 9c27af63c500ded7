r"""Value of one change of the recipe at a time, by loss term, beside what u's of permuted labels make of it.

    python benchmarks/steering/changes.py configs/testbed/cifar10_colour.yaml --steps 0 40 80 \
        --json benchmarks/steering/cifar10_colour/changes.json --set seed=100 feedback.head_size=2048

`vpt value oracle` asks whether value ranks known tasks; this asks which part of a task, and which term of the
loss, it hears. The recipe is trained to each of the steps, and there every change is compared with it on the
same images and random numbers, a batch each. z is the gain in V = <u, grad L> less the null's mean, in
deviations of the null; the deviation over batches tells how many a designer would need.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vpt_vision.config import RunConfig, load_config
from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.inspection.branch import Branch
from vpt_vision.task import Keys
from vpt_vision.training.schedules import scheduled_values
from vpt_vision.value.lead import led
from vpt_vision.value.oracle import Numbers, directions, rank, term_gradients, values
from vpt_vision.value.setting import Setting

WHOLE = "whole"  # the terms' sum with the learner's weights
PART = "recipe.photometrics"
CHANGES = {
    "no hue, grey or solarising": [f"{PART}.hue=0", f"{PART}.grey_p=0", f"{PART}.global_solarize_p=[0,0]"],
    "all grey": [f"{PART}.grey_p=1"],
    "no grey": [f"{PART}.grey_p=0"],
    "half grey": [f"{PART}.grey_p=0.5"],
    "no solarising": [f"{PART}.global_solarize_p=[0,0]", f"{PART}.local_solarize_p=0"],
    "no hue": [f"{PART}.hue=0"],
    "never jittered": [f"{PART}.jitter_p=0"],
    "always jittered": [f"{PART}.jitter_p=1"],
    "no blur": [f"{PART}.global_blur_p=[0,0]", f"{PART}.local_blur_p=0"],
}
Found = dict[str, dict[str, dict[str, dict[str, float]]]]  # by step, term and change


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 40, 80], help="when, in rising order")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--permutations", type=int, default=12)
    parser.add_argument("--json", type=Path, help="where to keep what was measured")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="changes to the config")
    options = parser.parse_args()
    try:
        branch = Branch(load_config(options.config, options.set))
        changed = {
            name: load_config(options.config, [*options.set, *changes]) for name, changes in CHANGES.items()
        }
        found = measure(branch, changed, options.steps, options.batches, options.permutations)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return 0


def measure(
    branch: Branch, changed: dict[str, RunConfig], steps: list[int], batches: int, permutations: int
) -> Found:
    """Compare every change with the recipe at each of `steps`, by term and by the whole."""
    patch_size = branch.backbone.patch_size
    designers = {
        name: FixedDesigner(config.recipe, patch_size).to(branch.trainer.device)
        for name, config in {"": branch.config, **changed}.items()
    }
    (entry,) = branch.feedback_gradient.feedback.tasks.values()
    blocks = branch.config.value.tail_blocks
    found: Found = {}
    for step in steps:
        branch.advance(step - branch.step, designers[""])
        tail = branch.backbone.tail_parameters(blocks)
        with led(tail, branch.trainer.optimiser.adamw if branch.config.value.lead else None):
            along = directions(entry.task, branch.backbone, blocks, permutations).all
        scheduled = scheduled_values(branch.config.schedule, branch.step, branch.config.steps)
        rows: dict[str, dict[str, list[Numbers]]] = {name: {} for name in designers}
        for batch in branch.batches(batches):
            setting = Setting(
                branch.learner, branch.trainer.renderer, batch.images, scheduled.teacher_temperature, blocks
            )
            keys = Keys(branch.config.seed, branch.step, batch.index)
            for name, designer in designers.items():
                for term, value in values(term_gradients(setting, designer, keys), along).items():
                    rows[name].setdefault(term, []).append(value.double().cpu().numpy())
        weights = branch.learner.config.weights
        of = {name: {term: np.stack(taken) for term, taken in terms.items()} for name, terms in rows.items()}
        for terms in of.values():
            terms[WHOLE] = np.sum([weights[term] * terms[term] for term in weights], axis=0)
        found[str(step)] = {
            term: {name: _compared(of[name][term], of[""][term]) for name in changed} for term in of[""]
        }
    return found


def _compared(of_change: Numbers, of_recipe: Numbers) -> dict[str, float]:
    ranking = rank(of_change, of_recipe)
    gains = (of_change - of_recipe)[:, 0]
    return {**ranking._asdict(), "z": ranking.z, "deviation_over_batches": float(gains.std(ddof=1))}


def markdown(found: Found) -> str:
    """A table of z for each step: a row a change, a column a term."""
    lines: list[str] = []
    for step, terms in found.items():
        lines += [f"## step {step}", "", "| change | " + " | ".join(f"{term}, z" for term in terms) + " |"]
        lines.append("| --- |" + " ---: |" * len(terms))
        for name in next(iter(terms.values())):
            lines.append(f"| {name} | " + " | ".join(f"{terms[t][name]['z']:+.1f}" for t in terms) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
