"""`vpt viz`: pictures of what designers ask and of what features see."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from vpt_vision.commands.parsing import Commands, add_command, names_model, positive
from vpt_vision.config import RunConfig
from vpt_vision.data import Source, build_source
from vpt_vision.data.tools.opening import open_source
from vpt_vision.errors import UserError
from vpt_vision.evaluation.cache import CacheConfig, FeatureCache
from vpt_vision.evaluation.extraction import Extractor
from vpt_vision.evaluation.features import Reading
from vpt_vision.evaluation.pictures import (
    Pictured,
    attention,
    attention_maps,
    coverage,
    coverage_maps,
    crops_and_masks,
    first_images,
    neighbours,
    neighbours_sheet,
    patch_pca,
    read_images,
)
from vpt_vision.evaluation.run_designers import (
    designers_over_training,
    mapped_kinds,
    recipe_of,
    sets_its_task_alone,
    tasks_of,
)
from vpt_vision.files import expect_writable
from vpt_vision.learner import Backbone
from vpt_vision.loading import config_of, load_encoder, native_size, renderer_for
from vpt_vision.task import Renderer
from vpt_vision.training.checkpoint import read_checkpoint
from vpt_vision.training.run_folder import newest_state
from vpt_vision.training.trainer import resolve_device


def add_viz(commands: Commands) -> None:
    """Add `vpt viz` with its commands."""
    viz = add_command(
        commands, "viz", "Draw what designers ask and what features see.", "vpt viz designer runs/demo"
    )
    pictures = viz.add_subparsers(title="pictures", required=True, metavar="PICTURE")
    _add_designer(pictures)
    tasks = add_command(
        pictures,
        "tasks",
        "The crops, views and masks of one task of each image, beside the fixed recipe's.",
        "vpt viz tasks runs/demo cat.jpg dog.jpg",
    )
    tasks.add_argument(
        "source",
        type=Path,
        metavar="RUN",
        help="a run's folder (its newest checkpoint), or a checkpoint (.pt)",
    )
    _takes_images(tasks, "the first of the run's training images")
    tasks.set_defaults(run=_tasks)

    of_attention = add_command(
        pictures,
        "attention",
        "Where the last block's class token looks, head by head.",
        "vpt viz attention runs/demo cat.jpg dog.jpg",
    )
    of_attention.set_defaults(run=_attention)
    pca = add_command(
        pictures,
        "pca",
        "The first three principal components of patch features, as colours.",
        "vpt viz pca vit_small_patch14_dinov2.lvd142m cat.jpg dog.jpg --size 448",
    )
    pca.set_defaults(run=_pca)
    of_neighbours = add_command(
        pictures,
        "neighbours",
        "The images of a gallery whose class features are most alike.",
        "vpt viz neighbours runs/demo cat.jpg --among /data/photos",
    )
    of_neighbours.add_argument(
        "--among",
        help="the gallery: a folder of images, of shards or of save_to_disk, or shards (default: "
        "the run's evaluation.train, or its training images)",
    )
    of_neighbours.add_argument("--nearest", type=positive, default=8, help="neighbours to show (default: 8)")
    of_neighbours.add_argument("--no-cache", action="store_true", help="extract the gallery's features anew")
    of_neighbours.set_defaults(run=_neighbours)
    for command in (of_attention, pca, of_neighbours):
        names_model(command)
        _takes_images(command, "the first of the run's training images")
        command.add_argument(
            "--size", type=positive, help="side of the view, pixels (default: what the model was made for)"
        )


def _add_designer(pictures: Commands) -> None:
    designer = add_command(
        pictures,
        "designer",
        "Heat maps of where crops and masks fall, over training, beside the fixed recipe's.",
        "vpt viz designer runs/demo cat.jpg dog.jpg",
    )
    designer.add_argument("source", type=Path, metavar="RUN", help="a run's folder")
    _takes_images(designer, "the first of the run's training images")
    designer.add_argument(
        "--moments", type=positive, default=4, help="most moments of training to show (default: 4)"
    )
    designer.add_argument(
        "--draws", type=positive, default=256, help="tasks averaged for each image and moment (default: 256)"
    )
    designer.set_defaults(run=_designer)


def _designer(options: argparse.Namespace) -> int:
    run = options.source
    config = _config_of(run)
    designers = designers_over_training(run, config, options.moments)
    if not designers:
        raise UserError(
            f"{run} kept no designer over training: its designer ({config.designer.kind}) does not learn, "
            "checkpoint.designers is 0, or none of its moments has come yet. vpt viz tasks shows what it "
            "asks now."
        )
    newest = list(designers.values())[-1]
    if not sets_its_task_alone(newest):
        raise UserError(
            f"a {config.designer.kind} designer finishes its task by the pixels or the learner, which no "
            "map of crops and patches shows: vpt viz tasks draws its views."
        )
    kinds = mapped_kinds(newest)
    if not kinds:
        raise UserError(
            f"the designer of {run} controls {', '.join(sorted(newest.surfaces))}, neither crops nor masks: "
            "there is nothing to map. vpt report draws its curves."
        )
    picture = options.output or run / "coverage.png"
    expect_writable(picture)
    pictured = _pictured(options, config)
    moments = {"fixed recipe": coverage(recipe_of(config), pictured, options.draws, config.seed)}
    for step, designer in designers.items():
        moments[f"step {step:,}"] = coverage(designer, pictured, options.draws, config.seed)
    coverage_maps(
        pictured, moments, picture, title=f"Where crops and masks fall: {run.resolve().name}", kinds=kinds
    )
    return _told(picture, pictured)


def _tasks(options: argparse.Namespace) -> int:
    source = options.source
    state = newest_state(source) if source.is_dir() else read_checkpoint(source)
    if state is None:
        raise UserError(f"{source} holds no checkpoint of a run: name a run's folder, or wait for its first.")
    config = _config_of(source)
    picture = options.output or (source if source.is_dir() else source.parent) / "tasks.png"
    expect_writable(picture)
    pictured = _pictured(options, config)
    crops_and_masks(pictured.images, tasks_of(state, pictured), picture, renderer=config.renderer())
    return _told(picture, pictured)


def _attention(options: argparse.Namespace) -> int:
    picture = _picture(options, "attention.png")
    seen = _seen(options)
    attended = attention(seen.encoder, seen.pictured, renderer=seen.renderer, size=seen.size)
    title = f"Attention of the class token: {seen.name}"
    attention_maps(attended, seen.pictured, picture, title=title)
    return _told(picture, seen.pictured)


def _pca(options: argparse.Namespace) -> int:
    picture = _picture(options, "pca.png")
    seen = _seen(options)
    patch_pca(
        {seen.name: seen.encoder}, seen.pictured.images, picture, renderer=seen.renderer, size=seen.size
    )
    return _told(picture, seen.pictured)


def _neighbours(options: argparse.Namespace) -> int:
    picture = _picture(options, "neighbours.png")
    seen = _seen(options)
    config = config_of(options.model)
    if options.among is not None:
        gallery: Source = open_source(options.among, [], at_least=2 * seen.size)
    elif config is None:
        raise UserError(
            f"'{options.model}' does not tell of a gallery: give --among, such as a folder of images."
        )
    else:
        source = config.data.train if config.evaluation is None else config.evaluation.train
        gallery = build_source(source, 2 * seen.size)
    kept = CacheConfig() if config is None or config.evaluation is None else config.evaluation.cache
    extractor = Extractor(
        seen.encoder,
        seen.renderer,
        reading=Reading(max_unreadable=1.0),  # each is named, and nobody's neighbour
        cache=None if options.no_cache or kept is None else FeatureCache(kept),
    )
    found = neighbours(extractor, gallery, seen.pictured, count=options.nearest, size=seen.size)
    title = f"Nearest neighbours: {seen.name}"
    neighbours_sheet(found, gallery, seen.pictured, picture, title=title)
    return _told(picture, seen.pictured)


class _Seen(NamedTuple):
    """An encoder, and the images that it is to look at."""

    name: str
    encoder: nn.Module
    renderer: Renderer
    size: int  # side of the view, pixels
    pictured: Pictured


def _seen(options: argparse.Namespace) -> _Seen:
    torch.manual_seed(0)  # weights at random are the same at every call
    encoder = load_encoder(
        options.model, network="student" if options.student else "teacher", weights=options.weights
    )
    encoder.to(resolve_device("auto"))
    config = config_of(options.model)
    size = options.size or native_size(encoder)
    if isinstance(encoder, Backbone):
        encoder.grid(size)
    if options.images:
        pictured = read_images(options.images, at_least=2 * size)
    elif config is not None:
        pictured = first_images(build_source(config.data.train, 2 * size), options.count)
    else:
        raise UserError(f"'{options.model}' does not tell of any images: name some, such as cat.jpg.")
    path = Path(options.model)
    name = path.resolve().stem if path.exists() else options.model
    return _Seen(name, encoder, renderer_for(options.model, config, encoder), size, pictured)


def _takes_images(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE", help=f"image files (default: {default})"
    )
    command.add_argument(
        "--count", type=positive, default=4, help="how many, where none is named (default: 4)"
    )
    command.add_argument(
        "--output", type=Path, help="the PNG file (default: in the run's folder, or where you are)"
    )


def _config_of(run: Path) -> RunConfig:
    config = config_of(run)
    if config is None:
        raise UserError(f"{run} holds no run: name a run's output folder.")
    return config


def _pictured(options: argparse.Namespace, config: RunConfig) -> Pictured:
    """The images named, else the first of the run's training images."""
    if options.images:
        return read_images(options.images, at_least=config.shorter_side())
    return first_images(build_source(config.data.train, config.shorter_side()), options.count)


def _picture(options: argparse.Namespace, name: str) -> Path:
    """Where to draw: where it is asked for, in the run's folder, beside the file, or here.

    Raises `UserError` where nothing can be written there.
    """
    path = Path(options.model)
    beside = path if path.is_dir() else path.parent if path.is_file() else Path()
    picture: Path = options.output or beside / name
    expect_writable(picture)
    return picture


def _told(picture: Path, pictured: Pictured) -> int:
    print(f"{picture}: {', '.join(pictured.names)}.")
    return 0
