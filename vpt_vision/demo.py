"""The demo: the same start, with and without the designer; probes, a table and pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from vpt_vision.config import RunConfig, load_config
from vpt_vision.data import build_source
from vpt_vision.designers import build_designer
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures import crops_and_masks, curves, patch_pca
from vpt_vision.evaluation.probes import EvaluationConfig, probe
from vpt_vision.evaluation.report import Arm, Report
from vpt_vision.learner import Backbone
from vpt_vision.loading import load_backbone
from vpt_vision.task import Keys, Renderer
from vpt_vision.training.log import METRICS_FILE
from vpt_vision.training.run_folder import BACKBONE_FILE, newest_state
from vpt_vision.training.trainer import Trainer

PICTURED = 6  # test images in each picture


def run_demo(config: RunConfig) -> int | None:
    """Continue pretraining from `config`'s backbone with the fixed recipe and with its learned designer.

    Writes to `config.output`: a run folder for each arm (`fixed`, `learned`), `report.md` and the pictures
    `designer.png`, `curves.png` and `features.png`. Finished arms are not run again.

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
        "fixed recipe": _arm(config, folder / "fixed", ["designer={kind: fixed}"]),
        "learned designer": _arm(config, folder / "learned"),
    }
    for name, arm in arms.items():
        console.print(f"[bold]{name}[/]: {arm.steps} steps into {arm.output}")
        result = Trainer(arm).fit()
        if result.interrupted is not None:
            return result.interrupted

    renderer = config.renderer()
    torch.manual_seed(config.seed)  # a start at random is then the trainer's
    backbones = {"start": Backbone(config.learner.backbone)}
    backbones |= {name: load_backbone(arm.output) for name, arm in arms.items()}
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
        _draw(config, arms["learned designer"], backbones, folder, renderer)
    console.print(
        f"Table and pictures are in {folder}; the designer's backbone, for timm, is "
        f"{folder / 'learned' / BACKBONE_FILE}."
    )
    return None


def _arm(config: RunConfig, output: Path, overrides: list[str] | None = None) -> RunConfig:
    return load_config(config.model_dump(mode="json"), [f"output={output}", *(overrides or [])])


def _measure(
    name: str,
    steps: int,
    backbone: Backbone,
    config: RunConfig,
    evaluation: EvaluationConfig,
    renderer: Renderer,
) -> Arm:
    results = probe(
        backbone, evaluation, ("knn", "linear"), source_size=config.data.source_size, renderer=renderer
    )
    return Arm(name, steps, results["knn"][0], results["linear"][0])


def _draw(
    config: RunConfig, arm: RunConfig, backbones: dict[str, Backbone], folder: Path, renderer: Renderer
) -> None:
    """Draw the designer's tasks early and late, on the same images and random numbers; curves; features."""
    assert config.evaluation is not None
    source = build_source(config.evaluation.test, config.data.source_size)
    samples = [source[index] for index in range(min(PICTURED, len(source)))]
    images = torch.stack([sample.image for sample in samples])
    keys = Keys(config.seed, 0, torch.tensor([sample.index for sample in samples]))
    patch_size = backbones["start"].patch_size
    early = build_designer(arm.designer, arm.recipe, patch_size=patch_size)
    late = build_designer(arm.designer, arm.recipe, patch_size=patch_size)
    state = newest_state(Path(arm.output))
    assert state is not None
    late.load_state_dict(state["designer"])
    with torch.no_grad():
        tasks = {
            "at the start (the fixed recipe)": early(images, keys),
            f"after {config.steps} steps": late(images, keys),
        }
    crops_and_masks(images, tasks, folder / "designer.png", interpolation=renderer.interpolation)
    curves(
        {
            name: folder / sub / METRICS_FILE
            for name, sub in (("fixed recipe", "fixed"), ("learned designer", "learned"))
        },
        folder / "curves.png",
    )
    finer = 2 * config.evaluation.image_size  # twice the patches along each side
    patch_pca(backbones, images, folder / "features.png", renderer=renderer, size=finer)
