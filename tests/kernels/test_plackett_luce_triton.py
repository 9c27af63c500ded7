"""Plackett-Luce launchers against the sorted fp64 reference."""

import pytest
import torch
from closeness import assert_near
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpt_kernels.plackett_luce import plackett_luce, plackett_luce_backward
from vpt_kernels.triton import plackett_luce as launchers

pytestmark = pytest.mark.usefixtures("poisoned")


def check(device, logits, perturbed, counts):
    """Both launchers, the way back with the gradient of a random combination of rows."""
    dtype = logits.dtype
    log_prob, surprisal = launchers.plackett_luce(logits.to(device), perturbed.to(device), counts.to(device))
    wide, wide_surprisal = plackett_luce(logits.double(), perturbed, counts)
    assert log_prob.dtype == surprisal.dtype == dtype
    assert_near(log_prob, wide, dtype)
    drawn = wide_surprisal < torch.inf
    assert torch.equal(surprisal.cpu() < torch.inf, drawn)
    assert_near(surprisal.cpu()[drawn], wide_surprisal[drawn], dtype)
    gradient = torch.randn(len(logits), dtype=dtype)
    found = launchers.plackett_luce_backward(
        gradient.to(device), logits.to(device), perturbed.to(device), surprisal
    )
    expected = plackett_luce_backward(gradient.double(), logits.double(), perturbed, wide_surprisal)
    assert found.dtype == dtype
    assert_near(found, expected, dtype)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 5),
    patches=st.integers(1, 80),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    ties=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    salt=st.integers(0, 999),
)
def test_random_shapes(device, rows, patches, spread, ties, dtype, salt):
    generator = torch.Generator().manual_seed(salt)
    logits = (torch.randn(rows, patches, generator=generator) * spread).to(dtype)
    perturbed = logits.float() - (-torch.rand(rows, patches, generator=generator).log()).log()
    if ties:
        perturbed = perturbed.round()
    check(device, logits, perturbed, torch.randint(0, patches + 1, (rows,), generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("patches", [1, 64, 65, 257])
def test_sizes_and_extreme_counts(device, patches, dtype):
    logits = torch.randn(3, patches, dtype=dtype)
    check(device, logits, torch.randn(3, patches).to(dtype), torch.tensor([0, patches // 2, patches]))


def test_patches_that_are_never_drawn(device):
    logits, perturbed = torch.randn(3, 21), torch.randn(3, 21)
    logits[:, ::4] = perturbed[:, ::4] = -torch.inf
    check(device, logits, perturbed, torch.tensor([1, 7, 15]))


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits(device, offset):
    logits = torch.randn(4, 40) * 30 + offset
    perturbed = logits - (-torch.rand(4, 40).log()).log()
    check(device, logits, perturbed, torch.tensor([1, 10, 39, 40]))


def test_not_contiguous(device):
    check(device, torch.randn(9, 4).T, torch.randn(4, 18)[:, ::2], torch.tensor([[2, 3, 4, 9]] * 2).T[:, 1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty(device, shape):
    logits, counts = (
        torch.zeros(shape, device=device),
        torch.zeros(shape[0], dtype=torch.int64, device=device),
    )
    log_prob, surprisal = launchers.plackett_luce(logits, logits, counts)
    assert torch.equal(log_prob, logits.new_zeros(shape[0])) and surprisal.shape == shape
    assert launchers.plackett_luce_backward(log_prob, logits, logits, surprisal).shape == shape
