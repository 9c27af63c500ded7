"""block_masks: exact counts, and the law of a plain generator that makes one mask at a time."""

import math
import random

import pytest
import torch

from vpt_kernels import block_masks


def plain_mask(count, height, width, draw, min_patches, min_aspect):
    """One mask by DINOv2's law, completed at random as DINOv3 does."""
    hidden = [[False] * width for _ in range(height)]
    while (remaining := count - sum(map(sum, hidden))) > 0:
        for _ in range(10):
            area = draw.uniform(min_patches, remaining)
            aspect = math.exp(draw.uniform(math.log(min_aspect), -math.log(min_aspect)))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall >= height or wide >= width:
                continue
            top, left = draw.randint(0, height - tall), draw.randint(0, width - wide)
            cells = [(y, x) for y in range(top, top + tall) for x in range(left, left + wide)]
            fresh = [(y, x) for y, x in cells if not hidden[y][x]]
            if 0 < len(fresh) <= remaining:
                for y, x in fresh:
                    hidden[y][x] = True
                break
        else:
            break
    free = [(y, x) for y in range(height) for x in range(width) if not hidden[y][x]]
    for y, x in draw.sample(free, count - sum(map(sum, hidden))):
        hidden[y][x] = True
    return hidden


def statistics(masks):
    """Coverage of each patch, perimeter, compactness and number of 4-connected parts of bool [N, h, w]."""
    n, height, width = masks.shape
    vertical = (masks[:, 1:] != masks[:, :-1]).sum((1, 2))
    horizontal = (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))
    squares = (masks[:, 1:, 1:] & masks[:, 1:, :-1] & masks[:, :-1, 1:] & masks[:, :-1, :-1]).sum((1, 2))
    # parts: the smallest label of each part spreads over it
    label = torch.arange(1, height * width + 1).view(1, height, width).expand(n, -1, -1)
    far = height * width + 1
    label = torch.where(masks, label, far)
    while True:
        padded = torch.nn.functional.pad(label, (1, 1, 1, 1), value=far)
        shifts = (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
        spread = torch.where(masks, torch.stack((label, *shifts)).amin(0), far)
        if torch.equal(spread, label):
            break
        label = spread
    own = torch.arange(1, height * width + 1).view(1, height, width)
    parts = ((label == own) & masks).sum((1, 2))
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    numbers = torch.stack((vertical, horizontal, squares, parts, rows, columns), 1)
    return torch.cat((masks.flatten(1), numbers, numbers**2), 1).double()


@pytest.mark.parametrize(
    ("height", "width", "count", "min_patches", "min_aspect"),
    [(6, 6, 18, 4, 0.3), (7, 9, 25, 4, 0.3), (8, 5, 7, 1, 0.5), (7, 7, 3, 4, 0.3), (8, 7, 4, 4, 0.3)],
)
def test_the_law_is_the_plain_generators(height, width, count, min_patches, min_aspect):
    n = 4000
    draw = random.Random(5)
    plain = torch.tensor([plain_mask(count, height, width, draw, min_patches, min_aspect) for _ in range(n)])
    ours = block_masks(
        torch.full((4 * n,), count),
        (height, width),
        seed=1,
        step=2,
        sample=torch.arange(4 * n),
        min_patches=min_patches,
        min_aspect=min_aspect,
    )
    a, b = statistics(plain), statistics(ours.view(-1, height, width))
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    z = (a.mean(0) - b.mean(0)) / error.clamp(min=1e-9)
    assert z.abs().max() < 4.5, (z.abs().argmax(), z)
    coverage = z[: height * width]
    assert (coverage**2).mean() < 2.5


def test_counts_are_exact_and_rows_independent():
    counts = torch.cat(
        (torch.arange(0, 71), torch.randint(0, 71, (200,), generator=torch.Generator().manual_seed(0)))
    )
    sample = torch.arange(len(counts)) * 2**33 - 5
    masks = block_masks(counts, (7, 10), seed=3, step=4, sample=sample)
    assert masks.shape == (271, 70) and masks.dtype == torch.bool
    assert torch.equal(masks.sum(1), counts)
    some = torch.tensor([200, 3, 50, 50])
    assert torch.equal(block_masks(counts[some], (7, 10), seed=3, step=4, sample=sample[some]), masks[some])
    assert not torch.equal(block_masks(counts, (7, 10), seed=3, step=5, sample=sample), masks)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (5, 1), (2, 2)])
def test_grids_too_narrow_for_a_rectangle_are_filled_at_random(grid):
    patches = grid[0] * grid[1]
    counts = torch.arange(400) % (patches + 1)
    masks = block_masks(counts, grid, seed=0, step=0, sample=torch.arange(400))
    assert torch.equal(masks.sum(1), counts)
    assert masks.any(0).all()


def test_no_rows():
    empty = torch.zeros(0, dtype=torch.int64)
    assert block_masks(empty, (3, 4), seed=0, step=0, sample=empty).shape == (0, 12)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"counts": torch.tensor([1, 13])}, ValueError, r"0\.\.12.*got 1\.\.13"),
        ({"counts": torch.tensor([-1, 3])}, ValueError, r"got -1\.\.3"),
        ({"counts": torch.tensor([1.0, 2.0])}, TypeError, "counts must be int64"),
        ({"sample": torch.arange(3)}, ValueError, r"sample must be int64 \[2\], got int64 \[3\]"),
        ({"min_patches": 0}, ValueError, "min_patches"),
        ({"min_aspect": 1.5}, ValueError, "min_aspect"),
    ],
)
def test_errors(change, error, word):
    arguments = {"counts": torch.tensor([1, 2]), "sample": torch.arange(2), "grid": (3, 4), **change}
    with pytest.raises(error, match=word):
        block_masks(**arguments, seed=0, step=0)
