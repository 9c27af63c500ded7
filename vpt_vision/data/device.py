"""Batches on the device that computes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import torch

from vpt_vision.data.batch import Batch


def on_device(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Yield `batches` on `device`.

    To a CUDA device each travels in one copy on a stream of its own, while the step before it, whose kernels
    were queued already, still computes; the stream that is current when a batch is asked for waits for
    that copy alone. The host never waits, provided that the batches come in pinned memory. None is taken
    ahead, so that the loader's state stays that of the batches handed out.
    """
    with closing(batches):
        if device.type != "cuda":
            for batch in batches:
                yield batch.to(device)
            return
        copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        for batch in batches:
            with torch.cuda.stream(copies):
                there = batch.to(device)
            compute = torch.cuda.current_stream(device)
            compute.wait_stream(copies)
            there.buffer.record_stream(compute)  # else its memory would be free for the next copy too early
            yield there
