"""The rows that the kernels' benchmarks wrote."""

import csv


def read_csv(path, row):
    """Read what `harness.rows.write_csv` wrote, as instances of `row`, its class."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        line.update({key: float(line[key]) if line[key] else None for key in ("p50", "p20", "p80")})
    return [row(**line) for line in lines]
