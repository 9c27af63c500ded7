import copy

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.feedback import Examples, FeedbackGradient, cosine


def flat(direction):
    return torch.cat([direction[name].flatten() for name in sorted(direction)])


def test_u_is_the_gradient_of_the_meta_loss(make_feedback, backbone, splits, keys):
    """With the whole meta split as the batch, u is known: take it with .backward() on a copy in fp64."""
    feedback = make_feedback(batch=40)
    gradient = FeedbackGradient(feedback, tail_blocks=2)
    report = gradient.update(backbone, keys)

    reference = copy.deepcopy(backbone).double().eval()
    features = reference(feedback.render(splits.meta.images, torch.device("cpu")).double()).cls
    logits = features @ feedback.head.weight.double().T + feedback.head.bias.double()
    loss = F.cross_entropy(logits, splits.meta.labels)
    loss.backward()
    expected = {
        name: parameter.grad
        for name, parameter in reference.vit.named_parameters()
        if name.startswith(("blocks.1.", "blocks.2.", "norm."))
    }
    assert gradient.u.keys() == expected.keys()
    for name, value in gradient.u.items():
        assert not value.requires_grad
        torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-3)
    assert report["meta_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert report["u_norm"].item() == pytest.approx(flat(expected).norm().item(), rel=1e-4)


def test_a_step_against_u_lowers_the_downstream_loss(make_feedback, backbone, keys):
    gradient = FeedbackGradient(make_feedback(batch=40), tail_blocks=2)
    before = gradient.update(backbone, keys)
    rate = 1e-3 / before["u_norm"] ** 2
    with torch.no_grad():
        for name, parameter in backbone.tail_parameters(2).items():
            parameter -= rate * gradient.u[name]
    gradient.feedback.config = gradient.feedback.config.model_copy(update={"refit_every": 100})  # same head
    after = gradient.update(backbone, keys)
    assert (before["meta_loss"] - after["meta_loss"]).item() == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize(("split", "decides"), [("head", True), ("meta", True), ("heldout", False)])
def test_which_labels_reach_u(make_feedback, backbone, splits, poisoned, keys, split, decides):
    clean = FeedbackGradient(make_feedback(splits), 2)
    other = FeedbackGradient(make_feedback(poisoned(splits, split)), 2)
    for gradient in (clean, other):
        gradient.update(backbone, keys)
    assert torch.equal(flat(clean.u), flat(other.u)) != decides


def test_u_is_the_average_over_steps(make_feedback, backbone, keys):
    averaged = FeedbackGradient(make_feedback(ema=0.75), 1)
    single = FeedbackGradient(make_feedback(ema=0.0), 1)
    expected = 0.0
    for step in range(4):
        for gradient in (averaged, single):
            gradient.update(backbone, keys._replace(step=step))
        expected = 0.75 * expected + 0.25 * flat(single.u)
    torch.testing.assert_close(flat(averaged.u), expected / (1 - 0.75**4))


def test_batches_are_drawn_by_step_alone(make_feedback, backbone, keys):
    def u(**changes):
        gradient = FeedbackGradient(make_feedback(), 1)
        gradient.update(backbone, keys._replace(**changes))
        return flat(gradient.u)

    assert torch.equal(u(), u(samples=torch.arange(9)))
    assert not torch.equal(u(), u(step=8)) and not torch.equal(u(), u(seed=4))


def test_reliability_is_the_cosine_of_halves(make_feedback, backbone, splits, keys):
    twice = torch.arange(40) // 2  # both halves of the meta split hold the same examples
    doubled = splits._replace(meta=splits.meta[twice])
    report = FeedbackGradient(make_feedback(doubled, batch=40), 2).update(backbone, keys)
    assert report["u_reliability"].item() == pytest.approx(1, abs=1e-5)

    generator = torch.Generator().manual_seed(1)
    noise = splits.meta.labels[torch.randperm(40, generator=generator)]
    noisy = splits._replace(meta=Examples(splits.meta.images, noise))
    gradient = FeedbackGradient(make_feedback(noisy, batch=40), 2)
    report = gradient.update(backbone, keys)
    assert report["u_reliability"] < 0.9
    torch.testing.assert_close(report["u_reliability"], report["u_reliability_batch"])
    first, second = (flat(average) for average in gradient.averages)
    torch.testing.assert_close(report["u_reliability"], F.cosine_similarity(first, second, dim=0))


def test_cosine_with_nothing_is_zero():
    assert cosine({"w": torch.zeros(3)}, {"w": torch.ones(3)}) == 0


def test_the_head_is_fitted_again_every_so_often(make_feedback, backbone, keys, monkeypatch):
    gradient = FeedbackGradient(make_feedback(refit_every=3), 1)
    fits = []
    fit_head = gradient.feedback.fit_head
    monkeypatch.setattr(gradient.feedback, "fit_head", lambda b: fits.append(gradient.count) or fit_head(b))
    for step in range(7):
        gradient.update(backbone, keys._replace(step=step))
    assert fits == [0, 3, 6]


def test_no_trace_in_the_backbone(make_feedback, backbone, keys, snapshot):
    for number, parameter in enumerate(backbone.parameters()):
        parameter.grad = None if number % 2 else torch.ones_like(parameter)
    before, random = snapshot(backbone), torch.get_rng_state()
    FeedbackGradient(make_feedback(), 2).update(backbone, keys)
    after = snapshot(backbone)
    assert torch.equal(random, torch.get_rng_state())
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value is after[name]
        assert same, name


def test_resuming_is_exact(make_feedback, backbone, keys):
    gradient = FeedbackGradient(make_feedback(refit_every=2), 2)
    for step in range(3):
        gradient.update(backbone, keys._replace(step=step))
    state = gradient.state_dict()
    expected = gradient.update(backbone, keys._replace(step=3))  # after the state was taken

    resumed = FeedbackGradient(make_feedback(refit_every=2), 2)
    resumed.load_state_dict(state)
    report = resumed.update(backbone, keys._replace(step=3))
    assert torch.equal(flat(resumed.u), flat(gradient.u))
    assert report == expected
