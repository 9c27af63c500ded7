"""What each part of the designer's stability does to where designers go, and to what they bring.

    python benchmarks/ablations.py configs/compare_ablations.yaml --markdown benchmarks/results/ablations.md

Runs the comparison, or reads back what is done, as `vpt compare` does, and reads each run's log beside its
probe. Several processes may share the runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare import load_spec, run_comparison, write_outputs
from vpt_vision.evaluation.compare.contrasts import contrast
from vpt_vision.evaluation.compare.spec import folder_name
from vpt_vision.evaluation.compare.study import Study
from vpt_vision.evaluation.result import Interval
from vpt_vision.training.log import METRICS_FILE

Record = dict[str, float | None]

HEADER = (
    "arm",
    "cross-entropy over `{against}`'s, nats",
    "KL at the end",
    "largest KL",
    "lowest entropy",
    "pace",
    "reliability of u",
    "held back by the bound",
    "guard's interventions",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", help="a comparison as `vpt compare` reads it; its primary arm has all parts")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to it, such as seeds=[0,1]"
    )
    parser.add_argument("--markdown", type=Path, help="file for the table (default: printed alone)")
    options = parser.parse_args()
    try:
        study = run_comparison(load_spec(options.spec, options.overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(study, int):
        return 128 + study
    write_outputs(study)
    table = "\n".join(markdown(study)) + "\n"
    print(table)
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(table, encoding="utf-8")
    return 0


def markdown(study: Study) -> Iterable[str]:
    """Give the table's lines: an arm each, its figures ranging over seeds."""
    whole = study.spec.primary.arm
    yield _row(cell.format(against=whole) for cell in HEADER)
    yield _row(["---", *["---:"] * (len(HEADER) - 1)])
    for arm in study.spec.arms:
        gain = ""
        if arm.name != whole:
            found = contrast(study, arm.name, whole, study.spec.primary.metric, study.spec.primary.match)
            gain = _interval(found.difference.interval)
        logs = [_value_steps(study, arm.name, seed) for seed in study.spec.seeds]
        yield _row([arm.name, gain, *_figures(logs)])


def _figures(logs: list[list[Record]]) -> list[str]:
    """What the logs of an arm's seeds say of where its designer went: the cells after the gain."""
    if not all(logs):  # a fixed recipe has no value steps
        return [""] * (len(HEADER) - 2)
    kl = [np.array([sum(_each(record, "kl/")) for record in log]) for log in logs]
    entropy = [min(min(_each(record, "entropy/")) for record in log) for log in logs]
    return [
        _range([path[-1] for path in kl], ".1f"),
        _range([path.max() for path in kl], ".1f"),
        _range(entropy, ".1f"),
        _range([_mean(log, "pace") for log in logs], ".2f"),
        _range([_mean(log, "u_reliability") for log in logs], ".2f"),
        _range([_bound(log) for log in logs], ".0%"),
        _range([log[-1].get("guard/interventions", 0.0) or 0.0 for log in logs], ".0f"),
    ]


def _value_steps(study: Study, arm: str, seed: int) -> list[Record]:
    """Lines of a run's log in which the designer has moved."""
    (steps,) = {measured.steps for measured in study.row(arm, study.spec.primary.match).measured}
    folder = Path(study.spec.output) / "runs" / folder_name(arm, ()) / f"steps-{steps}" / f"seed-{seed}"
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record.get("pace") is not None]


def _each(record: Record, prefix: str) -> list[float]:
    """The figures of every surface."""
    return [value for key, value in record.items() if key.startswith(prefix) and value is not None]


def _bound(log: list[Record]) -> float:
    """Share of the lines whose last step of the designer the bound on KL took something back of."""
    return float(np.mean([record.get("leash/share", 1.0) != 1 for record in log]))


def _mean(log: list[Record], key: str) -> float:
    return float(np.mean([record[key] for record in log]))


def _range(values: Iterable[float], form: str) -> str:
    """The mean over seeds, and from where to where they range."""
    values = list(values)
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _interval(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
