"""Bytes from far away, over http(s), from a command or through fsspec, tried again with patience."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from http.client import HTTPException
from logging import getLogger
from pathlib import Path
from queue import Empty, SimpleQueue
from random import SystemRandom
from threading import Thread
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pydantic import Field

from vpt_vision.errors import UserError
from vpt_vision.schema import Config

_LOG = getLogger(__name__)

CHUNK = 1 << 20  # bytes
LONGEST_WAIT = 60.0  # seconds between two tries
# RFC 9110 and 6585: timeout, too early, too many requests; server errors that may pass
PASSING = {408, 425, 429, 500, 502, 503, 504}
SCHEME = re.compile(r"(pipe:|[A-Za-z][A-Za-z0-9+.-]*://)")

Result = TypeVar("Result")


class PatienceConfig(Config):
    """How long to try where the network fails."""

    retries: int = Field(4, ge=0, description="further tries after a failure that may pass")
    backoff: float = Field(
        1.0,
        ge=0,
        description="seconds before the first of them; doubled for each further one, up to a minute",
    )
    timeout: float = Field(
        60.0,
        gt=0,
        description="seconds without a byte after which a read has failed",
    )


class Unreachable(Exception):
    """Something could not be read from far away."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing  # another try may help


def is_remote(location: str) -> bool:
    """Whether a location is a URL or `pipe:command`, in contrast to a path on this machine."""
    return SCHEME.match(location) is not None


def check_reach(location: str) -> None:
    """Raise `UserError` where a location is of a kind that cannot be read with what is installed."""
    if not location.startswith(("pipe:", "http://", "https://")):
        _file_system(location)


def version(location: str, patience: PatienceConfig) -> str:
    """Text that changes when what lies at `location` does; '' where nothing tells, as for a command.

    Raises `Unreachable` after the last try.
    """
    if location.startswith("pipe:"):
        return ""
    ask = _http_version if location.startswith(("http://", "https://")) else _fsspec_version
    return with_patience(lambda: ask(location, patience.timeout), location, patience)


def read(location: str, patience: PatienceConfig) -> bytes:
    """Read all that lies at `location`; raises `Unreachable` after the last try."""
    return with_patience(lambda: b"".join(_chunks(location, patience.timeout)), location, patience)


def download(location: str, path: Path, length: int | None, patience: PatienceConfig) -> None:
    """Write what lies at `location` to `path`, which appears whole or not at all.

    Args:
        location: a URL or `pipe:command`.
        path: the file to write, in a folder that exists.
        length: bytes expected; None where nobody knows.
        patience: how long to try.

    Raises:
        Unreachable: after the last try.
        OSError: `path` cannot be written.
    """
    part = path.with_suffix(".part")

    def attempt() -> None:
        written = 0
        with part.open("wb") as file, closing(_chunks(location, patience.timeout)) as chunks:
            for chunk in chunks:
                written += file.write(chunk)
        if length is not None and written != length:
            raise Unreachable(f"it has {written} bytes in place of {length}", passing=True)

    try:
        with_patience(attempt, location, patience)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def with_patience(attempt: Callable[[], Result], location: str, patience: PatienceConfig) -> Result:
    """Return what `attempt` returns, trying again while it raises `Unreachable` that may pass."""
    for tries in range(patience.retries):
        try:
            return attempt()
        except Unreachable as error:
            if not error.passing:
                raise
            # Many processes fail at the same moment; a random share keeps them from coming back together.
            wait = min(patience.backoff * 2**tries, LONGEST_WAIT) * (1 + SystemRandom().random() / 2)
            _LOG.warning("%s: %s; trying again in %.1f s", location, error, wait)
            time.sleep(wait)
    return attempt()


def _chunks(location: str, timeout: float) -> Generator[bytes, None, None]:
    if location.startswith("pipe:"):
        return _pipe(location.removeprefix("pipe:"), timeout)
    if location.startswith(("http://", "https://")):
        return _http(location, timeout)
    return _fsspec(location, timeout)


def _http(url: str, timeout: float) -> Generator[bytes, None, None]:
    try:
        with urlopen(Request(url), timeout=timeout) as response:
            expected = response.headers.get("Content-Length")
            received = 0
            while chunk := response.read(CHUNK):
                received += len(chunk)
                yield chunk
    except (OSError, HTTPException) as error:
        raise _http_failure(error) from error
    if expected is not None and received != int(expected):  # http.client keeps quiet about it
        raise Unreachable(f"the answer ended after {received} of {expected} bytes", passing=True)


def _http_version(url: str, timeout: float) -> str:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout) as response:
            return " ".join(
                response.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")
            )
    except HTTPError as error:
        if error.code in {405, 501}:  # a server that does not answer HEAD
            return ""
        raise _http_failure(error) from error
    except (OSError, HTTPException) as error:
        raise _http_failure(error) from error


def _http_failure(error: Exception) -> Unreachable:
    if isinstance(error, HTTPError):
        return Unreachable(
            f"HTTP {error.code} {error.reason}",
            passing=error.code in PASSING,
        )
    reason = error.reason if isinstance(error, URLError) else error
    return Unreachable(str(reason) or type(reason).__name__, passing=True)


def _pipe(command: str, timeout: float) -> Generator[bytes, None, None]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, shell=True, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        assert process.stdout is not None
        output = select.poll()
        output.register(process.stdout, select.POLLIN)
        try:
            while True:
                if not output.poll(timeout * 1000):
                    raise Unreachable(f"its command gave nothing for {timeout:g} s", passing=True)
                chunk = os.read(process.stdout.fileno(), CHUNK)
                if not chunk:
                    break
                yield chunk
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the shell and what it started
            process.stdout.close()
            process.wait()
        if code:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
            last = f": {lines[-1]}" if lines else ""
            raise Unreachable(f"its command ended with code {code}{last}", passing=True)


def _fsspec(url: str, timeout: float) -> Generator[bytes, None, None]:
    system, path = _file_system(url)
    file = _within(timeout, lambda: system.open(path, "rb"))
    # A file whose read hangs is left as it is: to close it might hang as well.
    while chunk := _within(timeout, lambda: file.read(CHUNK)):
        yield chunk
    file.close()


def _fsspec_version(url: str, timeout: float) -> str:
    system, path = _file_system(url)
    return str(_within(timeout, lambda: system.ukey(path)))


def _within(timeout: float, ask: Callable[[], Any]) -> Any:
    """Return what a storage service answers; raises `Unreachable` for its errors, or when `timeout` is over.

    Its packages have time limits of their own, by as many names, or none at all. A thread that none ends is
    left behind, and keeps no process from ending.
    """
    answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # each storage service raises errors of its own
            answers.put((None, error))

    Thread(target=work, daemon=True).start()
    try:
        answer, error = answers.get(timeout=timeout)
    except Empty:
        raise Unreachable(f"nothing came for {timeout:g} s", passing=True) from None
    if error is not None:
        raise _fsspec_failure(error) from error
    return answer


def _fsspec_failure(error: Exception) -> Unreachable:
    if isinstance(error, FileNotFoundError):
        return Unreachable("no such file", passing=False)
    return Unreachable(_line(error), passing=not isinstance(error, PermissionError))


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise UserError(f"reading {url} takes fsspec, which is not installed: pip install fsspec.") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} cannot be read with what is installed: {_line(error)}.") from None
    except ValueError as error:
        raise UserError(f"{url} is of no kind that can be read: {_line(error)}.") from None
    return system, path


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
