"""The speed benchmark runs, writes what it promises, and judges the promises rightly.

No timing is asserted.
"""

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import baselines, cases, measure, rows, targets
from harness import run as kernels
from harness.cases import (
    BACKWARD,
    COLD,
    EAGER,
    FORWARD,
    FULL,
    KORNIA,
    OURS,
    PYTHON,
    STORED,
    TORCHVISION,
    Case,
    Problem,
    Work,
)
from harness.rows import Row
from measured_rows import read_csv

COLUMNS = (
    "kernel shape dtype provider mode metric unit x_name x p50 p20 p80 status note kind device torch triton "
    "provider_version time command"
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Run everything at its small sizes on the CPU, each cell for the shortest time there is."""
    out = tmp_path_factory.mktemp("quick")
    script = Path(__file__).parents[2] / "benchmarks" / "kernels.py"
    command = [
        sys.executable,
        str(script),
        "--quick",
        "--device",
        "cpu",
        "--seconds",
        "0.001",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done, out


def test_quick_agrees_with_all_baselines(quick):
    done, _ = quick
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Figures of a GPU are owed" in done.stdout and "torch.compile: left out on the CPU" in done.stdout
    assert done.stdout.count("not measured GPU:") == 13
    assert all(f"CPU: {name}" in done.stdout for name in ("block_masks", "render_views"))


def test_quick_writes_the_columns(quick):
    _, out = quick
    with (out / "rows.csv").open(newline="") as file:
        assert next(csv.reader(file)) == COLUMNS.split()
    found = read_csv(out / "rows.csv", rows.Row)
    assert {row.kernel for row in found} >= {case.kernel for case in cases.main_cases()} | {"copy", "matmul"}
    assert all(row.kind == "CPU reference" and row.device.startswith("CPU") for row in found)
    timed = [row for row in found if row.metric == rows.TIME]
    assert all(0 < row.p20 <= row.p50 <= row.p80 and row.unit == "ms" and row.time for row in timed)
    for name in ("masked_distillation_loss", "prototype_loss", "blend_views"):
        modes = {row.mode for row in timed if row.kernel == name and row.provider == OURS}
        assert modes == {FORWARD, BACKWARD, FULL}, name
    assert {row.metric for row in found if row.kernel == "prototype_loss"} >= {rows.RATE, rows.MATRIX_SHARE}
    assert {row.metric for row in found if row.kernel == "block_masks"} >= {rows.BANDWIDTH, rows.COPY_SHARE}


def test_quick_draws_and_tabulates(quick):
    _, out = quick
    page = (out / "table.md").read_text()
    assert "CPU reference" in page and "## Targets" in page and "| promise | verdict | found |" in page
    for kernel in {case.kernel for case in cases.main_cases()}:
        assert f"### {kernel}\n" in page
        assert (out / f"{kernel}.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) > 60 and {line.count("|") for line in lines} == {4, 13}  # every line has all cells


def a_row(kernel, shape, provider, mode, p50, metric=rows.TIME, kind="GPU", dtype="bf16"):
    made = dict.fromkeys(COLUMNS.split(), "")
    made.update(
        kernel=kernel, shape=shape, provider=provider, mode=mode, metric=metric, kind=kind, dtype=dtype
    )
    return Row(**{**made, "p50": p50, "p20": p50, "p80": p50, "status": "ok", "device": "a card"})


def all_met():
    """Rows of a GPU of 4,000 GB/s and of a CPU on which every promise holds, though barely."""
    loss, head = targets.LOSS_SHAPE, targets.HEAD_SHAPE
    one = 3763 * 65536 * 2 / 4e12 * 1000  # ms of one pass
    distillation, sinkhorn, both = (
        "masked_distillation_loss",
        "sinkhorn_potentials",
        "prototype_targets_and_loss",
    )
    gradients = (3763 + 65536) * 256 * 2 / 2**20
    made = [
        a_row("copy", "bytes=1", "torch", FORWARD, 4000, rows.BANDWIDTH),
        a_row(distillation, loss, OURS, FULL, 1.24 * 5 * one),
        a_row(distillation, loss, EAGER, FULL, 1.24 * 5 * one * 6.01),
        a_row(distillation, loss, cases.COMPILED, FULL, 1.24 * 5 * one * 2.01),
        a_row(distillation, loss, OURS, FULL, 3763 * 65536 * 2 / 2**20 + 1, rows.MEMORY),
        a_row(sinkhorn, loss, OURS, FORWARD, 1.39 * 4 * one),
        a_row(sinkhorn, loss, EAGER, FORWARD, 1.39 * 4 * one * 6.01),
        a_row(sinkhorn, loss, cases.COMPILED, FORWARD, 1.39 * 4 * one * 2.01),
        a_row(sinkhorn, loss, OURS, FORWARD, 5, rows.MEMORY),
        a_row(both, head, OURS, FULL, 9.9),
        a_row(both, head, STORED, FULL, 10),
        a_row(both, head, OURS, FULL, gradients + 49, rows.MEMORY),
        a_row(both, head, STORED, FULL, gradients + 1000, rows.MEMORY),
        a_row("render_views", targets.RENDER_SHAPE, OURS, FORWARD, 1.9),
        a_row("render_views", targets.RENDER_SHAPE, KORNIA, FORWARD, 39),
        a_row("render_views", targets.RENDER_SHAPE, TORCHVISION, FORWARD, 900),
        a_row("block_masks", targets.BLOCK_SHAPE, OURS, FORWARD, 0.049, dtype="bool"),
        a_row("sample_masks", targets.SAMPLE_SHAPE, OURS, FORWARD, 0.049, dtype="bool"),
    ]
    cpu = [
        ("block_masks", "N=128 grid=16", OURS, 1.0), ("block_masks", "N=128 grid=16", PYTHON, 10.1),
        ("render_views", "B=8 views=2x224+8x96 side=256", OURS, 1.0),
        ("render_views", "B=8 views=2x224+8x96 side=256", TORCHVISION, 1.01),
        ("render_views", "B=16 views=2x64+8x32 side=96", OURS, 1.0),
        ("render_views", "B=16 views=2x64+8x32 side=96", TORCHVISION, 3.01),
        ("render_views", "B=16 views=2x48+8x32 side=64", OURS, 1.0),
        ("render_views", "B=16 views=2x48+8x32 side=64", TORCHVISION, 3.01),
    ]  # fmt: skip
    return made + [
        a_row(*row[:3], mode, row[3], kind="CPU reference", dtype="fp32")
        for row in cpu
        for mode in ((FORWARD, COLD) if row[0] == "block_masks" else (FORWARD,))
    ]


def statuses(of):
    return [verdict.status for verdict in targets.verdicts(of)]


def test_the_cases_that_targets_speak_of_are_measured():
    shapes = {(case.kernel, case.shape) for case in cases.main_cases() + cases.quick_cases()}
    spoken = {(row.kernel, row.shape) for row in all_met() if row.kind == "GPU" and row.kernel != "copy"}
    assert spoken <= shapes
    for kernel, start in {(row.kernel, row.shape) for row in all_met() if row.kind != "GPU"}:
        assert any(name == kernel and shape.startswith(start) for name, shape in shapes), start


def test_all_targets_met():
    found = targets.verdicts(all_met())
    assert [one.status for one in found] == [targets.MET] * 17, found
    assert "1.24×" in found[0].found and "a card" in found[0].found
    assert targets.table(found).count("**met**") == 17


def test_nothing_measured():
    assert set(statuses([])) == {targets.NOT_MEASURED}
    # Rows of a CPU at the same shapes say nothing about a GPU.
    swapped = [row._replace(kind="CPU reference" if row.kind == "GPU" else "GPU") for row in all_met()]
    assert set(statuses(swapped)[:13]) == {targets.NOT_MEASURED}


# Which row, made worse by how much, breaks which promises.
@pytest.mark.parametrize(
    ("kernel", "provider", "metric", "factor", "broken"),
    [
        ("masked_distillation_loss", OURS, rows.TIME, 1.02, {0, 2, 4}),
        ("masked_distillation_loss", EAGER, rows.TIME, 0.99, {2}),
        ("masked_distillation_loss", cases.COMPILED, rows.TIME, 0.99, {4}),
        ("masked_distillation_loss", OURS, rows.MEMORY, 1.05, {6}),
        ("sinkhorn_potentials", OURS, rows.TIME, 1.02, {1, 3, 5}),
        ("sinkhorn_potentials", EAGER, rows.TIME, 0.99, {3}),
        ("sinkhorn_potentials", cases.COMPILED, rows.TIME, 0.99, {5}),
        ("sinkhorn_potentials", OURS, rows.MEMORY, 3, {7}),
        ("prototype_targets_and_loss", OURS, rows.TIME, 1.02, {8}),
        ("prototype_targets_and_loss", OURS, rows.MEMORY, 1.1, {9}),
        ("render_views", KORNIA, rows.TIME, 0.9, {10}),
        ("block_masks", PYTHON, rows.TIME, 0.98, {13, 14}),
        ("block_masks", OURS, rows.TIME, 1.05, {11, 13, 14}),
        ("sample_masks", OURS, rows.TIME, 1.05, {12}),
        ("render_views", TORCHVISION, rows.TIME, 0.98, {15, 16}),
        ("copy", "torch", rows.BANDWIDTH, 1.1, {0, 1}),
    ],
)
def test_a_target_missed(kernel, provider, metric, factor, broken):
    worse = [
        row._replace(p50=row.p50 * factor)
        if (row.kernel, row.provider, row.metric) == (kernel, provider, metric)
        else row
        for row in all_met()
    ]
    found = statuses(worse)
    assert {place for place, status in enumerate(found) if status == targets.NOT_MET} == broken
    assert targets.NOT_MEASURED not in found


def test_a_render_of_two_milliseconds_is_too_slow_however_slow_the_peers():
    slow = [
        row._replace(p50=row.p50 * 1.2) if row.kernel == "render_views" and row.kind == "GPU" else row
        for row in all_met()
    ]
    assert statuses(slow)[10] == targets.NOT_MET


def test_fp32_rows_do_not_speak_for_bf16():
    other = [row._replace(dtype="fp32") if row.dtype == "bf16" else row for row in all_met()]
    assert set(statuses(other)[:9]) == {targets.NOT_MEASURED}


# A run as on a GPU, with the clock and the memory of the GPU made up.


def raises(error):
    def forward():
        raise error

    return forward


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(measure, "peak_memory", lambda call: call() is None or 3 * 2**20)
    monkeypatch.setattr(measure, "device_times", lambda call, seconds: measure.Times(2.0, 1.0, 4.0))
    fixed = {"copy": measure.Times(1.0, 1.0, 1.0)}
    monkeypatch.setattr(
        measure, "ceilings", lambda *_: (measure.Ceilings(1e9, {"bf16": 1e12}), fixed, {"copy": "bytes=500"})
    )
    made = kernels.Run(torch.device("cpu"), 0.001, 1000.0, lambda line: None)
    made.gpu = True
    return made


def measured(run, providers, **problem):
    problem = Problem(providers, {FORWARD: 1e6, FULL: 2e6, BACKWARD: 1e6}, {FULL: 1e9}, **problem)
    kernels.measure_case(run, Case("thing", {"N": 7}, "bf16", "N", lambda device: problem))
    return [row for row in run.rows if row.kernel == "thing"]


def test_rates_shares_and_memory(run):
    x = torch.ones(5, requires_grad=True)
    found = measured(run, {OURS: lambda: Work(lambda: x * 2, (x,))})
    figures = {(row.mode, row.metric): (row.p50, row.p20, row.p80) for row in found}
    assert figures[FORWARD, rows.TIME] == (2.0, 1.0, 4.0)
    assert figures[FULL, rows.BANDWIDTH] == (1.0, 0.5, 2.0)  # 2e6 bytes in 2 ms are 1 GB/s
    assert figures[FULL, rows.COPY_SHARE] == (100.0, 50.0, 200.0)
    assert figures[FULL, rows.RATE] == (0.5, 0.25, 1.0) and figures[FULL, rows.MATRIX_SHARE][0] == 50.0
    assert (FORWARD, rows.RATE) not in figures and figures[BACKWARD, rows.MEMORY] == (3.0, 3.0, 3.0)
    assert {row.status for row in found} == {rows.OK} and not run.failed


def test_providers_that_cannot_or_disagree(run):
    x = torch.ones(5, requires_grad=True)
    found = measured(
        run,
        {
            OURS: lambda: Work(lambda: x * 2, (x,)),
            EAGER: lambda: Work(lambda: x * 2 + (x - x.detach()) * 0.1, (x,)),  # the gradient is another
            STORED: lambda: Work(lambda: x * torch.nan, (x,)),
            PYTHON: lambda: Work(raises(torch.OutOfMemoryError("no room")), (x,)),
            TORCHVISION: lambda: Work(lambda: x * 3, (x,), compare=None, note="thrice"),
            cases.LIGER: lambda: Work(raises(RuntimeError("not here\nat all")), (x,)),
            KORNIA: lambda: Work(raises(ModuleNotFoundError("No module", name="kornia")), (x,)),
        },
    )
    by_provider = {row.provider: row for row in found if row.metric in (rows.TIME,)}
    assert by_provider[EAGER].status == by_provider[STORED].status == rows.DISAGREES
    assert by_provider[PYTHON].status == rows.NO_MEMORY and by_provider[PYTHON].p50 is None
    assert by_provider[TORCHVISION].status == rows.OTHER and by_provider[TORCHVISION].note == "thrice"
    assert by_provider[cases.LIGER].status == rows.FAILED and "not here" in by_provider[cases.LIGER].note
    assert KORNIA not in by_provider and "kornia: left out, kornia is not installed." in run.skipped
    assert len(run.failed) == 2  # our own baselines that disagree; a package may
    page = rows.tables(found)
    assert "out of memory" in page and "**disagrees with ours**" in page


def test_ours_failing_fails_the_run(run):
    measured(run, {OURS: lambda: Work(raises(RuntimeError("broken")))})
    assert run.failed == ["thing N=7 bf16: RuntimeError: broken"]


def test_rows_survive_the_csv(run, tmp_path):
    x = torch.ones(5, requires_grad=True)
    measured(
        run, {OURS: lambda: Work(lambda: x * 2, (x,)), PYTHON: lambda: Work(raises(ValueError('a, "b"')))}
    )
    rows.write_csv(tmp_path / "rows.csv", run.rows)
    assert read_csv(tmp_path / "rows.csv", rows.Row) == run.rows


def test_plots_of_sweeps_and_of_single_shapes(tmp_path):
    swept = [
        a_row("swept", f"M=10 K={k}", provider, mode, k / 1000)
        for k in (1024, 2048, 4096) for provider in (OURS, EAGER) for mode in (FORWARD, FULL)
    ]  # fmt: skip
    single = [a_row("single", "M=10 K=7", provider, FULL, 3.0) for provider in (OURS, EAGER)]
    made = rows.plot([*swept, *single, a_row("failed", "M=1", OURS, FULL, None)], tmp_path)
    assert [path.name for path in made] == ["swept.png", "single.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    assert rows._sweeps(swept) == [("K", "M=10", "bf16")] and rows._sweeps(single) == []


def test_percentiles_and_turns():
    assert measure.summary([3.0]) == (3.0, 3.0, 3.0)
    assert measure.summary([float(x) for x in range(11)]) == (5.0, 2.0, 8.0)
    turns = []
    times = measure.host_times({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 0.001)
    assert set(times) == {"a", "b"} and "a" in turns[4:] and "b" in turns[4:]
    turns.clear()
    measure.host_times({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 0.001, cold=True)
    assert len(turns) >= 10 and turns[4:] == ["a", "b"] * (len(turns) // 2 - 2)


def test_relative_error_sees_nan_and_the_worst():
    x = torch.ones(3)
    assert kernels.relative_error([x, x * 1.5], [x, x]) == pytest.approx(0.5)
    assert kernels.relative_error([x * torch.nan], [x]) == float("inf")
    assert kernels.relative_error([None], [x]) == 0.0


def test_sweeps_cover_what_was_promised():
    def sizes(name):
        table = cases.main_cases() + cases.sweep_cases()
        return {case.sizes[name] for case in table if name in case.sizes}

    assert {4096, 65536, 262144} <= sizes("K") and {256, 3763, 16384} <= sizes("M")
    assert {14, 16, 32} <= sizes("grid") and {196, 256, 1024} <= sizes("T")
    assert {32, 64, 128, 256, 512} <= sizes("B") & sizes("N")
    table = cases.main_cases() + cases.sweep_cases()
    assert len({case.label for case in table}) == len(table)  # nothing is measured twice


@pytest.mark.parametrize("draw", ["python_block_masks", "list_block_masks"])
def test_the_python_generators_hide_as_many_as_asked(draw):
    counts = [0, 1, 3, 4, 50, 128, 255, 256]
    masks = getattr(baselines, draw)(counts, (16, 16), random.Random(0))
    assert masks.flatten(1).sum(1).tolist() == counts


def test_the_shell_script_parses_and_explains_itself(folder):
    assert subprocess.run(["bash", "-n", str(folder / "gpu.sh")], check=False).returncode == 0
    shown = subprocess.run(
        ["bash", str(folder / "gpu.sh"), "--help"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0 and "--budget" in shown.stdout
    wrong = subprocess.run(
        ["bash", str(folder / "gpu.sh"), "--bad"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2 and "unknown option --bad" in wrong.stderr
