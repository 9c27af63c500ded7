"""A data set of Hugging Face `datasets`, as `save_to_disk` leaves it in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vpt_vision.data.fingerprint import fingerprint, stamp
from vpt_vision.data.labels import LARGEST, number_names
from vpt_vision.data.source import Sample, UnreadableSample
from vpt_vision.data.stored import Stored
from vpt_vision.errors import UserError
from vpt_vision.schema import Config


class HuggingFaceConfig(Config):
    """Rows of a data set that `datasets` saved to a folder."""

    kind: Literal["huggingface"]
    path: Path = Field(description="folder that save_to_disk wrote")
    split: str | None = Field(None, description="which split, where the folder holds several")
    image_column: str | None = Field(None, description="column of images; unset: the only one there is")
    label_column: str | None = Field(
        None, description="column of class numbers; unset: the only one of class labels, if there is one"
    )


class HuggingFace:
    """Every row of a saved data set, in its order.

    The names of the classes are those of the label column where it has names.

    Raises:
        UserError: `datasets` is not installed, the folder holds no data set, the split or a column is missing
            or not the only one of its kind, or a label is no class number.
    """

    def __init__(self, config: HuggingFaceConfig, at_least: int | None = None) -> None:
        self.at_least = at_least
        self.root = config.path.expanduser()
        self.faults: list[str] = []
        rows = _open(self.root, config.split)
        kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
        self._image = _column(self.root, "image", config.image_column, kinds, "Image")
        if self._image is None:
            raise UserError(
                f"{self.root} has no column of images among {', '.join(kinds)}: save it with one of type "
                "Image."
            )
        label = _column(self.root, "label", config.label_column, kinds, "ClassLabel")
        labels = [] if label is None else _labels(rows, label, str(self.root))
        self.classes = number_names(labels, None, str(self.root))
        if label is not None and kinds[label] == "ClassLabel":
            self.classes = list(rows.features[label].names)
        self._labels = np.array([-1 if label is None else label for label in labels] or [-1] * len(rows))
        undecoded = type(rows.features[self._image])(decode=False)
        self._rows = rows.select_columns([self._image]).cast_column(self._image, undecoded)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        return self.stored(index).decoded(self.name(index), index, self.at_least)

    def name(self, index: int) -> str:
        """The folder and the number of the row."""
        return f"{self.root}: row {index}"

    def fingerprint(self) -> str:
        """A hash of the files' lengths and times of change, of the columns and the labels."""
        stamps = [stamp(Path(file["filename"])) for file in self._rows.cache_files]
        return fingerprint(f"huggingface {self.at_least} {self._image}", np.array(stamps), self._labels)

    def stored(self, index: int) -> Stored:
        """Read the image of one row; raises `UnreadableSample` where it cannot."""
        label = int(self._labels[index])
        cell = self._rows[index][self._image]
        if cell is None or cell["bytes"] is None:
            raise UnreadableSample(self.name(index), "the row has no image")
        stem = Path(cell["path"] or "").stem
        return Stored(key=stem, image=cell["bytes"], label=None if label < 0 else label)

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of the image of each sample, in the first of three columns [N, 3]; the others are 0."""
        lengths = np.zeros((len(self), 3), np.int64)
        for index in range(len(self)):
            try:
                lengths[index, 0] = len(self.stored(index).image)
            except UnreadableSample:
                continue
        return lengths


def _open(root: Path, split: str | None) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise _unfit(root, error) from error
        raise UserError(
            f"reading {root} takes Hugging Face's datasets, which is not installed: pip install datasets."
        ) from None
    except Exception as error:  # a release that does not go with what else is installed may raise anything
        raise _unfit(root, error) from error
    try:
        found = datasets.load_from_disk(str(root))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root} holds no data set of Hugging Face's ({' '.join(str(error).split())}): name a folder "
            "that save_to_disk wrote."
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            known = ", ".join(found)
            raise UserError(f"{root} has the splits {known}, not {split}: name one of them as 'split'.")
        return found[split]
    if split is not None:
        raise UserError(f"{root} has no splits, so none called {split}: leave 'split' out.")
    return found


def _unfit(root: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"reading {root} takes Hugging Face's datasets, which is installed but fails by itself ({reason}): "
        "pip install -U 'datasets>=3.0' (3.0 and 5.2 are tested)."
    )


def _column(root: Path, purpose: str, named: str | None, kinds: dict[str, str], kind: str) -> str | None:
    """The column of a purpose: the one that is named, or the only one of its kind."""
    if named is not None:
        if named not in kinds:
            raise UserError(
                f"{root} has no column {named}, only {', '.join(kinds)}: correct '{purpose}_column'."
            )
        return named
    found = [name for name, its in kinds.items() if its == kind]
    if len(found) > 1:
        raise UserError(
            f"{root} has the {purpose} columns {', '.join(found)}: name one of them as '{purpose}_column'."
        )
    return found[0] if found else None


def _labels(rows: Any, column: str, where: str) -> list[int | None]:
    labels = rows.with_format("arrow")[:][column].to_pylist()
    for label in labels:
        if label is not None and not (isinstance(label, int) and -1 <= label <= LARGEST):
            raise UserError(
                f"{where} has the label {label!r} in its column {column}: class numbers from 0 are needed."
            )
    return [None if label == -1 else label for label in labels]  # -1: what `datasets` writes for no label
