"""Probe results on disk: image by image, and what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vpt_vision.evaluation.result import Mean, MeanRatio, PerImage, ProbeResult
from vpt_vision.files import writing

Results = dict[str, ProbeResult]  # by the probe's name in a config, or of one's own


def remembered(path: Path, asked: Mapping[str, Any], measure: Callable[[], Results]) -> Results:
    """Return the results that `path` holds for what is `asked`, else those of `measure`, which it then holds.

    `asked` is JSON-able and says all that the results depend on. A kill leaves the whole file or none; one
    that cannot be read is measured anew.
    """
    stored = _read(path)
    if stored is not None and stored["asked"] == asked:
        return {name: _unpacked(result) for name, result in stored["results"].items()}
    results = measure()
    with writing(path) as part:
        torch.save(
            {"asked": dict(asked), "results": {name: _packed(result) for name, result in results.items()}},
            part,
        )
    return results


def _read(path: Path) -> dict[str, Any] | None:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises half a dozen unrelated types on a missing or damaged file
        return None
    return stored if isinstance(stored, dict) and {"asked", "results"} <= stored.keys() else None


def _packed(result: ProbeResult) -> dict[str, Any]:
    return {
        "probe": result.probe,
        "figures": {name: tuple(figure) for name, figure in result.figures.items()},
        "index": result.index,
        "settings": dict(result.settings),
        "details": dict(result.details),
    }


def _unpacked(stored: dict[str, Any]) -> ProbeResult:
    kinds: dict[int, type[PerImage]] = {1: Mean, 2: MeanRatio}
    figures = {name: kinds[len(parts)](*parts) for name, parts in stored["figures"].items()}
    return ProbeResult(stored["probe"], figures, stored["index"], stored["settings"], stored["details"])
