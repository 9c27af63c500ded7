"""plackett_luce_log_prob: enumerated orders, sampled orders, gradients, stability."""

import itertools
import math

import pytest
import torch

from vpt_kernels import sample_masks
from vpt_kernels.plackett_luce import plackett_luce, plackett_luce_backward, plackett_luce_log_prob


def scores_of(orders, patches):
    """Scores [len(orders), patches] that draw the patches in these orders, then the others."""
    scores = torch.zeros(len(orders), patches)
    for row, order in enumerate(orders):
        for place, patch in enumerate(order):
            scores[row, patch] = len(order) - place
    return scores


def written_out(logits, order):
    """The log-probability of successive draws without replacement, in Python."""
    left, result = list(range(len(logits))), 0.0
    for patch in order:
        result += float(logits[patch]) - math.log(sum(math.exp(float(logits[other])) for other in left))
        left.remove(patch)
    return result


@pytest.mark.parametrize(("patches", "count"), [(4, 2), (5, 3), (4, 4), (3, 1), (3, 0), (1, 1)])
def test_enumerated_orders(patches, count):
    logits = torch.randn(patches, dtype=torch.float64, requires_grad=True)
    orders = list(itertools.permutations(range(patches), count))
    log_prob = plackett_luce_log_prob(
        logits.expand(len(orders), -1), scores_of(orders, patches), torch.full((len(orders),), count)
    )
    expected = torch.tensor([written_out(logits.detach(), order) for order in orders], dtype=torch.float64)
    torch.testing.assert_close(log_prob.detach(), expected)
    total = log_prob.exp().sum()
    torch.testing.assert_close(total.detach(), torch.ones((), dtype=torch.float64))
    total.backward()  # so the score function is 0 in the mean
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits.grad), atol=1e-12, rtol=0)


def test_sampled_orders_have_these_probabilities():
    n, patches, count = 40_000, 4, 3
    logits = torch.tensor([0.5, -1.0, 0.0, 1.2])
    keys = {"total": n * count, "seed": 3, "step": 1, "sample": torch.arange(n)}
    drawn = sample_masks(logits.expand(n, -1), torch.full((n,), count), **keys)
    order = drawn.perturbed.argsort(dim=1, descending=True)[:, :count]
    log_prob = plackett_luce_log_prob(logits.expand(n, -1), drawn.perturbed, torch.full((n,), count))
    number = (order * torch.tensor([patches**2, patches, 1])).sum(1)
    chi2, orders = 0.0, number.unique()
    for one in orders:
        rows = number == one
        probability = float(log_prob[rows][0].double().exp())
        chi2 += (float(rows.sum()) - n * probability) ** 2 / (n * probability)
    freedom = 4 * 3 * 2 - 1
    assert len(orders) == freedom + 1
    assert chi2 < freedom + 4.5 * (2 * freedom) ** 0.5


def test_as_many_patches_as_masks_have():
    logits = torch.randn(1, 4096, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(4096)[:30].tolist()
    found = plackett_luce_log_prob(logits, scores_of([order], 4096), torch.tensor([30]))
    assert math.isclose(float(found), written_out(logits[0].tolist(), order), rel_tol=1e-10)
    (gradient,) = torch.autograd.grad(found, logits)
    left = torch.ones(4096, dtype=torch.bool)
    expected = torch.zeros(4096, dtype=torch.float64)
    for patch in order:  # of each draw: [drawn] less its probability among those left
        expected -= logits[0].detach().masked_fill(~left, -torch.inf).softmax(0)
        expected[patch] += 1
        left[patch] = False
    torch.testing.assert_close(gradient[0], expected)


def test_gradcheck():
    perturbed = torch.randn(5, 7)
    counts = torch.tensor([0, 1, 3, 6, 7])
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: plackett_luce_log_prob(x, perturbed, counts), logits)
    transposed = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: plackett_luce_log_prob(x.T, perturbed, counts), transposed)


def test_a_patch_of_logit_minus_infinity_has_no_part_in_it():
    logits, perturbed, counts = torch.randn(4, 9), torch.randn(4, 9), torch.tensor([0, 1, 4, 6])
    logits[:, ::4] = perturbed[:, ::4] = -torch.inf
    some = logits.isfinite()[0]
    leaf = logits.double().requires_grad_()
    left = logits[:, some].double().requires_grad_()
    found = plackett_luce_log_prob(leaf, perturbed, counts)
    expected = plackett_luce_log_prob(left, perturbed[:, some], counts)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    torch.testing.assert_close(gradient[:, some], torch.autograd.grad(expected.sum(), left)[0])
    assert not gradient[:, ~some].any()


def test_no_gradient_reaches_the_scores():
    logits, perturbed = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    plackett_luce_log_prob(logits, perturbed, torch.tensor([1, 2])).sum().backward()
    assert logits.grad.any() and perturbed.grad is None


def test_of_equal_scores_the_first_is_drawn_first():
    logits, counts = torch.randn(1, 6, dtype=torch.float64), torch.tensor([4])
    found = plackett_luce_log_prob(logits, torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 0.0]]), counts)
    assert abs(float(found) - written_out(logits[0], (1, 3, 0, 2))) < 1e-12


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_large_logits(offset):
    logits = (torch.randn(6, 40) * 30 + offset).requires_grad_()
    perturbed = logits.detach() - (-torch.rand(6, 40).log()).log()
    counts = torch.tensor([1, 5, 10, 20, 39, 40])
    log_prob = plackett_luce_log_prob(logits, perturbed, counts)
    wide = logits.detach().double().requires_grad_()
    expected = plackett_luce_log_prob(wide - offset, perturbed, counts)
    torch.testing.assert_close(log_prob.double(), expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    (reference,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(gradient.double(), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty(shape):
    logits = torch.zeros(shape, requires_grad=True)
    log_prob = plackett_luce_log_prob(logits, torch.zeros(shape), torch.zeros(shape[0], dtype=torch.int64))
    assert torch.equal(log_prob, torch.zeros(shape[0]))
    log_prob.sum().backward()
    assert logits.grad.shape == shape


def test_operators():
    perturbed, counts = torch.randn(3, 5), torch.tensor([0, 2, 5])
    for logits in (torch.randn(3, 5), torch.randn(5, 3, dtype=torch.float64, requires_grad=True).T):
        torch.library.opcheck(plackett_luce, (logits, perturbed, counts))
    logits = torch.randn(5, 3).T
    surprisal = plackett_luce(logits, perturbed, counts)[1]
    torch.library.opcheck(plackett_luce_backward, (torch.randn(3), logits, perturbed, surprisal))


def test_compiles():
    def score(logits, perturbed, counts):
        return (plackett_luce_log_prob(logits * 2, perturbed, counts) * torch.arange(3)).sum()

    perturbed, counts = torch.randn(3, 5), torch.tensor([0, 2, 5])
    leaves = [torch.linspace(-2, 2, 15).view(3, 5).requires_grad_() for _ in range(2)]
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    for leaf, function in zip(leaves, (score, compiled), strict=True):
        function(leaf, perturbed, counts).backward()
    assert leaves[0].grad.any() and torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"logits": torch.zeros(2, 3).half()}, TypeError, "logits must be float32 or float64"),
        ({"perturbed": torch.zeros(2, 4)}, ValueError, r"perturbed must be float32 or float64 \[2, 3\]"),
        ({"counts": torch.tensor([1])}, ValueError, r"counts must be int64 \[2\]"),
        ({"counts": torch.ones(2, dtype=torch.int64, device="meta")}, ValueError, "counts must be .* on cpu"),
        ({"counts": torch.tensor([1, 4])}, ValueError, r"0\.\.3.*got 1\.\.4"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "logits": torch.zeros(2, 3),
        "perturbed": torch.zeros(2, 3),
        "counts": torch.tensor([1, 2]),
        **change,
    }
    with pytest.raises(error, match=word):
        plackett_luce_log_prob(**arguments)
