from itertools import pairwise

import pytest
import torch
from torch import nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseConfig, DenseFeatures
from vpt_vision.evaluation.dense_training import _factor, train_and_pick, train_heads

CPU = torch.device("cpu")


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, patches, cls):
        return self.linear(patches)


@pytest.fixture
def dense():
    windows = torch.tensor([0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9])
    return DenseFeatures(
        patches=torch.randn(12, 4, 3, generator=torch.Generator().manual_seed(0)).half(),
        cls=torch.zeros(12, 1).half(),
        owner=windows,
        places=torch.zeros(12, 2, dtype=torch.int64),
        frames=torch.zeros(10, 2, dtype=torch.int64),
        map_sizes=torch.zeros(10, 2, dtype=torch.int64),
        map_values=torch.zeros(0),
        index=torch.arange(10),
    )


def aim(answers, windows):
    return (answers - 1).square().mean()


def test_heads_that_train_together_do_not_touch_each_other(dense):
    config = DenseConfig(epochs=3, batch_size=4)
    rates = (1e-2, 1e-1)
    together = train_heads([Head(), Head()], rates, dense, torch.arange(12), aim, config, CPU)
    for head, rate in zip(together, rates, strict=True):
        (alone,) = train_heads([Head()], [rate], dense, torch.arange(12), aim, config, CPU)
        assert torch.equal(head.linear.weight, alone.linear.weight)
        assert not head.training
    assert not torch.equal(together[0].linear.weight, together[1].linear.weight)


def test_no_window_of_a_validation_image_is_fitted_until_one_is_picked(dense):
    seen, judged = [], []

    def loss(answers, windows):
        seen.append(set(dense.owner[windows].tolist()))
        return aim(answers, windows)

    def judge(head, images):
        judged.append((float(head.linear.bias), images, len(seen)))
        return float(head.linear.bias)

    config = DenseConfig(epochs=2, batch_size=4, learning_rates=(1e-4, 1e-2, 1e-3), validation=0.3)
    picked = train_and_pick(dense, config, make=Head, loss=loss, judge=judge, device=CPU)
    assert picked.learning_rate == 1e-2  # the fastest has come nearest to 1
    assert picked.validation == max(bias for bias, _, _ in judged)
    fitted = set().union(*seen[: judged[0][2]])
    assert all(images == judged[0][1] for _, images, _ in judged)
    assert len(judged[0][1]) == 3
    assert fitted | set(judged[0][1]) == set(range(10)) and not fitted & set(judged[0][1])
    assert set().union(*seen[judged[0][2] :]) == set(range(10))


def test_a_head_that_diverged_is_not_picked(dense):
    config = DenseConfig(epochs=2, batch_size=4, learning_rates=(1e-2, float("inf")))

    def judge(head, images):
        return float(head.linear.bias)

    picked = train_and_pick(dense, config, make=Head, loss=aim, judge=judge, device=CPU)
    assert picked.learning_rate == 1e-2
    with pytest.raises(UserError, match="every head of the probe diverged"):
        train_and_pick(
            dense,
            config.model_copy(update={"learning_rates": (float("inf"),)}),
            make=Head,
            loss=aim,
            judge=judge,
            device=CPU,
        )


def test_the_learning_rate_rises_then_falls_to_0():
    factors = [_factor(step, 400) for step in range(401)]
    assert factors[0] == pytest.approx(1 / 15)
    assert max(factors) == factors[14] > 0.95
    assert factors[400] == 0
    assert all(later < earlier for earlier, later in pairwise(factors[14:]))
    assert [_factor(step, 2) for step in range(2)] == [1.0, 0.5]
