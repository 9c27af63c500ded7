"""A folder of images, labelled by its subfolders, by files beside the images, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vpt_vision.data.fingerprint import fingerprint, stamp
from vpt_vision.data.labels import number_names, parse_class
from vpt_vision.data.members import CLASS, DEPTH, DEPTH_METRES, IMAGES, SEGMENTATION
from vpt_vision.data.source import Sample, UnreadableSample
from vpt_vision.data.stored import Stored
from vpt_vision.errors import UserError
from vpt_vision.schema import Config


class FolderConfig(Config):
    """Image files in a folder, with their labels as they lie."""

    kind: Literal["folder"]
    path: Path = Field(description="folder that holds images, or a subfolder of images for each class")
    classes: int | None = Field(
        None, ge=1, description="number of classes that .cls files name; unset: one more than the largest"
    )


class Folder:
    """Every image below a folder, in the order of their paths; names that begin with a dot are passed over.

    An image's class is the number in the `.cls` file beside it; where there are no such files, it is
    the top subfolder that holds the image (subfolders sorted by name, empty ones counted, as in torchvision's
    ImageFolder); images that lie in the folder itself have none. Segmentation and depth maps are read
    where they lie beside the image.

    Raises:
        UserError: the folder is missing, cannot be listed, has no image, or its labels cannot be used.
    """

    def __init__(self, config: FolderConfig, at_least: int | None = None) -> None:
        self.root = config.path.expanduser()
        self.at_least = at_least
        files = _files_below(self.root)
        images = [path for path in files if _is_image(path)]
        if not images:
            raise UserError(
                f"{self.root} holds no image: put {', '.join(IMAGES)} files there, or name another folder."
            )
        present = set(files)
        labels: list[int | None] = [self._written_class(path, present) for path in images]
        self.classes = number_names(labels, config.classes, str(self.root))
        if self.classes is None:
            self.classes, labels = self._subfolder_classes(images)
        # Arrays, not lists: worker processes then share one copy, as no reference count is ever written.
        self._paths = np.array([os.fsencode(path) for path in images])
        self._labels = np.array([-1 if label is None else label for label in labels])
        self._segmentations = np.array([os.fsencode(_beside(path, present, SEGMENTATION)) for path in images])
        self._depths = np.array([os.fsencode(self._depth(path, present)) for path in images])
        self.faults: list[str] = []

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        return self.stored(index).decoded(self.name(index), index, self.at_least)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.root / os.fsdecode(self._paths[index]))

    def stored(self, index: int) -> Stored:
        """Read the files of one sample; raises `UnreadableSample` where it cannot."""
        label = int(self._labels[index])
        try:
            image, segmentation, depth = (
                (self.root / path).read_bytes() if path else None for path in self._files(index)
            )
        except OSError as error:
            raise UnreadableSample(self.name(index), error.strerror or str(error)) from error
        assert image is not None
        return Stored(
            key=_stem(os.fsdecode(self._paths[index])),
            image=image,
            label=None if label < 0 else label,
            segmentation=segmentation,
            depth=depth,
        )

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of image, segmentation map and depth map of each sample [N, 3]; 0 for what it has not."""
        return np.array([[self._length(path) for path in self._files(index)] for index in range(len(self))])

    def fingerprint(self) -> str:
        """A hash of all names, of lengths and times of change of all files, and of the labels."""
        stamps = [
            stamp(self.root / path) for index in range(len(self)) for path in self._files(index) if path
        ]
        return fingerprint(
            f"folder {self.at_least}",
            self._paths,
            self._segmentations,
            self._depths,
            self._labels,
            np.array(stamps),
        )

    def _files(self, index: int) -> list[str]:
        """Paths of image, segmentation map and depth map below the root; '' where there is no such map."""
        return [os.fsdecode(paths[index]) for paths in (self._paths, self._segmentations, self._depths)]

    def _length(self, path: str) -> int:
        try:
            return (self.root / path).stat().st_size if path else 0
        except FileNotFoundError:
            return 0

    def _depth(self, path: str, present: set[str]) -> str:
        found = [beside for suffix in (DEPTH, DEPTH_METRES) if (beside := _beside(path, present, suffix))]
        if len(found) > 1:
            raise UserError(f"{self.root} holds both {' and '.join(found)}: keep one depth map per image.")
        return found[0] if found else ""

    def _written_class(self, path: str, present: set[str]) -> int | None:
        beside = _stem(path) + CLASS
        if beside not in present:
            return None
        return parse_class((self.root / beside).read_bytes(), str(self.root / beside))

    def _subfolder_classes(self, images: list[str]) -> tuple[list[str] | None, list[int | None]]:
        folders = [Path(path).parts[:-1] for path in images]
        tops = [parts[0] if parts else None for parts in folders]
        if all(top is None for top in tops):
            return None, [None] * len(images)
        if None in tops:
            raise UserError(
                f"{self.root} holds images beside subfolders of images: move the former into a class folder, "
                "or all of them into one folder."
            )
        classes = sorted(
            entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        numbers = {name: number for number, name in enumerate(classes)}
        return classes, [numbers[top] for top in tops if top is not None]


def _files_below(root: Path) -> list[str]:
    """Paths of all files, relative to `root` and sorted."""
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {problem}: name a folder of images.")
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        found += [str(below / name) for name in names if not name.startswith(".")]
    return sorted(found)


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename} cannot be listed ({error.strerror}): give it the right to be read."
    ) from error


def _is_image(path: str) -> bool:
    lower = path.lower()
    return lower.endswith(IMAGES) and not lower.endswith((SEGMENTATION, DEPTH))


def _beside(path: str, present: set[str], suffix: str) -> str:
    """The file of an image's name with another suffix, if it is there, or ''."""
    beside = _stem(path) + suffix
    return beside if beside in present else ""


def _stem(path: str) -> str:
    return str(Path(path).with_suffix(""))
