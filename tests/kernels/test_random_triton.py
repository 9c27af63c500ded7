"""keyed_uniform's launcher: the same bits as the reference."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpt_kernels.random import reference_keyed_uniform, to_open_unit
from vpt_kernels.triton import random as launchers

pytestmark = pytest.mark.usefixtures("poisoned")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    count=st.integers(1, 70),
    blocks_left_out=st.integers(0, 3),
    words=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    stream=st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFF]),
    salt=st.integers(0, 99),
)
def test_same_bits(device, rows, count, blocks_left_out, words, stream, salt):
    generator = torch.Generator().manual_seed(salt)
    sample = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)
    arguments = (*words, stream, count, 4 * blocks_left_out)
    found = launchers.keyed_uniform(sample.to(device), *arguments)
    assert torch.equal(found.cpu(), reference_keyed_uniform(sample, *arguments))


@pytest.mark.parametrize(
    ("shape", "count"), [((), 3), ((0,), 3), ((2, 0), 3), ((4,), 0), ((3,), 1100), ((300,), 2)]
)
def test_sizes(device, shape, count):
    sample = torch.ones(shape, dtype=torch.int64)
    found = launchers.keyed_uniform(sample.to(device), 1, 0, 1, 1, count, 0)
    assert torch.equal(found.cpu(), reference_keyed_uniform(sample, 1, 0, 1, 1, count))


def test_the_last_numbers_of_the_longest_draw(device):
    sample = torch.tensor([3, -4])
    arguments = (5, 6, 7, 0xFFFF, 8, 2**18 - 8)
    found = launchers.keyed_uniform(sample.to(device), *arguments)
    assert torch.equal(found.cpu(), reference_keyed_uniform(sample, *arguments))


def test_samples_that_are_not_contiguous(device):
    sample = torch.arange(12).view(3, 4).T
    found = launchers.keyed_uniform(sample.to(device), 5, 6, 7, 8, 9, 0)
    assert torch.equal(found.cpu(), reference_keyed_uniform(sample, 5, 6, 7, 8, 9))


@pytest.mark.parametrize("word", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_words_travel_as_int32(word):
    number = launchers.signed(word)
    assert -(2**31) <= number < 2**31 and number % 2**32 == word


@triton.jit
def below_kernel(words_ptr, n_ptr, out_ptr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint32)
    tl.store(out_ptr + places, launchers.uniform_below(words, tl.load(n_ptr)))


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 3844, 4096])
def test_below_is_the_exact_product(device, n):
    edges = [0, 511, 512, 2**31 - 1, 2**31, 2**32 - 1]
    edges += [i * 2**32 // n + offset for i in range(1, min(n, 200)) for offset in (-512, -1, 0, 1)]
    words = torch.tensor((edges * 1024)[:1024])
    out = torch.empty(1024, dtype=torch.int32, device=device)
    below_kernel[(1,)](words.to(device), torch.tensor([n], dtype=torch.int32, device=device), out, BLOCK=1024)
    expected = (to_open_unit(words).double() * n).int()
    assert torch.equal(out.cpu(), expected) and out.min() >= 0 and out.max() < n
