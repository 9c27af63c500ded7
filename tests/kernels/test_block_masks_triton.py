"""block_masks' launcher: the reference's masks, in packed form."""

import pytest
import torch
from packed import assert_packed

from vpt_kernels.block_masks import block_masks_op
from vpt_kernels.packing import PackedMasks
from vpt_kernels.triton import block_masks as launchers

pytestmark = pytest.mark.usefixtures("poisoned")
# A rectangle's sides are rounded from products that Triton and torch may round differently: a row may differ,
# one of many thousands. Of the few rows here none does under the interpreter; a GPU may change one.
MOST_DIFFERENT = 1


def check(device, counts, grid, *, seed=(2**32 - 5, 2**31), step=2**32 - 9, sample=None, law=(4, 0.3)):
    if sample is None:
        sample = torch.randint(-(2**62), 2**62, counts.shape)
    arguments = (*grid, int(counts.sum()), *seed, step, *law)
    found = PackedMasks(*launchers.block_masks(counts.to(device), sample.to(device), *arguments))
    assert_packed(found, counts)
    expected = block_masks_op(counts, sample, *arguments)
    differ = (found.hidden.cpu() != expected[0]).any(1)
    assert differ.sum() <= MOST_DIFFERENT
    return found


@pytest.mark.parametrize(
    ("grid", "rows", "law"),
    [
        ((16, 16), 12, (4, 0.3)),
        ((7, 5), 16, (1, 0.5)),
        ((3, 13), 6, (4, 1.0)),
        ((5, 4), 12, (9, 0.05)),
        ((1, 11), 8, (4, 0.3)),
        ((33, 2), 3, (4, 0.3)),
        ((1, 1), 4, (4, 0.3)),
    ],
)
def test_the_references_masks(device, grid, rows, law):
    patches = grid[0] * grid[1]
    counts = torch.randint(0, patches + 1, (rows,))
    counts[0], counts[-1] = 0, patches
    check(device, counts, grid, law=law)


def test_4096_patches(device):
    check(device, torch.tensor([1500, 0, 4096, 4]), (64, 64))


def test_small_words_of_the_keys(device):
    check(device, torch.tensor([9, 1]), (4, 5), seed=(1, 0), step=1, sample=torch.tensor([1, 0]))


def test_no_rows_and_nothing_hidden(device):
    empty = torch.zeros(0, dtype=torch.int64)
    assert check(device, empty, (3, 4)).hidden.shape == (0, 12)
    assert check(device, torch.zeros(3, dtype=torch.int64), (3, 4)).indices.shape == (0,)


def test_counts_and_samples_that_are_not_contiguous(device):
    counts = torch.randint(0, 21, (6, 2)).to(device)[:, 1]
    sample = torch.arange(12).view(6, 2).to(device)[:, 0]
    arguments = (4, 5, int(counts.sum()), 1, 2, 3, 4, 0.3)
    found = launchers.block_masks(counts, sample, *arguments)
    expected = launchers.block_masks(counts.clone(), sample.clone(), *arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_wrong_total_writes_nothing_elsewhere(device, monkeypatch):
    indices, weights = torch.full((99,), -7, device=device), torch.full((99,), -7.0, device=device)

    def with_room(like, rows, tokens, total):
        hidden = torch.empty(rows, tokens, dtype=torch.bool, device=device)
        return hidden, indices[:total], torch.empty_like(hidden, dtype=torch.int64), weights[:total]

    monkeypatch.setattr(launchers, "empty_masks", with_room)
    counts, sample = torch.tensor([5, 5], device=device), torch.arange(2, device=device)
    launchers.block_masks(counts, sample, 4, 4, 7, 1, 2, 3, 4, 0.3)
    assert (indices[1:7] > indices[:6]).all() and (weights[:7] > 0).all()
    assert (indices[7:] == -7).all() and (weights[7:] == -7).all()
