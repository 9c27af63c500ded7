"""Every Triton kernel compiles for every target without a GPU, and none spills."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vpt_kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is there for Linux alone")


def run(code_or_script, *arguments, cwd):
    """Run Python without the interpreter that the kernels' tests turn on."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *code_or_script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


def launched():
    """Name the jit functions that some host function launches, as file.function."""
    names = set()
    for path in (Path(vpt_kernels.__file__).parent / "triton").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        home = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
            for alias in node.names
        }
        for node in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                called = ast.unparse(node.func.value)
                names.add(".".join(home.get(called, (path.stem, called))))
    return names


@pytest.mark.parametrize("target", ["sm_90", "sm_80", "sm_100", "gfx942"])
def test_every_kernel_compiles_and_none_spills(folder, target):
    """All specimens for sm_90; for the others, to save time, the fewest that meet every kernel."""
    which = [] if target == "sm_90" else ["--main"]
    done = run([str(folder / "compile_report.py")], "--target", target, *which, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    reported = set(re.findall(r"^\| (\w+\.\w+) ", done.stdout, flags=re.MULTILINE))
    assert launched() <= reported, "give the new kernel a line in SPECIMENS of harness/specimens.py"
    registers = [
        int(number) for number in re.findall(r"^\| \w+\.\w+ +\| [^|]+\| (\d+)", done.stdout, flags=re.M)
    ]
    assert len(registers) >= len(reported) and all(0 < number <= 512 for number in registers)


# The first holds 64 KiB a warp in registers, which has 32: it must spill on any NVIDIA GPU. The last wants
# two tiles of 8 KiB each.
SPILLING = """
import sys
sys.path.insert(0, {folder!r})
import compile_report, torch, triton
from harness import specimens
sys.path.insert(0, {here!r})
import spilling

compile_report.SPECIMENS = [specimens.Specimen("none", "spilling", spilling.launch)]
code = compile_report.report(["sm_80", "sm_90"], [])
compile_report.SPECIMENS = [specimens.Specimen("none", "broken", spilling.launch_broken)]
code = 10 * code + compile_report.report(["sm_90"], [])
compile_report.MOST_SHARED["sm_90"] = 10_000
compile_report.SPECIMENS = [specimens.Specimen("none", "huge", spilling.launch_huge)]
sys.exit(10 * code + compile_report.report(["sm_90"], []))
"""
KERNELS = """
import torch, triton
import triton.language as tl

@triton.jit
def greedy_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    total = x
    for i in range(1, N):
        total = tl.cumsum(total * tl.load(x_ptr + i * BLOCK + at), 0) + x
    tl.store(out_ptr + at, total + x)

@triton.jit
def broken_kernel(x_ptr):
    tl.store(x_ptr, there_is_no_such_name)

def launch(device):
    x = torch.empty(1 << 20, device=device)
    greedy_kernel[(1,)](x, torch.empty_like(x), 7, BLOCK=16384, num_warps=1)

@triton.jit
def huge_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    square = at[:, None] * SIZE + at[None, :]
    tl.store(out_ptr + square, tl.dot(tl.load(x_ptr + square), tl.load(x_ptr + SIZE * SIZE + square)))

def launch_huge(device):
    x = torch.empty(1 << 20, device=device, dtype=torch.float16)
    huge_kernel[(1,)](x, torch.empty(1 << 20, device=device), SIZE=64)

def launch_broken(device):
    broken_kernel[(1,)](torch.empty(4, device=device))
"""


def test_a_spill_a_failure_and_too_large_a_tile_are_found(folder, tmp_path):
    (tmp_path / "spilling.py").write_text(KERNELS)
    done = run(["-c", SPILLING.format(folder=str(folder), here=str(tmp_path))], cwd=tmp_path)
    assert done.returncode == 111, done.stdout + done.stderr
    for target in ("sm_80", "sm_90"):
        spills = rf"SPILLS on {target}: spilling\.greedy_kernel at none spilling: \d+ bytes"
        assert re.search(spills, done.stdout)
    assert "TOO MUCH SHARED MEMORY on sm_90: spilling.huge_kernel" in done.stdout
    assert "NOT COMPILED for sm_90: none broken" in done.stdout and "there_is_no_such_name" in done.stdout


def test_the_interpreter_is_left_aside(folder):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        str(folder / "compile_report.py"),
        "--target",
        "sm_90",
        "--only",
        "sinkhorn_potentials",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TRITON_INTERPRET is set: left aside" in done.stdout
    assert "sinkhorn_potentials.row_logsumexp_kernel" in done.stdout
