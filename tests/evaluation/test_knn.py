import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.knn import knn


def correct(result):
    return result.figures["accuracy"].values


def brute_force(train: ProbeFeatures, test: ProbeFeatures, k: int, temperature: float) -> list[bool]:
    """DINO's protocol, image by image and neighbour by neighbour, in Python floats."""

    def unit(vector: list[float]) -> list[float]:
        norm = math.sqrt(sum(x * x for x in vector))
        return [x / norm for x in vector]

    bank = [unit(row) for row in train.cls.double().tolist()]
    right = []
    for row, label in zip(test.cls.double().tolist(), test.labels.tolist(), strict=True):
        query = unit(row)
        similarity = [sum(a * b for a, b in zip(query, other, strict=True)) for other in bank]
        nearest = sorted(range(len(bank)), key=lambda n: -similarity[n])[:k]
        votes: dict[int, float] = {}
        for n in nearest:
            c = int(train.labels[n])
            votes[c] = votes.get(c, 0.0) + math.exp(similarity[n] / temperature)
        right.append(max(votes, key=lambda c: votes[c]) == label)
    return right


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 60), st.integers(1, 30), st.integers(2, 13), st.integers(2, 7), st.integers(0, 10**6))
def test_agrees_with_a_brute_force_loop(train_count, test_count, dim, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    train, test = (
        ProbeFeatures(
            torch.randn(n, 1, dim, generator=generator),
            torch.zeros(n, dim),
            torch.randint(0, classes, (n,), generator=generator),
            torch.arange(n),
        )
        for n in (train_count, test_count)
    )
    for result, k in zip(knn(train, test, neighbours=(10, 20)), (10, 20), strict=True):
        assert result.probe == f"kNN, k = {k}"
        assert correct(result).tolist() == brute_force(train, test, k, 0.07)
        assert result.figures.keys() == {"accuracy"}


def test_weights_can_outvote_a_majority():
    angles = torch.tensor([0.02, 1.0, 1.0])
    train = ProbeFeatures(
        torch.stack([angles.cos(), angles.sin()], 1)[:, None],
        torch.zeros(3, 1),
        torch.tensor([0, 1, 1]),
        torch.arange(3),
    )
    test = ProbeFeatures(torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 1), torch.tensor([0]), torch.arange(1))
    assert correct(knn(train, test, neighbours=[3])[0]).tolist() == [True]
    assert correct(knn(train, test, neighbours=[3], temperature=100.0)[0]).tolist() == [False]


def test_more_test_images_than_are_compared_at_once(clusters, monkeypatch):
    train, test = clusters(50), clusters(250, seed=1)
    whole = correct(knn(train, test, neighbours=[5])[0])
    monkeypatch.setattr("vpt_vision.evaluation.knn._SIMILARITIES", 50 * 7)
    assert torch.equal(correct(knn(train, test, neighbours=[5])[0]), whole)
    assert 0 < whole.mean() < 1


def test_k_above_the_train_split_is_left_out_with_a_word_and_none_left_is_refused(clusters, caplog):
    assert [result.probe for result in knn(clusters(25), clusters(4))] == ["kNN, k = 10", "kNN, k = 20"]
    assert "k = 100 is left out: there are only 25 train images" in caplog.text
    with pytest.raises(UserError, match="k = 10 needs as many train images, but there are 7"):
        knn(clusters(7), clusters(4))
