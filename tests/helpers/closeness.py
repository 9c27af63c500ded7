"""How close a kernel must come to its fp64 reference."""

import torch

# What sums of differences lose, as gradients of temperatures do, a test allows by a `factor` it names.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def assert_near(found, expected, dtype, factor=1.0):
    """Check ‖found - expected‖ <= tolerance · ‖expected‖ and each element, for inputs of `dtype`.

    `expected` is the reference in fp64. An element may be off by ten times the tolerance, relative to the
    largest of them.
    """
    tolerance = factor * TOLERANCES[dtype]
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    assert found.shape == expected.shape and found.isfinite().all()
    error, size = (found - expected).norm(), expected.norm()
    assert error <= tolerance * size + 1e-12, f"relative error {error / size:.2e}, allowed {tolerance:.0e}"
    if expected.numel():
        worst = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        assert worst <= 10 * tolerance, f"largest error {worst:.2e} of the largest value"
