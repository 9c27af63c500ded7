"""What a run ran on, told by the run itself."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vpt_vision.errors import UserError

ENVIRONMENT_FILE = "environment.jsonl"
_PACKAGES = ("vpt-vision", "triton", "timm", "numpy")


def note_environment(output: Path, device: torch.device, step: int) -> None:
    """Append a line to the run's `environment.jsonl`: when and where it was started, and from which step."""
    with (output / ENVIRONMENT_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"from_step": step, **environment(device)}) + "\n")


def read_environment(output: Path) -> list[dict[str, Any]]:
    """Read the run's `environment.jsonl`, no line where there is none; raises `UserError` for a bad one."""
    path = output / ENVIRONMENT_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        starts = [json.loads(line) for line in lines]
    except ValueError:
        starts = [None]
    if not all(isinstance(start, dict) for start in starts):
        raise UserError(f"{path} is not a file of JSON objects, one a line: mend or delete it.")
    return starts


def environment(device: torch.device) -> dict[str, Any]:
    """Time, versions, and the hardware of `device` and of its host."""
    described: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": str(device),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, which the package's version may lack
        **{package: _version(package) for package in _PACKAGES},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = properties.name
        described["gpu_memory_gb"] = round(properties.total_memory / 2**30, 1)
        described["cuda"] = torch.version.cuda or torch.version.hip
    return described


def _cpu() -> str:
    """Model of the processor, as Linux tells it, else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
