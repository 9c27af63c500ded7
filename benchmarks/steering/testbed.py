"""Measure a testbed: raw pixels, start, recipe, known good and bad tasks, by seeds and learner settings.

    python benchmarks/steering/testbed.py benchmarks/steering/scenes_colour

A testbed's folder holds `spec.yaml`, a comparison as `vpt compare` reads it, and `settings.yaml`, changes to
every arm's config for each choice of learner settings. What is done already is read back, so the same command
goes on after a stop. It writes `table.md` and `per_seed.csv` to the folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from vpt_vision.config import RunConfig
from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare import load_spec, run_comparison
from vpt_vision.evaluation.compare.contrasts import contrast, per_image
from vpt_vision.evaluation.compare.spec import START, run_config
from vpt_vision.evaluation.compare.study import Row, Study
from vpt_vision.evaluation.probes import probe
from vpt_vision.evaluation.result import Floats, ProbeResult

METRICS = ("logistic.accuracy", "logistic.cross_entropy")
ENOUGH = 5.0  # paired standard errors by which the known-good task must beat the recipe, under every setting
PIXELS_L2 = (0.01, 0.1, 1.0, 10.0, 100.0)  # weight decays that the classifier of pixels is picked from
RECIPE, GOOD, BAD = "recipe", "known good", "known bad"  # arms that every spec has
Entry = dict[str, object]


class Pixels(nn.Module):
    """All pixels, averaged two by two: what a linear probe can do without any backbone."""

    patch_size = 8

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give all pixels as the vector, and no more than that as patches."""
        flat = F.avg_pool2d(images, 2).flatten(1)
        patches = (images.shape[-1] // self.patch_size) ** 2
        return flat, flat.new_zeros(len(images), patches, 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the testbed's folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the spec, such as seeds=[0,1]"
    )
    options = parser.parse_args()
    try:
        return measure(options.folder, options.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def measure(folder: Path, overrides: list[str]) -> int:
    """Run what is left of the testbed in `folder`, and write its table."""
    settings: dict[str, dict[str, object]] = yaml.safe_load(
        (folder / "settings.yaml").read_text(encoding="utf-8")
    )
    studies: dict[str, Study] = {}
    for number, (name, changes) in enumerate(settings.items()):
        spec = load_spec(folder / "spec.yaml", [f"overrides={json.dumps(changes)}", *overrides])
        spec = spec.model_copy(update={"output": f"{spec.output}/setting-{number}"})
        study = run_comparison(spec)
        if isinstance(study, int):
            return 128 + study
        studies[name] = study
    first = next(iter(studies.values()))
    pixels = pixels_probe(run_config(first.spec, first.spec.arm(RECIPE)))
    (folder / "table.md").write_text(_markdown(folder, studies, pixels), encoding="utf-8")
    with (folder / "per_seed.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [entry for name, study in studies.items() for entry in _per_seed(name, study)]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print((folder / "table.md").read_text(encoding="utf-8"))
    return 0


def pixels_probe(config: RunConfig) -> ProbeResult:
    """Judge raw pixels as `config.evaluation` judges a backbone, by logistic regression."""
    assert config.evaluation is not None, "a comparison has it"
    # More numbers than images: only strong weight decay keeps such a classifier from overfitting.
    logistic = config.evaluation.logistic.model_copy(update={"l2_grid": PIXELS_L2})
    evaluation = config.evaluation.model_copy(update={"logistic": logistic, "cache": None})
    with torch.no_grad():
        (result,) = probe(Pixels(), evaluation, ("logistic",), renderer=config.renderer())["logistic"]
    return result


def _per_seed(setting: str, study: Study) -> list[Entry]:
    return [
        {
            "setting": setting,
            "row": row.name,
            "seed": seed,
            "steps": measured.steps,
            "metric": metric,
            "value": value,
        }
        for row in study.rows
        for metric in METRICS
        for seed, measured, value in zip(study.spec.seeds, row.measured, _per_row(row, metric), strict=True)
    ]


def _markdown(folder: Path, studies: dict[str, Study], pixels: ProbeResult) -> str:
    seeds = len(next(iter(studies.values())).spec.seeds)
    lines = [
        f"# {folder.name}",
        "",
        f"`python benchmarks/steering/testbed.py benchmarks/steering/{folder.name}`: {seeds} seeds.",
        "Levels are means over seeds ± their deviation; gains are the recipe's cross-entropy less the row's,",
        "paired by seed, ± their standard error over seeds.",
        "",
    ]
    header = ["row", "accuracy", "cross-entropy, nats", "gain on the recipe, nats", "standard errors"]
    for name, study in studies.items():
        lines += [f"## {name}", "", _line(header), _line(["---", *["---:"] * 4])]
        accuracy, entropy = (pixels.interval(figure).mean for figure in ("accuracy", "cross_entropy"))
        lines.append(_line(["raw pixels", f"{accuracy:.1%}", f"{entropy:.3f}", "", ""]))
        levels = {row.name: _per_row(row, METRICS[1]) for row in study.rows}
        for row in study.rows:
            cells = [row.name, _level(_per_row(row, METRICS[0]), ".1%"), _level(levels[row.name], ".3f")]
            mean, error = _gain(levels[RECIPE], levels[row.name])
            gained = [f"{mean:+.3f} ± {error:.3f}", f"{mean / error:+.1f}"] if error else ["", ""]
            lines.append(_line([*cells, *gained]))
        lines.append("")
        for arm, against in ((RECIPE, START), (GOOD, RECIPE), (BAD, RECIPE)):
            interval = contrast(study, arm, against, METRICS[1], "updates").difference.interval
            lines.append(
                f"- {arm} − {against}, over seeds and test images: {interval.mean:+.3f} "
                f"[{interval.low:+.3f}, {interval.high:+.3f}] nats"
            )
        means = {row: level.mean() for row, level in levels.items()}
        mean, error = _gain(levels[RECIPE], levels[GOOD])
        asked = {
            "the recipe's backbone lies below raw pixels": means[RECIPE] < entropy,
            "the recipe improves on the start": means[RECIPE] < means[START],
            f"the known-good task gains at least {ENOUGH:g} standard errors": mean >= ENOUGH * error,
            "the known-bad task lies above the known-good one": means[BAD] > means[GOOD],
        }
        lines += [f"- {line}: {'yes' if holds else 'NO'}" for line, holds in asked.items()]
        lines.append("")
    return "\n".join(lines)


def _per_row(row: Row, metric: str) -> Floats:
    """A metric of each seed, [S]."""
    means: Floats = per_image(row, metric).mean(1)
    return means


def _gain(recipe: Floats, other: Floats) -> tuple[float, float]:
    """Mean and standard error over seeds of what `other` lies below `recipe`."""
    gains = recipe - other
    return float(gains.mean()), float(gains.std(ddof=1)) / len(gains) ** 0.5


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _level(values: Floats, form: str) -> str:
    return f"{values.mean():{form}} ± {values.std(ddof=1):{form}}"


if __name__ == "__main__":
    sys.exit(main())
