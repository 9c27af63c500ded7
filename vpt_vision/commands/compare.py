"""`vpt compare`: arms against one another, over seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from vpt_vision.commands.parsing import Commands, add_command
from vpt_vision.evaluation.compare import PAGE_FILE, headline, load_spec, run_comparison, write_outputs


def add_compare(commands: Commands) -> None:
    """Add the command to `commands`."""
    command = add_command(
        commands,
        "compare",
        "Train arms × seeds, probe them on the same images, say what that shows; goes on after a kill.",
        "vpt compare configs/compare_demo.yaml",
    )
    command.add_argument("spec", type=Path, help="the comparison's YAML file")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to it, such as seeds=[0,1,2]"
    )
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    study = run_comparison(load_spec(options.spec, options.overrides))
    if isinstance(study, int):
        return 128 + study
    write_outputs(study)
    print(headline(study))
    print(f"The page is {Path(study.spec.output) / PAGE_FILE}.")
    return 0
