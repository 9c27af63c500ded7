"""sample_masks: the distribution over subsets against enumeration, exact counts, the gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt_kernels import keyed_uniform, sample_masks
from vpt_kernels.random import SAMPLE_MASKS_STREAM
from vpt_kernels.sample_masks import hide_highest


def subset_probabilities(logits, count):
    """Successive draws without replacement, summed over all orders."""
    weights = logits.double().exp()
    result = {}
    for order in itertools.permutations(range(len(logits)), count):
        left, probability = float(weights.sum()), 1.0
        for patch in order:
            probability *= float(weights[patch]) / left
            left -= float(weights[patch])
        key = frozenset(order)
        result[key] = result.get(key, 0.0) + probability
    return result


@pytest.mark.parametrize(("patches", "count"), [(5, 2), (4, 3), (6, 1), (5, 4)])
def test_subsets_have_the_enumerated_probabilities(patches, count):
    n = 40_000
    logits = torch.randn(patches, generator=torch.Generator().manual_seed(patches))
    hidden = sample_masks(
        logits.expand(n, -1), torch.full((n,), count), seed=1, step=2, sample=torch.arange(n)
    ).hidden
    expected = subset_probabilities(logits, count)
    assert abs(sum(expected.values()) - 1) < 1e-12
    inclusion = torch.zeros(patches, dtype=torch.float64)
    for subset, probability in expected.items():
        pattern = torch.tensor([patch in subset for patch in range(patches)])
        found = (hidden == pattern).all(1).double().mean()
        assert abs(found - probability) < 4.5 * (probability * (1 - probability) / n) ** 0.5
        inclusion += probability * pattern
    error = (inclusion * (1 - inclusion) / n).sqrt()
    assert ((hidden.double().mean(0) - inclusion).abs() < 4.5 * error).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 6),
    patches=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**64 - 1),
)
def test_counts_are_exact_and_the_highest_are_hidden(n, patches, spread, seed):
    generator = torch.Generator().manual_seed(seed % 2**63)
    logits = torch.randn(n, patches, generator=generator) * spread
    counts = torch.randint(0, patches + 1, (n,), generator=generator)
    hidden, perturbed = sample_masks(logits, counts, seed=seed, step=3, sample=torch.arange(n))
    assert torch.equal(hidden.sum(1), counts) and hidden.dtype == torch.bool
    assert perturbed.isfinite().all() and perturbed.dtype == torch.float32
    shown = torch.where(hidden, -torch.inf, perturbed).amax(1)
    least = torch.where(hidden, perturbed, torch.inf).amin(1)
    assert (shown <= least).all()


def test_equal_scores_still_give_exact_counts():
    counts = torch.arange(8)
    assert torch.equal(hide_highest(torch.zeros(8, 7), counts).sum(1), counts)


def test_perturbed_is_logits_and_keyed_gumbel_noise():
    logits = torch.randn(3, 10, requires_grad=True)
    sample = torch.tensor([5, 5, 9])
    perturbed = sample_masks(logits, torch.tensor([1, 2, 3]), seed=8, step=6, sample=sample).perturbed
    noise = -(-keyed_uniform(8, 6, sample, SAMPLE_MASKS_STREAM, 10).double().log()).log()
    torch.testing.assert_close(perturbed.double(), logits.double() + noise, atol=1e-5, rtol=1e-6)
    perturbed.square().sum().backward()
    torch.testing.assert_close(logits.grad, 2 * perturbed.detach())


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"logits": torch.zeros(2, 3).half()}, TypeError, "logits must be float32"),
        ({"logits": torch.zeros(3)}, ValueError, r"logits must be float32 \[N, T\], got float32 \[3\]"),
        ({"counts": torch.tensor([0, 4])}, ValueError, r"0\.\.3.*got 0\.\.4"),
        ({"counts": torch.tensor([1, 1, 1])}, ValueError, r"counts must be int64 \[2\]"),
        ({"sample": torch.arange(3)}, ValueError, r"sample must be int64 \[2\]"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "logits": torch.zeros(2, 3),
        "counts": torch.tensor([0, 3]),
        "sample": torch.arange(2),
        **change,
    }
    with pytest.raises(error, match=word):
        sample_masks(**arguments, seed=0, step=0)
