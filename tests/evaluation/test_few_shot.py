from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from vpt_vision.errors import UserError
from vpt_vision.evaluation.few_shot import FewShotConfig, draw_shots, few_shot


def test_shots_are_so_many_of_each_class_without_repetition(clusters):
    labels = clusters(50).labels
    for draw in range(3):
        rows = draw_shots(labels, 3, draw)
        assert labels[rows].bincount().tolist() == [3, 3, 3, 3]
        assert len(rows.unique()) == 12
    assert not torch.equal(draw_shots(labels, 3, 0), draw_shots(labels, 3, 1))
    assert torch.equal(draw_shots(labels, 3, 2), draw_shots(labels, 3, 2))


def unit(rows):
    rows = rows.double().numpy()
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_draw_agrees_with_the_objective_minimised_by_hand(clusters):
    train, test = clusters(80, noise=2.0), clusters(40, noise=2.0, seed=1)
    l2 = 0.05
    (result,) = few_shot(train, test, FewShotConfig(shots=(5,), draws=1, l2=l2))
    rows = draw_shots(train.labels, 5, 0)
    x, y = unit(train.cls[rows]), np.eye(4)[train.labels[rows].numpy()]

    def objective(flat):
        logits = x @ flat.reshape(8, 4)
        log_z = np.log(np.exp(logits).sum(1, keepdims=True))
        return (y * (log_z - logits)).sum() + l2 / 2 * (flat**2).sum()

    weights = minimize(objective, np.zeros(32), method="BFGS", options={"gtol": 1e-7}).x.reshape(8, 4)
    logits = unit(test.cls) @ weights
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(40), test.labels.numpy()]
    np.testing.assert_allclose(result.figures["cross_entropy"].values.numpy(), losses, atol=2e-3)
    np.testing.assert_array_equal(
        result.figures["accuracy"].values.numpy(), logits.argmax(1) == test.labels.numpy()
    )


def test_figures_are_means_over_draws(clusters):
    train, test = clusters(80, noise=3.0), clusters(40, noise=3.0, seed=1)
    single = [few_shot(train, test, FewShotConfig(shots=(2,), draws=n))[0] for n in (1, 2)]
    first, both = (result.figures["accuracy"].values for result in single)
    second = 2 * both - first
    assert set(second.tolist()) <= {0.0, 1.0}
    deviation = np.std([first.mean(), second.mean()], ddof=1)
    assert single[1].details["accuracy_deviation"] == pytest.approx(deviation)
    assert single[0].details["accuracy_deviation"] is None
    assert single[1].details["draws"] == 2


def test_more_shots_help_and_each_has_a_result(clusters):
    results = few_shot(clusters(200, noise=2.0), clusters(100, noise=2.0, seed=1), FewShotConfig())
    assert [result.probe for result in results] == [f"few-shot, k = {k}" for k in (1, 2, 5, 10)]
    assert results[3].interval("accuracy").mean > results[0].interval("accuracy").mean


def test_too_few_images_of_a_class(clusters, caplog):
    train, test = clusters(14), clusters(8)
    assert [r.details["shots"] for r in few_shot(train, test, FewShotConfig(draws=1))] == [1, 2]
    assert "k = 5 is left out: a class has only 3 images" in caplog.text
    with pytest.raises(UserError, match="class 2 has 3 train images, fewer than the 7"):
        few_shot(train, test, FewShotConfig(shots=(7,)))
    with pytest.raises(UserError, match="Class 3 has test images but no train image"):
        few_shot(replace(train, labels=train.labels % 3), test, FewShotConfig())
