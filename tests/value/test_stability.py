"""What keeps a designer from running away: paces, looks at held-out examples, cosines, and the leash."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.designers import FixedDesigner, Refined
from vpt_vision.task import RenderedViews, Renderer
from vpt_vision.value import Setting, exact_value
from vpt_vision.value.step import agreement

TEMPERATURE = 0.07


def weights(step):
    return torch.cat([parameter.detach().flatten() for parameter in step.designer.parameters()])


def run(step, images, keys, steps):
    return [step(images, keys._replace(step=number), TEMPERATURE) for number in range(steps)]


def hostile(splits):
    """The same examples with labels that say nothing of them."""
    generator = torch.Generator().manual_seed(9)
    return splits._replace(
        **{
            name: replace(split, labels=split.labels[torch.randperm(len(split), generator=generator)])
            for name, split in splits._asdict().items()
        }
    )


def test_the_pace_is_the_share_of_u_that_its_halves_agree_on(make_step, images, keys):
    for cosine, share in ((-0.5, 0.0), (0.0, 0.0), (0.25, 0.4), (1.0, 1.0), (float("nan"), 0.0)):
        torch.testing.assert_close(agreement(torch.tensor(cosine)), torch.tensor(share))
    moves = {}
    for pace in ("reliability", "full"):
        step = make_step(pace=pace)
        start = weights(step)
        report = step(images, keys, TEMPERATURE)
        moves[pace] = weights(step) - start
        expected = agreement(report["u_reliability"]) if pace == "reliability" else torch.ones(())
        torch.testing.assert_close(report["pace"], expected)
    assert 0 < expected_share(moves) < 1
    torch.testing.assert_close(
        moves["reliability"], expected_share(moves) * moves["full"], rtol=0.02, atol=1e-6
    )


def expected_share(moves):
    return (moves["reliability"].norm() / moves["full"].norm()).item()


def test_a_look_compares_meta_with_heldout(make_step, images, keys):
    step = make_step(guard={"every": 2}, burn_in=2)
    reports = run(step, images, keys, 4)
    for report in reports:
        assert {"cosine", "cosine/ibot", "heldout/value", "heldout/cosine/dino"} <= report.keys()
        assert all(-1 <= report[name] <= 1 for name in report if "cosine" in name)
    assert torch.equal(reports[0]["heldout/value"], reports[1]["heldout/value"])  # the last look stands
    assert not torch.equal(reports[1]["heldout/value"], reports[2]["heldout/value"])
    assert "guard/factor" not in reports[1] and "guard/factor" in reports[3]  # it judges after the burn-in
    assert "cosine" not in make_step(guard={"every": 0})(images, keys, TEMPERATURE)


def test_what_a_look_measures_is_what_exact_value_says(make_step, recipe, images, keys):
    """By double backward and from the definition of the cosine, for the designer's task and the recipe's."""
    step = make_step(guard={"every": 1, "looks": 3}, designer={"apart": 1.0}, learner={"ibot_weight": 0.3})
    gradient_of_heldout = {}
    ask = step.feedback_gradient.heldout
    step.feedback_gradient.heldout = lambda *args: gradient_of_heldout.update(found := ask(*args)) or found
    designer = [parameter.clone() for parameter in step.designer.parameters()]
    report = step(images, keys, TEMPERATURE)
    u, other = step.feedback_gradient.u, gradient_of_heldout["classes"]
    with torch.no_grad():
        for parameter, before in zip(step.designer.parameters(), designer, strict=True):
            parameter.copy_(before)
    step.learner.eval()
    setting = Setting(step.learner, Renderer(), images, TEMPERATURE, 2)
    tail = step.learner.student.backbone.tail_parameters(2)

    def cosines(task):
        views = Renderer()(images, task)
        losses = step.learner(views, task.masks, TEMPERATURE, task.targets)
        terms = losses.terms | {"total": losses.total}
        found = {}
        for term, loss in terms.items():
            own = torch.autograd.grad(loss, list(tail.values()), retain_graph=True, materialize_grads=True)
            flat = torch.cat([part.flatten() for part in own])
            for name, along in (("meta", u), ("heldout", other)):
                to = torch.cat([along[key].flatten() for key in tail])
                found[name, term] = F.cosine_similarity(flat, to, dim=0)
        return found

    with torch.no_grad():
        task, usual = step.designer(images, keys), FixedDesigner(recipe, 8)(images, keys)
    by_designer, by_recipe = cosines(task), cosines(usual)
    names = {"meta": "cosine", "heldout": "heldout/cosine"}
    for (split, term), expected in by_designer.items():
        name = names[split] if term == "total" else f"{names[split]}/{term}"
        torch.testing.assert_close(report[name], expected, rtol=1e-3, atol=1e-4)
    weights = step.learner.config.weights
    for split, name in (("meta", "guard/gain"), ("heldout", "guard/heldout_gain")):
        gain = sum(w * (by_designer[split, t] - by_recipe[split, t]) for t, w in weights.items())
        torch.testing.assert_close(report[name], gain / sum(weights.values()), rtol=1e-2, atol=1e-4)
    with torch.no_grad():
        values = exact_value(setting, task, Renderer()(images, task), step._preconditioned(other))
    total = sum(weights[term] * value for term, value in values.items())
    torch.testing.assert_close(report["heldout/value"], total, rtol=1e-3, atol=1e-5)


def test_value_by_cosine_is_what_is_left_of_value_without_the_lengths(make_step, images, keys):
    settings = {"burn_in": 9, "guard": {"every": 1}, "normalise": "cosine"}
    step = make_step(learner={"ibot_weight": 0.0, "koleo_weight": 0.0}, **settings)
    report = step(images, keys, TEMPERATURE)
    torch.testing.assert_close(report["objective"], report["cosine"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", ["finite_difference", "population"])
def test_value_by_cosine_moves_the_designer(make_step, images, keys, estimator):
    step = make_step(normalise="cosine", estimators={"masks": estimator, "crops": estimator})
    start = weights(step)
    report = step(images, keys, TEMPERATURE)
    assert report["designer_skipped"] == 0 and not torch.equal(start, weights(step))


def test_the_gradient_of_the_cosine_is_that_of_differences(make_step, images, keys):
    """Along the views' pixels, the task held: a leaf in place of the designer."""
    step = make_step(normalise="cosine", learner={"koleo_weight": 0.0})
    step.feedback_gradient.update(step.learner.student.backbone, keys)
    u = step.feedback_gradient.u
    step.learner.eval()
    setting = Setting(step.learner, Renderer(), images, TEMPERATURE, 2)
    with torch.no_grad():
        task = step.designer(images, keys)
        views = Renderer()(images, task)
    turn = torch.randn(views.global_views.shape, generator=torch.Generator().manual_seed(0))

    def cosine(length):
        moved = RenderedViews(views.global_views + length * turn, views.local_views)
        return step.objective.measure(setting, Refined(task, moved), u).objective

    length = torch.zeros((), requires_grad=True)
    (found,) = torch.autograd.grad(cosine(length), length)
    with torch.no_grad():
        expected = (cosine(2e-3) - cosine(-2e-3)) / 4e-3
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("estimator", ["population", "finite_difference", "score"])
def test_a_hostile_designer_stays_on_its_leash(make_step, splits, images, keys, estimator):
    """Random labels, a huge learning rate: all stays finite, masks keep their count, KL its bound."""
    step = make_step(
        designer={"learning_rate": 10.0},
        splits=hostile(splits),
        pace="full",
        leash={"kl_bound": 0.5, "kl_target": 0.2, "entropy_floor": 1.0},
        estimators={"crops": estimator, "photometrics": estimator, "masks": estimator},
    )
    for number in range(6):
        there = keys._replace(step=number)
        report = step(images, there, TEMPERATURE)
        assert all(value.isfinite() for value in report.values())
        with torch.no_grad():
            kl = sum(kl.mean() for kl in step.designer.policy(images).kl().values())
            torch.testing.assert_close(report["leash/kl"], kl)
            assert kl <= 0.5 * (1 + 1e-5)
            task = step.designer(images, there)
            counts = step.designer.laws.mask_ratio.draw(there, None, torch.device("cpu"))
            assert torch.equal(task.masks.hidden.sum(-1), counts.each)
            views = Renderer()(images, task)
            losses = step.learner(views, task.masks, TEMPERATURE, task.targets)
        assert losses.total.isfinite()
    assert report["leash/share"] < 1


def test_a_step_that_overflows_the_network_is_taken_back(make_step, images, keys):
    step = make_step(designer={"learning_rate": 1e30}, pace="full")
    before = weights(step)
    for number in range(3):
        report = step(images, keys._replace(step=number), TEMPERATURE)
        assert report["designer_skipped"] == 1 and torch.equal(before, weights(step))
