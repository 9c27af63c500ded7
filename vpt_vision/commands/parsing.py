"""What the parsers of all commands share."""

from __future__ import annotations

import argparse
import math
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(commands: Commands, name: str, purpose: str, example: str) -> argparse.ArgumentParser:
    """Add a command whose help tells its purpose and an example."""
    return commands.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")


def names_model(command: argparse.ArgumentParser) -> None:
    """Let a command name a model."""
    command.add_argument(
        "model",
        help="a run's folder, a checkpoint (.pt), a backbone (.safetensors), or the name of a timm model",
    )
    command.add_argument(
        "--weights",
        default="timm",
        help="for a timm model: timm (its pretrained weights), none (random), or a safetensors file",
    )
    command.add_argument(
        "--student", action="store_true", help="take a checkpoint's student instead of its teacher"
    )


def positive(text: str) -> int:
    """Read a number of 1 or more, as argparse's `type`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def non_negative(text: str) -> int:
    """Read a number of 0 or more, as argparse's `type`."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number


def positive_float(text: str) -> float:
    """Read a finite number above 0, as argparse's `type`."""
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def non_negative_float(text: str) -> float:
    """Read a finite number of 0 or more, as argparse's `type`."""
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of 0 or more")
    return number
