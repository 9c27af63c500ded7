import torch

from vpt_vision.value import RunningScale


def scalars(**values):
    return {term: torch.tensor(float(value)) for term, value in values.items()}


def test_is_the_unbiased_exponential_root_mean_square():
    scale, weights, total = RunningScale(0.8), 0.0, 0.0
    for value in (3.0, -1.0, 0.5, 2.0):
        scale.update(scalars(dino=value, ibot=10 * value))
        weights, total = 0.8 * weights + 1, 0.8 * total + value**2
        torch.testing.assert_close(scale.scale("dino"), torch.tensor((total / weights) ** 0.5))
        torch.testing.assert_close(scale.scale("ibot"), 10 * scale.scale("dino"))


def test_survives_zero_and_what_is_not_finite():
    scale = RunningScale(0.9)
    scale.update(scalars(dino=0))
    assert 0 < scale.scale("dino") < 1e-20
    scale.update(scalars(dino=2))
    scale.update(scalars(dino=float("nan")))
    assert scale.scale("dino").isfinite()


def test_state_is_a_copy():
    scale, resumed = RunningScale(0.9), RunningScale(0.9)
    scale.update(scalars(dino=2))
    state = scale.state_dict()
    scale.update(scalars(dino=4))
    resumed.load_state_dict(state)
    torch.testing.assert_close(resumed.scale("dino"), torch.tensor(2.0))
    resumed.update(scalars(dino=4))
    assert torch.equal(resumed.scale("dino"), scale.scale("dino"))
