import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from torch import nn

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.linear import Choice, LinearProbeConfig, _batches, _train, linear_probe


@pytest.fixture
def blobs():
    """Make features of four blocks: the last tells classes best, the mean patch less, noise on all."""

    def make(count: int, *, noise: float = 1.0, seed: int = 0, classes: int = 4) -> ProbeFeatures:
        centres = torch.randn(classes, 5, 8, generator=torch.Generator().manual_seed(7))
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % classes
        tokens = centres[labels] + noise * torch.randn(count, 5, 8, generator=generator)
        return ProbeFeatures(tokens[:, :4], tokens[:, 4], labels, torch.arange(count))

    return make


def by_hand(choice: Choice, train: ProbeFeatures, test: ProbeFeatures, config: LinearProbeConfig):
    """One classifier by itself, with an nn.Linear and an SGD of its own, in fp64."""

    def read(features):
        parts = [features.block_cls[:, -number] for number in range(choice.blocks, 0, -1)]
        return torch.cat([*parts, features.mean_patch] if choice.mean_patch else parts, 1).double()

    generator = torch.Generator().manual_seed(config.seed)
    layer = nn.Linear(read(train).shape[1], 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0, 0.01, generator=generator))
        layer.bias.zero_()
    rate = choice.learning_rate * config.batch_size / 256
    sgd = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    batches = list(_batches(len(train), config))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, len(batches), eta_min=0)
    for rows in batches:
        loss = nn.functional.cross_entropy(layer(read(train))[rows], train.labels[rows])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        schedule.step()
    return layer(read(test)).detach()


@pytest.mark.parametrize("mean_patch", [False, True])
@pytest.mark.parametrize("blocks", [1, 4])
def test_a_classifier_of_the_grid_is_what_it_would_be_by_itself(blobs, blocks, mean_patch):
    train, test = blobs(70), blobs(30, seed=1)
    config = LinearProbeConfig(learning_rates=(0.01, 1.0), epochs=3, batch_size=16, seed=3)
    choice = Choice(1.0, blocks, mean_patch)
    expected = by_hand(choice, train, test, config)
    alone = _train([choice], train, 4, config, None)
    torch.testing.assert_close(alone(test)[:, 0].detach().double(), expected, atol=1e-4, rtol=1e-4)


def test_classifiers_that_train_together_do_not_touch_each_other(blobs):
    train, test = blobs(50), blobs(20, seed=1)
    config = LinearProbeConfig(epochs=2, batch_size=16)
    read = [(blocks, mean) for blocks in (1, 4) for mean in (True, False)]
    grid = [Choice(rate, *what) for what in read for rate in (0.1, 1e-3)]
    together = _train([*grid, Choice(float("inf"), 1, False)], train, 4, config, None)(
        test
    )  # the last one explodes
    assert not together[:, -1].isfinite().all()
    for place, choice in enumerate(grid):
        alone = _train([choice], train, 4, config, None)
        torch.testing.assert_close(together[:, place], alone(test)[:, 0])


def test_accuracy_comes_close_to_scikit_learns_logistic_regression(blobs):
    train, test = blobs(1500, noise=2.0), blobs(1000, noise=2.0, seed=1)
    result = linear_probe(train, test, LinearProbeConfig(learning_rates=(0.01, 0.1, 1.0)))
    assert result.probe == "linear, CLS of 4 blocks + mean patch"

    def inputs(features):
        return torch.cat([features.block_cls.flatten(1), features.mean_patch], 1).numpy()

    reference = LogisticRegression(C=1.0, max_iter=5000).fit(inputs(train), train.labels.numpy())
    accuracy = reference.score(inputs(test), test.labels.numpy())
    assert result.interval("accuracy").mean == pytest.approx(accuracy, abs=0.02)
    losses = -reference.predict_log_proba(inputs(test))[np.arange(1000), test.labels.numpy()]
    assert result.interval("cross_entropy").mean == pytest.approx(losses.mean(), abs=0.03)


def test_the_pick_is_the_best_on_the_held_out_part_and_the_test_split_decides_nothing(blobs):
    train, test = blobs(400, noise=3.0), blobs(100, noise=3.0, seed=1)
    config = LinearProbeConfig(learning_rates=(1e-4, 0.1, 10.0), epochs=5)
    result = linear_probe(train, test, config)
    wrong = linear_probe(train, replace(test, labels=test.labels.roll(1)), config)
    assert result.settings == wrong.settings
    assert result.details == wrong.details
    assert result.interval("accuracy").mean > wrong.interval("accuracy").mean
    assert result.details["validation_accuracy"] == pytest.approx(result.interval("accuracy").mean, abs=0.15)


def test_the_mean_patch_is_picked_where_it_alone_tells(blobs):
    train, test = blobs(400, noise=0.3), blobs(100, noise=0.3, seed=1)
    nothing = torch.randn(500, 4, 8, generator=torch.Generator().manual_seed(5))
    train = replace(train, block_cls=nothing[:400])
    test = replace(test, block_cls=nothing[400:])
    result = linear_probe(train, test, LinearProbeConfig())
    assert result.details["mean_patch"] is True
    assert result.interval("accuracy").mean > 0.9


def test_what_an_encoder_does_not_give_is_left_out_with_a_word(blobs, caplog):
    train, test = blobs(100), blobs(20, seed=1)
    last = [replace(split, block_cls=split.block_cls[:, -1:]) for split in (train, test)]
    assert linear_probe(*last, LinearProbeConfig()).details["blocks"] == 1
    assert "leaves out the last 4 blocks: the encoder gives only 1" in caplog.text
    with pytest.raises(UserError, match="gives its last block alone"):
        linear_probe(*last, LinearProbeConfig(blocks=(4,)))


def test_a_picked_end_of_the_grid_is_warned_of(blobs, caplog):
    with caplog.at_level(logging.WARNING):
        linear_probe(blobs(100), blobs(20, seed=1), LinearProbeConfig(learning_rates=(1e-6, 1e-5)))
    assert "at the end of its grid" in caplog.text


def test_a_grid_that_diverges_whole_is_refused(blobs):
    with pytest.raises(UserError, match="every classifier of the linear probe diverged"):
        linear_probe(blobs(100), blobs(20, seed=1), LinearProbeConfig(learning_rates=(3e38,)))


def test_bad_splits_and_settings_are_refused_in_one_sentence(blobs):
    train, test = blobs(40), blobs(8)
    with pytest.raises(UserError, match="Class 3 has test images but no train image"):
        linear_probe(replace(train, labels=train.labels % 3), test, LinearProbeConfig())
    with pytest.raises(UserError, match="No class of the train split has the 10 images"):
        linear_probe(blobs(12), test, LinearProbeConfig())
    for wrong in ({"learning_rates": ()}, {"learning_rates": (0.0,)}, {"blocks": (0,)}, {"epochs": 0}):
        with pytest.raises(ValidationError):
            LinearProbeConfig(**wrong)
