"""sinkhorn_potentials and centre_potentials against the published formulas in fp64."""

import subprocess
import sys

import pytest
import torch

from vpt_kernels import centre_potentials, prototype_potentials, sinkhorn_potentials


def sinkhorn_knopp(logits, temperature, iterations=3):
    """DINOv2's formula: normalise prototypes to 1/K and samples to 1/B in turn, in fp64."""
    scaled = logits.double() / temperature
    q = (scaled - scaled.max()).exp().T  # [K, B]; a common factor leaves with the first normalisation
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).T


def targets(logits, temperature, potentials):
    return (logits.float() / temperature + potentials.row[:, None] + potentials.column).exp()


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 1), (1, 7), (7, 1), (13, 5), (31, 127), (64, 16)])
@pytest.mark.parametrize("temperature", [0.04, 0.1, 1.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_sinkhorn_knopp(rows, prototypes, temperature, iterations):
    logits = torch.randn(rows, prototypes, generator=torch.Generator().manual_seed(rows))
    potentials = sinkhorn_potentials(logits, temperature, iterations=iterations)
    assert potentials.row.shape == (rows,) and potentials.column.shape == (prototypes,)
    assert potentials.row.dtype == potentials.column.dtype == torch.float32
    q = targets(logits, temperature, potentials)
    expected = sinkhorn_knopp(logits, temperature, iterations).float()
    torch.testing.assert_close(q, expected, atol=2e-6, rtol=5e-4)
    torch.testing.assert_close(q.sum(1), torch.ones(rows), atol=1e-4, rtol=0)


def test_fp64_is_computed_in_fp64():
    logits = torch.randn(17, 9, dtype=torch.float64)
    potentials = sinkhorn_potentials(logits, torch.tensor(0.05, dtype=torch.float64))
    q = (logits / 0.05 + potentials.row[:, None] + potentials.column).exp()
    torch.testing.assert_close(q, sinkhorn_knopp(logits, 0.05), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    logits = torch.randn(19, 11).to(dtype)
    for of_half, of_float in zip(
        sinkhorn_potentials(logits, 0.07), sinkhorn_potentials(logits.float(), 0.07), strict=True
    ):
        assert of_half.dtype == torch.float32 and torch.equal(of_half, of_float)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_extreme_logits_stay_finite(temperature):
    logits = (torch.rand(23, 37, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 1e4
    logits[0] = 1e4  # a row and a column that are far above, and one far below, all others
    logits[:, 0] = -1e4
    logits[1] = -1e4
    potentials = sinkhorn_potentials(logits, temperature)
    assert potentials.row.isfinite().all() and potentials.column.isfinite().all()
    # q itself, in fp64 so that the check does not add the rounding of numbers near 1e6
    q = (logits.double() / temperature + potentials.row.double()[:, None] + potentials.column.double()).exp()
    assert q.isfinite().all() and ((q.sum(1) - 1).abs() < 0.2).all()


def test_rows_of_weight_0_are_left_out_whatever_they_hold():
    logits = torch.randn(20, 8)
    valid = torch.rand(20) < 0.6
    padded = logits.clone()
    padded[~valid] = torch.tensor([torch.nan, torch.inf, 1e30, 0.0]).repeat(2)
    expected = sinkhorn_potentials(logits[valid], 0.07)
    found = sinkhorn_potentials(padded, 0.07, weights=valid.float())
    torch.testing.assert_close(found.column, expected.column)
    torch.testing.assert_close(found.row[valid], expected.row)
    # a finite row left out is normalised under the columns of the others
    q = targets(logits, 0.07, sinkhorn_potentials(logits, 0.07, weights=valid.float()))
    torch.testing.assert_close(q.sum(1), torch.ones(20), atol=1e-4, rtol=0)


def test_weight_2_is_a_row_twice():
    logits = torch.randn(9, 6)
    times = torch.tensor([1, 2, 1, 3, 1, 0, 1, 1, 2])
    twice = sinkhorn_potentials(logits.repeat_interleave(times, 0), 0.1)
    weighted = sinkhorn_potentials(logits, 0.1, weights=times.float())
    torch.testing.assert_close(weighted.column, twice.column)


def test_no_rows():
    for logits, weights in ((torch.zeros(0, 5), None), (torch.randn(3, 5), torch.zeros(3))):
        potentials = sinkhorn_potentials(logits, 0.1, weights=weights)
        assert potentials.row.shape == (len(logits),) and torch.equal(potentials.column, torch.zeros(5))
        assert potentials.row.isfinite().all()


def test_no_gradient_and_other_layouts():
    logits = torch.randn(6, 12, requires_grad=True)
    potentials = sinkhorn_potentials(logits.T, 0.1)
    assert not potentials.row.requires_grad and not potentials.column.requires_grad
    expected = sinkhorn_potentials(logits.detach().T.contiguous(), 0.1)
    torch.testing.assert_close(potentials.column, expected.column)


# A process that ends in the ordinary way is now and then aborted by gloo's threads ("terminate called without
# an active exception"), group destroyed or not; what is asked here is what it computed, so it leaves at once
# when both are done.
_RANK = """
import os, sys, torch, torch.distributed as dist
from vpt_kernels import prototype_potentials, sinkhorn_potentials

def potentials(case, rank):
    together = {"weights": case["weights"][rank], "group": dist.group.WORLD}
    rows = case["logits"][rank]
    yield tuple(sinkhorn_potentials(rows, 0.06, **together))
    yield tuple(prototype_potentials(rows, case["prototypes"], 0.06, **together))

torch.set_num_threads(1)
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
cases = torch.load(f"{folder}/cases.pt")
torch.save([found for case in cases for found in potentials(case, rank)], f"{folder}/{rank}.pt")
dist.barrier()
os._exit(0)
"""


def test_two_processes_equal_one_on_the_whole_batch(tmp_path):
    cases, prototypes = [], torch.randn(6, 10)
    for sizes in ((7, 12), (1, 5), (0, 6), (0, 0)):
        case = {"logits": [torch.randn(size, 10) * 2 for size in sizes], "prototypes": prototypes}
        cases.append({**case, "weights": [None, None]})
        cases.append({**case, "weights": [(torch.rand(size) < 0.7).float() for size in sizes]})
    torch.save(cases, tmp_path / "cases.pt")
    ranks = [subprocess.Popen([sys.executable, "-c", _RANK, str(tmp_path), str(rank)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    expected = []
    for case in cases:
        weights = None if case["weights"][0] is None else torch.cat(case["weights"])
        rows = torch.cat(case["logits"])
        expected.append(sinkhorn_potentials(rows, 0.06, weights=weights))
        expected.append(prototype_potentials(rows, prototypes, 0.06, weights=weights))
    for first, second, whole in zip(*found, expected, strict=True):
        torch.testing.assert_close(torch.cat((first[0], second[0])), whole.row)
        torch.testing.assert_close(first[1], whole.column)
        torch.testing.assert_close(second[1], whole.column)


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_centre_is_the_centred_softmax(rows):
    logits, centre = torch.randn(rows, 6), torch.randn(6)
    potentials = centre_potentials(logits, torch.tensor(0.05), centre)
    expected = ((logits - centre).double() / 0.05).softmax(1).float()
    torch.testing.assert_close(targets(logits, 0.05, potentials), expected, atol=1e-5, rtol=1e-4)
    assert potentials.row.dtype == potentials.column.dtype == torch.float32
    extreme = centre_potentials(logits * 1e4, 0.01, centre)
    assert extreme.row.isfinite().all()


def test_rows_of_their_own_temperature_share_a_centre():
    logits, centre, own = torch.randn(17, 6), torch.randn(6), torch.rand(17) + 0.05
    potentials = centre_potentials(logits, own, centre, centre_temperature=0.3)
    expected = (logits.double() / own[:, None] - centre.double() / 0.3).softmax(1).float()
    torch.testing.assert_close(targets(logits, own[:, None], potentials), expected, atol=1e-5, rtol=1e-4)
    same = centre_potentials(logits, torch.full((17,), 0.3), centre, centre_temperature=0.3)
    assert all(map(torch.equal, same, centre_potentials(logits, 0.3, centre)))


def test_compiles():
    def both(logits, centre):
        balanced = sinkhorn_potentials(logits * 2, 0.1)
        centred = centre_potentials(logits * 2, 0.1, centre)
        return balanced.row + centred.row, balanced.column + centred.column

    logits, centre = torch.randn(5, 7), torch.randn(7)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(logits, centre), both(logits, centre), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"logits": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "logits must be"),
        ({"logits": torch.zeros(3)}, ValueError, r"\[M, K\]"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0, got 0.0"),
        ({"temperature": torch.ones(2)}, ValueError, "one element or one for each of 3 rows"),
        ({"iterations": 0}, ValueError, "iterations"),
        ({"weights": torch.ones(3, device="meta")}, ValueError, r"weights must be .*on cpu, got .*on meta"),
        ({"weights": torch.ones(4)}, ValueError, r"weights must be .*\[3\], got float32 \[4\]"),
        ({"weights": torch.ones(3, dtype=torch.bool)}, TypeError, "weights must be"),
    ],
)
def test_errors(change, error, word):
    with pytest.raises(error, match=word):
        sinkhorn_potentials(**{"logits": torch.zeros(3, 4), "temperature": 0.1, **change})


def test_centre_errors():
    with pytest.raises(ValueError, match=r"centre must be .*\[4\], got float32 \[3\]"):
        centre_potentials(torch.zeros(3, 4), 0.1, torch.zeros(3))
    with pytest.raises(ValueError, match="the centre's temperature must have one element"):
        centre_potentials(torch.zeros(3, 4), torch.ones(3), torch.zeros(4))
