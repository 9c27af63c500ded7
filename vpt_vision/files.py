"""Files that commands write: whole or not at all, and told in a sentence where they cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vpt_vision.errors import UserError


def expect_writable(path: Path) -> None:
    """Raise `UserError` where `path` could not be written, before there is anything to write.

    Nothing is made; folders that are missing are no hindrance, as `writing` makes them.
    """
    if path.is_dir():
        raise _refused(path, "it is a folder")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise _refused(path, f"{there} is not a folder")
    if not os.access(there if _is_replaced(path) else path, os.W_OK):
        raise _refused(path, "permission denied")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a file to write, which becomes `path` at the end; missing folders are made.

    A link, or what is no plain file, such as /dev/stdout, is written to directly. Processes that write the
    same file at once do not meddle: the last one's stands.

    Raises:
        UserError: it cannot be written; a plain file is then as it was, or not there.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part") if _is_replaced(path) else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part != path:
            part.replace(path)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from None
    finally:
        if part != path:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _is_replaced(path: Path) -> bool:
    """Whether `path` is written by a file made beside it: not a link, nor a device or the like."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path} cannot be written ({reason}): name another file.")
