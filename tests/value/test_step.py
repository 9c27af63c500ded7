import io

import pytest
import torch

from vpt_kernels import PackedImages
from vpt_vision.designers import FixedDesigner
from vpt_vision.errors import UserError
from vpt_vision.feedback import Examples
from vpt_vision.value import ValueConfig, ValueStep
from vpt_vision.value.leash import LeashConfig

TEMPERATURE = 0.07


def weights(step):
    return torch.cat([parameter.detach().flatten() for parameter in step.designer.parameters()])


def run(step, images, keys, steps):
    return [step(images, keys._replace(step=number), TEMPERATURE) for number in range(steps)]


@pytest.mark.parametrize("estimator", ["finite_difference", "exact"])
def test_nothing_reaches_the_learner(make_step, images, keys, snapshot, assert_same, estimator):
    step = make_step(learner={"centring": "ema"}, estimators={"masks": estimator})
    for number, parameter in enumerate(step.learner.parameters()):
        parameter.grad = None if number % 2 else torch.ones_like(parameter)
    before, random, designer = snapshot(step.learner), torch.get_rng_state(), weights(step)
    report = step(images, keys, TEMPERATURE)
    assert_same(before, snapshot(step.learner))
    assert torch.equal(random, torch.get_rng_state())
    assert not torch.equal(designer, weights(step))
    assert all(parameter.grad is None for parameter in step.designer.parameters())
    assert all(value.ndim == 0 and value.isfinite() and not value.requires_grad for value in report.values())


def test_reports_value_of_the_whole_and_of_each_term(make_step, images, keys):
    step = make_step(learner={"koleo_weight": 0.5, "ibot_weight": 2.0})
    report = step(images, keys, TEMPERATURE)
    expected = report["value/dino"] + 2 * report["value/ibot"] + 0.5 * report["value/koleo"]
    torch.testing.assert_close(report["value"], expected)
    # At the first step each term's size is its own: what remains is weight times sign.
    signs = sum(w * report[f"value/{term}"].sign() for term, w in step.learner.config.weights.items())
    torch.testing.assert_close(report["objective"], signs)
    raw = make_step(learner={"koleo_weight": 0.5, "ibot_weight": 2.0}, normalise="none")
    torch.testing.assert_close(raw(images, keys, TEMPERATURE)["objective"], expected)
    told = {"meta_loss", "heldout_loss", "u_norm", "u_reliability", "kl/crops", "kl/photometrics", "kl/masks"}
    assert told <= report.keys() and any(name.startswith("policy/") for name in report)
    assert step.latest is report


def test_value_is_that_of_the_learners_own_task(make_step, images, keys):
    """The images of the learner's step decide what is measured, and `batch` how many of them."""
    step = make_step(batch=4, burn_in=100)
    first = step(images, keys, TEMPERATURE)["value"]
    step = make_step(batch=4, burn_in=100)
    other = PackedImages.pack([image if number < 4 else image * 0 for number, image in enumerate(images)])
    assert torch.equal(first, step(other, keys, TEMPERATURE)["value"])
    other = PackedImages.pack([image if number < 3 else image * 0 for number, image in enumerate(images)])
    step = make_step(batch=4, burn_in=100)
    assert not torch.equal(first, step(other, keys, TEMPERATURE)["value"])


@pytest.mark.parametrize(("split", "decides"), [("head", True), ("meta", True), ("heldout", False)])
def test_which_labels_shape_the_designer(make_step, splits, images, keys, split, decides):
    clean = getattr(splits, split)
    poisoned = splits._replace(**{split: Examples(clean.images, (clean.labels + 1) % 3)})
    first, second = make_step(), make_step(splits=poisoned)
    run(first, images, keys, 2)
    run(second, images, keys, 2)
    assert torch.equal(weights(first), weights(second)) != decides
    if split == "heldout":
        assert first.latest["heldout_loss"] != second.latest["heldout_loss"]


def test_the_designer_rests_in_the_burn_in_and_at_learning_rate_0(make_step, images, keys):
    step = make_step(burn_in=2)
    start = weights(step)
    reports = run(step, images, keys, 3)
    assert ["designer_gradient_norm" in report for report in reports] == [False, False, True]
    step = make_step(burn_in=2)
    run(step, images, keys, 2)
    assert torch.equal(start, weights(step))
    resting = make_step(designer={"learning_rate": 0.0})
    run(resting, images, keys, 2)
    assert torch.equal(start, weights(resting))


@pytest.mark.parametrize("surfaces", [["masks"], ["crops"], ["photometrics"], ["mask_ratio"], ["targets"]])
def test_surfaces_work_alone(make_step, images, keys, surfaces):
    step = make_step(designer={"surfaces": surfaces, "kl_weight": 0.0}, pairs=2)
    start = {name: parameter.clone() for name, parameter in step.designer.named_parameters()}
    report = step(images, keys, TEMPERATURE)
    moved = {name for name, parameter in step.designer.named_parameters() if (parameter != start[name]).any()}
    assert {name for name in moved if name.startswith("heads.")} == {
        f"heads.{head}.{part}" for head in step.designer.heads for part in ("weight", "bias")
    }
    assert any(name.startswith("network.") for name in moved)  # the gradient reaches the whole network
    assert {name for name in report if name.startswith("kl/")} == {f"kl/{surfaces[0]}"}


def test_the_designer_of_masks_climbs(make_step, images, keys):
    """Over and over on one batch of a learner that stands still, value rises: the signs are right."""
    settings = {"surfaces": ["masks"], "kl_weight": 0.0, "learning_rate": 0.05}
    step = make_step(designer=settings, normalise="none")
    values = torch.stack([step(images, keys, TEMPERATURE)["value"] for _ in range(10)])
    assert values[0] > 0 and values[-4:].mean() > 1.1 * values[0]


def test_the_designer_of_crops_climbs(make_step, images, keys):
    """Population search with a known goal: on mean area in place of value, crops grow."""

    def areas(learning_rate):
        settings = {"surfaces": ["crops"], "kl_weight": 0.0, "learning_rate": learning_rate}
        step = make_step(designer=settings, normalise="none", pairs=2)
        step.objective._values = lambda setting, refined, u: {
            "dino": refined.task.global_views.boxes[..., 2:].prod(-1).mean() / 1600
        }
        return torch.stack([report["value"] for report in run(step, images, keys, 8)])

    assert (areas(0.1) - areas(0.0))[-3:].mean() > 0.05


def test_the_price_of_kl_draws_the_designer_back(make_step, images, keys):
    settings = {"apart": 0.3, "kl_weight": 1e4, "learning_rate": 0.02}
    reports = run(make_step(designer=settings), images, keys, 6)
    for surface in ("crops", "photometrics", "masks"):
        assert reports[-1][f"kl/{surface}"] < 0.8 * reports[0][f"kl/{surface}"]


def test_a_designer_of_ones_own_may_price_kl_too(make_step, images, keys):
    learned = make_step(designer={"apart": 0.3, "kl_weight": 0.0})
    learned.designer.kl_weight = 0.7

    def step(**leash):
        return ValueStep(
            learned.config.model_copy(update={"leash": LeashConfig(**leash)}),
            learner=learned.learner,
            designer=learned.designer,
            renderer=learned.renderer,
            feedback=learned.feedback_gradient.feedback,
        )

    assert step()(images, keys, TEMPERATURE)["leash/kl_weight"] == pytest.approx(0.7)
    held = step(kl_target=1e-3)
    assert run(held, images, keys, 2)[-1]["leash/kl_weight"] > 0.7
    learned.designer.kl_weight = 0.0
    with pytest.raises(UserError, match="has it as an attribute, kl_weight"):
        step(kl_target=1e-3)


def test_a_fixed_recipe_is_measured_and_left_alone(make_step, recipe, images, keys):
    learned = make_step(designer={"apart": 0.0})
    fixed = ValueStep(
        learned.config,
        learner=learned.learner,
        designer=FixedDesigner(recipe, 8),
        renderer=learned.renderer,
        feedback=learned.feedback_gradient.feedback,
    )
    report = fixed(images, keys, TEMPERATURE)
    assert "designer_gradient_norm" not in report and not any(name.startswith("kl/") for name in report)
    # A learned designer starts at the recipe: the same task, the same value.
    torch.testing.assert_close(
        report["value"], learned(images, keys, TEMPERATURE)["value"], rtol=1e-2, atol=1e-3
    )
    fixed.load_state_dict(fixed.state_dict())


def test_a_value_that_is_not_finite_moves_nothing(make_step, images, keys):
    step = make_step()
    run(step, images, keys, 1)
    before = weights(step)
    moments = [state["exp_avg"].clone() for state in step.optimiser.state.values()]
    honest = step.objective._values
    step.objective._values = lambda *args: {
        term: value * float("nan") for term, value in honest(*args).items()
    }
    assert step(images, keys, TEMPERATURE)["designer_skipped"] == 1
    assert torch.equal(before, weights(step))
    after = [state["exp_avg"] for state in step.optimiser.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    step.objective._values = honest
    assert step(images, keys, TEMPERATURE)["designer_skipped"] == 0
    assert not torch.equal(before, weights(step))


def test_autocast_around_it_changes_nothing(make_step, images, keys):
    plain, cast = make_step(), make_step()
    plain(images, keys, TEMPERATURE)
    with torch.autocast("cpu", torch.bfloat16):
        cast(images, keys, TEMPERATURE)
    assert torch.equal(weights(plain), weights(cast))


def test_due_every_so_many_steps(make_step):
    step = make_step(every=3)
    assert [number for number in range(8) if step.due(number)] == [0, 3, 6]
    step = make_step(every=3, since=2, until=8)
    assert [number for number in range(12) if step.due(number)] == [2, 5]


def test_resuming_is_exact(make_step, images, keys):
    settings = {"designer": {"learning_rate": 0.05}}
    undisturbed = make_step(**settings)
    run(undisturbed, images, keys, 2)
    file = io.BytesIO()
    torch.save({"value": undisturbed.state_dict(), "designer": undisturbed.designer.state_dict()}, file)
    file.seek(0)

    resumed = make_step(**settings)
    state = torch.load(file, weights_only=True)
    resumed.designer.load_state_dict(state["designer"])
    resumed.load_state_dict(state["value"])
    assert resumed.latest == undisturbed.latest
    for number in (2, 3):
        expected = undisturbed(images, keys._replace(step=number), TEMPERATURE)
        assert resumed(images, keys._replace(step=number), TEMPERATURE) == expected
    assert torch.equal(weights(resumed), weights(undisturbed))


def test_repeats_are_steps_on_other_images_by_other_random_numbers(make_step, images, keys):
    """Three repeats at one learner are three value steps whose u is the first one's."""
    seen = [(images, keys.samples), (images[2:6], keys.samples[2:6] + 100), (images[:5], keys.samples[:5])]
    shared = {"normalise": "none", "pace": "full", "every": 4}
    settings = {"designer": {"surfaces": ["crops"], "learning_rate": 0.05}, **shared}
    once = make_step(**settings)
    start = weights(once)
    report = once(images, keys, TEMPERATURE)
    thrice = make_step(**settings, repeats=3)
    first, u = thrice(images, keys, TEMPERATURE, seen[1:]), thrice.feedback_gradient.u
    assert torch.equal(report["value"], first["value"])  # told of the policy before it moved
    law = thrice.designer.policy(seen[-1][0])
    torch.testing.assert_close(first["kl/crops"], law.kl()["crops"].mean())  # told of the one after
    held = make_step(**settings)
    held.feedback_gradient.update(held.learner.student.backbone, keys)
    held.feedback_gradient.update = lambda backbone, keys: dict(once.feedback_gradient.latest)
    for number, (those, samples) in enumerate(seen):
        held(those, keys._replace(step=keys.step + number, samples=samples), TEMPERATURE)
    assert all(torch.equal(u[name], value) for name, value in held.feedback_gradient.u.items())
    torch.testing.assert_close(weights(thrice), weights(held))
    assert not torch.equal(weights(once), weights(thrice)) and not torch.equal(start, weights(once))
    with pytest.raises(UserError, match="images for 2 of them were given"):
        make_step(**settings, repeats=3)(images, keys, TEMPERATURE, seen[1:2])
    for surface, estimator in (("masks", "finite_difference"), ("crops", "rollout")):
        told = {"designer": {"surfaces": [surface]}, "estimators": {surface: estimator}}
        with pytest.raises(UserError, match="only these searches repeat"):
            make_step(**told, every=4, repeats=2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"until": 8, "burn_in": 8}, "set until to 9 or more"),
        ({"every": 8, "burn_in": 1, "until": 8}, "set until to 9 or more"),
        ({"every": 8, "since": 20, "until": 20}, "set until to 21 or more"),
        ({"every": 8, "since": 20, "burn_in": 21, "until": 28}, "set until to 29 or more"),
        ({"every": 8, "since": 20, "repeats": 9, "until": 29}, "raise every or lower repeats"),
        ({"every": 8, "repeats": 9}, "raise every or lower repeats"),
        ({"every": 8, "repeats": 9, "until": 9}, "raise every or lower repeats"),
    ],
)
def test_times_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ValueConfig(**settings)
    ValueConfig(every=8, burn_in=1, until=9, repeats=60)
    ValueConfig(every=8, until=8, repeats=60)
    ValueConfig(every=8, since=20, until=28, repeats=60)


def test_terms_choose_what_is_climbed(make_step, images, keys):
    step = make_step(learner={"koleo_weight": 0.5}, terms={"koleo": 2.0}, normalise="none")
    report = step(images, keys, TEMPERATURE)
    torch.testing.assert_close(report["objective"], 2 * report["value/koleo"])
    torch.testing.assert_close(report["value"], 2 * report["value/koleo"])
    by_cosine = make_step(
        learner={"koleo_weight": 0.5}, terms={"koleo": 2.0}, normalise="cosine", guard={"every": 1}
    )
    report = by_cosine(images, keys, TEMPERATURE)
    torch.testing.assert_close(report["objective"], 2 * report["cosine/koleo"])
    torch.testing.assert_close(report["cosine"], report["cosine/koleo"])
    for terms, says in (({"dinov": 1.0}, "names 'dinov'"), ({"dino": 0.0}, "weighs no loss term above 0")):
        with pytest.raises(UserError, match=says):
            make_step(terms=terms)


def test_a_designer_whose_refinement_learns_cannot_repeat(make_step, images, keys):
    """It is told before the designer moves."""
    step = make_step(designer={"surfaces": ["crops"]}, every=4, repeats=2)
    refine, start = step.designer.refine, weights(step)
    step.designer.refine = lambda *task: refine(*task)._replace(penalties={"own": torch.zeros(())})
    with pytest.raises(UserError, match="a gradient or a penalty of its own"):
        step(images, keys, TEMPERATURE)
    assert torch.equal(start, weights(step))


def test_a_skipped_repeat_is_told(make_step, images, keys):
    step = make_step(designer={"surfaces": ["crops"]}, every=4, repeats=3)
    taken = []
    search = step._search_goal

    def broken_once(*occasion):
        taken.append(1)
        return search(*occasion) * (float("nan") if len(taken) == 2 else 1.0)

    step._search_goal = broken_once
    report = step(images, keys, TEMPERATURE, [(images, keys.samples)] * 2)
    assert len(taken) == 3 and report["designer_skipped"] == 1 and weights(step).isfinite().all()


def test_a_term_without_weight_may_be_what_it_will(make_step, images, keys):
    step = make_step(designer={"surfaces": ["crops"]}, terms={"dino": 1.0}, normalise="none")
    measure = step.objective._values
    step.objective._values = lambda *task: measure(*task) | {"ibot": torch.tensor(float("nan"))}
    report = step(images, keys, TEMPERATURE)
    assert report["objective"].isfinite() and report["designer_skipped"] == 0
