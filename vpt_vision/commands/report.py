"""`vpt report`: what runs did, on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from vpt_vision.commands.parsing import Commands, add_command
from vpt_vision.evaluation.run_report import write_run_report
from vpt_vision.files import expect_writable


def add_report(commands: Commands) -> None:
    """Add the command to `commands`."""
    command = add_command(
        commands,
        "report",
        "Write one HTML page, without need of a network, on one run or several.",
        "vpt report runs/demo runs/demo-fixed",
    )
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of runs")
    command.add_argument(
        "--output", type=Path, help="the HTML file (default: report.html in the first run's folder)"
    )
    command.add_argument("--no-probes", action="store_true", help="leave the probes out: they take time")
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    path = options.output or options.runs[0] / "report.html"
    if options.output is not None:
        expect_writable(path)
    for sentence in write_run_report(options.runs, path, probes=not options.no_probes):
        print(sentence)
    print(f"The page is {path}.")
    return 0
