"""pack_masks: the list of hidden tokens, and the choice of exactly the highest scores."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import assert_packed

from vpt_kernels import block_masks, sample_masks
from vpt_kernels.packing import hide_highest, pack_masks, without_tail


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 5), tokens=st.integers(0, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_packed_form(rows, tokens, share, seed):
    hidden = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) < share
    masks = pack_masks(hidden, int(hidden.sum()))
    assert masks.hidden is hidden
    assert_packed(masks, hidden.sum(1))


def test_not_contiguous():
    hidden = (torch.rand(7, 5) < 0.4).T
    assert_packed(pack_masks(hidden, int(hidden.sum())), hidden.sum(1))


def test_equal_scores_hide_the_first():
    counts = torch.arange(8)
    assert torch.equal(hide_highest(torch.zeros(8, 7), counts), torch.arange(7) < counts[:, None])


def test_compiles():
    def gather(hidden, features):
        return features.flatten(0, 1)[pack_masks(hidden, 3).indices]

    hidden = torch.tensor([[True, False, True], [False, False, True]])
    features = torch.randn(2, 3, 4)
    compiled = torch.compile(gather, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden, features), features[hidden])


@pytest.mark.parametrize(
    ("hidden", "total", "error", "word"),
    [
        (torch.zeros(2, 3), 0, TypeError, r"hidden must be bool \[N, T\], got float32 \[2, 3\]"),
        (torch.zeros(3, dtype=torch.bool), 0, ValueError, r"hidden must be bool \[N, T\], got bool \[3\]"),
        (torch.ones(2, 3, dtype=torch.bool), 5, ValueError, "total must be the sum of counts, 6, got 5"),
        (torch.ones(2, 3, dtype=torch.bool), -1, ValueError, "total must be at least 0"),
    ],
)
def test_errors(hidden, total, error, word):
    with pytest.raises(error, match=word):
        pack_masks(hidden, total)


def assert_padded(masks, exact, total):
    listed = len(exact.indices)
    assert torch.equal(masks.hidden, exact.hidden) and torch.equal(masks.inverse, exact.inverse)
    for name in ("indices", "weights"):
        found = getattr(masks, name)
        assert len(found) == total
        assert torch.equal(found[:listed], getattr(exact, name))
        assert (found[listed:] == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5), tokens=st.integers(1, 9), share=st.floats(0, 1), more=st.integers(0, 7),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_padding_follows_the_list(rows, tokens, share, more, seed):
    hidden = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) < share
    counts, exact = hidden.sum(1), pack_masks(hidden, int(hidden.sum()))
    total = int(hidden.sum()) + more
    assert_padded(pack_masks(hidden, total, padded=True), exact, total)
    keys = {"seed": 1, "step": 2, "sample": torch.arange(rows)}
    for draw in (partial(sample_masks, torch.randn(rows, tokens)), partial(block_masks, grid=(1, tokens))):
        exactly = draw(counts=counts, total=total - more, **keys)
        assert_padded(draw(counts=counts, total=total, padded=True, **keys), exactly, total)


def test_padding_as_a_compiler_and_other_devices_pack_it():
    def lists(hidden):
        masks = pack_masks(hidden, 6, padded=True)
        return masks.indices, masks.inverse, masks.weights

    hidden = torch.tensor([[True, False, True], [False, False, False], [False, False, True]])
    compiled = torch.compile(lists, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(hidden), lists(hidden), strict=True):
        assert torch.equal(found, expected)


def test_what_a_kernel_left_unwritten_becomes_padding():
    indices, weights = torch.tensor([4, 7, 10**12, -5]), torch.tensor([0.5, 0.5, torch.nan, torch.inf])
    found, weighed = without_tail(indices, weights, torch.tensor([0, 2]))
    assert found.tolist() == [4, 7, 0, 0]
    assert weighed.tolist() == [0.5, 0.5, 0, 0]


def test_padding_is_refused_where_it_is_negative():
    with pytest.raises(ValueError, match="total must be at least the sum of counts, 6, got 5"):
        pack_masks(torch.ones(2, 3, dtype=torch.bool), 5, padded=True)
