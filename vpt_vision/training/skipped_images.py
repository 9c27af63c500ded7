"""What the log says of images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

NAMED = 5  # between two lines of the log


class SkippedImages:
    """Names the first images that are skipped between two lines of the log, and counts the others."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._count = 0

    def add(self, skipped: Iterable[object]) -> None:
        """Take in what a batch had to do without; each tells its name and reason as text."""
        for image in skipped:
            self._count += 1
            if self._count <= NAMED:
                self._say(f"skipped an image that cannot be read: {image}")

    def end_interval(self) -> None:
        """Tell how many there were besides those named, and start again."""
        if self._count > NAMED:
            self._say(f"skipped {self._count - NAMED} more images that cannot be read.")
        self._count = 0
