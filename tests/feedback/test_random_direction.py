import pytest
import torch

from vpt_vision.feedback import cosine, inner, random_direction
from vpt_vision.task import Keys


@pytest.fixture
def u():
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (300, 250), "bias": (7,), "scale": ()}
    return {name: 3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def keys(seed=0, step=0):
    return Keys(seed, step, torch.arange(4))


def test_has_the_length_of_u_and_nothing_else_of_it(u):
    drawn = random_direction(u, keys())
    assert {name: value.shape for name, value in drawn.items()} == {n: v.shape for n, v in u.items()}
    torch.testing.assert_close(inner(drawn, drawn), inner(u, u))
    assert cosine(drawn, u).abs() < 0.02
    twice = random_direction({name: 2 * value for name, value in u.items()}, keys())
    torch.testing.assert_close(twice["bias"], 2 * drawn["bias"])


def test_is_a_function_of_seed_and_step(u):
    drawn = random_direction(u, keys())
    assert all(torch.equal(drawn[name], value) for name, value in random_direction(u, keys()).items())
    for other in (keys(step=1), keys(seed=1)):
        assert cosine(drawn, random_direction(u, other)).abs() < 0.02


def test_its_numbers_are_normal_and_none_is_drawn_twice(u):
    drawn = random_direction(u, keys())
    weight = drawn["weight"] / drawn["weight"].std()
    assert weight.mean().abs() < 0.02
    assert (weight.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.01)
    assert drawn["weight"].unique().numel() > 0.95 * drawn["weight"].numel()  # rows have keys of their own
    rows = weight.flatten()
    assert (rows[: 2**13] * rows[2**16 : 2**16 + 2**13]).mean().abs() < 0.05


def test_of_no_u_there_is_none(u):
    drawn = random_direction({name: torch.zeros_like(value) for name, value in u.items()}, keys())
    assert all((value == 0).all() for value in drawn.values())
