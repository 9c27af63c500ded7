"""keyed_uniform: Random123's vectors, an independent Philox, independence of layout, uniformity."""

import numpy as np
import pytest
import torch

from vpt_kernels import keyed_uniform
from vpt_kernels.random import keyed_uniform_op, philox, to_open_unit


def scalar_philox(counter, key):
    """Philox4x32-10 on Python integers, as the paper's figure gives it."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(x0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(x2 * 0xCD9E8D57, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # kat_vectors of Random123, philox4x32 with 10 rounds
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, words):
    counter = [torch.tensor([int(word, 16)]) for word in counter.split()]
    key = tuple(int(word, 16) for word in key.split())
    assert [f"{int(word):08x}" for word in philox(counter, key, (1,))] == words.split()


def test_draws_are_philox_of_the_keys():
    seed, step, stream = 2**64 - 12345678901, 2**32 - 7, 41
    samples = [0, 1, 2**31, 2**40 + 3, -1]
    drawn = keyed_uniform(seed, step, torch.tensor(samples), stream, 11)
    for row, sample in zip(drawn, samples, strict=True):
        for place, number in enumerate(row.tolist()):
            block, word = divmod(place, 4)
            counter = (block + (stream << 16), step, sample % 2**32, (sample >> 32) % 2**32)
            bits = scalar_philox(counter, (seed % 2**32, seed >> 32))[word]
            assert number == ((bits >> 9) + 0.5) / 2**23


def test_a_draw_depends_on_its_keys_alone():
    sample = torch.randint(-(2**62), 2**62, (3, 5), generator=torch.Generator().manual_seed(1))
    drawn = keyed_uniform(3, 4, sample, 5, 18)
    assert drawn.shape == (3, 5, 18) and drawn.dtype == torch.float32
    assert torch.equal(keyed_uniform(3, 4, sample.T, 5, 18), drawn.transpose(0, 1))
    assert torch.equal(keyed_uniform(3, 4, sample[2, 1], 5, 18), drawn[2, 1])
    assert torch.equal(keyed_uniform(3, 4, sample, 5, 7), drawn[..., :7])
    assert torch.equal(keyed_uniform(3, 4, sample, 5, 10, skip=8), drawn[..., 8:])
    for other in (keyed_uniform(2, 4, sample, 5, 18), keyed_uniform(3, 5, sample, 5, 18)):
        assert not torch.isclose(other, drawn, atol=1e-6).any()
    assert not torch.isclose(keyed_uniform(3, 4, sample, 6, 18), drawn, atol=1e-6).any()
    assert not torch.isclose(keyed_uniform(3, 4, sample + 1, 5, 18), drawn, atol=1e-6).any()


@pytest.mark.parametrize("shape", [(0,), (), (2, 0)])
def test_empty_and_scalar_keys(shape):
    assert keyed_uniform(0, 0, torch.zeros(shape, dtype=torch.int64), 0, 3).shape == (*shape, 3)
    assert keyed_uniform(0, 0, torch.zeros(shape, dtype=torch.int64), 0, 0).shape == (*shape, 0)


def test_operator():
    for sample in (torch.arange(6).view(2, 3).T, torch.tensor(5), torch.zeros(0, dtype=torch.int64)):
        torch.library.opcheck(keyed_uniform_op, (sample, 2**32 - 1, 7, 2**32 - 1, 9, 6, 4))


def test_compiles():
    def draw(sample, step):
        return keyed_uniform(2**64 - 1, step, sample, 3, 5).log()

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for step in (0, 1, 2, 2**32 - 1):
        assert torch.equal(compiled(torch.arange(4), step), draw(torch.arange(4), step))


def test_the_interval_is_open():
    ends = to_open_unit(torch.tensor([0, 2**32 - 1]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]


def test_uniform_and_uncorrelated():
    drawn = keyed_uniform(7, 11, torch.arange(20_000), 2, 8).double().numpy()
    counts = np.stack([np.histogram(column, bins=50, range=(0, 1))[0] for column in drawn.T])
    chi2 = ((counts - 400) ** 2 / 400).sum(1)  # 49 degrees of freedom: mean 49, deviation 9.9
    assert (chi2 < 49 + 5 * 9.9).all() and abs(chi2.mean() - 49) < 5 * 9.9 / 8**0.5
    neighbours = np.concatenate([drawn[:-1], drawn[1:]], axis=1)  # within a sample and between samples
    correlation = np.corrcoef(neighbours.T) - np.eye(16)
    assert np.abs(correlation).max() < 5 / 20_000**0.5


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"step": 2**32}, ValueError, "step"),
        ({"stream": 2**16}, ValueError, "stream"),
        ({"count": -1}, ValueError, "count"),
        ({"count": 2**18 + 1}, ValueError, "count"),
        ({"skip": 2}, ValueError, "skip"),
        ({"sample": torch.zeros(3)}, TypeError, "sample must be int64 .*got float32"),
        ({"sample": 3}, TypeError, "sample must be a tensor, not int"),
    ],
)
def test_errors(change, error, word):
    arguments = {"seed": 0, "step": 0, "sample": torch.arange(3), "stream": 0, "count": 4, **change}
    with pytest.raises(error, match=word):
        keyed_uniform(**arguments)
