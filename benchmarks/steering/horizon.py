r"""How far ahead value sees: known tasks against the recipe after more and more real steps, by three judges.

    python benchmarks/steering/horizon.py benchmarks/steering/scenes_class --step 40 --horizons 1 4 16 64

The recipe is trained up to `--step`. From there every arm of the testbed's `spec.yaml` is trained on, each
from the same state, on the same images and by the same keys, and after so many steps the student is judged
on the feedback's meta split: by value, the fall of downstream loss that u foretells at the start,
⟨-u, θ_n - θ_0⟩ over S; by the fall itself, heads as they were fitted at the start; and by the fall with heads
fitted anew. Told is each arm's less the recipe's, as a mean over `--seeds` with its standard error.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from itertools import islice
from pathlib import Path

import torch
import yaml

from vpt_vision.config import RunConfig, load_config
from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare import load_spec
from vpt_vision.evaluation.compare.spec import run_config
from vpt_vision.feedback import FeedbackGradient
from vpt_vision.feedback.gradient import inner
from vpt_vision.task import Keys
from vpt_vision.training.trainer import Trainer
from vpt_vision.value.lead import led

RECIPE = "recipe"
JUDGES = ("value", "held heads", "heads fitted anew")
Falls = dict[str, dict[int, dict[str, float]]]  # by arm, steps and judge


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the testbed's folder")
    parser.add_argument("--setting", type=int, default=0, help="which of settings.yaml's learner settings")
    parser.add_argument("--step", type=int, default=40, help="of the recipe's run, from where the arms part")
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 4, 16, 64], help="steps after it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--json", type=Path, help="where to keep what was measured, by seed")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="changes to the config")
    options = parser.parse_args()
    try:
        with_feedback, arms = read(options.folder, options.setting, options.set)
        found = {
            seed: falls(with_feedback, arms, options.step, options.horizons, seed) for seed in options.seeds
        }
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return 0


def read(folder: Path, setting: int, changes: list[str]) -> tuple[RunConfig, dict[str, RunConfig]]:
    """The testbed's own config, with its feedback, and those of its arms; all with one learner setting."""
    settings = list(yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8")).values())
    if not 0 <= setting < len(settings):
        raise UserError(f"{folder}/settings.yaml has settings 0 to {len(settings) - 1}, and not {setting}.")
    spec = load_spec(folder / "spec.yaml", [f"overrides={json.dumps(settings[setting])}"])
    arms = {arm.name: run_config(spec, arm) for arm in spec.arms}
    if RECIPE not in arms:
        raise UserError(f"{folder}/spec.yaml has no arm named '{RECIPE}' to hold the others against.")
    words = [f"{key}={json.dumps(value)}" for key, value in settings[setting].items()]
    config = load_config(spec.config, [*words, *changes])
    if config.feedback is None:
        raise UserError("nothing to judge by: the testbed's config has no 'feedback' part.")
    return config, arms


def falls(config: RunConfig, arms: dict[str, RunConfig], step: int, horizons: list[int], seed: int) -> Falls:
    """How far downstream loss falls under each arm, by each judge, so many steps after `step`."""
    ends = sorted(set(horizons))
    if ends[0] < 1 or step + ends[-1] >= config.steps:
        raise UserError(
            f"--step {step} and a horizon of {ends[-1]} pass the run's {config.steps} steps: make them "
            "smaller, or set steps."
        )
    trainer = Trainer(config.model_copy(update={"seed": seed}))
    assert trainer.value_step is not None and config.feedback is not None, "read sees to it"
    start, trainer.value_step = trainer.value_step.feedback_gradient, None
    backbone = trainer.learner.student.backbone
    trainer.designer = FixedDesigner(config.recipe, backbone.patch_size)
    images = iter(trainer.loader)
    for batch in islice(images, step):
        trainer.train_step(batch.to(trainer.device))
    ahead = [batch.to(trainer.device) for batch in islice(images, ends[-1])]
    state = copy.deepcopy(trainer.state_dict())
    parameters = backbone.tail_parameters(config.value.tail_blocks)
    with led(parameters, trainer.optimiser.adamw if config.value.lead else None):
        start.update(backbone, Keys(seed, step, ahead[0].index))
    start.fit(backbone)
    before = start.meta_loss(backbone)
    at_start = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    found: Falls = {}
    for name, arm in arms.items():
        trainer.load_state_dict(copy.deepcopy(state))
        trainer.designer = FixedDesigner(arm.recipe, backbone.patch_size)
        found[name] = {}
        for number, batch in enumerate(ahead, 1):
            trainer.train_step(batch)
            if number not in ends:
                continue
            moved = {key: parameter.detach() - at_start[key] for key, parameter in parameters.items()}
            anew = FeedbackGradient(copy.deepcopy(start.feedback), config.value.tail_blocks)
            anew.fit(backbone)
            judged = (
                -inner(start.u, moved),
                before - start.meta_loss(backbone),
                before - anew.meta_loss(backbone),
            )
            found[name][number] = dict(zip(JUDGES, map(float, judged), strict=True))
    return found


def markdown(found: dict[int, Falls]) -> str:
    """A row for each arm and horizon, a column for each judge, in 1e-4 nats less the recipe's."""
    lines = ["| arm | steps | " + " | ".join(JUDGES) + " |", "| --- | ---: |" + " ---: |" * len(JUDGES)]
    for arm, by_steps in next(iter(found.values())).items():
        for steps in by_steps if arm != RECIPE else ():
            cells = []
            for judge in JUDGES:
                gains = torch.tensor(
                    [one[arm][steps][judge] - one[RECIPE][steps][judge] for one in found.values()]
                ).double()
                error = f" ± {1e4 * float(gains.std()) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
                cells.append(f"{1e4 * float(gains.mean()):+.1f}{error}")
            lines.append(f"| {arm} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n1e-4 nats less the recipe's, over {len(found)} seeds"


if __name__ == "__main__":
    sys.exit(main())
