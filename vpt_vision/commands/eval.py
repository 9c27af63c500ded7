"""`vpt eval`: probes on frozen features."""

from __future__ import annotations

import argparse
import json
import logging
from typing import get_args

import torch

from vpt_vision.commands.parsing import Commands, add_command, names_model
from vpt_vision.config import RunConfig, load_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.probes import Probe, probe, summary
from vpt_vision.loading import config_of, expect_model, load_encoder, renderer_for
from vpt_vision.training.trainer import resolve_device

PURPOSES: dict[Probe, str] = {
    "knn": "Weighted nearest neighbours, DINO's protocol: k = 10, 20, 100, temperature 0.07.",
    "linear": "A grid of linear classifiers by SGD, DINOv2's protocol, the best picked on validation.",
    "logistic": "Logistic regression fitted to convergence: accuracy and cross-entropy.",
    "few_shot": "Logistic regression on a few images of each class, over several draws, MSN's protocol.",
    "retrieval": "Rank the train images by similarity to each test image; those of its class are right: mean "
    "average precision.",
    "segmentation": "Batch norm and a linear layer on patches, sliding window: mIoU; for ADE20K set "
    "evaluation.segmentation.reduce_zero_label=true.",
    "depth": "A linear layer on patches: RMSE, absolute relative error and δ1, with Eigen's crops.",
}


def add_eval(commands: Commands) -> None:
    """Add `vpt eval` with a command for each probe."""
    evaluate = add_command(commands, "eval", "Probe frozen features.", "vpt eval knn runs/demo --json")
    probes = evaluate.add_subparsers(title="probes", required=True, metavar="PROBE")
    for name in get_args(Probe):
        word = name.replace("_", "-")
        command = add_command(probes, word, PURPOSES[name], f"vpt eval {word} runs/demo --json")
        names_model(command)
        command.add_argument(
            "--config", help="a run config whose 'evaluation' names the data (default: the run's own)"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        command.add_argument(
            "--no-cache", action="store_true", help="extract features anew, and do not keep them"
        )
        command.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
        command.set_defaults(run=run_probe, probe=name)


def run_probe(options: argparse.Namespace) -> int:
    """Run one probe, and print its results."""
    logging.getLogger("vpt_vision.evaluation").setLevel(logging.INFO)  # rates, and what the cache had
    config = evaluation_config(options)
    if config.evaluation is None:
        raise UserError(
            "the config has no 'evaluation' part, which names the labelled data: add one, or give --config."
        )
    evaluation = config.evaluation.model_copy(update={"cache": None} if options.no_cache else {})
    torch.manual_seed(config.seed)  # weights at random are the same at every call
    encoder = load_encoder(
        options.model, network="student" if options.student else "teacher", weights=options.weights
    ).to(resolve_device(config.device))
    results = probe(
        encoder,
        evaluation,
        (options.probe,),
        renderer=renderer_for(options.model, config, encoder),
    )[options.probe]
    for result in results:
        print(f"{options.model}: {result}")
    if options.json:
        print(json.dumps({"model": options.model, **summary(results)}))
    return 0


def evaluation_config(options: argparse.Namespace) -> RunConfig:
    """The config that names the probes' data: the one asked for, else the model's own."""
    if options.config is not None:
        return load_config(options.config, options.overrides)
    expect_model(options.model)
    config = config_of(options.model)
    if config is None:
        raise UserError(
            f"'{options.model}' does not tell which data to probe on: give --config FILE, with an "
            "'evaluation' part."
        )
    return load_config(config.model_dump(mode="json"), options.overrides)
