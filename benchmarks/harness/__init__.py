"""The parts of the benchmarks: inputs, baselines, peers, clocks, rows, and the verdict on each promise."""
