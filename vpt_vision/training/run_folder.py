"""The folder of a run: what lies where, whose it is, and what can be read back from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vpt_vision.config import RunConfig, differing_keys, dump_config, load_config
from vpt_vision.errors import UserError
from vpt_vision.training.checkpoint import checkpoint_paths, read_checkpoint

CONFIG_FILE = "config.yaml"
BACKBONE_FILE = "backbone.safetensors"
CHECKPOINT_FOLDER = "checkpoints"


def claim(config: RunConfig) -> Path:
    """Make `config.output` this run's folder, and return it.

    Raises:
        UserError: where it holds a run of another config (naming the keys that differ), or files that no
            run wrote.
    """
    output = Path(config.output)
    stored = output / CONFIG_FILE
    if stored.exists():
        other = yaml.safe_load(stored.read_text(encoding="utf-8"))
        changed = differing_keys(other, config.model_dump(mode="json"))
        if changed:
            raise UserError(
                f"{output} holds a run whose config differs at {', '.join(changed)}: choose another output, "
                "or delete that folder."
            )
        return output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and was not written by a run: choose another output.")
    output.mkdir(parents=True, exist_ok=True)
    part = stored.with_suffix(".part")
    part.write_text(dump_config(config), encoding="utf-8")
    part.replace(stored)
    return output


def read_run_config(run: Path) -> RunConfig:
    """Read back the config of the run in folder `run`."""
    stored = run / CONFIG_FILE
    if not stored.is_file():
        raise UserError(f"{run} is not the output folder of a run: it has no {CONFIG_FILE}.")
    return load_config(stored)


def newest_state(run: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint of the run in folder `run`; None where it has not written one yet."""
    paths = checkpoint_paths(run / CHECKPOINT_FOLDER)
    return read_checkpoint(paths[-1]) if paths else None
