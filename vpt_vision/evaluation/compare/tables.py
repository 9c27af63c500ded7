"""The tables of a comparison, as Markdown and HTML both show them."""

from __future__ import annotations

import numpy as np

from vpt_vision.evaluation.compare.contrasts import (
    Contrast,
    metrics,
    per_image,
    primary,
    secondary,
    signed,
    title_of,
    unmatched,
)
from vpt_vision.evaluation.compare.spec import FINE_TUNED, MATCHED, Match
from vpt_vision.evaluation.compare.study import Row, Study
from vpt_vision.evaluation.result import KINDS
from vpt_vision.evaluation.statistics import t_interval
from vpt_vision.evaluation.tables import Table, numbers


def primary_table(study: Study) -> Table:
    """The primary difference: both intervals, the test, and each seed."""
    found = primary(study)
    difference = found.difference
    question = f"{found.arm} − {found.against}"
    return Table(
        f"{title_of(study, found.metric)}, {MATCHED[found.match]}",
        ["difference", "mean and 95 % interval", "studentised bootstrap", "sign-flip p", "least possible p"],
        [
            [
                question,
                signed(difference.interval, found.metric),
                signed(difference.bootstrap, found.metric),
                f"{difference.p:.3g}",
                f"{difference.least_p:.3g}",
            ]
        ],
    )


def row_tables(study: Study) -> list[Table]:
    """For each budget, every row with all metrics on the test images."""
    names = metrics(study)
    header = ["row", *(title_of(study, name) for name in names)]
    tables = []
    for match in study.spec.match:
        shown = [row for row in study.rows if row.match in (match, None)]
        rows = [[row.name, *(_level(row, name) for name in names)] for row in shown]
        tables.append(Table(f"Test images, {MATCHED[match]}", header, rows))
    return tables


def difference_tables(study: Study) -> list[Table]:
    """For each budget, every difference but the primary one."""
    names = metrics(study)
    header = ["difference", *(title_of(study, name) for name in names)]
    tables = []
    for match in study.spec.match:
        found = {
            (each.arm, each.against, each.metric): each for each in secondary(study) if each.match == match
        }
        pairs = dict.fromkeys((arm, against) for arm, against, _ in found)
        rows = [
            [f"{arm} − {against}", *(_difference(found.get((arm, against, name))) for name in names)]
            for arm, against in pairs
        ]
        tables.append(Table(f"Differences, {MATCHED[match]}", header, rows))
    return tables


def selection_table(study: Study) -> Table | None:
    """What validation said of every candidate; None where nothing was chosen."""
    if not study.choices:
        return None
    metric = study.spec.primary.metric
    rows = [
        [
            choice.arm,
            ", ".join(choice.settings),
            _figure(float(np.mean(choice.figures)), metric),
            "picked" if choice.picked else "",
        ]
        for choice in study.choices
    ]
    picked = frozenset(number for number, choice in enumerate(study.choices) if choice.picked)
    return Table(
        f"Validation images, mean over {len(study.choices[0].figures)} selection seeds",
        ["arm", "settings", title_of(study, metric), ""],
        rows,
        picked,
    )


def budget_table(study: Study) -> Table:
    """Steps, images and seconds of training of each arm at each budget."""
    rows = []
    for row in study.rows:
        if row.match is None:
            continue
        seconds = [measured.seconds for measured in row.measured]
        rows.append(
            [
                row.name,
                MATCHED[row.match],
                f"{row.measured[0].steps:,}",
                f"{row.measured[0].images:,}",
                f"{np.mean(seconds):,.1f}",
                f"{min(seconds):,.1f} to {max(seconds):,.1f}",
            ]
        )
    header = ["arm", "budget", "steps", "images", "seconds of training, mean", "over seeds"]
    return Table("What each run took", header, rows)


NOTE_INTERVAL = (
    "The interval is for new seeds and new test images: a t interval over the crossed layout of seeds × "
    "images "
    "with Satterthwaite's degrees of freedom. A difference counts as shown where it and the studentised "
    "bootstrap "
    "over seeds × images both leave 0 out. The sign-flip test assumes only that without an effect a seed's "
    "difference is as likely with either sign."
)
NOTE_ROWS = (
    "Mean over seeds and test images with its 95 % interval. Rows share seeds and images, so compare them "
    "by the "
    "differences, whose intervals are paired."
)
NOTE_SECONDARY = (
    "These were not the question: they are described, not tested, and not adjusted for their number. One in "
    "twenty leaves 0 out by chance."
)
NOTE_SELECTION = (
    "Picked on images and by seeds that the tables above do not use; these figures say how settings were "
    "chosen, "
    "not how good an arm is."
)


def note_budget(study: Study) -> str:
    """What counts as training, how arms were matched, and what the control spent."""
    note = (
        "Seconds of training are those of the training loop: reading data, designer and feedback count, "
        "evaluation and checkpoints do not. Seeds and arms took turns on one machine."
    )
    if study.budget_seconds is not None:
        note += (
            f" At equal seconds every arm takes the steps that fit into the {study.budget_seconds:,.1f} "
            f"seconds of "
            f"the {study.spec.reference}, by its own measured speed, and its schedule ends with them."
        )
    if study.labels is not None:
        note += (
            f" The control, {FINE_TUNED}, starts from the same backbone and spends the very "
            f"{study.labels:,} labels "
            "that the primary arm's feedback uses; it is judged by the same probes, and its own classifier "
            "beside "
            "linear probes on those labels."
        )
    return note + unmatched(study)


def _level(row: Row, metric: str) -> str:
    kind = KINDS[metric.partition(".")[2]]
    interval = t_interval(per_image(row, metric))
    if kind.unit == "%":
        return numbers(interval, scale=100).replace(" [", " % [")
    return numbers(interval)


def _difference(contrast: Contrast | None) -> str:
    if contrast is None:
        return "see above"
    return signed(contrast.difference.interval, contrast.metric)


def _figure(value: float, metric: str) -> str:
    kind = KINDS[metric.partition(".")[2]]
    return f"{100 * value:.1f} %" if kind.unit == "%" else f"{value:.4f} {kind.unit}".rstrip()


def budget_of(match: Match | None) -> str:
    """What a CSV file calls a budget."""
    return match or ""
