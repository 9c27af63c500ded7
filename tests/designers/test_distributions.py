"""Each law against numerical integration, its own inverse's slope, torch.distributions and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from vpt_vision.designers.distributions import GridPosition, Kumaraswamy, OffsetBernoulli

LOGS = st.floats(-1.5, 1.5)


def kumaraswamy(log_a: float, log_b: float) -> Kumaraswamy:
    return Kumaraswamy(torch.tensor(log_a, dtype=torch.float64), torch.tensor(log_b, dtype=torch.float64))


def uniforms(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(LOGS, LOGS)
@settings(max_examples=25, deadline=None)
def test_kumaraswamy_density_integrates_to_the_inverse_cdf(log_a: float, log_b: float) -> None:
    law = kumaraswamy(log_a, log_b)

    def density(x: float) -> float:
        return math.exp(law.log_prob(torch.tensor(x, dtype=torch.float64).log()).item())

    middle = law.inverse_cdf(torch.tensor(0.5, dtype=torch.float64)).item()
    assert quad(density, 0, middle, limit=200)[0] == pytest.approx(0.5, abs=1e-6)
    assert quad(density, middle, 1, limit=200)[0] == pytest.approx(0.5, abs=1e-6)


@given(LOGS, LOGS)
@settings(max_examples=25, deadline=None)
def test_kumaraswamy_density_is_the_slope_of_its_inverse(log_a: float, log_b: float) -> None:
    law = kumaraswamy(log_a, log_b)
    u = (0.98 * uniforms(64)).requires_grad_()  # 1 - x loses its digits as u nears 1
    x = law.inverse_cdf(u)
    (slope,) = torch.autograd.grad(x.sum(), u)
    torch.testing.assert_close(law.log_prob(x.log()), -slope.log(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("log_a", "log_b"), [(0.7, -0.4), (-1.2, 0.9), (1.5, 1.5), (-0.5, -0.5)])
def test_kumaraswamy_kl_and_mean_against_monte_carlo(log_a: float, log_b: float) -> None:
    law = kumaraswamy(log_a, log_b)
    x = law.inverse_cdf(uniforms(400_000))
    log_density = law.log_prob(x.log())
    error = 5 * log_density.std() / math.sqrt(len(x))
    assert law.kl_to_uniform().item() == pytest.approx(log_density.mean().item(), abs=error.item())
    assert law.mean().item() == pytest.approx(x.mean().item(), abs=5 * x.std().item() / math.sqrt(len(x)))


def test_kumaraswamy_of_zero_is_the_uniform_law_in_fp32() -> None:
    law = Kumaraswamy.uniform(1, device=torch.device("cpu"))
    u = torch.cat([uniforms(10_000).float(), torch.tensor([2.0**-24, 1 - 2.0**-24])])
    torch.testing.assert_close(law.inverse_cdf(u), u, rtol=2e-6, atol=0)
    assert law.kl_to_uniform().item() == 0
    assert law.mean().item() == pytest.approx(0.5)


@pytest.mark.parametrize("log_a", [-3.0, 3.0])
@pytest.mark.parametrize("log_b", [-3.0, 3.0])
def test_kumaraswamy_stays_finite_in_fp32_at_the_ends(log_a: float, log_b: float) -> None:
    parameters = torch.tensor([[log_a], [log_b]], requires_grad=True)
    u = torch.tensor([2.0**-24, 0.5, 1 - 2.0**-24])
    x = Kumaraswamy(*parameters).inverse_cdf(u)
    assert ((x >= 0) & (x <= 1)).all()
    x.sum().backward()
    assert parameters.grad is not None
    assert parameters.grad.isfinite().all()


@given(st.floats(0.001, 0.999), st.floats(-4, 4))
@settings(deadline=None)
def test_bernoulli_against_torch(probability: float, offset: float) -> None:
    p = torch.tensor(probability, dtype=torch.float64)
    law = OffsetBernoulli(p, torch.tensor(offset, dtype=torch.float64))
    reference = Bernoulli(logits=torch.log(p / (1 - p)) + offset)
    yes, no = torch.tensor(True), torch.tensor(False)
    assert law.mean().item() == pytest.approx(reference.mean.item(), rel=1e-9)
    assert law.log_prob(yes).exp().item() == pytest.approx(reference.mean.item(), rel=1e-9)
    assert (law.log_prob(yes).exp() + law.log_prob(no).exp()).item() == pytest.approx(1)
    assert law.kl_to_recipe().item() == pytest.approx(kl_divergence(reference, Bernoulli(p)).item(), abs=1e-9)


def test_bernoulli_draws_with_its_probability() -> None:
    law = OffsetBernoulli(torch.tensor(0.2, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64))
    events = law.inverse_cdf(uniforms(400_000))
    expected = 1 / (1 + 4 * math.exp(-1.1))  # the odds 1/4, times e^1.1
    assert events.double().mean().item() == pytest.approx(expected, abs=0.004)


def test_bernoulli_leaves_certain_events_certain_and_their_gradients_finite() -> None:
    probability = torch.tensor([0.0, 1.0, 0.3])
    offset = torch.tensor([3.0, -3.0, 0.5], requires_grad=True)
    law = OffsetBernoulli(probability, offset)
    u = torch.tensor([[2.0**-24], [1 - 2.0**-24]])
    assert not law.inverse_cdf(u)[:, 0].any()
    assert law.inverse_cdf(u)[:, 1].all()
    assert law.kl_to_recipe()[:2].tolist() == [0, 0]
    (law.kl_to_recipe().sum() + law.mean().sum()).backward()
    assert offset.grad is not None
    assert offset.grad.isfinite().all()
    assert offset.grad[:2].tolist() == [0, 0]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (4, 4), (8, 3)])
def test_grid_density_integrates_to_one_and_is_the_slope_of_the_inverse(rows: int, columns: int) -> None:
    torch.manual_seed(1)
    law = GridPosition(2 * torch.randn(rows, columns, dtype=torch.float64))
    mesh = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (4 * rows, 4 * columns)]
    row, column = torch.meshgrid(*mesh, indexing="ij")
    wide = GridPosition(law.logits.expand(*row.shape, rows, columns))
    assert wide.log_prob(row, column).exp().mean().item() == pytest.approx(1)

    u = uniforms(2, 50).requires_grad_()
    each = GridPosition(law.logits.expand(50, rows, columns))
    row, column = each.inverse_cdf(u[0], u[1])
    (row_slope,) = torch.autograd.grad(row.sum(), u, retain_graph=True)
    (column_slope,) = torch.autograd.grad(column.sum(), u)
    log_slope = (row_slope[0] * column_slope[1]).log()  # the Jacobian is triangular
    torch.testing.assert_close(each.log_prob(row, column), -log_slope)


def test_grid_kl_and_cells_against_monte_carlo() -> None:
    torch.manual_seed(2)
    logits = 1.5 * torch.randn(3, 4, dtype=torch.float64)
    law = GridPosition(logits.expand(200_000, 3, 4))
    row, column = law.inverse_cdf(*uniforms(2, 200_000))
    log_density = law.log_prob(row, column)
    assert GridPosition(logits).kl_to_uniform().item() == pytest.approx(log_density.mean().item(), abs=0.01)
    cell = (row * 3).long().clamp(max=2) * 4 + (column * 4).long().clamp(max=3)
    frequency = torch.bincount(cell, minlength=12) / 200_000
    torch.testing.assert_close(frequency.double(), logits.flatten().softmax(0), rtol=0, atol=0.006)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_grid_of_equal_logits_is_the_uniform_law(rows: int, columns: int, level: float) -> None:
    law = GridPosition(torch.full((1000, rows, columns), level))
    u = uniforms(2, 1000).float()
    row, column = law.inverse_cdf(u[0], u[1])
    torch.testing.assert_close(row, u[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(column, u[1], rtol=0, atol=1e-6)
    assert law.kl_to_uniform().abs().max() < 1e-5


def test_grid_stays_in_the_square_for_extreme_logits() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]]).expand(4, 2, 2)
    u = torch.tensor([2.0**-24, 0.5, 0.5 + 2.0**-20, 1 - 2.0**-24])
    row, column = GridPosition(logits).inverse_cdf(u, u.flip(0))
    assert torch.stack([row, column]).isfinite().all()
    assert ((row >= 0) & (row <= 1) & (column >= 0) & (column <= 1)).all()


@pytest.mark.parametrize("log_a", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("log_b", [-3.0, 0.0, 3.0])
def test_kumaraswamy_density_of_the_extreme_uniforms(log_a: float, log_b: float) -> None:
    """Against arithmetic of 200 digits; there x itself is 1 in any float."""
    from mpmath import exp, log, mp, mpf

    mp.dps = 200
    parameters = torch.tensor([log_a, log_b], requires_grad=True)
    law = Kumaraswamy(*parameters)
    for u in (2.0**-24, 0.3, 1 - 2.0**-24):
        a, b = exp(mpf(log_a)), exp(mpf(log_b))
        x = (1 - (1 - mpf(u)) ** (1 / b)) ** (1 / a)
        expected = log(a) + log(b) + (a - 1) * log(x) + (b - 1) * log(1 - x**a)
        log_x = law.log_inverse_cdf(torch.tensor(u)).detach()
        assert log_x.item() == pytest.approx(float(log(x)), rel=1e-6)
        found = law.log_prob(log_x)
        assert found.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
        gradient = torch.autograd.grad(found, parameters)[0]
        in_a = 1 + a * log(x) - (b - 1) * x**a * a * log(x) / (1 - x**a)
        in_b = 1 + b * log(1 - x**a)
        assert gradient.tolist() == pytest.approx([float(in_a), float(in_b)], rel=1e-4, abs=1e-4)
