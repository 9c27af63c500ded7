import math

import pytest
import torch

from vpt_vision.learner.koleo import koleo_loss


def reference(features: torch.Tensor) -> torch.Tensor:
    rows = [row / row.norm() for row in features]
    total = 0.0
    for i, row in enumerate(rows):
        total = total - torch.log(min((row - other).norm() for j, other in enumerate(rows) if j != i))
    return total / len(rows)


@pytest.mark.parametrize(("count", "dim"), [(2, 3), (7, 5), (31, 13)])
def test_equals_the_formula_over_all_pairs(count: int, dim: int) -> None:
    features = torch.randn(count, dim, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(koleo_loss(features), reference(features), atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(koleo_loss(features), features)
    (expected,) = torch.autograd.grad(reference(features), features)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_is_finite_and_fp32_for_equal_rows_in_half_precision() -> None:
    features = torch.ones(4, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features)
    loss.backward()
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item()) and features.grad.isfinite().all()


def test_is_computed_in_fp32_under_autocast() -> None:
    features = torch.randn(16, 8) * 0.01 + torch.randn(1, 8)  # near rows: bf16 products would tie
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features)
    torch.testing.assert_close(loss.double(), reference(features.double()), atol=2e-3, rtol=0)
