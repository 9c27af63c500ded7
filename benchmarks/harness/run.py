"""Measure every kernel against plain torch, torch.compile and the packages that do some of the same work.

What `python benchmarks/kernels.py` runs. On a GPU: the shapes of a real training step first, then sweeps, as
far as the budget goes. `--quick` takes small shapes and, on a CPU, less than a minute; CPU rows are marked as
references. Writes rows.csv, table.md and a plot for each kernel, and ends with what was promised of the
kernels: met, not met or not measured.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import cases, measure, targets
from . import rows as reports
from .cases import BACKWARD, COLD, COMPILED, FORWARD, FULL, OURS, Case, Problem, Work
from .measure import Ceilings, Times
from .rows import DISAGREES, FAILED, NO_MEMORY, OK, OTHER, UNITS, Row

_FEWEST_SECONDS = 5.0  # no case is begun with less of the budget left


class Run:
    """One run: its device, its clock, and the rows so far."""

    def __init__(
        self, device: torch.device, seconds: float, budget: float, note: Callable[[str], None]
    ) -> None:
        self.device, self.seconds, self.note = device, seconds, note
        self.deadline = time.monotonic() + budget
        self.rows: list[Row] = []
        self.skipped: dict[str, None] = {}  # lines, each once
        self.failed: list[str] = []  # of ours, or a baseline that disagrees with ours
        self.gpu = device.type == "cuda"
        triton = measure.installed("triton")
        self.place = {
            "kind": "GPU" if self.gpu else "CPU reference",
            "device": measure.device_name(device),
            "torch": torch.__version__,
            "triton": triton,
            "command": shlex.join(["python", *sys.argv]),
        }
        found, times, shapes = measure.ceilings(device, seconds)
        self.ceilings: Ceilings = found
        for name, timed in times.items():
            kernel = "copy" if name == "copy" else "matmul"
            moved = float(shapes[name].split("=")[-1]) * 2 if kernel == "copy" else None
            rate = None if kernel == "copy" else found.matrix[name] * timed.p50 / 1000
            self.add(
                Case(kernel, {}, "fp32" if kernel == "copy" else name, "", lambda device: Problem({}, {})),
                "torch", FORWARD, timed, moved, rate, shape=shapes[name],
            )  # fmt: skip

    def spent(self) -> bool:
        """Say whether the budget is used up."""
        return time.monotonic() > self.deadline - _FEWEST_SECONDS

    def skip(self, line: str) -> None:
        """Note once what is left out."""
        if line not in self.skipped:
            self.skipped[line] = None
            self.note(line)

    def add(
        self, case: Case, provider: str, mode: str, times: Times | None, moved: float | None,
        operations: float | None, *, status: str = OK, note: str = "", memory: int | None = None,
        error: float | None = None, shape: str | None = None,
    ) -> None:  # fmt: skip
        """Append the rows of one provider in one mode."""
        figures: dict[str, tuple[float | None, ...]] = {reports.TIME: times or (None, None, None)}

        def per_second(amount: float, unit: float) -> tuple[float, ...]:
            assert times is not None
            return tuple(
                amount / milliseconds * 1000 / unit for milliseconds in (times.p50, times.p80, times.p20)
            )

        if times is not None and moved:
            figures[reports.BANDWIDTH] = per_second(moved, 1e9)
            if case.kernel != "copy" and hasattr(self, "ceilings"):
                figures[reports.COPY_SHARE] = per_second(moved, self.ceilings.copy / 100)
        if times is not None and operations:
            figures[reports.RATE] = per_second(operations, 1e12)
            best = self.ceilings.matrix.get(case.dtype) if case.kernel != "matmul" else None
            if best:
                figures[reports.MATRIX_SHARE] = per_second(operations, best / 100)
        if memory is not None:
            figures[reports.MEMORY] = (memory / 2**20,) * 3
        if error is not None:
            figures[reports.ERROR] = (error,) * 3
        package = cases.PACKAGES.get(provider, "")
        for metric, (p50, p20, p80) in figures.items():
            self.rows.append(
                Row(
                    kernel=case.kernel,
                    shape=case.shape if shape is None else shape,
                    dtype=case.dtype,
                    provider=provider,
                    mode=mode,
                    metric=metric,
                    unit=UNITS[metric],
                    x_name=case.x_name,
                    x=str(case.sizes.get(case.x_name, "")),
                    p50=p50,
                    p20=p20,
                    p80=p80,
                    status=status,
                    note=note,
                    provider_version=measure.installed(package) if package else "",
                    time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    **self.place,
                )
            )


def gradients(work: Work, output: Any, *, keep: bool = False) -> Sequence[Tensor | None]:
    """Take the gradients of all outputs that have any, against fixed random directions."""
    outputs = [one for one in _tensors(output) if one.requires_grad]
    directions = [_direction(one) for one in outputs]
    return torch.autograd.grad(outputs, work.wrt, directions, retain_graph=keep, allow_unused=True)


_DIRECTIONS: dict[tuple[Any, ...], Tensor] = {}


def _direction(output: Tensor) -> Tensor:
    if output.dim() == 0:  # a mean: peers have a faster way for 1, and scale stored gradients in place else
        return torch.ones_like(output)
    key = (output.shape, output.dtype, output.device)
    if key not in _DIRECTIONS:
        generator = torch.Generator(output.device).manual_seed(7)
        drawn = torch.rand(output.shape, generator=generator, device=output.device) + 0.5
        _DIRECTIONS[key] = drawn.to(output.dtype)
    return _DIRECTIONS[key]


def _tensors(output: Any) -> Sequence[Tensor]:
    return [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)]


def relative_error(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Give the largest ‖found - expected‖ / ‖expected‖ of the tensors."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            continue
        one, other = one.detach(), other.detach()
        size = torch.linalg.vector_norm(other, dtype=torch.float64)
        distance = torch.linalg.vector_norm(one.to(other.dtype) - other, dtype=torch.float64)
        error = float(distance / size.clamp(min=1e-12))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def calls_of(work: Work, modes: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Give what is timed in each mode. Backward keeps the graph of one forward pass."""
    calls: dict[str, Callable[[], Any]] = {FORWARD: work.forward, COLD: work.forward}
    if work.wrt:
        kept: list[Any] = []

        def backward() -> Any:
            if not kept:
                kept.append(work.forward())
            return gradients(work, kept[0], keep=True)

        calls[BACKWARD] = backward
        calls[FULL] = lambda: gradients(work, work.forward())
    return {mode: call for mode, call in calls.items() if mode in modes}


def measure_case(run: Run, case: Case, providers: Sequence[str] | None = None) -> None:
    """Check and time all providers of one case; `providers` picks some."""
    torch.manual_seed(0)
    _DIRECTIONS.clear()
    try:
        problem = case.make(run.device)
    except torch.OutOfMemoryError:
        run.skip(f"{case.label}: its inputs do not fit this device.")
        return
    except Exception as error:
        run.failed.append(f"{case.label}: {_sentence(error)}")
        run.note(run.failed[-1])
        return
    if providers and not set(providers) & set(problem.providers):
        return
    modes = list(problem.bytes)
    expected: tuple[Sequence[Tensor], Sequence[Tensor | None]] | None = None
    ready: dict[str, Work] = {}
    status: dict[str, tuple[str, float | None]] = {}
    chosen = [name for name in problem.providers if not providers or name in (OURS, *providers)]
    for name in chosen:
        if name in cases.GPU_ONLY and not run.gpu:
            run.skip(f"{name}: left out, it has no CPU kernels.")
            continue
        if name == COMPILED and not run.gpu:
            run.skip("torch.compile: left out on the CPU, where compiling takes longer than the budget.")
            continue
        try:
            work = problem.providers[name]()
            checked = _check(work, expected)
        except ModuleNotFoundError as error:
            run.skip(f"{name}: left out, {error.name} is not installed.")
            continue
        except Exception as error:
            _fault(run, case, name, error)
            continue
        if name == OURS:
            expected, checked = (checked[1], checked[2]), (0.0, *checked[1:])
        error_found = checked[0] if work.compare is not None and expected is not None else None
        wrong = error_found is not None and error_found > problem.tolerance
        status[name] = (OTHER if work.compare is None else DISAGREES if wrong else OK, error_found)
        if wrong:
            run.note(f"{case.label}: {name} disagrees with ours, relative error {error_found:.2g}.")
            if name not in cases.PACKAGES:
                run.failed.append(f"{case.label}: {name} disagrees with ours ({error_found:.2g}).")
        del checked
        if providers and name not in providers:
            continue  # ours, run again for the comparison alone
        ready[name] = work
        if run.gpu:  # one at a time: memory for all would not do
            _time_on_gpu(run, case, problem, name, work, modes, status[name])
            del ready[name], work
            torch.cuda.empty_cache()
    if not run.gpu:
        _time_on_cpu(run, case, problem, ready, modes, status)
    run.note(f"{case.label}: " + ", ".join(_brief(run, case, name) for name in chosen if name in status))


def _check(
    work: Work, expected: tuple[Sequence[Tensor], Sequence[Tensor | None]] | None
) -> tuple[float, Sequence[Tensor], Sequence[Tensor | None]]:
    """Run once and compare outputs and gradients with ours."""
    output = work.forward()
    compared = [one.detach() for one in (work.compare(output) if work.compare else ())]
    slopes = gradients(work, output) if work.wrt else ()
    if work.held is not None:
        slopes = [slopes[place] for place in work.held]
    if expected is None or work.compare is None:
        return 0.0, compared, slopes
    # A provider without gradients is held to its outputs alone.
    error = max(relative_error(compared, expected[0]), relative_error(slopes, expected[1]) if slopes else 0.0)
    return error, (), ()


def _time_on_gpu(
    run: Run, case: Case, problem: Problem, name: str, work: Work, modes: list[str],
    status: tuple[str, float | None],
) -> None:  # fmt: skip
    for mode in modes:
        calls = calls_of(work, [mode])  # for each mode anew, so that a kept graph is let go
        if mode not in calls:
            continue
        call = calls.pop(mode)
        try:
            call()
            memory = measure.peak_memory(call)
            times = measure.device_times(call, run.seconds)
        except Exception as error:
            _fault(run, case, name, error, mode)
            continue
        run.add(
            case, name, mode, times, problem.bytes.get(mode), problem.operations.get(mode), status=status[0],
            note=work.note, memory=memory, error=status[1],
        )  # fmt: skip


def _time_on_cpu(
    run: Run, case: Case, problem: Problem, ready: dict[str, Work], modes: list[str],
    status: dict[str, tuple[str, float | None]],
) -> None:  # fmt: skip
    calls = {name: calls_of(work, modes) for name, work in ready.items()}
    for mode in modes:
        timed = measure.host_times(
            {name: of_mode[mode] for name, of_mode in calls.items() if mode in of_mode},
            run.seconds,
            cold=mode == COLD,
        )
        for name, times in timed.items():
            run.add(
                case, name, mode, times, problem.bytes.get(mode), problem.operations.get(mode),
                status=status[name][0], note=ready[name].note, error=status[name][1],
            )  # fmt: skip


def _fault(run: Run, case: Case, name: str, error: Exception, mode: str = FULL) -> None:
    """Write down that a provider could not do it."""
    no_memory = isinstance(error, torch.OutOfMemoryError)
    mode = mode if mode in case_modes(run, case) else FORWARD
    run.add(
        case, name, mode, None, None, None, status=NO_MEMORY if no_memory else FAILED, note=_sentence(error)
    )
    run.note(f"{case.label}: {name} {mode}: {'out of memory' if no_memory else _sentence(error)}")
    if name == OURS:
        run.failed.append(f"{case.label}: {_sentence(error)}")
    if run.gpu:
        torch.cuda.empty_cache()


def case_modes(run: Run, case: Case) -> Sequence[str]:
    """Name the modes that rows of the case have so far, or all."""
    return [row.mode for row in run.rows if (row.kernel, row.shape) == (case.kernel, case.shape)] or [FULL]


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def _brief(run: Run, case: Case, name: str) -> str:
    found = [
        f"{row.mode} {row.p50:.4g}" for row in run.rows
        if (row.kernel, row.shape, row.dtype, row.provider, row.metric)
        == (case.kernel, case.shape, case.dtype, name, reports.TIME) and row.p50
    ]  # fmt: skip
    return f"{name} {' / '.join(found)} ms"


def write(run: Run, folder: Path, *, plots: bool = True) -> None:
    """Write the rows, the table and, last, the plots as they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    reports.write_csv(folder / "rows.csv", run.rows)
    found = targets.verdicts(run.rows)
    of_kernels = [row for row in run.rows if row.kernel not in ("copy", "matmul")]
    ceiling = ", ".join(
        [f"copy {run.ceilings.copy / 1e9:,.0f} GB/s (read plus written)"]
        + [f"{name} matmul {rate / 1e12:,.3g} TFLOP/s" for name, rate in run.ceilings.matrix.items()]
    )
    first = run.rows[0]
    page = [
        f"# Kernels on {first.device}",
        f"{first.time}; torch {first.torch}, Triton {first.triton or 'none'}, driver "
        f"{measure.driver_version() or 'none'}; `{first.command}`.",
        f"Ceilings measured in this run: {ceiling}. Bytes and operations are the least that the work needs, "
        "the same for all providers; see [the page on columns](../../README.md).",
    ]
    if not run.gpu:
        page.append(
            "**CPU reference**: these rows time the torch references of the kernels, not the kernels. "
            "Providers were run in turn, so a busy moment struck all alike."
        )
    page += ["## Targets", targets.table(found)]
    if run.failed:
        page += ["## Failed", "\n".join(f"- {line}" for line in run.failed)]
    if run.skipped:
        page += ["## Left out", "\n".join(f"- {line}" for line in run.skipped)]
    page += ["## Figures", reports.tables(of_kernels)]
    (folder / "table.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    if not plots:
        return
    try:
        reports.plot(of_kernels, folder)
    except ModuleNotFoundError as error:
        run.skip(f"Plots: left out, {error.name} is not installed.")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes: under a minute on a CPU")
    parser.add_argument("--only", action="append", default=[], metavar="KERNEL", help="may be repeated")
    parser.add_argument(
        "--budget", type=float, default=3600, metavar="S", help="begin no case after so many seconds"
    )
    parser.add_argument("--seconds", type=float, help="for each provider and mode; default 0.1 (CPU: 0.15)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU, for all alike; default 1")
    parser.add_argument("--main-only", action="store_true", help="no sweeps")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/<device>-<date>")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("highest")
    import torch._functorch.config as functorch

    functorch.donated_buffer = False  # else torch.compile's backward cannot be timed by itself

    def note(line: str) -> None:
        print(line, flush=True)

    if device.type != "cuda":
        note("No GPU: what follows times the torch references on the CPU. Figures of a GPU are owed.")
        if not arguments.quick:
            note("The shapes of a training step want a GPU: taking those of --quick.")
    small = arguments.quick or device.type != "cuda"
    run = Run(device, arguments.seconds or (0.1 if device.type == "cuda" else 0.15), arguments.budget, note)
    date = datetime.date.today().isoformat()
    name = "".join(
        letter if letter.isalnum() else "-" for letter in run.place["device"].split(",")[0]
    ).lower()
    folder = arguments.out or Path(__file__).parents[1] / "results" / f"{name.strip('-')}-{date}"

    def pick(table: list[Case]) -> list[Case]:
        return [case for case in table if not arguments.only or case.kernel in arguments.only]

    main_shapes = pick(cases.quick_cases() if small else cases.main_cases())
    if not main_shapes:
        parser.error(f"--only must be among {', '.join(dict.fromkeys(c.kernel for c in cases.main_cases()))}")
    sweeps = [] if small or arguments.main_only else pick(cases.sweep_cases())
    # Compiling costs seconds a shape, so it comes late where no target speaks of it.
    others = (OURS, cases.EAGER, cases.STORED, cases.PYTHON, cases.PYTHON_LISTS, *cases.PACKAGES)
    late = [] if small else [case for case in main_shapes if case.kernel not in targets.COMPILED_SPOKEN_OF]
    plan: list[tuple[Case, tuple[str, ...] | None]] = []
    plan += [(case, others if case in late else None) for case in main_shapes]
    plan += [(case, (COMPILED,)) for case in late]
    plan += [(case, others) for case in sweeps] + [(case, (COMPILED,)) for case in sweeps]
    for place, (case, providers) in enumerate(plan):
        if run.spent():
            run.skip(f"Budget of {arguments.budget:.0f} s spent: {len(plan) - place} cases not measured.")
            break
        measure_case(run, case, providers)
        write(run, folder, plots=False)  # a run cut off leaves what it has
    write(run, folder)
    found = targets.verdicts(run.rows)
    print("\nTargets")
    for one in found:
        print(f"  {one.status:12} {one.promise}{': ' + one.found if one.found else ''}")
    print(f"\n{len(run.rows)} rows in {folder}/rows.csv, tables in table.md.")
    for line in run.failed:
        print(f"FAILED: {line}")
    return 1 if run.failed else 0
