"""What a run's designer asked of the same images, over training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from vpt_vision.data import build_source
from vpt_vision.designers import Refined
from vpt_vision.evaluation.pictures import coverage, coverage_maps, crops_and_masks, first_images
from vpt_vision.evaluation.run_designers import (
    designers_over_training,
    mapped_kinds,
    recipe_of,
    sets_its_task_alone,
)
from vpt_vision.evaluation.run_report.history import History
from vpt_vision.task import Keys

PICTURED = 3  # images
MOMENTS = 4
DRAWS = 128  # tasks averaged for a heat map


def designer_pictures(history: History) -> list[tuple[str, bytes]]:
    """PNGs, each with what it shows; the images are the run's first training images, everywhere the same.

    Heat maps of crops and masks over training, and one task of each image by the fixed recipe and by the
    designer at the end. Empty for a designer that nothing was kept of, and for one that finishes its tasks
    by the learner as it stood then, which is not kept.

    Raises `UserError` where the training data cannot be read.
    """
    config = history.config
    designers = designers_over_training(history.folder, config, MOMENTS)
    if not designers or not all(map(sets_its_task_alone, designers.values())):
        return []
    pictured = first_images(build_source(config.data.train, config.shorter_side()), PICTURED)
    recipe = recipe_of(config)
    step, last = max(designers.items())
    pictures = []
    if kinds := mapped_kinds(last):
        moments = {"fixed recipe": coverage(recipe, pictured, DRAWS, config.seed)}
        for moment, designer in designers.items():
            moments[f"step {moment:,}"] = coverage(designer, pictured, DRAWS, config.seed)
        title = f"Where crops and masks fall, over {DRAWS} tasks"
        pictures.append(
            (
                f"Heat maps of crops and masks over {DRAWS} tasks, by the fixed recipe and over training.",
                _png(lambda path: coverage_maps(pictured, moments, path, title=title, kinds=kinds)),
            )
        )
    renderer, keys = config.renderer(), Keys(config.seed, 0, pictured.numbers)
    tasks = {}
    with torch.no_grad():
        for name, designer in (("fixed recipe", recipe), (f"after {step:,} steps", last)):
            task = designer(pictured.images, keys)
            tasks[name] = Refined(task, renderer(pictured.images, task))
    pictures.append(
        (
            "One task of each image, from the same random numbers: what differs is the designer.",
            _png(lambda path: crops_and_masks(pictured.images, tasks, path, renderer=renderer)),
        )
    )
    return pictures


def _png(draw: Callable[[Path], None]) -> bytes:
    """The bytes of what `draw` writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()
