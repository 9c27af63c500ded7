"""Time, memory and the machine's ceilings: what `kernels.py` measures with."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

QUANTILES = (0.5, 0.2, 0.8)
_SLOW = 0.25  # seconds: what takes longer is run a few times only


class Times(NamedTuple):
    """Milliseconds of one call."""

    p50: float
    p20: float
    p80: float


class Ceilings(NamedTuple):
    """What this machine can do at best, measured in this run."""

    copy: float  # bytes/s, read plus written
    matrix: dict[str, float]  # operations/s by dtype


def device_times(call: Callable[[], Any], seconds: float) -> Times:
    """Time `call` on the GPU by events, with the L2 cache flushed before each run."""
    from triton.testing import do_bench

    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - started
    if once > _SLOW:  # host-bound peers: do_bench would run them seven times at least
        times = []
        for _ in range(3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        return summary(times)
    found = do_bench(
        call, warmup=max(5, int(250 * seconds)), rep=int(1000 * seconds), quantiles=list(QUANTILES)
    )
    return Times(*found)


def host_times(
    calls: dict[str, Callable[[], Any]], seconds: float, *, cold: bool = False
) -> dict[str, Times]:
    """Time `calls` on the CPU in turns, so that a busy moment strikes all alike.

    Each gets about `seconds`, and runs for at least 20 ms in a turn: else a fast one would be timed with its
    code and data out of the caches after a slow one. The order of the turn changes from one to the next.
    Asked for just that, `cold`, it is one call a turn, always in the same order, so none follows itself.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # warm up
        started = time.perf_counter()
        call()
        repeats[name] = 1 if cold else max(1, int(0.02 / max(time.perf_counter() - started, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds * len(calls)
    turn = 0
    while turn < 3 or (time.perf_counter() < deadline and turn < 1000):
        for name in sorted(calls, reverse=turn % 2 == 1 and not cold):
            started = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - started) / repeats[name] * 1000)
        turn += 1
    return {name: summary(found) for name, found in times.items()}


def summary(times: list[float]) -> Times:
    """Give the median and the 20th and 80th percentiles."""
    if len(times) < 2:
        return Times(times[0], times[0], times[0])
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return Times(statistics.median(times), tenths[1], tenths[7])


def peak_memory(call: Callable[[], Any]) -> int:
    """Give the bytes that `call` adds to what is allocated on the GPU, at its highest, results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def ceilings(device: torch.device, seconds: float) -> tuple[Ceilings, dict[str, Times], dict[str, str]]:
    """Measure a large copy and large matrix products: the ceilings, their times and what was run."""
    gpu = device.type == "cuda"
    source = torch.randn((2**30 if gpu else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    shapes = {"copy": f"bytes={source.numel() * 4}"}
    side = 8192 if gpu else 768
    for name, dtype in (
        (("bf16", torch.bfloat16), ("fp32", torch.float32)) if gpu else (("fp32", torch.float32),)
    ):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        calls[name] = lambda a=a, b=b: a @ b  # type: ignore[misc]
        shapes[name] = f"M=N=K={side}"
    times = (
        {name: device_times(call, seconds) for name, call in calls.items()}
        if gpu
        else host_times(calls, seconds)
    )
    copied = 2 * source.numel() * 4 / times["copy"].p50 * 1000
    rates = {name: 2 * side**3 / found.p50 * 1000 for name, found in times.items() if name != "copy"}
    return Ceilings(copied, rates), times, shapes


def device_name(device: torch.device) -> str:
    """Name the GPU, or the CPU with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = next(iter(names), model)
    return f"CPU: {model}, {torch.get_num_threads()} thread(s)"


def installed(package: str) -> str:
    """Give a package's version, or "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def driver_version() -> str:
    """Give the version of the GPU's driver, or "" where nobody knows it."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
