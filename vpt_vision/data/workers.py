"""Processes that read ahead: what they are asked, which signals they obey, what is said of one that dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vpt_vision.errors import UserError

LOOK_FOR_PARENT = 2.0  # seconds

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def read_ahead(
    read: Callable[[Request, Watch], Answer],
    requests: Iterable[Request],
    *,
    workers: int,
    name: Callable[[int], str],
    pin_memory: bool = False,
) -> Generator[Answer, None, None]:
    """Yield what `read` returns for each request, in their order, while processes work on the next ones.

    The global random number generators are left alone.

    Args:
        read: called in a worker, with a `Watch` that it tells of each sample before reading it.
        requests: taken a few ahead of the answers.
        workers: processes; 0 reads in this one, and never ahead.
        name: what to call a sample of a number.
        pin_memory: whether answers that have a `pin_memory` method go through it.

    Raises:
        UserError: `read` raised one, or a worker died.
    """
    watch = Watch(workers)
    answers = iter(
        DataLoader(
            _Reads(read, watch),
            batch_size=None,  # a request is all that is read together
            sampler=requests,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_obey_parent_only,
            generator=torch.Generator(),  # the workers' seeds would else be drawn from the global one
        )
    )
    try:
        with _deaths_are_told_in_turn():
            while True:
                answer: Answer | UserError | None
                try:
                    answer = next(answers)
                except StopIteration:
                    return
                except RuntimeError:
                    answer = watch.report(getattr(answers, "_workers", ()), name)
                    if answer is None:
                        raise
                if isinstance(answer, UserError):
                    raise answer
                yield answer
    finally:
        del answers  # ends the workers, even while someone holds on to the error's traceback


class Watch:
    """What each worker process is reading, written by the workers and read by the main process."""

    def __init__(self, workers: int) -> None:
        self._reading = torch.full((workers,), -1)  # [workers] int64; -1 before the first
        self._reading.share_memory_()  # type: ignore[no-untyped-call]

    def reading(self, index: int) -> None:
        """Note that this process now reads sample `index`; does nothing outside a worker."""
        worker = get_worker_info()
        if worker is not None:
            self._reading[worker.id] = index

    def report(self, workers: Sequence[BaseProcess], name: Callable[[int], str]) -> UserError | None:
        """The error for the workers that have died; None if all live.

        Args:
            workers: the processes, in the order of their numbers.
            name: what to call the sample of a number.
        """
        deaths = []
        for number, worker in enumerate(workers):
            if worker.exitcode is not None:
                last = int(self._reading[number])
                place = "before its first sample" if last < 0 else f"while reading {name(last)}"
                deaths.append(f"worker {number} died ({_cause(worker.exitcode)}) {place}")
        if not deaths:
            return None
        killed = any(worker.exitcode == -signal.SIGKILL for worker in workers)
        advice = (
            "signal 9 is often the system's answer to too little memory: use fewer workers or smaller batches"
            if killed
            else "look at that sample, or take it out of the data"
        )
        return UserError(f"{'; '.join(deaths)}: {advice}.")


class _Reads(Dataset[Any], Generic[Request, Answer]):
    """`read` as a data set that is indexed by requests."""

    def __init__(self, read: Callable[[Request, Watch], Answer], watch: Watch) -> None:
        self.read = read
        self.watch = watch

    def __getitem__(self, request: Request) -> Answer | UserError:
        """Return an error instead of raising it: from a worker its sentence would come inside a traceback."""
        try:
            return self.read(request, self.watch)
        except UserError as error:
            return error


def _as_it_is(answer: Answer) -> Answer:
    return answer


@contextmanager
def _deaths_are_told_in_turn() -> Iterator[None]:
    """Keep torch from raising a worker's death wherever the main thread happens to be.

    Its `DataLoader` answers SIGCHLD with an error out of the middle of a training step. Without that
    answer it finds the dead worker within seconds, when the next batch is asked of it.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield  # torch sets no handler here
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        # A dropped generator may be ended by any thread, and only the main one may set handlers.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _obey_parent_only(worker: int) -> None:
    """Keep a worker at work when a signal goes to all processes of a run: Ctrl-C, or a scheduler's SIGTERM.

    It is for the main process to answer such a signal, and it needs batches until it has saved.
    A SIGTERM that the main process itself sends ends the worker, and so does the main process's death,
    which torch's own worker notices only if it comes after the worker's start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # where a signal's sender can be told
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        told = signal.sigtimedwait({signal.SIGTERM}, LOOK_FOR_PARENT)
        if told is not None and told.si_pid == parent.pid:
            break
    os._exit(0)


def _cause(exitcode: int) -> str:
    return f"signal {-exitcode}" if exitcode < 0 else f"exit code {exitcode}"
