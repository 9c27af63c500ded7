"""`vpt`: train, probe, demonstrate and look after data from the command line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vpt_vision.commands.compare import add_compare
from vpt_vision.commands.eval import add_eval
from vpt_vision.commands.parsing import Commands, add_command, non_negative, positive
from vpt_vision.commands.report import add_report
from vpt_vision.commands.value import add_value
from vpt_vision.commands.viz import add_viz
from vpt_vision.config import dump_config, load_config
from vpt_vision.data.tools.check import check
from vpt_vision.data.tools.opening import open_source
from vpt_vision.data.tools.shard import parse_size, write_shards
from vpt_vision.data.tools.show import contact_sheet, save_sheet
from vpt_vision.demo import run_demo
from vpt_vision.errors import UserError
from vpt_vision.footprint import footprint
from vpt_vision.training.trainer import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0: all is well; 1: data are broken; 2: bad input; 128 + N: ended by signal N.
    """
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
    """Parse a command line whose overrides, or images, may stand anywhere among its options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if "images" in options:
        options.images += [Path(word) for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
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
    config = load_config(options.config, options.overrides)
    print(dump_config(config), end="", flush=True)
    for line in footprint(config).lines(config):
        print(f"# {line}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    interrupted = run_demo(load_config(options.config, options.overrides))
    return 0 if interrupted is None else 128 + interrupted


def _data_shard(options: argparse.Namespace) -> int:
    source = open_source(options.source, options.overrides)
    report = write_shards(
        source,
        options.destination,
        parse_size(options.shard_size),
        seed=options.seed,
        in_order=options.in_order,
        workers=options.workers,
        console=Console(stderr=True),
    )
    for unreadable in report.named:
        print(f"left out: {unreadable}")
    print(report)
    return 1 if report.left_out else 0


def _data_check(options: argparse.Namespace) -> int:
    source = open_source(options.source, options.overrides)
    report = check(source, workers=options.workers, console=Console(stderr=True))
    print("\n".join(report.lines()))
    if options.json:
        print(json.dumps({"source": options.source, **report.summary()}))
    return 0 if report.is_whole else 1


def _data_show(options: argparse.Namespace) -> int:
    source = open_source(options.source, options.overrides, at_least=2 * options.size)
    sheet = contact_sheet(source, options.size, count=options.count, seed=options.seed)
    save_sheet(sheet, options.picture)
    print(f"{options.picture}: {min(options.count, len(source))} of {len(source)} samples.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpt",
        description="Self-supervised vision pretraining whose task is made by a designer network.",
        epilog="example: vpt train configs/demo.yaml steps=100 output=runs/first",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = add_command(
        commands,
        "train",
        "Start a run, or go on with it.",
        "vpt train configs/demo.yaml seed=1 output=runs/one",
    )
    _takes_config(train)
    train.set_defaults(run=_train)

    config = add_command(
        commands,
        "config",
        "Print a config with every default filled in and overrides applied, and how large its networks are.",
        "vpt config configs/demo.yaml schedule.learning_rate=1e-4",
    )
    _takes_config(config)
    config.set_defaults(run=_config)

    add_eval(commands)
    add_compare(commands)
    add_value(commands)
    add_viz(commands)
    add_report(commands)

    demo = add_command(
        commands,
        "demo",
        "Pretrain with the fixed recipe and with the learned designer, probe both, and draw what happened.",
        "vpt demo configs/demo.yaml",
    )
    _takes_config(demo)
    demo.set_defaults(run=_demo)

    data = add_command(
        commands, "data", "Write shards, check data, look at it.", "vpt data check /data/photos"
    )
    _add_data_commands(data.add_subparsers(title="commands", required=True, metavar="COMMAND"))
    return parser


def _add_data_commands(commands: Commands) -> None:
    shard = add_command(
        commands,
        "shard",
        "Write any source as balanced, shuffled, indexed WebDataset shards; after a kill it goes on.",
        "vpt data shard /data/photos /data/shards --shard-size 256MB --workers 8",
    )
    _takes_source(shard)
    shard.add_argument("destination", type=Path, help="a new or empty folder for the shards")
    shard.add_argument(
        "--shard-size",
        default="256MB",
        help="upper bound of a shard: samples (1000) or bytes (256MB; default)",
    )
    shard.add_argument("--seed", type=int, default=0, help="of the shuffle")
    shard.add_argument("--in-order", action="store_true", help="keep the source's order: no shuffle")
    _takes_workers(shard)
    shard.set_defaults(run=_data_shard)

    check = add_command(
        commands,
        "check",
        "Read a source through; name and count what is broken. Exit code 1 if anything is.",
        "vpt data check '/data/train-{000000..000099}.tar' --workers 8 --json",
    )
    _takes_source(check)
    check.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    _takes_workers(check)
    check.set_defaults(run=_data_check)

    show = add_command(
        commands,
        "show",
        "Draw a contact sheet of some samples with their labels and maps.",
        "vpt data show /data/photos photos.png --count 24",
    )
    _takes_source(show)
    show.add_argument("picture", type=Path, help="the PNG file to write")
    show.add_argument("--count", type=positive, default=48, help="samples to draw (default: 48)")
    show.add_argument("--seed", type=int, default=0, help="of the draw")
    show.add_argument("--size", type=positive, default=128, help="side of a sample, pixels (default: 128)")
    show.set_defaults(run=_data_show)
    for command in (shard, check, show):  # last: what follows the named arguments
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="settings of the source, such as classes=10 or remote.cache=/fast/disk",
        )


def _takes_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        help="a folder of images, of shards or of Hugging Face's save_to_disk; or a pattern or URL of shards",
    )


def _takes_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers",
        type=non_negative,
        default=os.cpu_count() or 1,
        help="processes at work (default: one for each core; 0: none but this one)",
    )


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
