"""`vpt value`: what value says of tasks, held against what comes of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from vpt_vision.commands.parsing import Commands, add_command, positive
from vpt_vision.errors import UserError
from vpt_vision.inspection.branch import branch_of
from vpt_vision.inspection.fidelity import measure_fidelity
from vpt_vision.inspection.fidelity_report import FidelityReport

PICTURE = "fidelity.png"  # in the run's folder


def add_value(commands: Commands) -> None:
    """Add `vpt value` with its commands."""
    value = add_command(
        commands, "value", "Hold value against what comes of tasks.", "vpt value probe runs/demo"
    )
    asked = value.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_probe(asked)


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
        type=float,
        default=0.5,
        help="root mean square of what is added to the designer's outputs for each of them (default: 0.5; 0: "
        "only batches and random numbers differ)",
    )
    probe.add_argument(
        "--examples", type=positive, default=1024, help="most examples of a split (default: 1024)"
    )
    probe.add_argument(
        "--permutations", type=int, default=8, help="u's of permuted labels, the control (default: 8)"
    )
    probe.add_argument(
        "--learning-rate", type=float, help="of the steps (default: the highest of the run's schedule)"
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
    report.draw(picture)
    Console().print(report)
    print(f"Scatter plots are in {picture}.")
    if options.json:
        print(json.dumps(report.summary()))
    return 0
