import torch
from targets import probabilities

from vpt_vision.learner.centring import Centre, sinkhorn_target
from vpt_vision.learner.scores import Scores


def sinkhorn_by_hand(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """DINOv2's loop: prototypes share the mass equally, then samples, three times."""
    q = torch.exp(logits.double() / temperature)
    samples, prototypes = q.shape
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / prototypes
        q = q / q.sum(1, keepdim=True) / samples
    return q * samples


def test_sinkhorn_target_is_the_published_loop() -> None:
    logits = torch.randn(11, 6)
    target = sinkhorn_target(Scores(logits), 0.3)
    torch.testing.assert_close(
        probabilities(target).double(), sinkhorn_by_hand(logits, 0.3), atol=1e-5, rtol=1e-5
    )


def test_rows_that_are_not_fitted_leave_the_balance_alone_and_still_sum_to_one() -> None:
    logits = torch.randn(13, 6)
    fitted = torch.rand(13) < 0.5
    fitted[0], fitted[1] = True, False
    q = probabilities(sinkhorn_target(Scores(logits), 0.2, fitted.float()))
    alone = sinkhorn_target(Scores(logits[fitted]), 0.2)
    torch.testing.assert_close(q[fitted], probabilities(alone), atol=1e-5, rtol=1e-5)
    others = torch.softmax(logits[~fitted] / 0.2 + alone.potentials.column, dim=1)
    torch.testing.assert_close(q[~fitted], others, atol=1e-5, rtol=1e-5)


def test_centre_target_is_the_centred_softmax_and_leaves_the_centre() -> None:
    centre = Centre(6, momentum=0.9)
    centre.value.copy_(torch.randn(6))
    before = centre.value.clone()
    logits = torch.randn(5, 6)
    expected = torch.softmax((logits - before) / 0.07, dim=1)
    torch.testing.assert_close(
        probabilities(centre.target(Scores(logits), 0.07, 0.07)), expected, atol=1e-6, rtol=1e-5
    )
    assert torch.equal(centre.value, before)


def test_centre_is_the_running_mean() -> None:
    centre = Centre(4, momentum=0.7)
    expected = torch.zeros(4)
    for rows in (3, 1, 8):
        logits = torch.randn(rows, 4)
        centre.update(Scores(logits))
        expected = 0.7 * expected + 0.3 * logits.mean(0)
        torch.testing.assert_close(centre.value, expected)


def test_centre_stays_where_there_are_no_rows() -> None:
    centre = Centre(4, momentum=0.7)
    centre.update(Scores(torch.randn(3, 4)))
    before = centre.value.clone()
    centre.update(Scores(torch.empty(0, 4)))
    assert torch.equal(centre.value, before)


def test_centre_is_part_of_the_state() -> None:
    centre = Centre(4, momentum=0.7)
    centre.update(Scores(torch.randn(3, 4)))
    twin = Centre(4, momentum=0.7)
    twin.load_state_dict(centre.state_dict())
    assert torch.equal(twin.value, centre.value)
