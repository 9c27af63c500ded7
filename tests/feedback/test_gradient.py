import copy
import io

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.feedback import (
    Examples,
    Feedback,
    FeedbackGradient,
    PermutedLabels,
    Splits,
    WeightedTask,
    all_features,
    cosine,
    gradients_over,
    whole_loss,
)
from vpt_vision.logistic import fit_logistic


def flat(direction):
    return torch.cat([direction[name].flatten() for name in sorted(direction)])


def head_of(gradient):
    """The single head of a single task."""
    weight, bias = gradient.feedback.tasks["classes"].task.heads
    return weight[0], bias[0]


def test_u_is_the_gradient_of_the_meta_loss(make_gradient, backbone, splits, keys):
    """With the whole meta split as the batch, u is known: take it with .backward() on a copy in fp64."""
    gradient = make_gradient(batch=40)
    report = gradient.update(backbone, keys)

    reference = copy.deepcopy(backbone).double().eval()
    task = gradient.feedback.tasks["classes"].task
    images = task.images("meta", torch.arange(40), torch.device("cpu"))
    weight, bias = head_of(gradient)
    logits = reference(images.double()).cls @ weight.double().T + bias.double()
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


def test_a_step_against_u_lowers_the_downstream_loss(make_gradient, backbone, keys):
    gradient = make_gradient(batch=40)
    before = gradient.update(backbone, keys)
    rate = 1e-3 / before["u_norm"] ** 2
    with torch.no_grad():
        for name, parameter in backbone.tail_parameters(2).items():
            parameter -= rate * gradient.u[name]
    gradient.fit = lambda backbone: None  # by the same head
    after = gradient.update(backbone, keys)
    assert (before["meta_loss"] - after["meta_loss"]).item() == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize(("split", "decides"), [("head", True), ("meta", True), ("heldout", False)])
def test_which_labels_reach_u(make_gradient, backbone, splits, poisoned, keys, split, decides):
    clean, other = make_gradient(splits), make_gradient(poisoned(splits, split))
    for gradient in (clean, other):
        gradient.update(backbone, keys)
    assert torch.equal(flat(clean.u), flat(other.u)) != decides


def test_u_is_the_average_over_steps(make_gradient, backbone, keys):
    averaged, single = make_gradient(ema=0.75), make_gradient(ema=0.0)
    expected = 0.0
    for step in range(4):
        for gradient in (averaged, single):
            gradient.update(backbone, keys._replace(step=step))
        expected = 0.75 * expected + 0.25 * flat(single.u)
    torch.testing.assert_close(flat(averaged.u), expected / (1 - 0.75**4))


def test_batches_are_drawn_by_step_alone(make_gradient, backbone, keys):
    def u(**changes):
        gradient = make_gradient()
        gradient.update(backbone, keys._replace(**changes))
        return flat(gradient.u)

    assert torch.equal(u(), u(samples=torch.arange(9)))
    assert not torch.equal(u(), u(step=8)) and not torch.equal(u(), u(seed=4))


def test_reliability_is_the_cosine_of_halves(make_gradient, backbone, splits, keys):
    twice = torch.arange(40) // 2  # both halves of the meta split hold the same examples
    doubled = splits._replace(meta=splits.meta[twice])
    report = make_gradient(doubled, batch=40).update(backbone, keys)
    assert report["u_reliability"].item() == pytest.approx(1, abs=1e-5)

    generator = torch.Generator().manual_seed(1)
    noise = splits.meta.labels[torch.randperm(40, generator=generator)]
    noisy = splits._replace(meta=Examples(splits.meta.images, noise))
    gradient = make_gradient(noisy, batch=40)
    report = gradient.update(backbone, keys)
    assert report["u_reliability"] < 0.9
    torch.testing.assert_close(report["u_reliability"], report["u_reliability_batch"])
    first, second = (flat(gradient.averages["classes"].half(number)) for number in (0, 1))
    torch.testing.assert_close(report["u_reliability"], F.cosine_similarity(first, second, dim=0))


def test_cosine_with_nothing_is_zero():
    assert cosine({"w": torch.zeros(3)}, {"w": torch.ones(3)}) == 0


def test_between_two_gradients_u_is_held_and_no_image_is_read(make_gradient, backbone, keys, monkeypatch):
    """A head is never older than the gradient that is taken by it."""
    gradient = make_gradient(every=3)
    fits, reads = [], []
    task = gradient.feedback.tasks["classes"].task
    fit, images = task.fit, task.images
    monkeypatch.setattr(task, "fit", lambda features: fits.append(step) or fit(features))
    monkeypatch.setattr(task, "images", lambda *args: reads.append(step) or images(*args))
    told, held = [], []
    for step in range(7):
        told.append(gradient.update(backbone, keys._replace(step=step)))
        held.append(flat(gradient.u))
        told[-1]["of the caller"] = 1.0  # what it does to the answer is its own affair
    assert fits == [0, 3, 6] and set(reads) == {0, 3, 6}
    assert gradient.latest.keys().isdisjoint({"of the caller"})
    assert told[3] == told[4] == told[5] != told[6]
    assert torch.equal(held[3], held[5]) and not torch.equal(held[3], held[6])


def test_held_out_loss_is_that_of_the_last_look(make_gradient, backbone, keys):
    gradient = make_gradient(every=2, heldout_every=2)
    told, expected = [], []
    for step in range(6):
        told.append(gradient.update(backbone, keys._replace(step=step))["heldout_loss"].item())
        if step % 4 == 0:
            last = whole_loss(gradient.feedback.tasks["classes"].task, backbone, "heldout").item()
        expected.append(last)
        with torch.no_grad():
            for parameter in backbone.tail_parameters(2).values():
                parameter.mul_(1.1)
    assert told == expected and told[0] != told[4]


def test_no_trace_in_the_backbone(make_gradient, backbone, keys, snapshot):
    for number, parameter in enumerate(backbone.parameters()):
        parameter.grad = None if number % 2 else torch.ones_like(parameter)
    before, random = snapshot(backbone), torch.get_rng_state()
    gradient = make_gradient()
    gradient.update(backbone, keys)
    gradient.heldout(backbone, keys)
    after = snapshot(backbone)
    assert torch.equal(random, torch.get_rng_state())
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value is after[name]
        assert same, name


def test_a_gradient_that_is_not_finite_is_left_out(make_gradient, backbone, keys, monkeypatch):
    gradient, undisturbed = make_gradient(), make_gradient()
    gradient.update(backbone, keys)
    undisturbed.update(backbone, keys)
    task = gradient.feedback.tasks["classes"].task
    loss_of = task.loss_of
    with monkeypatch.context() as patch:
        patch.setattr(task, "loss_of", lambda *args: loss_of(*args) * float("nan"))
        gradient.update(backbone, keys._replace(step=8))
    assert torch.equal(flat(gradient.u), flat(undisturbed.u))
    for each in (gradient, undisturbed):
        each.update(backbone, keys._replace(step=9))
    assert torch.equal(flat(gradient.u), flat(undisturbed.u))


class TestSeveralTasks:
    """Tasks that differ in unit and in weight."""

    @pytest.fixture
    def make(self, make_feedback, splits):
        """Two tasks: classes of the fixture's, and the same labels shifted in reverse, in other units."""
        backwards = Splits(*(Examples(split.images, (7 - split.labels) % 3) for split in splits))

        def make(weights=(1.0, 1.0), unit=1.0, **settings):
            first, second = make_feedback(batch=40), make_feedback(backwards, batch=40)
            loss_of = second.loss_of
            second.loss_of = lambda *args: unit * loss_of(*args)
            tasks = {
                name: WeightedTask(task, weight, 40)
                for name, task, weight in zip("ab", (first, second), weights, strict=True)
            }
            return FeedbackGradient(Feedback(tasks, **settings), 2)

        return make

    def test_by_task_is_each_tasks_own_gradient(self, make, make_gradient, backbone, keys):
        several, alone = make(), make_gradient(batch=40)
        several.update(backbone, keys)
        alone.update(backbone, keys)
        torch.testing.assert_close(flat(several.by_task["a"]), flat(alone.u), atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("unit", [1.0, 1e4])
    def test_weights_hold_whatever_the_unit(self, make, backbone, keys, unit):
        gradient = make((3.0, 1.0), unit)
        gradient.update(backbone, keys)
        first, second = (flat(direction) for direction in gradient.by_task.values())
        mean = 0.75 * first.norm() + 0.25 * second.norm()  # of lengths of batches: here of the only one
        expected = mean * (0.75 * first / first.norm() + 0.25 * second / second.norm())
        torch.testing.assert_close(flat(gradient.u), expected, rtol=1e-3, atol=1e-6 * unit)

    def test_without_normalisation_u_is_the_gradient_of_the_mean_loss(self, make, backbone, keys):
        gradient = make((3.0, 1.0), 10.0, normalise=False)
        report = gradient.update(backbone, keys)
        first, second = (flat(direction) for direction in gradient.by_task.values())
        torch.testing.assert_close(flat(gradient.u), 0.75 * first + 0.25 * second)
        losses = report["meta_loss/a"], report["meta_loss/b"]
        torch.testing.assert_close(report["meta_loss"], 0.75 * losses[0] + 0.25 * losses[1])

    def test_a_task_that_averages_to_nothing_has_no_say(self, make, backbone, keys, monkeypatch):
        gradient = make((1.0, 1.0), ema=0.9)
        task = gradient.feedback.tasks["b"].task
        loss_of = task.loss_of
        for step in range(20):
            sign = (-1) ** step
            monkeypatch.setattr(task, "loss_of", lambda *args, sign=sign: sign * loss_of(*args))
            gradient.update(backbone, keys._replace(step=step))
        first, second = gradient.by_task.values()
        assert flat(second).norm() < 0.2 * flat(first).norm()
        assert cosine(gradient.u, first) > 0.95

    def test_the_report_tells_of_each(self, make, backbone, keys):
        report = make().update(backbone, keys)
        for name in ("meta_loss", "heldout_loss", "u_norm", "u_reliability", "u_reliability_batch"):
            for suffix in ("", "/a", "/b"):
                assert report[name + suffix].ndim == 0 and report[name + suffix].isfinite()

    def test_held_out_directions(self, make, backbone, splits, keys):
        """With batches of twice the held-out split, all of it: known by .backward() on a copy in fp64."""
        gradient = make((3.0, 1.0), normalise=False)
        gradient.fit(backbone)
        for name, entry in gradient.feedback.tasks.items():
            gradient.feedback.tasks[name] = WeightedTask(entry.task, entry.weight, 48)
        found = gradient.heldout(backbone, keys)
        task = gradient.feedback.tasks["a"].task
        reference = copy.deepcopy(backbone).double().eval()
        images = task.images("heldout", torch.arange(24), torch.device("cpu")).double()
        weight, bias = (part[0].double() for part in task.heads)
        F.cross_entropy(reference(images).cls @ weight.T + bias, splits.heldout.labels).backward()
        parameters = dict(reference.vit.named_parameters())
        for name, value in found["a"].items():
            torch.testing.assert_close(value.double(), parameters[name].grad, atol=1e-5, rtol=1e-3)
        combined = gradient.combine(found)
        torch.testing.assert_close(flat(combined), 0.75 * flat(found["a"]) + 0.25 * flat(found["b"]))


@pytest.mark.parametrize(("every", "heldout_every"), [(1, 1), (2, 1), (1, 2)])
def test_resuming_is_exact(make_gradient, backbone, keys, every, heldout_every):
    gradient = make_gradient(every=every, heldout_every=heldout_every)
    for step in range(3):
        gradient.update(backbone, keys._replace(step=step))
    file = io.BytesIO()
    torch.save(gradient.state_dict(), file)
    later = [gradient.update(backbone, keys._replace(step=step)) for step in (3, 4, 5)]

    resumed = make_gradient(every=every, heldout_every=heldout_every)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [resumed.update(backbone, keys._replace(step=step)) for step in (3, 4, 5)] == later
    assert torch.equal(flat(resumed.u), flat(gradient.u))


def test_u_is_the_gradient_of_the_best_heads_loss(make_gradient, backbone, examples, splits, keys):
    """Envelope theorem: on the examples it was fitted to, the head's own answer to a move has no slope.

    The head is fitted anew after every move. Labels are random: with hardly any decay it has an optimum.
    """
    generator = torch.Generator().manual_seed(0)
    many = torch.arange(336) % 112
    noise = Examples(examples.images[many], torch.randint(0, 3, (336,), generator=generator))
    gradient = make_gradient(Splits(noise, noise, splits.heldout), batch=336, l2=1e-6)
    gradient.update(backbone, keys)
    task = gradient.feedback.tasks["classes"].task
    tail = backbone.tail_parameters(2)

    def best_loss():
        features = all_features(task, backbone, "head").cls
        head = fit_logistic(features, noise.labels, 3, l2=1e-6, tolerance=1e-9)
        return F.cross_entropy(head(features).double(), noise.labels).item()

    for _ in range(3):
        move = {name: torch.randn(p.shape, generator=generator) for name, p in tail.items()}
        losses = []
        for step in (3e-4, -6e-4):
            with torch.no_grad():
                for name, parameter in tail.items():
                    parameter += step * move[name]
            losses.append(best_loss())
        with torch.no_grad():
            for name, parameter in tail.items():
                parameter += 3e-4 * move[name]
        predicted = sum((gradient.u[name] * move[name]).sum() for name in tail).item()
        assert (losses[0] - losses[1]) / 6e-4 == pytest.approx(predicted, rel=0.05, abs=2e-3)


def test_gradients_over_many_examples_are_those_of_one_pass(make_feedback, backbone, fit, monkeypatch):
    """In chunks, for several labellings of the same images at once, and in any parameters."""
    monkeypatch.setattr("vpt_vision.feedback.gradient.CHUNK", 7)
    tasks = [
        make_feedback(features="cls+mean_patch"),
        *(PermutedLabels(make_feedback(), seed) for seed in (1, 2)),
    ]
    for task in tasks:
        fit(task, backbone)
    index = torch.arange(3, 33)
    parameters = dict(backbone.vit.named_parameters())
    found = gradients_over(tasks, backbone, "meta", index, parameters)
    reference = copy.deepcopy(backbone).eval()
    for task, (loss, gradient) in zip(tasks, found, strict=True):
        reference.zero_grad()
        expected = task.loss(reference(task.images("meta", index, torch.device("cpu"))), "meta", index)
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        for name, parameter in reference.vit.named_parameters():
            torch.testing.assert_close(gradient[name], parameter.grad, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in backbone.parameters())
