"""Compile every kernel ahead of time, for GPUs this machine need not have, and say what it costs them.

    python benchmarks/compile_report.py [--main] [--target sm_90 ...] [--only FUNCTION ...]

Calls the public functions of `harness/specimens.py`, forward and backward, with tensors that have no storage,
while Triton takes a fake driver for a GPU and compiles instead of launching: block sizes, dtypes and the
alignment of every argument are those of a real launch, for the launch's own code chose them. Prints a line
for each kernel compiled and exits with 1 and a sentence if one does not compile, wants more shared memory
than the GPU has, or keeps registers in memory (spills), on any target.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

if os.environ.pop("TRITON_INTERPRET", "0") not in ("", "0"):
    print("TRITON_INTERPRET is set: left aside here, for the interpreter compiles nothing.")

import torch
import triton
from harness.specimens import SPECIMENS, Specimen
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MAIN_TARGET = "sm_90"
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Bytes of shared memory that a program may have; what asks for more compiles, and fails when it is launched.
MOST_SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


class Compiled(NamedTuple):
    """One kernel as compiled for one target."""

    kernel: str  # file.jit function
    specimen: str
    target: str
    warps: int
    stages: int
    registers: int  # per thread; on gfx942 vector registers
    spilled: int  # bytes of stack a thread
    shared: int  # bytes a program
    notes: str


class Failure(NamedTuple):
    specimen: str
    target: str
    reason: str


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self.target, self.device = target, device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:  # the key of Triton's cache: one for each target
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


class _AsOnCuda(TorchDispatchMode):
    """Send the operators of vpt_kernels to the implementation that CUDA tensors get."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operator.namespace != "vpt":
            return operator(*args, **kwargs)
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return operator.redispatch(keys, *args, **kwargs)


@contextmanager
def _compiling_for(name: str) -> Iterator[list[tuple[JITFunction[Any], Any]]]:
    """Make launches compile for the target `name`; gives the list that they are written to."""
    launched: list[tuple[JITFunction[Any], Any]] = []
    run, hip = JITFunction.run, torch.version.hip

    def compile_only(self: JITFunction[Any], *args: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        launched.append((self, kernel))
        return kernel

    triton.runtime.driver.set_active(_Driver(TARGETS[name], list(TARGETS).index(name)))
    JITFunction.run = compile_only
    torch.version.hip = "6.2" if TARGETS[name].backend == "hip" else None  # launchers choose by it
    try:
        yield launched
    finally:
        JITFunction.run, torch.version.hip = run, hip


def compile_specimen(specimen: Specimen, target: str) -> list[Compiled]:
    """Compile all that one specimen launches."""
    found: dict[Compiled, None] = {}  # versions that differ in nothing that is reported are one
    with _compiling_for(target) as launched, _AsOnCuda():
        specimen.run("meta")
    for function, kernel in launched:
        name = f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}"
        found[
            Compiled(
                name,
                f"{specimen.function} {specimen.label}",
                target,
                kernel.metadata.num_warps,
                kernel.metadata.num_stages,
                *_resources(kernel),
            )
        ] = None
    if not found:
        raise RuntimeError("it launched no kernel: has the function no Triton launcher yet?")
    return list(found)


_RESOURCES: dict[str, tuple[int, int, int, str]] = {}


def _resources(kernel: Any) -> tuple[int, int, int, str]:
    """Read registers, spills and notes off the machine code."""
    if kernel.hash not in _RESOURCES:
        read = _read_cubin if "cubin" in kernel.asm else _read_amdgcn
        _RESOURCES[kernel.hash] = read(kernel)
    return _RESOURCES[kernel.hash]


def _read_cubin(kernel: Any) -> tuple[int, int, int, str]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        command = [_CUOBJDUMP, "-res-usage", cubin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cuobjdump of Triton's package failed: {done.stderr.strip()}")
    registers = int(re.findall(r"\bREG:(\d+)", done.stdout)[-1])
    spilled = max(int(size) for size in re.findall(r"\b(?:STACK|LOCAL):(\d+)", done.stdout))
    return registers, spilled, kernel.metadata.shared, _notes(kernel.asm["ptx"])


def _notes(code: str) -> str:
    """Say which matrix instructions are there and how many bits a thread loads and stores at once."""
    notes = [name for name in ("wgmma", "tcgen05.mma", "mma.sync") if f"{name}" in code]
    for words, name in (("ld", "loads"), ("st", "stores")):
        found = re.findall(rf"\b{words}\.global(?:\.[a-z0-9_:]+)*?(?:\.v(\d))?\.b(\d+)\b", code)
        bits = {int(width) * int(count or 1) for count, width in found}
        if words == "ld":
            bits |= {8 * int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.[^;]*?\], (\w+)", code)}
        if bits:
            notes.append(f"{name} {'-'.join(str(width) for width in sorted({min(bits), max(bits)}))} bit")
    return ", ".join(notes)


def _read_amdgcn(kernel: Any) -> tuple[int, int, int, str]:
    code = kernel.asm["amdgcn"]

    def number(field: str) -> int:
        return int(next(iter(re.findall(rf"\.{field}:\s+(\d+)", code)), 0))

    matrix = "MFMA" if "v_mfma" in code else ""
    return number("vgpr_count"), number("private_segment_fixed_size"), kernel.metadata.shared, matrix


def report(targets: list[str], only: list[str], *, main_only: bool = False) -> int:
    """Compile, print the table and return the exit code."""
    chosen = [one for one in SPECIMENS if (not only or one.function in only) and (one.main or not main_only)]
    started = time.perf_counter()
    compiled: list[Compiled] = []
    failures: list[Failure] = []
    for specimen in chosen:
        for target in targets:
            try:
                compiled += compile_specimen(specimen, target)
            except Exception as error:  # whatever it is, the others are still worth knowing
                reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()
                failures.append(
                    Failure(
                        f"{specimen.function} {specimen.label}", target, " ".join(reason[:1] + reason[-1:])
                    )
                )
    _print_table(compiled, targets)
    spilling = [one for one in compiled if one.spilled]
    greedy = [one for one in compiled if one.shared > MOST_SHARED[one.target]]
    print(
        f"\n{len({one.kernel for one in compiled})} kernels, {len(compiled)} versions, Triton "
        f"{triton.__version__}, torch {torch.__version__}, {time.perf_counter() - started:.0f} s."
    )
    for failure in failures:
        print(f"NOT COMPILED for {failure.target}: {failure.specimen}: {failure.reason}")
    for one in spilling:
        print(f"SPILLS on {one.target}: {one.kernel} at {one.specimen}: {one.spilled} bytes a thread.")
    for one in greedy:
        print(
            f"TOO MUCH SHARED MEMORY on {one.target}: {one.kernel} at {one.specimen}: {one.shared:,} of "
            f"{MOST_SHARED[one.target]:,} bytes."
        )
    if failures or spilling or greedy:
        print(
            f"Failed: {len(failures)} specimens did not compile, {len(spilling)} kernels spill, "
            f"{len(greedy)} want more shared memory than there is."
        )
        return 1
    print("Everything compiles and fits; nothing spills.")
    return 0


def _print_table(compiled: list[Compiled], targets: list[str]) -> None:
    """Print one line for each kernel and specimen: figures of the main target, yes or no for the others."""
    main = MAIN_TARGET if MAIN_TARGET in targets else targets[0]
    others = [target for target in targets if target != main]
    header = [
        "kernel",
        "specimen",
        f"{main} registers",
        "spills B",
        "shared B",
        "warps",
        "stages",
        *others,
        "notes",
    ]
    lines = []
    for one in (one for one in compiled if one.target == main):
        also = [
            [other for other in compiled if other[:2] == one[:2] and other.target == target]
            for target in others
        ]
        # A specimen may compile one kernel in several versions: all of them count.
        marks = [_mark(found) for found in also]
        lines.append(
            [
                one.kernel,
                one.specimen,
                one.registers,
                one.spilled,
                one.shared,
                one.warps,
                one.stages,
                *marks,
                one.notes,
            ]
        )
    rows = [header, ["-" * len(name) for name in header], *([str(cell) for cell in line] for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def _mark(compiled: list[Compiled]) -> str:
    if not compiled:
        return "no"
    if any(one.spilled for one in compiled):
        return "spills"
    return "yes" if all(one.shared <= MOST_SHARED[one.target] for one in compiled) else "too big"


def main() -> int:
    """Parse the command line and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="may be repeated; default all"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="FUNCTION",
        choices=sorted({specimen.function for specimen in SPECIMENS}), help="may be repeated; default all",
    )  # fmt: skip
    parser.add_argument("--main", action="store_true", help="the fewest specimens that meet every kernel")
    arguments = parser.parse_args()
    return report(arguments.target or list(TARGETS), arguments.only, main_only=arguments.main)


if __name__ == "__main__":
    sys.exit(main())
