"""The page of `vpt report`: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from markupsafe import Markup

from vpt_vision.config import RunConfig, differing_keys, dump_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.html import inline_png, write_page
from vpt_vision.evaluation.pictures.curves import series
from vpt_vision.evaluation.pictures.style import PALETTE
from vpt_vision.evaluation.probes import Probe, probe
from vpt_vision.evaluation.result import KINDS, ProbeResult
from vpt_vision.evaluation.run_report import plots
from vpt_vision.evaluation.run_report.designers import designer_pictures
from vpt_vision.evaluation.run_report.history import History, read_histories
from vpt_vision.evaluation.stored import Results, remembered
from vpt_vision.evaluation.tables import Table, numbers
from vpt_vision.export import load_backbone_file
from vpt_vision.footprint import footprint
from vpt_vision.learner import Backbone
from vpt_vision.training.checkpoint import checkpoint_paths
from vpt_vision.training.run_folder import BACKBONE_FILE, CHECKPOINT_FOLDER
from vpt_vision.training.step_timer import PHASES
from vpt_vision.training.trainer import resolve_device

PROBES: tuple[Probe, ...] = ("knn", "logistic")
STORED = "report_probes"  # folder in a run's, so that a second report need not probe again
INDICATORS = {  # of collapse: key, and what it is
    "information": "information in targets, nats",
    "rankme": "RankMe",
    "deviation": "deviation per dimension",
    "teacher_entropy": "teacher entropy, nats",
    "prototypes": "prototypes in use",
}


def write_run_report(folders: Sequence[Path], path: Path, *, probes: bool = True) -> list[str]:
    """Write the page of the runs in `folders` to `path`, and return its headline, a sentence for each run.

    What cannot be made, because data or weights are not there any more, is left out; the page says why.

    Args:
        folders: output folders of runs, which may still be going on.
        path: the HTML file.
        probes: whether to probe each run's backbone and its start, where its config names the data.

    Raises:
        UserError: a folder holds no run or no logged step, or is named twice.
    """
    histories = read_histories(folders)
    headlines = [_headline(history) for history in histories]
    missing: list[str] = []
    pictures: list[tuple[str, list[tuple[str, Markup]]]] = []
    sizes: list[tuple[str, list[str]]] = []
    for history in histories:
        with _or_told(missing, f"pictures of {history.name}'s designer"):
            if shown := designer_pictures(history):
                pictures.append((history.name, [(words, inline_png(png, words)) for words, png in shown]))
        with _or_told(missing, f"a count of {history.name}'s networks"):
            sizes.append((history.name, footprint(history.config).lines(history.config)))
    write_page(
        path,
        "run.html.j2",
        title="Run " + ", ".join(history.name for history in histories),
        headlines=[
            (sentence, history.is_collapsed) for sentence, history in zip(headlines, histories, strict=True)
        ],
        keys=[(PALETTE[number % len(PALETTE)], history.name) for number, history in enumerate(histories)],
        summary=_summary(histories),
        collapse=_collapse(histories),
        collapses=[(history.name, sentence) for history in histories for sentence in history.collapses()],
        probes=_probe_tables(histories, missing) if probes else [],
        curves=plots.groups({history.name: history.records for history in histories}),
        designers=pictures,
        breakdown=_breakdown(histories),
        sizes=sizes,
        differences=_differences(histories),
        starts=[_starts(history) for history in histories if history.starts],
        configs=[(history.name, dump_config(history.config)) for history in histories],
        missing=missing,
    )
    return headlines


@contextmanager
def _or_told(missing: list[str], what: str) -> Iterator[None]:
    """Make something; where it cannot be made, a sentence in `missing` says why."""
    try:
        yield
    except UserError as error:
        missing.append(f"Without {what}: {error}")


def _headline(history: History) -> str:
    steps = history.last["step"]
    state = "finished" if history.is_finished else f"at step {steps:,} of {history.config.steps:,}"
    health = (
        "The learner has collapsed."
        if history.is_collapsed
        else "It had collapsed for a while, and is no longer."
        if history.collapses()
        else "No sign of collapse."
        if len(series(history.records, "collapse/information")[0])
        else "It logged no indicators of collapse."
    )
    loss = history.last.get("loss")
    return f"{history.name}: {state}, loss {_told(loss, '.3f')}. {health}"


def _summary(histories: Sequence[History]) -> Table:
    rows = []
    for history in histories:
        last, config = history.last, history.config
        rows.append(
            [
                history.name,
                config.designer.kind.replace("_", " "),
                f"{last['step']:,} of {config.steps:,}",
                f"{last['step'] * config.batch_size:,}",
                _told(last.get("training_seconds"), ",.0f"),
                _told(history.median("images_per_second"), ",.0f"),
                _told(last.get("loss"), ".3f"),
                _told(_skipped(history), ".1%"),
            ]
        )
    header = [
        *("run", "designer", "steps", "images", "seconds of training", "images per second, median"),
        *("loss, last line", "steps skipped for a loss that was not finite"),
    ]
    return Table("Runs", header, rows).transposed()  # so that it fits a phone


def _skipped(history: History) -> float:
    """Share of the logged steps; a line holds that of its interval."""
    _, shares = series(history.records, "skipped")
    return float(shares.mean()) if len(shares) else math.nan


def _collapse(histories: Sequence[History]) -> Table | None:
    """The indicators at the first line and at the last; None where no run has any."""
    rows = []
    for history in histories:
        each = [series(history.records, f"collapse/{key}")[1] for key in INDICATORS]
        if any(len(values) for values in each):
            cells = [f"{values[0]:.3g} → {values[-1]:.3g}" if len(values) else "-" for values in each]
            rows.append([history.name, *cells])
    if not rows:
        return None
    caption = "Indicators of collapse, first line → last line of the log"
    return Table(caption, ["run", *INDICATORS.values()], rows).transposed()


def _probe_tables(histories: Sequence[History], missing: list[str]) -> list[Table]:
    """A table for each set of runs that are judged on the same images; rows of a start come once."""
    tables: list[Table] = []
    asked: dict[str, list[History]] = {}
    for history in histories:
        if history.config.evaluation is not None:
            asked.setdefault(json.dumps(_asked(history.config)), []).append(history)
    for members in asked.values():
        rows: dict[str, Results] = {}
        starts: set[str] = set()
        for history in members:
            start = json.dumps(_start_of(history.config))
            if start not in starts:
                starts.add(start)
                with _or_told(missing, f"probes of {history.name}'s start"):
                    rows[f"start of {history.name}"] = _start(history)
            if (history.folder / BACKBONE_FILE).is_file():  # not before its first checkpoint
                with _or_told(missing, f"probes of {history.name}"):
                    rows[f"{history.name}, step {_exported_step(history):,}"] = _final(history)
        if rows:
            images = max(len(result.index) for results in rows.values() for result in results.values())
            header = ["backbone", *_titles(next(iter(rows.values())))]
            cells = [[name, *_cells(results)] for name, results in rows.items()]
            tables.append(Table(f"Probes on {images:,} test images", header, cells).transposed())
    return tables


def _final(history: History) -> Results:
    """Probes of the run's exported backbone."""
    file = history.folder / BACKBONE_FILE
    stamp = file.stat()
    asked = {**_asked(history.config), "weights": [stamp.st_size, stamp.st_mtime_ns]}
    return remembered(
        history.folder / STORED / "final.pt", asked, lambda: _probe(load_backbone_file(file), history.config)
    )


def _start(history: History) -> Results:
    config = history.config

    def measure() -> Results:
        torch.manual_seed(config.seed)  # as the trainer does: a start at random is then its own
        return _probe(Backbone(config.learner.backbone), config)

    asked = {**_asked(config), **_start_of(config)}
    return remembered(history.folder / STORED / "start.pt", asked, measure)


def _start_of(config: RunConfig) -> dict[str, object]:
    """What the weights that a run starts from are a function of, and how they are shown images."""
    backbone = config.learner.backbone
    return {
        "backbone": backbone.model_dump(mode="json"),
        "seed": config.seed if backbone.weights == "none" else None,
        "normalisation": [config.data.mean, config.data.std],
    }


def _exported_step(history: History) -> int:
    """The step of the run's exported backbone, which is written with each checkpoint."""
    newest = checkpoint_paths(history.folder / CHECKPOINT_FOLDER)
    return int(newest[-1].stem.removeprefix("step_")) if newest else int(history.last["step"])


def _probe(backbone: Backbone, config: RunConfig) -> Results:
    assert config.evaluation is not None, "asked for where there is one"
    backbone = backbone.to(resolve_device("auto")).eval()
    found = probe(backbone, config.evaluation, PROBES, renderer=config.renderer())
    return {name: results[0] for name, results in found.items()}


def _asked(config: RunConfig) -> dict[str, object]:
    assert config.evaluation is not None, "asked for where there is one"
    evaluation = config.evaluation.model_dump(mode="json", exclude={"cache", "online"})
    return {"evaluation": evaluation, "probes": list(PROBES)}


def _titles(results: Results) -> list[str]:
    return [
        f"{result.probe}: {KINDS[figure].title}" for result in results.values() for figure in result.figures
    ]


def _cells(results: Results) -> list[str]:
    return [_level(result, figure) for result in results.values() for figure in result.figures]


def _level(result: ProbeResult, figure: str) -> str:
    interval = result.interval(figure)
    if KINDS[figure].unit == "%":
        return numbers(interval, scale=100).replace(" [", " % [")
    return numbers(interval)


def _breakdown(histories: Sequence[History]) -> dict[str, object] | None:
    plot = plots.breakdown(histories)
    if plot is None:
        return None
    rows = [
        [
            history.name,
            *(_told(1000 * history.phase_seconds(phase), ",.1f") for phase in PHASES),
            _told(1000 * history.step_seconds(), ",.1f"),
        ]
        for history in histories
    ]
    header = ["run", *PHASES.values(), "whole step"]
    table = Table("Milliseconds of a step, means over the log's lines", header, rows).transposed()
    return {"plot": plot, "table": table}


def _differences(histories: Sequence[History]) -> Table | None:
    """Keys whose values differ between the runs' configs; None for a single run or equal ones."""
    dumped = [history.config.model_dump(mode="json") for history in histories]
    keys = sorted({key for other in dumped[1:] for key in differing_keys(dumped[0], other)} - {"output"})
    if not keys:
        return None
    rows = [[key, *(_value_at(config, key) for config in dumped)] for key in keys]
    return Table("Where the configs differ", ["key", *(history.name for history in histories)], rows)


def _value_at(settings: object, dotted: str) -> str:
    for key in dotted.split("."):
        if not isinstance(settings, dict) or key not in settings:
            return "-"
        settings = settings[key]
    return "null" if settings is None else str(settings)


def _starts(history: History) -> tuple[str, list[tuple[str, str]], int]:
    """The environment of a run's last start, and how often it was started."""
    newest = history.starts[-1]
    return history.name, [(key, str(value)) for key, value in newest.items()], len(history.starts)


def _told(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)
