"""Ground truth of instance retrieval, in the layout of revisited Oxford and Paris."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError, model_validator

from vpt_vision.errors import UserError


class Judgement(BaseModel):
    """What is known of one query: numbers of database images, by how hard they are to find."""

    easy: list[int] = []
    hard: list[int] = []
    junk: list[int] = []  # neither right nor wrong
    bbx: tuple[float, float, float, float] | None = None  # left, top, right, bottom, pixels; None: all of it


class GroundTruth(BaseModel):
    """Names of database and query images, and what each query should find."""

    imlist: list[str]
    qimlist: list[str]
    gnd: list[Judgement]  # one for each query

    @model_validator(mode="after")
    def _agrees(self) -> GroundTruth:
        if not self.qimlist or len(self.gnd) != len(self.qimlist):
            raise ValueError(f"it has {len(self.qimlist)} queries, and judgements of {len(self.gnd)}")
        for query, judged in zip(self.qimlist, self.gnd, strict=True):
            for number in (*judged.easy, *judged.hard, *judged.junk):
                if not 0 <= number < len(self.imlist):
                    raise ValueError(f"query {query} names image {number} of {len(self.imlist)}")
        return self


def read_ground_truth(path: Path) -> GroundTruth:
    """Read `gnd_roxford5k.pkl`, `gnd_rparis6k.pkl`, or JSON of the same layout.

    From a pickle come plain containers, texts, numbers and numpy arrays; whatever else it asks for is
    refused, and never called.

    Raises:
        UserError: the file is missing, is neither, or does not say what it must.
    """
    try:
        with path.expanduser().open("rb") as file:
            # Python 2 wrote the published files' texts as bytes
            found = json.load(file) if path.suffix == ".json" else _Plain(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): set evaluation.retrieval.ground_truth to "
            "gnd_roxford5k.pkl, gnd_rparis6k.pkl or JSON of that layout."
        ) from None
    except Exception as error:  # a broken pickle raises whatever its broken parts raise
        raise UserError(
            f"{path} is no ground truth of retrieval ({error}): give gnd_roxford5k.pkl, gnd_rparis6k.pkl, or "
            "JSON of that layout whose name ends in .json."
        ) from None
    try:
        return GroundTruth.model_validate(_listed(found))
    except ValidationError as error:
        first = error.errors()[0]
        told = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
        raise UserError(
            f"{path} is no ground truth of retrieval ({told}): it needs imlist, qimlist and gnd, of "
            "which each has easy, hard and junk."
        ) from None


def _bytes(text: str, encoding: str) -> bytes:
    """How protocol 2 spells the bytes of an array."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for {encoding}, which plain data do not")
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): bytes,  # of an empty array
    **{  # numpy has moved these, and tells where they are now
        (f"numpy.{core}.multiarray", name): value.__reduce__()[0]
        for core in ("core", "_core")
        for name, value in (("_reconstruct", np.empty(0)), ("scalar", np.float64(0)))
    },
}


class _Plain(pickle.Unpickler):
    """Unpickles nothing but plain data and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data do not") from None


def _listed(found: Any) -> Any:
    """`found` with lists in the place of arrays."""
    if isinstance(found, np.ndarray | np.generic):
        return _listed(found.tolist())
    if isinstance(found, dict):
        return {name: _listed(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_listed(value) for value in found]
    return found
