"""What was promised of the kernels, line by line, computed from the rows of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .cases import (
    COLD,
    COMPILED,
    EAGER,
    FORWARD,
    FULL,
    KORNIA,
    OURS,
    PYTHON,
    STORED,
    TORCHVISION,
    TORCHVISION_8BIT,
)
from .rows import BANDWIDTH, MEMORY, TIME, Row, find

LOSS_SHAPE, HEAD_SHAPE = "M=3763 K=65536", "M=3763 K=65536 D=256"
RENDER_SHAPE = "B=256 views=2x224+8x96 side=256 photometrics=all"
BLOCK_SHAPE, SAMPLE_SHAPE = "N=512 grid=16", "N=512 T=256"
PASS = 3763 * 65536 * 2  # bytes of one pass over bf16 logits
MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"
_SLACK = 0.02  # vectors of rows and columns, and the allocator's rounding, beside [M, K]


class Verdict(NamedTuple):
    """One line of the promise."""

    promise: str
    status: str
    found: str


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Judge every promise by `rows`; GPU promises by GPU rows alone."""
    gpu = [row for row in rows if row.kind == "GPU"]
    cpu = [row for row in rows if row.kind != "GPU"]
    made = []
    for promise, judge in _GPU:
        made.append(_verdict(f"GPU: {promise}", judge, gpu))
    for promise, judge in _CPU:
        made.append(_verdict(f"CPU: {promise}", judge, cpu))
    return made


_Judge = Callable[[Sequence[Row]], "tuple[bool, str] | None"]


def _verdict(promise: str, judge: _Judge, rows: Sequence[Row]) -> Verdict:
    judged = judge(rows)
    if judged is None:
        return Verdict(promise, NOT_MEASURED, "")
    met, found = judged
    device = f" ({rows[0].device})" if rows[0].kind == "GPU" else ""
    return Verdict(promise, MET if met else NOT_MET, found + device)


def _p50(
    rows: Sequence[Row], kernel: str, shape: str, provider: str, mode: str, metric: str = TIME
) -> float | None:
    """Find the figure: in bf16 on a GPU where a kernel has a choice, as the promises are meant."""
    chooses = rows and rows[0].kind == "GPU" and "masks" not in kernel
    row = find(rows, kernel, shape, provider, mode, metric, "bf16" if chooses else None)
    return None if row is None else row.p50


def _copy(rows: Sequence[Row]) -> float | None:
    """Give the copy bandwidth of the run in bytes/s."""
    for row in rows:
        if row.kernel == "copy" and row.metric == BANDWIDTH and row.p50:
            return row.p50 * 1e9
    return None


def _passes(kernel: str, mode: str, passes: int, most: float) -> _Judge:
    def judge(rows: Sequence[Row]) -> tuple[bool, str] | None:
        time, copy = _p50(rows, kernel, LOSS_SHAPE, OURS, mode), _copy(rows)
        if time is None or copy is None:
            return None
        floor = passes * PASS / copy * 1000
        return time <= most * floor, f"{time:.3f} ms, {time / floor:.2f}× of {floor:.3f} ms"

    return judge


def _faster(
    kernel: str, shape: str, mode: str, than: Sequence[str], least: float, most_ms: float = 0
) -> _Judge:
    """Judge ours against the fastest of the providers `than` that were measured."""

    def judge(rows: Sequence[Row]) -> tuple[bool, str] | None:
        time = _p50(rows, kernel, shape, OURS, mode)
        times = {name: _p50(rows, kernel, shape, name, mode) for name in than}
        others = {name: found for name, found in times.items() if found is not None}
        if time is None or not others:
            return None
        best = min(others, key=lambda name: others[name])
        ratio = others[best] / time
        fast_enough = not most_ms or time < most_ms
        return (
            ratio >= least and fast_enough,
            f"{time:.4g} ms against {others[best]:.4g} of {best}: {ratio:.2f}×",
        )

    return judge


def _no_allocation(kernel: str, mode: str, gradient: float) -> _Judge:
    def judge(rows: Sequence[Row]) -> tuple[bool, str] | None:
        peak = _p50(rows, kernel, LOSS_SHAPE, OURS, mode, MEMORY)
        if peak is None:
            return None
        beyond = peak - gradient / 2**20
        return beyond <= _SLACK * PASS / 2**20, f"peak {peak:.1f} MiB, {beyond:.1f} beyond the gradient"

    return judge


def _prototype_memory(rows: Sequence[Row]) -> tuple[bool, str] | None:
    kernel = "prototype_targets_and_loss"
    ours = _p50(rows, kernel, HEAD_SHAPE, OURS, FULL, MEMORY)
    stored = _p50(rows, kernel, HEAD_SHAPE, STORED, FULL, MEMORY)
    if ours is None or stored is None:
        return None
    # Both return the gradients of features and prototypes: what is extra is what comes beside them.
    gradients = (3763 + 65536) * 256 * 2 / 2**20
    ours, stored = max(ours - gradients, 0.0), stored - gradients
    return ours < 0.05 * stored, f"{ours:.1f} against {stored:.1f} MiB beside the gradients"


def _masks(kernel: str, shape: str) -> _Judge:
    def judge(rows: Sequence[Row]) -> tuple[bool, str] | None:
        time = _p50(rows, kernel, shape, OURS, FORWARD)
        return None if time is None else (time < 0.05, f"{time * 1000:.1f} µs")

    return judge


def _views(rows: Sequence[Row]) -> tuple[bool, str] | None:
    peers = (KORNIA, TORCHVISION, TORCHVISION_8BIT)
    return _faster("render_views", RENDER_SHAPE, FORWARD, peers, 20, most_ms=2.0)(rows)


def _cpu_views(sizes: Sequence[str], least: float) -> _Judge:
    """Judge the worst of the shapes of `sizes`."""

    def judge(rows: Sequence[Row]) -> tuple[bool, str] | None:
        shapes = dict.fromkeys(
            row.shape
            for row in rows
            if row.kernel == "render_views" and any(f"views={size} " in row.shape for size in sizes)
        )
        found = []
        for shape in shapes:
            for peer in (TORCHVISION, TORCHVISION_8BIT):
                judged = _faster("render_views", shape, FORWARD, (peer,), least)(rows)
                if judged is not None:
                    found.append(judged)
        if not found:
            return None
        return all(met for met, _ in found), "; ".join(text for _, text in found)

    return judge


COMPILED_SPOKEN_OF = _DISTILLATION, _SINKHORN = ("masked_distillation_loss", "sinkhorn_potentials")
_GPU: list[tuple[str, _Judge]] = [
    ("masked_distillation_loss, forward + backward, within 1.25× of 5 passes at C",
     _passes(_DISTILLATION, FULL, 5, 1.25)),
    ("sinkhorn_potentials, 3 iterations, within 1.4× of 4 reads at C", _passes(_SINKHORN, FORWARD, 4, 1.4)),
    ("masked_distillation_loss at least 6× faster than eager",
     _faster(_DISTILLATION, LOSS_SHAPE, FULL, (EAGER,), 6)),
    ("sinkhorn_potentials at least 6× faster than eager",
     _faster(_SINKHORN, LOSS_SHAPE, FORWARD, (EAGER,), 6)),
    ("masked_distillation_loss at least 2× faster than torch.compile",
     _faster(_DISTILLATION, LOSS_SHAPE, FULL, (COMPILED,), 2)),
    ("sinkhorn_potentials at least 2× faster than torch.compile",
     _faster(_SINKHORN, LOSS_SHAPE, FORWARD, (COMPILED,), 2)),
    ("masked_distillation_loss allocates nothing beyond the gradient",
     _no_allocation(_DISTILLATION, FULL, PASS)),
    ("sinkhorn_potentials allocates nothing of the logits' size", _no_allocation(_SINKHORN, FORWARD, 0)),
    ("prototype_loss with its potentials no slower than the matmuls plus those two kernels",
     _faster("prototype_targets_and_loss", HEAD_SHAPE, FULL, (STORED,), 1)),
    ("prototype_loss with its potentials under 5 % of their extra memory", _prototype_memory),
    ("render_views at least 20× faster than the fastest peer, and under 2 ms", _views),
    ("block_masks for 512 images at 16×16 under 50 µs", _masks("block_masks", BLOCK_SHAPE)),
    ("sample_masks for 512 images at 16×16 under 50 µs", _masks("sample_masks", SAMPLE_SHAPE)),
]  # fmt: skip
_CPU: list[tuple[str, _Judge]] = [
    ("block_masks for 128 images of 16×16 at least 10× faster than image by image in Python",
     _faster("block_masks", "N=128 grid=16", FORWARD, (PYTHON,), 10)),
    ("the same, one call in turn with the generator, its caches cold",
     _faster("block_masks", "N=128 grid=16", COLD, (PYTHON,), 10)),
    ("render_views, 2×224 + 8×96, no slower than torchvision v2 one view at a time",
     _cpu_views(("2x224+8x96",), 1)),
    ("render_views, views of 32 to 64 pixels, at least 3× faster than torchvision v2 one view at a time",
     _cpu_views(("2x64+8x32", "2x48+8x32"), 3)),
]  # fmt: skip


def table(found: Sequence[Verdict]) -> str:
    """Give the verdicts as a Markdown table."""
    lines = ["| promise | verdict | found |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {one.promise} | **{one.status}** | {one.found} |" for one in found)])
