"""`vpt value`: what value says of tasks, held against what comes of them."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from rich.console import Console

from vpt_vision.commands.parsing import (
    Commands,
    add_command,
    non_negative,
    non_negative_float,
    positive,
    positive_float,
)
from vpt_vision.config import RunConfig, load_config
from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.files import expect_writable, writing
from vpt_vision.inspection.branch import Branch, branch_of, state_of
from vpt_vision.inspection.fidelity import measure_fidelity
from vpt_vision.inspection.fidelity_report import FidelityReport
from vpt_vision.inspection.oracle import SURFACES, Asked, ask_oracle
from vpt_vision.inspection.oracle_report import OracleReport
from vpt_vision.value.known import KnownPolicy

PICTURE = "fidelity.png"  # in the run's folder


def add_value(commands: Commands) -> None:
    """Add `vpt value` with its commands."""
    value = add_command(
        commands, "value", "Hold value against what comes of tasks.", "vpt value probe runs/demo"
    )
    asked = value.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_oracle(asked)
    _add_probe(asked)


def _add_oracle(commands: Commands) -> None:
    oracle = add_command(
        commands,
        "oracle",
        "Ask value of tasks known to be good and bad, at the start and in mid-run, against the spread over "
        "permuted labels and against what short runs under each bring.",
        "vpt value oracle configs/demo.yaml --json",
    )
    oracle.add_argument("config", type=Path, help="the run's YAML file; it needs a 'feedback' part")
    oracle.add_argument(
        "--surfaces",
        nargs="*",
        choices=SURFACES,
        default=SURFACES,
        help="what tasks differ in (default: all; none named: the recipes of --good and --bad alone)",
    )
    for worth in ("good", "bad"):
        oracle.add_argument(
            f"--{worth}",
            action="append",
            default=[],
            metavar="NAME:CHANGES",
            help=f"a recipe known to be {worth}: a name, a colon and changes to the config's, such as "
            "'no hue: recipe.photometrics.hue=0 recipe.photometrics.grey_p=0'; may be given again",
        )
    oracle.add_argument(
        "--checkpoint", type=Path, help="mid-run: a run's folder or checkpoint (.pt) of this config"
    )
    oracle.add_argument(
        "--middle",
        type=non_negative,
        help="mid-run without --checkpoint: steps to train by the recipe first (default: a quarter of the "
        "run's, at most 100; 0: ask at the start alone)",
    )
    oracle.add_argument(
        "--batches", type=positive, default=8, help="batches that value is averaged over (default: 8)"
    )
    oracle.add_argument(
        "--permutations", type=positive, default=32, help="u's of permuted labels, at least 2 (default: 32)"
    )
    oracle.add_argument(
        "--steps", type=non_negative, default=16, help="of each short run; 0 for none (default: 16)"
    )
    oracle.add_argument(
        "--repeats", type=positive, default=4, help="short runs of each task, at least 2 (default: 4)"
    )
    oracle.add_argument("--markdown", type=Path, help="file to write the tables to as well")
    oracle.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    oracle.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the config, such as data.train.goal=colour",
    )
    oracle.set_defaults(run=_oracle)


def _oracle(options: argparse.Namespace) -> int:
    for name in ("permutations", "repeats"):
        if getattr(options, name) < 2:
            raise UserError(f"a spread needs two or more: raise --{name}.")
    if options.markdown is not None:
        expect_writable(options.markdown)
    config = load_config(options.config, options.overrides)
    state = None if options.checkpoint is None else state_of(options.checkpoint)
    branch = Branch(config)
    middle = min(100, config.steps // 4) if options.middle is None else options.middle

    def later() -> Branch:
        if state is not None:
            return Branch(config, state)
        recipe = FixedDesigner(config.recipe, branch.backbone.patch_size).to(branch.trainer.device)
        branch.advance(middle, recipe)
        return branch

    console = Console(stderr=True)
    with console.status("reading feedback") as status:
        oracle = ask_oracle(
            branch,
            Asked(options.batches, options.permutations, options.steps, options.repeats),
            tuple(options.surfaces),
            recipes=[
                _recipe(said, config, branch.backbone.patch_size, towards)
                for given, towards in ((options.good, 1), (options.bad, -1))
                for said in given
            ],
            later=later if state is not None or middle > 0 else None,
            progress=status.update,
        )
    report = OracleReport(oracle)
    Console().print(report)
    if options.json:
        print(json.dumps(report.summary()))
    if options.markdown is not None:  # last: what was measured is told even if the disk is full
        with writing(options.markdown) as part:
            part.write_text(report.markdown(), encoding="utf-8")
    return 0


def _recipe(said: str, config: RunConfig, patch_size: int, towards: int) -> KnownPolicy:
    """The policy that --good or --bad tells of as NAME:CHANGES."""
    name, _, changes = (part.strip() for part in said.partition(":"))
    words = shlex.split(changes)
    if not (name and words) or not all(word.startswith("recipe.") for word in words):
        raise UserError(
            f"'{said}' is no recipe: give a name, a colon and changes to keys of 'recipe', such as "
            "'no hue: recipe.photometrics.hue=0'."
        )
    recipe = load_config(config.model_dump(mode="json"), words).recipe
    return KnownPolicy("recipe", name, FixedDesigner(recipe, patch_size), towards)


def _add_probe(commands: Commands) -> None:
    probe = add_command(
        commands,
        "probe",
        "Take real steps of a run's learner under many tasks, and correlate the change of downstream loss "
        "that value predicts with the realised one.",
        "vpt value probe runs/demo --tasks 64 --json",
    )
    probe.add_argument(
        "source",
        type=Path,
        metavar="RUN",
        help="a run's folder (its newest checkpoint), or a checkpoint (.pt)",
    )
    probe.add_argument("--tasks", type=positive, default=64, help="tasks to sample (default: 64)")
    probe.add_argument(
        "--spread",
        type=non_negative_float,
        default=0.5,
        help="root mean square of what is added to the designer's outputs for each of them (default: 0.5; 0: "
        "only batches and random numbers differ)",
    )
    probe.add_argument(
        "--examples", type=positive, default=1024, help="most examples of a split (default: 1024)"
    )
    probe.add_argument(
        "--permutations",
        type=non_negative,
        default=8,
        help="u's of permuted labels, the control (default: 8)",
    )
    probe.add_argument(
        "--learning-rate",
        type=positive_float,
        help="of the steps (default: the highest of the run's schedule)",
    )
    probe.add_argument("--picture", type=Path, help=f"PNG to draw (default: {PICTURE} in the run's folder)")
    probe.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    probe.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the run's config, such as its feedback"
    )
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    if options.tasks < 3:
        raise UserError(f"a correlation needs 3 tasks or more, not {options.tasks}: raise --tasks.")
    picture = (
        options.picture or (options.source if options.source.is_dir() else options.source.parent) / PICTURE
    )
    console = Console(stderr=True)
    if options.source.exists():
        expect_writable(picture)
    branch = branch_of(options.source, options.overrides, learning_rate=options.learning_rate)
    with console.status("fitting heads") as status:
        fidelity = measure_fidelity(
            branch,
            count=options.tasks,
            spread=options.spread,
            examples=options.examples,
            permutations=options.permutations,
            progress=lambda done: status.update(f"{done} of {options.tasks} steps"),
        )
    report = FidelityReport(fidelity)
    Console().print(report)
    try:
        report.draw(picture)
        print(f"Scatter plots are in {picture}.")
    finally:  # what was measured is told even if the disk is full
        if options.json:
            print(json.dumps(report.summary()))
    return 0
