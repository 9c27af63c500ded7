r"""Where the designers of a comparison ended: logged figures of every arm and seed, in a Markdown table.

    python benchmarks/steering/movement.py runs/testbed/cifar10-colour-designers \
        policy/global/grey_p policy/local/grey_p policy/global/solarize_p kl/photometrics

A figure is one that the runs log; of each run its last line that has it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vpt_vision.training.log import METRICS_FILE


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the comparison's output")
    parser.add_argument("figures", nargs="+", metavar="figure", help="its name in metrics.jsonl")
    options = parser.parse_args()
    arms = ends(options.folder, options.figures)
    if not arms:
        print(f"error: no run under {options.folder / 'runs'} logs {options.figures[0]}", file=sys.stderr)
        return 2
    print(table(arms, options.figures))
    return 0


def ends(folder: Path, figures: list[str]) -> dict[str, dict[str, list[float]]]:
    """The last value of each figure by arm and seed folder; arms that log none are left out."""
    arms: dict[str, dict[str, list[float]]] = {}
    for log in sorted((folder / "runs").glob(f"*/steps-*/seed-*/{METRICS_FILE}")):
        last: dict[str, float] = {}
        for line in log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            last |= {name: record[name] for name in figures if record.get(name) is not None}
        if last.keys() >= set(figures):
            arms.setdefault(log.parents[2].name, {})[log.parent.name] = [last[name] for name in figures]
    return arms


def table(arms: dict[str, dict[str, list[float]]], figures: list[str]) -> str:
    """A row for every run, and the means of each arm."""
    lines = [_row(["arm", "run", *figures]), _row(["---", "---", *["---:"] * len(figures)])]
    for arm, runs in arms.items():
        rows = [*runs.items(), ("mean", list(np.mean(list(runs.values()), axis=0)))]
        lines += [_row([arm, run, *(f"{value:.3f}" for value in values)]) for run, values in rows]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
