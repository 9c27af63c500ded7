"""Compile every kernel ahead of time, for GPUs this machine need not have, and say what it costs them.

    python benchmarks/compile_report.py [--target sm_90 ...] [--only FUNCTION ...]

Calls the public functions of `harness/specimens.py`, forward and backward, with tensors that have no storage,
while Triton takes a fake driver for a GPU and compiles instead of launching: block sizes, dtypes and the
alignment of every argument are those of a real launch, for the launch's own code chose them. Prints a line
for each kernel compiled and exits with 1 and a sentence if one does not compile or keeps registers in memory
(spills).
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
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Compiled(NamedTuple):
    """One kernel as compiled for one target."""

    kernel: str  # file.jit function
    specimen: str
    target: str
    warps: int
    stages: int
    registers: int  # per thread; on gfx942 vector registers
    spilled: int  # bytes of stack a thread; on gfx942 spilled vector registers
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
    found: dict[tuple[str, str], Compiled] = {}
    with _compiling_for(target) as launched, _AsOnCuda():
        specimen.run("meta")
    for function, kernel in launched:
        name = f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}"
        key = (name, kernel.hash)
        if key not in found:
            found[key] = Compiled(
                name,
                f"{specimen.function} {specimen.label}",
                target,
                kernel.metadata.num_warps,
                kernel.metadata.num_stages,
                *_resources(kernel),
            )
    if not found:
        raise RuntimeError("it launched no kernel: has the function no Triton launcher yet?")
    return list(found.values())


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
        usage = _output("cuobjdump", "-res-usage", cubin)
        code = _output("nvdisasm", "-c", cubin)
    registers = int(re.findall(r"\bREG:(\d+)", usage)[-1])
    spilled = max(int(size) for size in re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage))
    if spilled == 0 and re.search(r"\b(?:STL|LDL)\b", code):
        spilled = 4  # local memory without a stack frame: never seen, and not to be missed
    return registers, spilled, kernel.metadata.shared, _notes(code)


def _notes(code: str) -> str:
    """Say which matrix instructions are there and how wide loads and stores of global memory are."""
    matrix = [
        name for name in ("HGMMA", "UTCHMMA", "UTCQMMA", "HMMA", "DMMA") if re.search(rf"\b{name}\b", code)
    ]
    widths = []
    for instruction, word in (("LDG|LDGSTS", "loads"), ("STG", "stores")):
        bits = [
            int(next(iter(re.findall(r"\.(64|128|256)\b", tail)), 32))
            for tail in re.findall(rf"\b(?:{instruction})\.([A-Z0-9_.]+)", code)
        ]
        if bits:
            widths.append(
                f"{word} {min(bits)}-{max(bits)} bit" if min(bits) < max(bits) else f"{word} {max(bits)} bit"
            )
    return ", ".join([*matrix, *widths])


def _read_amdgcn(kernel: Any) -> tuple[int, int, int, str]:
    code = kernel.asm["amdgcn"]

    def number(field: str) -> int:
        return int(next(iter(re.findall(rf"\.{field}:\s+(\d+)", code)), 0))

    matrix = ["MFMA"] if "v_mfma" in code else []
    return number("vgpr_count"), number("vgpr_spill_count"), kernel.metadata.shared, ", ".join(matrix)


def _output(tool: str, *arguments: Any) -> str:
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} of Triton's package failed: {done.stderr.strip()}")
    return done.stdout


def report(targets: list[str], only: list[str]) -> int:
    """Compile, print the table and return the exit code."""
    chosen = [specimen for specimen in SPECIMENS if not only or specimen.function in only]
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
    print(
        f"\n{len({one.kernel for one in compiled})} kernels, {len(compiled)} compilations, Triton "
        f"{triton.__version__}, torch {torch.__version__}, {time.perf_counter() - started:.0f} s."
    )
    for failure in failures:
        print(f"NOT COMPILED for {failure.target}: {failure.specimen}: {failure.reason}")
    for one in spilling:
        unit = "vector registers" if one.target.startswith("gfx") else "bytes a thread"
        print(f"SPILLS on {one.target}: {one.kernel} at {one.specimen}: {one.spilled} {unit}.")
    if failures or spilling:
        print(f"Failed: {len(failures)} specimens did not compile, {len(spilling)} compilations spill.")
        return 1
    print("Everything compiles and nothing spills.")
    return 0


def _print_table(compiled: list[Compiled], targets: list[str]) -> None:
    """Print one line for each kernel and specimen: figures of the main target, yes or no for the others."""
    main = "sm_90" if "sm_90" in targets else targets[0]
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
        marks = ["spills" if any(o.spilled for o in found) else "yes" if found else "no" for found in also]
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
    arguments = parser.parse_args()
    return report(arguments.target or list(TARGETS), arguments.only)


if __name__ == "__main__":
    sys.exit(main())
