"""block_masks: exact counts, packed form, and the law of a plain generator that makes one mask at a time."""

import math
import random

import pytest
import torch
from packed import assert_packed

from vpt_kernels import block_masks, keyed_uniform
from vpt_kernels.block_masks import block_masks_op
from vpt_kernels.random import BLOCK_MASKS_STREAM


def masks_of(counts, grid, **keys):
    return block_masks(counts, grid, total=int(counts.sum()), **keys)


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
            top, left = draw.place(height - tall + 1, width - wide + 1)
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


class Plain(random.Random):
    """Draws for `plain_mask` as its authors make them."""

    def place(self, rows, columns):
        return self.randrange(rows), self.randrange(columns)


class Keyed:
    """Draws out of the numbers of a key: an attempt takes four and uses three, a patch of the filling one."""

    def __init__(self, seed, step, sample):
        numbers = keyed_uniform(seed, step, torch.tensor(sample), BLOCK_MASKS_STREAM, 4000)
        self.attempts = iter(numbers.view(-1, 4).tolist())
        self.now = []

    def uniform(self, low, high):
        if len(self.now) != 3:  # of the area, so of a new attempt
            self.now = list(next(self.attempts))
        return low + (high - low) * self.now.pop(0)

    def place(self, rows, columns):
        return divmod(int(rows * columns * self.now.pop(0)), columns)

    def sample(self, free, count):
        free = list(free)
        return [free.pop(int(next(self.attempts)[0] * len(free))) for _ in range(count)]


@pytest.mark.parametrize(
    ("height", "width", "min_patches", "min_aspect"),
    [(16, 16, 4, 0.3), (7, 9, 1, 1.0), (14, 5, 9, 0.1), (2, 11, 4, 0.3)],
)
def test_the_plain_generator_with_the_same_numbers_makes_the_same_masks(
    height, width, min_patches, min_aspect
):
    n = 400
    counts = torch.randint(0, height * width + 1, (n,))
    keys = {"seed": 2**64 - 5, "step": 2**32 - 7}
    ours = masks_of(
        counts,
        (height, width),
        **keys,
        sample=torch.arange(n),
        min_patches=min_patches,
        min_aspect=min_aspect,
    )
    plain = [
        plain_mask(count, height, width, Keyed(**keys, sample=sample), min_patches, min_aspect)
        for sample, count in enumerate(counts.tolist())
    ]
    differ = (ours.hidden != torch.tensor(plain).view(n, -1)).any(1)
    # The aspect is rounded to fp32 here and not there, so a side half-way between two integers may differ.
    assert differ.sum() <= 1


@pytest.mark.parametrize(
    ("height", "width", "count", "min_patches", "min_aspect"),
    [(6, 6, 18, 4, 0.3), (7, 9, 25, 4, 0.3), (8, 5, 7, 1, 0.5), (7, 7, 3, 4, 0.3), (8, 7, 4, 4, 0.3)],
)
def test_the_law_is_the_plain_generators(height, width, count, min_patches, min_aspect):
    n = 4000
    draw = Plain(5)
    plain = torch.tensor([plain_mask(count, height, width, draw, min_patches, min_aspect) for _ in range(n)])
    ours = masks_of(
        torch.full((4 * n,), count),
        (height, width),
        seed=1,
        step=2,
        sample=torch.arange(4 * n),
        min_patches=min_patches,
        min_aspect=min_aspect,
    ).hidden
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
    masks = masks_of(counts, (7, 10), seed=3, step=4, sample=sample)
    assert masks.hidden.shape == (271, 70)
    assert_packed(masks, counts)
    some = torch.tensor([200, 3, 50, 50])
    again = masks_of(counts[some], (7, 10), seed=3, step=4, sample=sample[some])
    assert torch.equal(again.hidden, masks.hidden[some])
    for other in ({"seed": 3 + 2**32, "step": 4}, {"seed": 3, "step": 5}, {"seed": 2, "step": 4}):
        assert not torch.equal(masks_of(counts, (7, 10), **other, sample=sample).hidden, masks.hidden)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (5, 1), (2, 2)])
def test_grids_too_narrow_for_a_rectangle_are_filled_at_random(grid):
    patches = grid[0] * grid[1]
    counts = torch.arange(400) % (patches + 1)
    masks = masks_of(counts, grid, seed=0, step=0, sample=torch.arange(400))
    assert_packed(masks, counts)
    assert masks.hidden.any(0).all()


def test_4096_patches_one_by_one():
    counts = torch.tensor([0, 4096, 2048, 1])
    assert_packed(masks_of(counts, (1, 4096), seed=0, step=0, sample=torch.arange(4)), counts)


def test_no_rows():
    empty = torch.zeros(0, dtype=torch.int64)
    masks = masks_of(empty, (3, 4), seed=0, step=0, sample=empty)
    assert masks.hidden.shape == masks.inverse.shape == (0, 12)
    assert masks.indices.shape == masks.weights.shape == (0,)


def test_operator():
    counts, sample = torch.tensor([3, 0, 12]), torch.arange(3)
    torch.library.opcheck(block_masks_op, (counts, sample, 3, 4, 15, 2**32 - 1, 7, 5, 4, 0.3))


def test_compiles():
    def weigh(counts, sample, step):
        masks = block_masks(counts, (6, 7), total=40, seed=2**64 - 1, step=step, sample=sample)
        return masks.hidden, masks.indices * 2, masks.weights.sum()

    counts, sample = torch.tensor([10, 0, 30]), torch.arange(3)
    compiled = torch.compile(weigh, fullgraph=True, backend="aot_eager")
    for step in (0, 1, 2, 7):
        for found, expected in zip(compiled(counts, sample, step), weigh(counts, sample, step), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"counts": torch.tensor([1, 13])}, ValueError, r"0\.\.12.*got 1\.\.13"),
        ({"counts": torch.tensor([-1, 3])}, ValueError, r"got -1\.\.3"),
        ({"counts": torch.tensor([1.0, 2.0])}, TypeError, "counts must be int64"),
        ({"sample": torch.arange(3)}, ValueError, r"sample must be int64 \[2\], got int64 \[3\]"),
        ({"sample": torch.arange(2, device="meta")}, ValueError, "sample must be .* on cpu, got .* on meta"),
        ({"total": 4}, ValueError, "total must be the sum of counts, 3, got 4"),
        ({"grid": (0, 4)}, ValueError, r"grid must have 1\.\.4096 patches, got 0 x 4"),
        ({"grid": (3, 4, 1)}, ValueError, r"grid must be \(h, w\), got \(3, 4, 1\)"),
        ({"grid": (64, 65)}, ValueError, r"grid must have 1\.\.4096 patches, got 64 x 65"),
        ({"seed": 2**64}, ValueError, "block_masks: seed must lie in"),
        ({"step": -1}, ValueError, "block_masks: step must lie in"),
        ({"min_patches": 0}, ValueError, "min_patches"),
        ({"min_aspect": 1.5}, ValueError, "min_aspect"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "counts": torch.tensor([1, 2]),
        "sample": torch.arange(2),
        "grid": (3, 4),
        "total": 3,
        "seed": 0,
        "step": 0,
        **change,
    }
    with pytest.raises(error, match=word):
        block_masks(**arguments)
