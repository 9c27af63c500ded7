"""Batches of source images without end, in an order that can be resumed at any sample."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from threading import Thread
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vpt_vision.data.order import samples_at, substitutes
from vpt_vision.data.source import Sample, Source, UnreadableSample
from vpt_vision.errors import UserError

TRIES = 100  # substitutes in a row that cannot be read before the source is given up
JUDGED_OVER = 1000  # reads: the share of unreadable ones is taken over at least so many


class Unreadable(NamedTuple):
    """An image that was skipped."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Batch:
    """B source images, without their labels: those never reach the learner."""

    images: Tensor  # [B, 3, H, W] uint8
    index: Tensor  # [B] int64: each image's number in the source
    unreadable: list[Unreadable]  # what was skipped to fill the batch

    def pin_memory(self) -> Batch:
        """Return the batch with its images in pinned memory, as `DataLoader` asks of what it hands on."""
        return replace(self, images=self.images.pin_memory())


class LoaderState(TypedDict):
    """Where a loader stands, counted in samples handed out."""

    epoch: int
    position: int  # in the epoch
    samples: int  # in the source
    reads: int
    unreadable: int  # of the reads


class Loader:
    """Iterates `Batch`es forever, epoch after epoch.

    The order is a function of (seed, epoch), the same for any number of workers. Every epoch holds each
    sample once; a batch that an epoch cannot fill is filled up from the next, so no sample is lost. In
    the place of an unreadable sample comes another one, chosen by (seed, place). The global random number
    generators are left alone.

    Args:
        source: what to read; worker processes hold copies of it.
        batch_size: images per batch.
        seed: 0 or more; another seed gives another order.
        workers: processes that read ahead; 0 reads in this one.
        max_unreadable: share of unreadable ones among the images read that is still put up with. It is
            taken over at least 1,000 reads, so that a few broken files early on do not end a run.

    Raises:
        UserError: the source is empty; while iterating, more than `max_unreadable` of it is
            unreadable, or 100 tries in a row were.
    """

    def __init__(
        self, source: Source, *, batch_size: int, seed: int, workers: int = 0, max_unreadable: float = 0.01
    ) -> None:
        if not len(source):
            raise UserError("the source to train on has no sample: name another one.")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.max_unreadable = max_unreadable
        self._place = 0
        self._reads = 0
        self._unreadable = 0

    def __iter__(self) -> Generator[Batch, None, None]:
        """Go on from the loader's state, in which a batch counts as soon as it is handed out.

        One iteration at a time; `close()` on the returned generator, or dropping it, ends the workers.
        """
        batches = DataLoader(
            _Reader(self.source, self.seed),
            batch_size=None,  # the requests are batches already
            sampler=self._requests(self._place),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_obey_parent_only,
            generator=torch.Generator(),  # the workers' seeds would else be drawn from the global one
        )
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            self._count(batch)
            yield batch

    def state_dict(self) -> LoaderState:
        """Where the next batch begins; what workers have read ahead does not count."""
        epoch, position = divmod(self._place, len(self.source))
        return {
            "epoch": epoch,
            "position": position,
            "samples": len(self.source),
            "reads": self._reads,
            "unreadable": self._unreadable,
        }

    def load_state_dict(self, state: LoaderState) -> None:
        """Let the next iteration begin where `state` says.

        Raises `UserError` if the source has changed its size.
        """
        if state["samples"] != len(self.source):
            raise UserError(
                f"the data had {state['samples']} samples when the run was saved and now has "
                f"{len(self.source)}: put back the data, or begin a new run."
            )
        self._place = state["epoch"] * state["samples"] + state["position"]
        self._reads = state["reads"]
        self._unreadable = state["unreadable"]

    def _requests(self, place: int) -> Iterator[_Request]:
        while True:
            samples = samples_at(self.seed, len(self.source), place, self.batch_size)
            yield _Request(place, samples.tolist())
            place += self.batch_size

    def _count(self, batch: Batch) -> None:
        self._place += self.batch_size
        self._reads += self.batch_size + len(batch.unreadable)  # each one led to one more read
        self._unreadable += len(batch.unreadable)
        if batch.unreadable and self._unreadable > self.max_unreadable * max(self._reads, JUDGED_OVER):
            raise UserError(
                f"{self._unreadable} of {self._reads} images read ({self._unreadable / self._reads:.1%}) are "
                f"unreadable, the last {batch.unreadable[-1]}: mend the data, or raise max_unreadable."
            )


class _Request(NamedTuple):
    """What a worker is asked for: the samples at the places from `place` on."""

    place: int
    samples: list[int]


class _Reader(Dataset["Batch | UserError"]):
    """Reads a source by the batch, in whatever process."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source = source
        self.seed = seed

    def __getitem__(self, request: _Request) -> Batch | UserError:
        """Return an error instead of raising it: from a worker its sentence would come inside a traceback."""
        unreadable: list[Unreadable] = []
        try:
            samples = [
                self._sample(place, index, unreadable)
                for place, index in enumerate(request.samples, request.place)
            ]
        except UserError as error:
            return error
        return Batch(
            torch.stack([sample.image for sample in samples]),
            torch.tensor([sample.index for sample in samples]),
            unreadable,
        )

    def _sample(self, place: int, index: int, unreadable: list[Unreadable]) -> Sample:
        tries = substitutes(self.seed, len(self.source), place)
        for candidate in (index, *islice(tries, TRIES - 1)):
            try:
                return self.source[candidate]
            except UnreadableSample as error:
                unreadable.append(Unreadable(error.name, error.reason))
        raise UserError(
            f"{TRIES} of {TRIES} images tried in a row (100.0%) are unreadable, the last {unreadable[-1]}: "
            "mend the data."
        )


def _obey_parent_only(worker: int) -> None:
    """Keep a worker at work when a signal goes to all processes of a run: Ctrl-C, or a scheduler's SIGTERM.

    It is for the main process to answer such a signal, and it needs batches until it has saved.
    A SIGTERM that the main process itself sends ends the worker, and so does the main process's death.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # where a signal's sender can be told
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
