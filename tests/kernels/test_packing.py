"""pack_masks: the list of hidden tokens, and the choice of exactly the highest scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import assert_packed

from vpt_kernels.packing import hide_highest, pack_masks


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
