"""Class numbers as they lie beside images: a text file with one integer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vpt_vision.errors import UserError

LARGEST = 999_999  # above it a number is an identifier, not a class


def parse_class(text: bytes, name: str) -> int:
    """Read the text of a `.cls` file; raises `UserError` calling it `name` where it is no class number."""
    if not re.fullmatch(rb"\s*\d{1,6}\s*", text):
        shown = text[:20].decode("utf-8", "replace").strip()
        raise UserError(f"{name} holds '{shown}': write one class number from 0 to {LARGEST} there.")
    return int(text)


def number_names(labels: Sequence[int | None], classes: int | None, where: str) -> list[str] | None:
    """Names of classes that are known by number only.

    Args:
        labels: of every sample, None where it has none.
        classes: how many there are; None for one more than the largest label.
        where: the data's name in an error.

    Returns:
        The numbers as text; None where no sample has a label.

    Raises:
        UserError: a label is not below `classes`.
    """
    largest = max((label for label in labels if label is not None), default=None)
    if largest is None:
        return None
    if classes is not None and largest >= classes:
        raise UserError(
            f"{where} has a label {largest}, out of the range 0 to {classes - 1} that 'classes: {classes}' "
            "sets: correct the label or the setting."
        )
    return [str(number) for number in range(largest + 1 if classes is None else classes)]
