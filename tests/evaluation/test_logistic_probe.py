import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vpt_vision.errors import UserError
from vpt_vision.evaluation.logistic import LogisticProbeConfig, logistic_probe


def sklearn_probe(inputs, labels, l2):
    regression = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=5000)
    return make_pipeline(StandardScaler(), regression).fit(inputs, labels)


@pytest.mark.parametrize("features", ["cls", "cls+mean_patch"])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_agrees_with_scikit_learn(clusters, features, l2):
    train, test = clusters(160, noise=2.0), clusters(90, noise=2.0, seed=1)
    result = logistic_probe(train, test, LogisticProbeConfig(features=features, l2_grid=(l2,)))

    def inputs(split):
        parts = [split.cls] if features == "cls" else [split.cls, split.mean_patch]
        return torch.cat(parts, 1).double().numpy()

    reference = sklearn_probe(inputs(train), train.labels.numpy(), l2)
    probabilities = reference.predict_proba(inputs(test))
    expected = -np.log(probabilities[np.arange(90), test.labels.numpy()])
    np.testing.assert_allclose(result.figures["cross_entropy"].values.numpy(), expected, rtol=2e-3, atol=2e-4)
    np.testing.assert_array_equal(
        result.figures["accuracy"].values.numpy(), probabilities.argmax(1) == test.labels.numpy()
    )
    mean = log_loss(test.labels.numpy(), probabilities)
    assert result.interval("cross_entropy").mean == pytest.approx(mean, rel=1e-3)


def test_l2_is_the_one_scikit_learn_would_pick_by_a_held_out_fifth(clusters):
    train, test = clusters(200, dim=30, noise=4.0), clusters(40, dim=30, noise=4.0, seed=1)
    config = LogisticProbeConfig(features="cls", l2_grid=(1e-4, 1e-2, 0.3, 10.0))
    picked = logistic_probe(train, test, config).settings["l2"]
    losses = {l2: [] for l2 in config.l2_grid}
    order = np.random.default_rng(0).permutation(50)  # of 50 groups of 4, each with one image of each class
    for fold in np.array_split(order, 5):
        held = np.isin(np.arange(200) // 4, fold)
        inputs, labels = train.cls.double().numpy(), train.labels.numpy()
        for l2 in losses:
            fitted = sklearn_probe(inputs[~held], labels[~held], l2)
            losses[l2].append(log_loss(labels[held], fitted.predict_proba(inputs[held])))
    assert picked == min(losses, key=lambda l2: np.mean(losses[l2])) == 0.3


def test_the_test_split_decides_nothing(clusters):
    train, test = clusters(120, noise=3.0), clusters(60, noise=3.0, seed=1)
    wrong = replace(test, labels=test.labels.roll(1))
    first, second = (logistic_probe(train, split, LogisticProbeConfig()) for split in (test, wrong))
    assert first.settings == second.settings
    assert first.interval("accuracy").mean > second.interval("accuracy").mean


def test_the_fit_uses_the_held_out_part_as_well(clusters):
    """Without a second fit, images that were held out would not move the result."""
    train, test = clusters(40), clusters(30, seed=1)
    config = LogisticProbeConfig(l2_grid=(0.1,))
    before = logistic_probe(train, test, config).figures["cross_entropy"].values
    for image in range(40):
        cls = train.block_cls.clone()
        cls[image] += 1.0
        after = logistic_probe(replace(train, block_cls=cls), test, config).figures["cross_entropy"].values
        assert not torch.equal(after, before)


def test_the_end_of_the_grid_is_warned_of(clusters, caplog):
    train, test = clusters(80, noise=8.0), clusters(20, seed=1)
    with caplog.at_level(logging.WARNING):
        logistic_probe(train, test, LogisticProbeConfig(l2_grid=(1e-5, 1e-4)))
    assert "the end of its grid" in caplog.text


def test_bad_splits_are_refused_in_one_sentence(clusters):
    train, test = clusters(12), clusters(8)
    with pytest.raises(UserError, match="Class 3 has test images but no train image"):
        logistic_probe(replace(train, labels=train.labels % 3), test, LogisticProbeConfig())
    with pytest.raises(UserError, match="No class of the train split has the 5 images"):
        logistic_probe(train, test, LogisticProbeConfig())


def test_config_is_bounded():
    for wrong in ({"l2_grid": ()}, {"l2_grid": (0.0,)}, {"heldout": 0.0}, {"features": "patches"}):
        with pytest.raises(ValidationError):
            LogisticProbeConfig(**wrong)
