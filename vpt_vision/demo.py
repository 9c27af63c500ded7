"""The demo: the same start, with and without the designer; probes, a table and pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from vpt_vision.config import RunConfig, load_config
from vpt_vision.data import build_source
from vpt_vision.designers import Refined, build_designer
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures import crops_and_masks, curves, first_images, patch_pca
from vpt_vision.evaluation.probes import EvaluationConfig, probe
from vpt_vision.evaluation.report import Arm, Report
from vpt_vision.learner import Backbone
from vpt_vision.loading import load_backbone
from vpt_vision.task import Keys, Renderer
from vpt_vision.training.log import METRICS_FILE
from vpt_vision.training.run_folder import BACKBONE_FILE, newest_state
from vpt_vision.training.trainer import Trainer, resolve_device

PICTURED = 6  # test images in each picture


def run_demo(config: RunConfig) -> int | None:
    """Continue pretraining from `config`'s backbone with the fixed recipe and with its learned designer.

    The learned designer's run is that of `vpt train` with this config, in `config.output`, the fixed recipe's
    stands beside it in `config.output` + "-fixed". A finished run is not run again. Writes to
    `config.output`: `report.md` and the pictures `designer.png`, `curves.png` and `features.png`.

    Returns:
        None when all is done, or the number of the signal that ended a run early.

    Raises:
        UserError: the config has no learned designer or no evaluation data.
    """
    if config.designer.kind != "learned" or config.evaluation is None:
        raise UserError(
            "the demo compares a learned designer with the fixed recipe by probes: the config needs "
            "designer.kind: learned and an evaluation part."
        )
    console = Console()
    folder = Path(config.output)
    arms = {
        "fixed recipe": load_config(
            config.model_dump(mode="json"), [f"output={folder}-fixed", "designer={kind: fixed}"]
        ),
        "learned designer": config,
    }
    _check(config, config.evaluation)
    for name, arm in arms.items():
        console.print(f"[bold]{name}[/]: {arm.steps} steps into {arm.output}")
        result = Trainer(arm).fit()
        if result.interrupted is not None:
            return result.interrupted

    renderer = config.renderer()
    torch.manual_seed(config.seed)  # a start at random is then the trainer's
    backbones = {"start": Backbone(config.learner.backbone)}
    backbones |= {name: load_backbone(arm.output) for name, arm in arms.items()}
    for backbone in backbones.values():
        backbone.to(resolve_device(config.device))
    with console.status("probing"):
        measured = [
            _measure(
                name, 0 if name == "start" else config.steps, backbone, config, config.evaluation, renderer
            )
            for name, backbone in backbones.items()
        ]
    start, fixed, learned = measured
    report = Report(measured, [(start, fixed), (start, learned), (fixed, learned)])
    report.save(folder / "report.md")
    console.print(report)
    with console.status("drawing"):
        _draw(config, config.evaluation, backbones, {name: Path(arm.output) for name, arm in arms.items()})
    console.print(
        f"Table and pictures are in {folder}; the designer's backbone, for timm, is {folder / BACKBONE_FILE}."
    )
    return None


def _check(config: RunConfig, evaluation: EvaluationConfig) -> None:
    """Refuse now what would fail only after the runs, when the probes begin."""
    Backbone(config.learner.backbone).grid(evaluation.image_size)
    for source in (evaluation.train, evaluation.test):
        build_source(source)


def _measure(
    name: str,
    steps: int,
    backbone: Backbone,
    config: RunConfig,
    evaluation: EvaluationConfig,
    renderer: Renderer,
) -> Arm:
    results = probe(backbone, evaluation, ("knn", "logistic"), renderer=renderer)
    return Arm(name, steps, results["knn"][0], results["logistic"][0])


def _draw(
    config: RunConfig, evaluation: EvaluationConfig, backbones: dict[str, Backbone], runs: dict[str, Path]
) -> None:
    """Draw the designer's tasks early and late, on the same images and random numbers; curves; features."""
    folder = Path(config.output)
    pictured = first_images(build_source(evaluation.test, config.shorter_side()), PICTURED)
    images, keys = pictured.images, Keys(config.seed, 0, pictured.numbers)
    state = newest_state(folder)
    assert state is not None, "the run has ended, so it has saved"
    renderer = config.renderer()
    tasks: dict[str, Refined] = {}
    for moment in ("at the start (the fixed recipe)", f"after {config.steps} steps"):
        designer = build_designer(config.designer, config.recipe, patch_size=backbones["start"].patch_size)
        if tasks:
            designer.load_state_dict(state["designer"])
        with torch.no_grad():
            task = designer(images, keys)
            tasks[moment] = Refined(task, renderer(images, task))
    crops_and_masks(images, tasks, folder / "designer.png", renderer=renderer)
    curves({name: run / METRICS_FILE for name, run in runs.items()}, folder / "curves.png")
    finer = 2 * evaluation.image_size  # twice the patches along each side
    on_cpu = {name: backbone.cpu() for name, backbone in backbones.items()}
    patch_pca(on_cpu, images, folder / "features.png", renderer=renderer, size=finer)
