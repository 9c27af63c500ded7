"""What a comparison leaves in its folder: Markdown, CSV, plots, and one page."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from vpt_vision.config import dump_config
from vpt_vision.evaluation.compare import plots, tables
from vpt_vision.evaluation.compare.contrasts import headline, metrics, per_image, primary, secondary
from vpt_vision.evaluation.compare.spec import MATCHED, run_config
from vpt_vision.evaluation.compare.study import Study
from vpt_vision.evaluation.html import inline_svg, write_page
from vpt_vision.evaluation.pictures.style import save
from vpt_vision.files import writing
from vpt_vision.training.environment import environment
from vpt_vision.training.trainer import resolve_device

PAGE_FILE, MARKDOWN_FILE = "index.html", "report.md"


def write_outputs(study: Study) -> None:
    """Write what the study holds to the comparison's folder, over what an earlier call left there.

    `report.md`, `per_seed.csv`, `differences.csv`, the plots `seeds.png` and `differences.png`, and
    `index.html` with all of it.
    """
    folder = Path(study.spec.output)
    with writing(folder / MARKDOWN_FILE) as part:
        part.write_text(markdown(study), encoding="utf-8")
    _write_csv(folder / "per_seed.csv", _per_seed(study))
    _write_csv(folder / "differences.csv", _differences(study))
    save(plots.seeds_plot(study), folder / "seeds.png")
    save(plots.differences_plot(study), folder / "differences.png")
    _write_page(study, folder / PAGE_FILE)


def markdown(study: Study) -> str:
    """The headline in the first line, then every table with its note."""
    parts = [f"**{headline(study)}**\n\n", f"# {_title(study)}\n\n", f"{_question(study)}\n\n"]
    parts += [
        "## Primary question\n\n",
        tables.primary_table(study).markdown(),
        f"{tables.NOTE_INTERVAL}\n\n",
    ]
    parts += ["## On the test images\n\n", *(table.markdown() for table in tables.row_tables(study))]
    parts += [f"{tables.NOTE_ROWS}\n\n", "## Other differences\n\n", f"{tables.NOTE_SECONDARY}\n\n"]
    parts += [table.markdown() for table in tables.difference_tables(study)]
    selection = tables.selection_table(study)
    if selection is not None:
        parts += [
            "## Settings picked on validation\n\n",
            f"{tables.NOTE_SELECTION}\n\n",
            selection.markdown(),
        ]
    parts += ["## What was run\n\n", tables.budget_table(study).markdown(), f"{tables.note_budget(study)}\n"]
    return "".join(parts)


def _write_page(study: Study, path: Path) -> None:
    reference = run_config(study.spec, study.spec.arm(study.spec.reference))
    write_page(
        path,
        "comparison.html.j2",
        title=_title(study),
        headline=headline(study),
        question=_question(study),
        primary=tables.primary_table(study),
        rows=tables.row_tables(study),
        differences=tables.difference_tables(study),
        selection=tables.selection_table(study),
        budget=tables.budget_table(study),
        notes={
            "interval": tables.NOTE_INTERVAL,
            "rows": tables.NOTE_ROWS,
            "secondary": tables.NOTE_SECONDARY,
            "selection": tables.NOTE_SELECTION,
            "budget": tables.note_budget(study),
        },
        plots={
            "seeds": inline_svg(plots.seeds_plot(study), plots.seeds_alt(study)),
            "differences": inline_svg(plots.differences_plot(study), plots.differences_alt(study)),
        },
        captions={
            "seeds": "Each dot is a seed, lines join the rows of one seed, the bar is their mean.",
            "differences": "Mean and 95 % interval of each difference in the primary metric; the primary "
            "one in blue.",
        },
        environment=list(environment(resolve_device(reference.device)).items()),
        spec=yaml.safe_dump(study.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        config=dump_config(reference),
    )


def _title(study: Study) -> str:
    return f"Comparison: {', '.join(arm.name for arm in study.spec.arms)}"


def _question(study: Study) -> str:
    spec = study.spec
    return (
        f"{len(spec.arms)} arms × {len(spec.seeds)} seeds, at "
        f"{' and at '.join(MATCHED[match] for match in spec.match)}."
        f" The question, named before anything was run: does the {spec.primary.arm} differ from the "
        f"{spec.against} in "
        f"{spec.primary.metric} at {MATCHED[spec.primary.match]}?"
    )


def _per_seed(study: Study) -> Iterable[Sequence[object]]:
    yield "budget", "row", "seed", "steps", "images", "training_seconds", "metric", "value"
    for row in study.rows:
        for metric in metrics(study):
            values = per_image(row, metric).mean(1)
            for seed, measured, value in zip(study.spec.seeds, row.measured, values, strict=True):
                cost = measured.steps, measured.images, round(measured.seconds, 3)
                yield (tables.budget_of(row.match), row.name, seed, *cost, metric, float(value))


def _differences(study: Study) -> Iterable[Sequence[object]]:
    yield (
        *("primary", "budget", "arm", "against", "metric", "mean", "low", "high"),
        *("bootstrap_low", "bootstrap_high", "sign_flip_p", "least_p", "seeds", "images"),
    )
    first = primary(study)
    for each in (first, *secondary(study)):
        difference = each.difference
        yield (
            *(each is first, each.match, each.arm, each.against, each.metric, *difference.interval),
            *difference.bootstrap[1:],
            *(difference.p, difference.least_p, difference.seeds, difference.images),
        )


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with writing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
