"""The folder of a run: what lies where, whose it is, and what can be read back from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpt_vision.config import RunConfig, differing_keys, dump_config, load_config
from vpt_vision.errors import UserError
from vpt_vision.training.checkpoint import checkpoint_paths, read_checkpoint

CONFIG_FILE = "config.yaml"
BACKBONE_FILE = "backbone.safetensors"
CHECKPOINT_FOLDER = "checkpoints"
FREE = ("output", "device", "data.workers", "checkpoint.", "log.")  # may change when a run goes on


def claim(config: RunConfig) -> Path:
    """Make `config.output` this run's folder, and return it.

    A run that goes on may have moved, and may log, save and load data otherwise than before.

    Raises:
        UserError: where it holds a run of another config (naming the keys that differ), or files that no
            run wrote.
    """
    output = Path(config.output)
    stored = output / CONFIG_FILE
    part = stored.with_suffix(".part")
    if stored.exists():
        # Read as a config, so that keys which are newer than the run have their defaults, as it had.
        before = load_config(stored).model_dump(mode="json")
        changed = differing_keys(before, config.model_dump(mode="json"))
        changed = [key for key in changed if not key.startswith(FREE)]
        if changed:
            raise UserError(
                f"{output} holds a run whose config differs at {', '.join(changed)}: choose another output, "
                "or delete that folder."
            )
    elif output.exists() and (not output.is_dir() or any(path != part for path in output.iterdir())):
        raise UserError(f"{output} exists and was not written by a run: choose another output.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        part.write_text(dump_config(config), encoding="utf-8")
        part.replace(stored)
    except OSError as error:
        raise UserError(
            f"output: {output} cannot be written to ({error.strerror}): choose another."
        ) from None
    return output


def newest_state(run: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint of the run in folder `run`; None where it has not written one yet."""
    paths = checkpoint_paths(run / CHECKPOINT_FOLDER)
    return read_checkpoint(paths[-1]) if paths else None
