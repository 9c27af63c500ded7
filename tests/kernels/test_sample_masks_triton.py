"""sample_masks' launcher: the reference's noise, exactly the highest hidden, packed form."""

import pytest
import torch
from closeness import assert_near
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed import assert_packed

from vpt_kernels.packing import PackedMasks, hide_highest
from vpt_kernels.sample_masks import sample_masks_op
from vpt_kernels.triton import sample_masks as launchers

pytestmark = pytest.mark.usefixtures("poisoned")


def check(device, logits, counts, *, seed=(2**32 - 5, 2**31), step=2**32 - 9):
    """The choice is exactly that of the scores, and these are the reference's but for rounding."""
    sample = torch.randint(-(2**62), 2**62, counts.shape)
    keys = (int(counts.sum()), *seed, step)
    perturbed, *masks = launchers.sample_masks(logits.to(device), counts.to(device), sample.to(device), *keys)
    masks = PackedMasks(*masks)
    assert_packed(masks, counts)
    assert torch.equal(masks.hidden.cpu(), hide_highest(perturbed.cpu(), counts))
    expected = sample_masks_op(logits.double(), counts, sample, *keys)[0]
    if expected.isfinite().all():
        assert_near(perturbed, expected, torch.float32)
    else:
        torch.testing.assert_close(perturbed.cpu(), expected.float(), equal_nan=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 6),
    patches=st.integers(1, 90),
    spread=st.sampled_from([0.0, 1.0, 1e4]),
    word=st.sampled_from([0, 1, 2**31, 2**32 - 1]),
    salt=st.integers(0, 999),
)
def test_random_shapes(device, rows, patches, spread, word, salt):
    generator = torch.Generator().manual_seed(salt)
    logits = torch.randn(rows, patches, generator=generator) * spread
    counts = torch.randint(0, patches + 1, (rows,), generator=generator)
    check(device, logits, counts, seed=(word, word), step=word)


@pytest.mark.parametrize("shape", [(4, 1), (3, 257), (2, 1000), (3, 4096)])
def test_sizes_and_extreme_counts(device, shape):
    counts = torch.full((shape[0],), shape[1] // 3)
    counts[0], counts[-1] = 0, shape[1]
    check(device, torch.randn(shape), counts)


def test_equal_scores_hide_the_first(device):
    """At 2**30 a fp32 cannot tell the noise of most patches apart."""
    logits = torch.full((8, 50), 2.0**30)
    check(device, logits, torch.arange(0, 48, 6))
    check(device, -logits, torch.arange(0, 48, 6))


def test_infinite_and_missing_logits(device):
    logits = torch.randn(6, 9)
    logits[0, 3], logits[1, 2:6], logits[2] = torch.inf, -torch.inf, -torch.inf
    logits[3, 4], logits[3, 7] = torch.nan, -torch.nan
    check(device, logits, torch.tensor([1, 6, 4, 2, 0, 9]))


def test_logits_that_are_not_contiguous(device):
    check(device, torch.randn(20, 7).T, torch.arange(7))
    check(device, torch.randn(20, 1).expand(20, 9), torch.arange(20) % 10)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty(device, shape):
    counts = torch.zeros(shape[0], dtype=torch.int64)
    outputs = launchers.sample_masks(torch.zeros(shape, device=device), counts, counts, 0, 1, 2, 3)
    assert [tuple(output.shape) for output in outputs] == [shape, shape, (0,), shape, (0,)]
