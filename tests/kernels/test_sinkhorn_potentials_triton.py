"""The log-sum-exps that Sinkhorn-Knopp is made of: launchers against fp64, and as operators."""

import pytest
import torch
from closeness import assert_near
from far_rows import far_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest
from unlaunched import nothing_launched

from vpt_kernels import sinkhorn_potentials
from vpt_kernels.sinkhorn_potentials import column_logsumexp, row_logsumexp
from vpt_kernels.triton import sinkhorn_potentials as launchers

pytestmark = pytest.mark.usefixtures("poisoned")
SHAPES = [(1, 1), (1, 300), (257, 1), (13, 5), (31, 127), (3, 2050)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def case(rows, prototypes, dtype, device, temperature=0.07, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * rows + prototypes)
    wide = torch.promote_types(dtype, torch.float32)
    logits = torch.randn(rows, prototypes, generator=generator).to(dtype)
    row = (torch.randn(rows, generator=generator) * 3).to(wide)
    column = (torch.randn(prototypes, generator=generator) * 3).to(wide)
    temperatures = (temperature * (1 + torch.rand(rows, generator=generator))).to(wide)
    return [tensor.to(device) for tensor in (logits, row, column, temperatures)]


def expected_rows(logits, column, temperature):
    return torch.logsumexp(logits.double() / temperature.double()[:, None] + column.double(), 1)


def expected_columns(logits, row, temperature):
    return torch.logsumexp(logits.double() / temperature.double()[:, None] + row.double()[:, None], 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "prototypes"), SHAPES)
def test_against_fp64(rows, prototypes, dtype, device):
    logits, row, column, temperature = case(rows, prototypes, dtype, device)
    # The logits are given, so only the arithmetic rounds: fp32's tolerance holds for narrower ones too.
    arithmetic = torch.promote_types(dtype, torch.float32)
    found = launchers.row_logsumexp(logits, column, temperature)
    assert found.dtype == arithmetic
    assert_near(found, expected_rows(logits, column, temperature), arithmetic)
    found = launchers.column_logsumexp(logits, row, temperature)
    assert found.dtype == arithmetic
    assert_near(found, expected_columns(logits, row, temperature), arithmetic)


@pytest.mark.parametrize("at_once", [2, 4])
def test_several_rows_a_program(at_once, device, monkeypatch):
    monkeypatch.setattr(launchers, "rows_at_once", lambda rows: at_once)
    logits, _, column, temperature = case(11, 40, torch.float32, device)
    found = launchers.row_logsumexp(logits, column, temperature)
    assert_near(found, expected_rows(logits, column, temperature), torch.float32)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), prototypes=st.integers(1, 90), seed=st.integers(0, 9))
def test_random_shapes_strides_and_rows_left_out(rows, prototypes, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits, row, column, temperature = case(rows, prototypes, torch.float32, device, seed=seed)
    strided = torch.full((prototypes, 2 * rows), torch.nan, device=device).T[::2]
    strided.copy_(logits)
    one = temperature[:1].expand(rows)  # of stride 0
    assert_near(
        launchers.row_logsumexp(strided, column, one), expected_rows(logits, column, one), torch.float32
    )
    out = torch.arange(rows, device=device) % 3 == seed % 3
    row[out] = -torch.inf
    strided[out] = torch.nan  # whatever a row left out holds
    for nothing in (0.0, torch.nan):
        own = temperature.where(~out, nothing)
        found = launchers.column_logsumexp(strided, row, own)
        if out.all():
            assert (found == -torch.inf).all()
        else:
            assert_near(found, expected_columns(logits[~out], row[~out], own[~out]), torch.float32)
    if not out.all():
        found = launchers.column_logsumexp(strided, row, one)
        assert_near(found, expected_columns(logits[~out], row[~out], one[~out]), torch.float32)


def test_nothing_near_the_size_of_the_logits_is_made(monkeypatch):
    rows, prototypes = 3763, 65536  # of tensors without values, for the interpreter would copy the logits
    logits = torch.empty(rows, prototypes, dtype=torch.bfloat16, device="meta")
    row, column = torch.empty(rows, device="meta"), torch.empty(prototypes, device="meta")
    with nothing_launched(monkeypatch) as launched, Largest() as largest:
        launchers.row_logsumexp(logits, column, row)
        launchers.column_logsumexp(logits, row, row)
    assert len(launched) == 3 and prototypes <= largest.numbers < logits.numel() / 50


@pytest.mark.parametrize(("rows", "prototypes"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_add_up(rows, prototypes, device):
    logits, row, column, temperature = case(rows, prototypes, torch.float32, device)
    assert torch.equal(
        launchers.row_logsumexp(logits, column, temperature), torch.full((rows,), -torch.inf, device=device)
    )
    assert torch.equal(
        launchers.column_logsumexp(logits, row, temperature),
        torch.full((prototypes,), -torch.inf, device=device),
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_extreme_logits_stay_finite(temperature, device):
    logits, row, column, temperatures = case(23, 37, torch.float32, device, temperature)
    logits = (logits * 1e4).clamp(-1e4, 1e4)
    logits[0], logits[:, 0] = 1e4, -1e4
    assert_near(
        launchers.row_logsumexp(logits, column, temperatures),
        expected_rows(logits, column, temperatures),
        torch.float32,
    )
    assert_near(
        launchers.column_logsumexp(logits, row, temperatures),
        expected_columns(logits, row, temperatures),
        torch.float32,
    )


def test_whole_iteration_with_the_launchers_equals_the_reference(device, monkeypatch):
    module = __import__("importlib").import_module("vpt_kernels.sinkhorn_potentials")
    logits = torch.randn(29, 71, device=device)
    weights = torch.rand(29, device=device) * (torch.arange(29, device=device) % 4 > 0)
    expected = sinkhorn_potentials(logits.double().cpu(), 0.05, weights=weights.double().cpu())
    monkeypatch.setattr(module, "row_logsumexp", launchers.row_logsumexp)
    monkeypatch.setattr(module, "column_logsumexp", launchers.column_logsumexp)
    found = sinkhorn_potentials(logits, 0.05, weights=weights)
    assert_near(found.row, expected.row, torch.float32)
    assert_near(found.column, expected.column, torch.float32)


def test_more_entries_than_32_bits_count(device):
    logits = far_rows(torch.randn(3, 4).bfloat16().to(device))
    temperature = torch.full((3,), 0.1, device=device)
    column, row = torch.randn(4, device=device), torch.randn(3, device=device)
    assert_near(
        launchers.row_logsumexp(logits, column, temperature),
        expected_rows(logits, column, temperature),
        torch.float32,
    )
    assert_near(
        launchers.column_logsumexp(logits, row, temperature),
        expected_columns(logits, row, temperature),
        torch.float32,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, device):
    logits, row, column, temperature = case(6, 11, dtype, device)
    torch.library.opcheck(row_logsumexp, (logits, column, temperature))
    torch.library.opcheck(column_logsumexp, (logits, row, temperature))


def test_compiles_whole(device):
    logits, weights = torch.randn(7, 12, device=device), torch.rand(7, device=device)

    def potentials(logits, weights):
        return sinkhorn_potentials(logits, 0.1, weights=weights)

    found = torch.compile(potentials, fullgraph=True, backend="aot_eager")(logits, weights)
    for one, other in zip(found, potentials(logits, weights), strict=True):
        torch.testing.assert_close(one, other)
