"""Groups of samples fetched in the background, a window ahead of what is read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType

from vpt_vision.data.order import Order

THREADS = 4  # fetches at a time


class Prefetcher:
    """Calls `fetch` for the groups of the window that is read and of the next one, in threads of its own.

    Args:
        fetch: fetches one group and returns, whether it could or not.
        order: in which the samples are read.
        place: where reading begins.
    """

    def __init__(self, fetch: Callable[[int], None], order: Order, place: int) -> None:
        self._fetch = fetch
        self._windows = order.windows(place)
        self._asked = place  # where the last window that was asked for begins
        self._groups: SimpleQueue[int | None] = SimpleQueue()

    def __enter__(self) -> Prefetcher:
        """Start the threads, which end with the `with` block, or with the process."""
        for _ in range(THREADS):
            Thread(target=self._work, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget what is not begun; a fetch under way ends in its own time."""
        with suppress(Empty):
            while True:
                self._groups.get_nowait()
        for _ in range(THREADS):
            self._groups.put(None)

    def reached(self, place: int) -> None:
        """Note that reading has come to `place`."""
        while self._asked <= place:
            self._asked, groups = next(self._windows)
            for group in groups:
                self._groups.put(group)

    def _work(self) -> None:
        while (group := self._groups.get()) is not None:
            self._fetch(group)
