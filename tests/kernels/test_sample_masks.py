"""sample_masks: the distribution over subsets against enumeration, exact counts, the gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import assert_packed

from vpt_kernels import keyed_uniform, sample_masks
from vpt_kernels.random import SAMPLE_MASKS_STREAM
from vpt_kernels.sample_masks import sample_masks_op


def masks_of(logits, counts, **keys):
    return sample_masks(logits, counts, total=int(counts.sum()), **keys)


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
    hidden = masks_of(
        logits.expand(n, -1), torch.full((n,), count), seed=1, step=2, sample=torch.arange(n)
    ).hidden
    expected = subset_probabilities(logits, count)
    assert abs(sum(expected.values()) - 1) < 1e-12
    inclusion, chi2 = torch.zeros(patches, dtype=torch.float64), 0.0
    for subset, probability in expected.items():
        pattern = torch.tensor([patch in subset for patch in range(patches)])
        found = (hidden == pattern).all(1).double().mean()
        assert abs(found - probability) < 4.5 * (probability * (1 - probability) / n) ** 0.5
        chi2 += n * float(found - probability) ** 2 / probability
        inclusion += probability * pattern
    freedom = len(expected) - 1
    assert chi2 < freedom + 4.5 * (2 * freedom) ** 0.5
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
    masks = masks_of(logits, counts, seed=seed, step=3, sample=torch.arange(n))
    assert_packed(masks, counts)
    hidden, perturbed = masks.hidden, masks.perturbed
    assert perturbed.isfinite().all() and perturbed.dtype == torch.float32
    shown = torch.where(hidden, -torch.inf, perturbed).amax(1)
    least = torch.where(hidden, perturbed, torch.inf).amin(1)
    assert (shown <= least).all()


def test_rows_depend_on_their_keys_alone():
    logits, counts, sample = torch.randn(6, 20), torch.arange(6), torch.arange(6) * 2**40 - 3
    masks = masks_of(logits, counts, seed=3, step=4, sample=sample)
    some = torch.tensor([5, 0, 3, 3])
    again = masks_of(logits[some], counts[some], seed=3, step=4, sample=sample[some])
    assert torch.equal(again.perturbed, masks.perturbed[some])
    assert torch.equal(again.hidden, masks.hidden[some])
    for other in ({"seed": 3 + 2**32, "step": 4}, {"seed": 3, "step": 5}):
        assert not torch.equal(masks_of(logits, counts, **other, sample=sample).perturbed, masks.perturbed)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 1), (1, 4096)])
def test_extreme_sizes(shape):
    counts = torch.full((shape[0],), shape[1])
    masks = masks_of(torch.zeros(shape), counts, seed=0, step=0, sample=torch.arange(shape[0]))
    assert_packed(masks, counts)
    assert masks.perturbed.shape == shape


def test_operator():
    counts, sample = torch.tensor([3, 0, 4]), torch.arange(3)
    for logits in (torch.randn(3, 4), torch.randn(4, 3, requires_grad=True).T):
        torch.library.opcheck(sample_masks_op, (logits, counts, sample, 7, 2**32 - 1, 7, 5))


def test_compiles():
    def weigh(logits, counts, sample, step):
        masks = sample_masks(logits, counts, total=7, seed=2**64 - 1, step=step, sample=sample)
        return masks.indices * 2, masks.weights * 2, (masks.perturbed * masks.hidden).square().sum()

    counts, sample = torch.tensor([3, 0, 4]), torch.arange(3)
    compiled = torch.compile(weigh, fullgraph=True, backend="aot_eager")
    for step in (0, 1, 2, 7):
        leaves = [torch.linspace(-2, 2, 15).view(3, 5).requires_grad_() for _ in range(2)]
        for found, expected in zip(
            compiled(leaves[0], counts, sample, step), weigh(leaves[1], counts, sample, step), strict=True
        ):
            assert torch.equal(found, expected)
            if expected.requires_grad:
                found.backward()
                expected.backward()
        assert leaves[1].grad.any() and torch.equal(leaves[0].grad, leaves[1].grad)


def test_perturbed_is_logits_and_keyed_gumbel_noise():
    logits = torch.randn(3, 10, requires_grad=True)
    sample = torch.tensor([5, 5, 9])
    perturbed = masks_of(logits, torch.tensor([1, 2, 3]), seed=8, step=6, sample=sample).perturbed
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
        ({"sample": torch.arange(2, device="meta")}, ValueError, "sample must be .* on cpu, got .* on meta"),
        (
            {"counts": torch.arange(2, device="meta")},
            ValueError,
            "counts must be .* on cpu",
        ),
        ({"total": 2}, ValueError, "total must be the sum of counts, 3, got 2"),
        ({"logits": torch.zeros(2, 4097)}, ValueError, "at most 4096 patches in a row, got 4097"),
        ({"seed": -1}, ValueError, "sample_masks: seed must lie in"),
        ({"step": 2**32}, ValueError, "sample_masks: step must lie in"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "logits": torch.zeros(2, 3),
        "counts": torch.tensor([0, 3]),
        "sample": torch.arange(2),
        "total": 3,
        "seed": 0,
        "step": 0,
        **change,
    }
    with pytest.raises(error, match=word):
        sample_masks(**arguments)
