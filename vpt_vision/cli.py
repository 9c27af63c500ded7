"""`vpt`: train, probe, demonstrate and inspect from the command line."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vpt_vision.config import RunConfig, dump_config, load_config
from vpt_vision.demo import run_demo
from vpt_vision.errors import UserError
from vpt_vision.evaluation.probes import probe, summary
from vpt_vision.loading import config_of, load_backbone, renderer_for
from vpt_vision.training.trainer import resolve_device, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 128 + N after signal N."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = _parse(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"vpt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vpt: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line whose overrides may stand anywhere among its options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _train(options: argparse.Namespace) -> int:
    result = train(options.config, options.overrides)
    if result.interrupted is not None:
        return 128 + result.interrupted
    print(f"{result.output}: {result.step} steps done.")
    return 0


def _config(options: argparse.Namespace) -> int:
    print(dump_config(load_config(options.config, options.overrides)), end="")
    return 0


def _eval(options: argparse.Namespace) -> int:
    config = _evaluation_config(options)
    if config.evaluation is None:
        raise UserError(
            "the config has no 'evaluation' part, which names the labelled data: add one, or give --config."
        )
    backbone = load_backbone(
        options.model, network="student" if options.student else "teacher", weights=options.weights
    ).to(resolve_device(config.device))
    results = probe(
        backbone,
        config.evaluation,
        (options.probe,),
        source_size=config.data.source_size,
        renderer=renderer_for(options.model, config),
    )[options.probe]
    for result in results:
        print(f"{options.model}: {result}")
    if options.json:
        print(json.dumps({"model": options.model, **summary(results)}))
    return 0


def _evaluation_config(options: argparse.Namespace) -> RunConfig:
    """The config that names the probes' data: the one asked for, else the model's own."""
    if options.config is not None:
        return load_config(options.config, options.overrides)
    config = config_of(options.model)
    if config is None:
        raise UserError(
            f"'{options.model}' does not tell which data to probe on: give --config FILE, with an "
            "'evaluation' part."
        )
    return load_config(config.model_dump(mode="json"), options.overrides)


def _demo(options: argparse.Namespace) -> int:
    interrupted = run_demo(load_config(options.config, options.overrides))
    return 0 if interrupted is None else 128 + interrupted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt",
        description="Self-supervised vision pretraining whose task is made by a designer network.",
        epilog="example: vpt train configs/demo.yaml steps=100 output=runs/first",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(
        commands,
        "train",
        "Start a run, or go on with it.",
        "vpt train configs/demo.yaml seed=1 output=runs/one",
    )
    _takes_config(train)
    train.set_defaults(run=_train)

    config = _command(
        commands,
        "config",
        "Print a config with every default filled in and overrides applied.",
        "vpt config configs/demo.yaml schedule.learning_rate=1e-4",
    )
    _takes_config(config)
    config.set_defaults(run=_config)

    evaluate = _command(commands, "eval", "Probe frozen features.", "vpt eval knn runs/demo/learned --json")
    probes = evaluate.add_subparsers(title="probes", required=True, metavar="PROBE")
    for name, purpose in {
        "knn": "Weighted nearest-neighbour classification, DINO's protocol.",
        "linear": "Multinomial logistic regression, fitted to convergence: accuracy and cross-entropy.",
    }.items():
        command = _command(probes, name, purpose, f"vpt eval {name} runs/demo/learned --json")
        command.add_argument(
            "model",
            help="a run's folder, a checkpoint (.pt), a backbone (.safetensors), or the name of a timm model",
        )
        command.add_argument(
            "--config", help="a run config whose 'evaluation' names the data (default: the run's own)"
        )
        command.add_argument(
            "--weights",
            default="timm",
            help="for a timm model: timm (its pretrained weights), none (random), or a safetensors file",
        )
        command.add_argument(
            "--student", action="store_true", help="probe a checkpoint's student instead of its teacher"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
        command.set_defaults(run=_eval, probe=name)

    demo = _command(
        commands,
        "demo",
        "Pretrain with the fixed recipe and with the learned designer, probe both, and draw what happened.",
        "vpt demo configs/demo.yaml",
    )
    _takes_config(demo)
    demo.set_defaults(run=_demo)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")


def _takes_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, help="the run's YAML file")
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to it, such as steps=100 or recipe.crops.local_views=8",
    )


if __name__ == "__main__":
    sys.exit(main())
