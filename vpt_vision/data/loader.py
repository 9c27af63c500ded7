"""Batches of source images without end, in an order that can be resumed at any sample."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from itertools import chain, islice
from typing import NamedTuple, TypedDict

from vpt_vision.data.batch import Batch, Packing, Unreadable
from vpt_vision.data.order import Order
from vpt_vision.data.prefetch import Prefetcher
from vpt_vision.data.source import Grouped, Source, UnreadableSample
from vpt_vision.data.stored import StoredSource
from vpt_vision.data.workers import Watch, read_ahead
from vpt_vision.errors import UserError

TRIES = 100  # substitutes in a row that cannot be read before the source is given up
JUDGED_OVER = 1000  # reads: the share of unreadable ones is taken over at least so many
NAMED = 3  # shards that are told of


class LoaderState(TypedDict):
    """Where a loader stands, counted in samples handed out to all ranks together."""

    epoch: int
    position: int  # in the epoch
    samples: int  # in the source
    reads: int  # by this rank
    unreadable: int  # of the reads
    unreadable_by_shard: dict[str, int]  # of those, what lies in shards


class Loader:
    """Iterates `Batch`es forever, epoch after epoch.

    The order is a function of (seed, epoch), the same for any number of workers. Every epoch holds each
    sample once; a batch that an epoch cannot fill is filled up from the next, so no sample is lost. In
    the place of an unreadable sample comes another one, chosen by (seed, place). The global random number
    generators are left alone.

    The ranks of a distributed run take turns along one row of samples, a batch each: what they see is
    disjoint, and together it is the data set. The state counts places of that row. It is the same on
    every rank that has taken as many batches, and may be loaded with any other number of ranks, workers
    or images per batch, at an epoch's end as inside one: the row goes on where it stopped, exactly.

    Args:
        source: what to read; worker processes hold copies of it.
        batch_size: images per batch and rank.
        seed: 0 or more; another seed gives another order.
        workers: processes that read ahead; 0 reads in this one.
        max_unreadable: share of unreadable ones among the images read that is still put up with. It is
            taken over at least 1,000 reads, so that a few broken files early on do not end a run, and over
            at least an epoch where samples lie in remote shards, so that one lost shard does not.
        rank: whose batches these are, from 0 to `world_size` - 1.
        world_size: how many loaders share the row, each in a process of its own.
        pin_memory: whether batches come in pinned memory, from which a CUDA device copies them by itself.

    Raises:
        UserError: the source is empty; while iterating, more than `max_unreadable` of it is
            unreadable, 100 tries in a row were, or a worker process died.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        max_unreadable: float = 0.01,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if not len(source):
            raise UserError("the source to train on has no sample: name another one.")
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} of {world_size} does not exist: ranks go from 0 to world_size - 1.")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.max_unreadable = max_unreadable
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self._order = Order(seed, len(source), source.groups if isinstance(source, Grouped) else None)
        self._place = 0
        self._reads = 0
        self._unreadable = 0
        self._by_shard: Counter[str] = Counter()

    def __iter__(self) -> Generator[Batch, None, None]:
        """Go on from the loader's state, in which a batch counts as soon as it is handed out.

        One iteration at a time; `close()` on the returned generator, or dropping it, ends the workers.
        """
        batches = read_ahead(
            _Reader(self.source, self._order),
            self._requests(self._place),
            workers=self.workers,
            name=self.source.name,
            pin_memory=self.pin_memory,
        )
        with closing(batches):
            for batch in batches:
                self._count(batch)
                yield batch

    def upcoming(self, batch_size: int) -> Generator[Batch, None, None]:
        """Yield the images that come next, by `batch_size`, again: this loader stays where it is.

        They are read in this process, as they are asked for. With other ranks' loaders of the same state what
        they see is disjoint. Raises `UserError` as iterating does.
        """
        other = copy.copy(self)
        other.batch_size, other.workers = batch_size, 0
        other._by_shard = Counter(self._by_shard)
        yield from other

    def state_dict(self) -> LoaderState:
        """Where the next batch begins; what workers have read ahead does not count."""
        epoch, position = divmod(self._place, len(self.source))
        return {
            "epoch": epoch,
            "position": position,
            "samples": len(self.source),
            "reads": self._reads,
            "unreadable": self._unreadable,
            "unreadable_by_shard": dict(self._by_shard),
        }

    def load_state_dict(self, state: LoaderState) -> None:
        """Let the next iteration begin where `state` says.

        Raises `UserError` if the source has changed its size, or the state does not tell a place.
        """
        missing = {"epoch", "position", "samples"} - state.keys()
        if missing:
            raise UserError(
                f"the saved state of the loader lacks {', '.join(sorted(missing))}: go on with the version "
                "that wrote it, or begin a new run."
            )
        if state["samples"] != len(self.source):
            raise UserError(
                f"the data had {state['samples']} samples when the run was saved and now has "
                f"{len(self.source)}: put back the data, or begin a new run."
            )
        self._place = state["epoch"] * state["samples"] + state["position"]
        # An earlier version may not have counted; what is unreadable is a share of what was read.
        self._reads = state.get("reads", 0)
        self._unreadable = state.get("unreadable", 0) if "reads" in state else 0
        self._by_shard = Counter(state.get("unreadable_by_shard", {}))

    def worst_shards(self) -> str:
        """Tell the shards with the most unreadable images, with their number; '' where there is none."""
        return ", ".join(f"{count} in {shard}" for shard, count in self._by_shard.most_common(NAMED))

    def _requests(self, place: int) -> Iterator[_Request]:
        place += self.rank * self.batch_size
        prefetcher = (
            Prefetcher(self.source.prefetch, self._order, place)
            if isinstance(self.source, Grouped) and self._order.groups is not None
            else nullcontext()
        )
        with prefetcher as ahead:
            while True:
                if ahead is not None:
                    ahead.reached(place)
                samples = self._order.samples(place, self.batch_size)
                yield _Request(place, samples.tolist())
                place += self.world_size * self.batch_size

    def _count(self, batch: Batch) -> None:
        self._place += self.world_size * self.batch_size
        self._reads += self.batch_size + len(batch.unreadable)  # each one led to one more read
        self._unreadable += len(batch.unreadable)
        self._by_shard.update(skipped.shard for skipped in batch.unreadable if skipped.shard is not None)
        least = JUDGED_OVER if self._order.groups is None else max(JUDGED_OVER, len(self.source))
        if batch.unreadable and self._unreadable > self.max_unreadable * max(self._reads, least):
            worst = self.worst_shards()
            raise UserError(
                f"{self._unreadable} of {self._reads} images read ({self._unreadable / self._reads:.1%}) are "
                f"unreadable, {f'by shard {worst}, ' if worst else ''}the last "
                f"{batch.unreadable[-1]}: mend the data, or raise max_unreadable."
            )


class _Request(NamedTuple):
    """What a worker is asked for: the samples at the places from `place` on."""

    place: int
    samples: list[int]


class _Reader:
    """Reads a source by the batch, in whatever process, each image straight to its place in the batch."""

    def __init__(self, source: Source, order: Order) -> None:
        self.source = source
        self.order = order
        # Asked once: to compare with a protocol takes longer than to read a file.
        self._files = source if isinstance(source, StoredSource) else None
        self._largest = 0  # bytes of a batch so far

    def __call__(self, request: _Request, watch: Watch) -> Batch:
        began = time.perf_counter()
        unreadable: list[Unreadable] = []
        packing = Packing(len(request.samples), self._largest)
        for place, index in enumerate(request.samples, request.place):
            for candidate in chain([index], islice(self.order.substitutes(place), TRIES - 1)):
                watch.reading(candidate)
                try:
                    packing.keep(self._read(candidate, packing))
                    break
                except UnreadableSample as error:
                    unreadable.append(Unreadable(error.name, error.reason, error.shard))
            else:
                raise UserError(
                    f"{TRIES} of {TRIES} images tried in a row (100.0%) are unreadable, the last "
                    f"{unreadable[-1]}: mend the data."
                )
        batch = packing.batch(unreadable, time.perf_counter() - began)
        self._largest = max(self._largest, len(batch.buffer))
        return batch

    def _read(self, index: int, packing: Packing) -> int:
        """Write an image to its place; return its number."""
        if self._files is not None:
            stored = self._files.stored(index)
            stored.decode_image_to(packing.room, self._files.name(index), self._files.at_least)
            return index
        sample = self.source[index]
        packing.room(sample.image.shape[0], sample.image.shape[1])[...] = sample.image.numpy()
        return sample.index
