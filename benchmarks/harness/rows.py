"""The rows that a run measures, and what is made of them: a CSV, Markdown tables and plots."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .cases import (
    COMPILED,
    CUT,
    EAGER,
    KORNIA,
    LIGER,
    MODES,
    OURS,
    PYTHON,
    PYTHON_LISTS,
    STORED,
    TORCHVISION,
    TORCHVISION_8BIT,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OK, DISAGREES, OTHER, NO_MEMORY, FAILED = (
    "ok", "disagrees", "computes something else", "out of memory", "failed",
)  # fmt: skip
TIME, BANDWIDTH, COPY_SHARE, RATE, MATRIX_SHARE, MEMORY, ERROR = (
    "time", "bandwidth", "copy share", "rate", "matrix share", "peak memory", "relative error",
)  # fmt: skip
UNITS = {
    TIME: "ms", BANDWIDTH: "GB/s", COPY_SHARE: "%", RATE: "TFLOP/s", MATRIX_SHARE: "%", MEMORY: "MiB",
    ERROR: "",
}  # fmt: skip


class Row(NamedTuple):
    """One figure: a metric of one provider in one mode at one shape."""

    kernel: str
    shape: str  # "M=3763 K=65536"
    dtype: str
    provider: str
    mode: str  # forward, backward or full
    metric: str
    unit: str
    x_name: str  # the size that a sweep varies
    x: str
    p50: float | None
    p20: float | None
    p80: float | None
    status: str
    note: str
    kind: str  # "GPU" or "CPU reference"
    device: str
    torch: str
    triton: str
    provider_version: str
    time: str
    command: str


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write all rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])


def find(
    rows: Sequence[Row],
    kernel: str,
    shape: str,
    provider: str,
    mode: str,
    metric: str,
    dtype: str | None = None,
) -> Row | None:
    """Give the row, or None."""
    for row in rows:
        asked = (row.kernel, row.shape, row.provider, row.mode, row.metric)
        if asked == (kernel, shape, provider, mode, metric) and dtype in (None, row.dtype):
            return row
    return None


# Markdown.


def tables(rows: Sequence[Row]) -> str:
    """Give a Markdown table for each kernel: a line for each shape, provider and mode."""
    parts = []
    for kernel in dict.fromkeys(row.kernel for row in rows):
        cells: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
        for row in rows:
            if row.kernel == kernel:
                cells[(row.shape, row.dtype, row.provider, row.mode)][row.metric] = row
        header = ["shape", "dtype", "provider", "mode", "ms, p50 [p20, p80]", "× ours", "GB/s", "% of copy",
                  "TFLOP/s", "% of matmul", "peak MiB", "note"]  # fmt: skip
        lines = [header, ["---"] * 4 + ["---:"] * 7 + ["---"]]
        for (shape, dtype, provider, mode), metrics in cells.items():
            time = metrics.get(TIME)
            ours = cells.get((shape, dtype, OURS, mode), {}).get(TIME)
            lines.append(
                [
                    shape, dtype, provider, mode, _time(time), _ratio(time, ours),
                    *(_number(metrics.get(m)) for m in (BANDWIDTH, COPY_SHARE, RATE, MATRIX_SHARE, MEMORY)),
                    _remark(time, metrics.get(ERROR)),
                ]
            )  # fmt: skip
        parts.append(f"### {kernel}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def _time(row: Row | None) -> str:
    if row is None or row.p50 is None:
        return row.status if row is not None else ""
    return f"{_digits(row.p50)} [{_digits(row.p20)}, {_digits(row.p80)}]"


def _ratio(row: Row | None, ours: Row | None) -> str:
    if row is None or ours is None or row.p50 is None or not ours.p50:
        return ""
    return f"{row.p50 / ours.p50:.3g}"


def _remark(row: Row | None, error: Row | None) -> str:
    if row is None:
        return ""
    words = [row.note] if row.note else []
    if row.status == DISAGREES and error is not None:
        words.insert(0, f"**disagrees with ours**, relative error {_digits(error.p50)}")
    elif row.status != OK:
        words.insert(0, row.status)
    return "; ".join(words).replace("|", "/")


def _number(row: Row | None) -> str:
    return "" if row is None or row.p50 is None else _digits(row.p50)


def _digits(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


# Plots.

_COLOURS = {
    OURS: "tab:blue", EAGER: "tab:orange", COMPILED: "tab:green", STORED: "tab:purple", PYTHON: "tab:gray",
    PYTHON_LISTS: "darkgray", TORCHVISION: "tab:red", TORCHVISION_8BIT: "lightcoral", KORNIA: "tab:brown",
    LIGER: "tab:pink", CUT: "tab:olive",
}  # fmt: skip


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a picture for each kernel: lines over each size that was swept, else a point for each provider."""
    import matplotlib

    matplotlib.use("Agg")
    made = []
    for kernel in dict.fromkeys(row.kernel for row in rows):
        timed = [row for row in rows if row.kernel == kernel and row.metric == TIME and row.p50]
        if timed:
            made.append(folder / f"{kernel}.png")
            _picture(kernel, timed, made[-1])
    return made


def _picture(kernel: str, timed: list[Row], path: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    sweeps = _sweeps(timed)
    modes = [mode for mode in MODES if any(row.mode == mode for row in timed)]
    places = _places(timed)
    lines = len(sweeps) or 1
    figure, axes = pyplot.subplots(
        lines,
        len(modes),
        figsize=(
            2.6 + 4.0 * len(modes),
            3.2 * lines + 0.9 if sweeps else 1.1 + 0.24 * (1 + max(places.values())),
        ),
        squeeze=False,
        layout="constrained",
    )
    for column, mode in enumerate(modes):
        of_mode = [row for row in timed if row.mode == mode]
        if not sweeps:
            _points(axes[0][column], of_mode, places, named=column == 0)
            axes[0][column].set_title(mode, fontsize=9)
        for line, (x_name, rest, dtype) in enumerate(sweeps):
            _lines(axes[line][column], [row for row in of_mode if _on(row, x_name, rest, dtype)], x_name)
            axes[line][column].set_title(f"{mode}: {rest} {dtype}".replace(":  ", ": "), fontsize=9)
    if sweeps:
        names = list(dict.fromkeys(row.provider for row in timed))
        handles = [Line2D([], [], color=_COLOURS.get(name), marker="o", markersize=3) for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    mark = "" if timed[0].kind == "GPU" else " (CPU reference, not the kernel)"
    figure.suptitle(f"{kernel} on {timed[0].device}{mark}", fontsize=10)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _places(timed: list[Row]) -> dict[tuple[str, str, str], int]:
    """Give the height of each shape's name, under provider "", and of the shape's providers below it."""
    places: dict[tuple[str, str, str], int] = {}
    for shape, dtype in dict.fromkeys((row.shape, row.dtype) for row in timed):
        of_shape = [row.provider for row in timed if (row.shape, row.dtype) == (shape, dtype)]
        for provider in ("", *dict.fromkeys(of_shape)):
            places[shape, dtype, provider] = len(places)
    return places


def _points(axis: Axes, rows: list[Row], places: dict[tuple[str, str, str], int], *, named: bool) -> None:
    """A point for each provider with its 20 to 80 % range, the figure beside it."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    for row in rows:
        y = places[row.shape, row.dtype, row.provider]
        colour = _COLOURS.get(row.provider)
        axis.plot([row.p20, row.p80], [y, y], color=colour, linewidth=2)
        axis.plot([row.p50], [y], "o", color=colour, markersize=5)
        axis.annotate(
            _digits(row.p50),
            (max(row.p50 or 0, row.p80 or 0), y),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    texts = [provider or f"{shape} {dtype}" for shape, dtype, provider in places]
    axis.set_yticks(list(places.values()), texts if named else [""] * len(texts), fontsize=7)
    axis.set_ylim(max(places.values()) + 0.6, -0.6)
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("ms", fontsize=8)
    axis.grid(alpha=0.3)


def _lines(axis: Axes, rows: list[Row], x_name: str) -> None:
    from matplotlib.ticker import FuncFormatter

    for provider in dict.fromkeys(row.provider for row in rows):
        points = [(_size(row.shape, x_name), row) for row in rows if row.provider == provider]
        points.sort(key=lambda point: point[0])
        xs, colour = [x for x, _ in points], _COLOURS.get(provider)
        axis.plot(xs, [row.p50 for _, row in points], "o-", markersize=3, color=colour)
        low, high = [row.p20 for _, row in points], [row.p80 for _, row in points]
        axis.fill_between(xs, low, high, color=colour, alpha=0.2)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.tick_params(labelsize=7)
    axis.set_xlabel(x_name, fontsize=8)
    axis.set_ylabel("ms", fontsize=8)
    axis.grid(alpha=0.3)


def _sweeps(timed: list[Row]) -> list[tuple[str, str, str]]:
    """Name the sizes that take several values while the others stay: (size, the others, dtype)."""
    found: dict[tuple[str, str, str], set[float]] = defaultdict(set)
    for row in timed:
        for name in re.findall(r"(\w+)=\d+(?= |$)", row.shape):
            found[(name, _without(row.shape, name), row.dtype)].add(_size(row.shape, name))
    return [key for key, sizes in found.items() if len(sizes) > 2]


def _on(row: Row, x_name: str, rest: str, dtype: str) -> bool:
    return f"{x_name}=" in row.shape and _without(row.shape, x_name) == rest and row.dtype == dtype


def _without(shape: str, name: str) -> str:
    return " ".join(part for part in shape.split() if not part.startswith(f"{name}="))


def _size(shape: str, name: str) -> float:
    return next(float(part.split("=")[1]) for part in shape.split() if part.startswith(f"{name}="))
