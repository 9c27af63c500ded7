from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.retrieval import average_precision, retrieval


def features(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return ProbeFeatures(
        torch.randn(count, 1, 3, generator=generator),
        torch.zeros(count, 1),
        torch.randint(0, classes, (count,), generator=generator),
        torch.arange(count),
    )


def precisions_by_hand(database, queries):
    """Average precision of each query: mean precision at the ranks of the right images."""
    found = []
    for query, label in zip(queries.cls.double(), queries.labels.tolist(), strict=True):
        similarity = [
            float(query @ other / query.norm() / other.norm()) for other in database.cls.double().unbind()
        ]
        ranked = sorted(range(len(database)), key=lambda place: -similarity[place])
        hits, total = 0, 0.0
        for rank, place in enumerate(ranked, start=1):
            if int(database.labels[place]) == label:
                hits += 1
                total += hits / rank
        if hits:
            found.append(total / hits)
    return found


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_agrees_with_a_loop_over_ranks(count, asked, classes, seed):
    database, queries = features(count, classes, seed), features(asked, classes, seed + 1)
    expected = precisions_by_hand(database, queries)
    if not expected:
        with pytest.raises(UserError, match="no query's class occurs"):
            retrieval(database, queries)
        return
    result = retrieval(database, queries)
    assert result.figures["map"].values.tolist() == pytest.approx(expected)
    assert result.details["database_images"] == count


def test_queries_without_a_right_image_do_not_count():
    database, queries = features(20, 3, 0), features(6, 3, 1)
    strange = replace(queries, labels=torch.tensor([0, 9, 1, 9, 2, 0]))
    assert retrieval(database, strange).index.tolist() == [0, 2, 4, 5]


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1))
def test_equal_scores_are_retrieved_together_as_scikit_learn_has_it(rows):
    scores, right = (np.array(column) for column in zip(*rows, strict=True))
    assume(right.any())
    expected = average_precision_score(right, scores)
    assert average_precision(scores.astype(np.float32), right) == pytest.approx(expected, abs=1e-12)
