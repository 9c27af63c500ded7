"""Real steps of a copy of the learner, against a loop written out here and against one step's value."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.errors import UserError
from vpt_vision.feedback import evaluating, inner
from vpt_vision.training.optimiser import LearnerOptimiser, OptimiserConfig
from vpt_vision.training.schedules import ScheduledValues
from vpt_vision.value import Occasion, Rollout, RunningScale, population, rollout
from vpt_vision.value.gradient import pretraining_gradients

TEMPERATURE = 0.07
CROPS = frozenset({"crops"})
BETAS, CLIP = (0.8, 0.9), 0.5
SCHEDULED = ScheduledValues(
    learning_rate=3e-3,
    weight_decay=0.3,
    momentum=0.9,
    teacher_temperature=TEMPERATURE,
    prototypes_frozen=False,
    backbone_frozen=False,
)


def warmed(learner):
    """An optimiser with moments, as after some training."""
    config = OptimiserConfig(betas=BETAS, clip_gradient=CLIP, layer_decay=1, patch_embed_multiplier=1)
    optimiser = LearnerOptimiser(learner, config)
    for number in range(2):
        loss = [((number + 1) * p.square() + p).sum() for p in learner.student.parameters()]
        optimiser.step(torch.stack(loss).sum(), SCHEDULED)
    optimiser.adamw.zero_grad(set_to_none=True)
    return optimiser


@pytest.fixture
def downstream(images):
    """A smooth function of a backbone, whose gradient in its weights is dense."""
    generator = torch.Generator().manual_seed(5)
    shown = torch.randn(3, 3, 32, 32, generator=generator)

    def loss(backbone):
        with evaluating(backbone):
            features = backbone(shown.to(backbone.mask_token.dtype))
        return features.cls.sin().sum() + features.patches.square().mean()

    return loss


def occasion_of(designer, images, keys, judge, fall):
    features = designer.features(images)
    outputs = {name: o.detach().requires_grad_() for name, o in designer.outputs(features).items()}
    return Occasion(
        designer, images, keys, features, outputs, designer.policy_of(images, outputs), judge, fall
    )


def gradient(scalar, occasion):
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(scalar, [occasion.outputs[n] for n in occasion.outputs])]
    )


def unrolled(learner, optimiser, setting, policy, keys, downstream, steps):
    """The fall by a loop of its own: AdamW, clipping and the teacher by formula."""
    before = downstream(learner.student.backbone).detach()
    learner = copy.deepcopy(learner).train()
    names = [name for name, _ in learner.student.named_parameters()]
    group_of = {id(p): group for group in optimiser.adamw.param_groups for p in group["params"]}
    original = dict(setting.learner.student.named_parameters())
    first, second, count = {}, {}, {}
    for name in names:
        state = optimiser.adamw.state[original[name]]
        first[name], second[name] = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
        count[name] = float(state["step"])
    for step in range(keys.step, keys.step + steps):
        torch.manual_seed((keys.seed << 32) + step)
        task = policy.sample(keys._replace(step=step)).detach()
        views = setting.renderer(setting.images, task)
        loss = learner(views, task.masks, TEMPERATURE, task.targets).total
        weights = dict(learner.student.named_parameters())
        gradients = dict(zip(names, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        with torch.no_grad():
            for name, weight in weights.items():
                g = gradients[name] * min(1.0, CLIP / (float(norm) + 1e-6))
                count[name] += 1
                first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * g
                second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * g**2
                group = group_of[id(original[name])]
                m = first[name] / (1 - BETAS[0] ** count[name])
                v = second[name] / (1 - BETAS[1] ** count[name])
                weight *= 1 - group["lr"] * group["weight_decay"]
                weight -= group["lr"] * m / (v.sqrt() + 1e-8)
            for ours, theirs in zip(learner.teacher.parameters(), weights.values(), strict=True):
                ours.copy_(0.9 * ours + 0.1 * theirs)
    return before - downstream(learner.student.backbone).detach()


@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
def test_it_is_an_unrolled_loop_by_hand(
    make_learner, make_setting, make_designer, images, keys, downstream, centring
):
    learner, designer = make_learner(centring=centring).double(), make_designer(surfaces=["crops"])
    optimiser, setting = warmed(learner), make_setting(learner)
    before = downstream(learner.student.backbone).detach()
    fall = Rollout(setting, designer, keys, optimiser, downstream, before, steps=3)
    occasion = occasion_of(designer, images, keys, None, fall)

    asked, policy_of = [], designer.policy_of
    designer.policy_of = lambda *args: asked.append(policy_of(*args)) or asked[-1]
    found = gradient(rollout(occasion, CROPS, pairs=1, sigma=0.5, scale=None), occasion)
    plus, minus = [unrolled(learner, optimiser, setting, policy, keys, downstream, 3) for policy in asked[:2]]
    torch.testing.assert_close(fall(asked[0]).detach(), plus, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fall(asked[1]).detach(), minus, rtol=1e-7, atol=1e-9)
    assert abs(plus - minus) > 1e-5  # the policies differ in what they bring
    # The search is that difference along the directions of `population`, with the same keys.
    falls = iter([plus, minus])
    occasion = occasion_of(designer, images, keys, lambda task: next(falls), None)
    expected = gradient(population(occasion, CROPS, pairs=1, sigma=0.5), occasion)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


class SmallSteps:
    """A plain gradient step on the last blocks alone, so small that first order is all there is to it."""

    rate = 1e-6

    def again(self, learner, loss):
        tail = list(learner.student.backbone.tail_parameters(2).values())
        for parameter, g in zip(tail, torch.autograd.grad(loss, tail), strict=True):
            parameter.data -= self.rate * g


def test_one_small_plain_step_is_value(make_learner, make_setting, make_designer, images, keys, downstream):
    learner, designer = make_learner().double(), make_designer(surfaces=["crops"])
    for part in learner.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0  # value is measured without stochastic depth
    setting = make_setting(learner)
    loss = downstream(learner.student.backbone)
    tail = learner.student.backbone.tail_parameters(2)
    u = dict(zip(tail, torch.autograd.grad(loss, list(tail.values())), strict=True))

    def value(task):
        terms = pretraining_gradients(setting, task, setting.renderer(images, task))
        return sum(learner.config.weights[term] * inner(u, part) for term, part in terms.items())

    fall = Rollout(setting, designer, keys, SmallSteps(), downstream, loss.detach(), steps=1)
    occasion = occasion_of(designer, images, keys, value, fall)
    of_value = gradient(population(occasion, CROPS, pairs=4, sigma=0.5), occasion)
    of_steps = gradient(rollout(occasion, CROPS, pairs=4, sigma=0.5, scale=None), occasion)
    assert F.cosine_similarity(of_value, of_steps.to(of_value.dtype), dim=0) > 0.999
    torch.testing.assert_close(of_steps / SmallSteps.rate, of_value, rtol=1e-2, atol=1e-2 * of_value.std())
    scaled = gradient(rollout(occasion, CROPS, pairs=4, sigma=0.5, scale=RunningScale(0.9)), occasion)
    assert F.cosine_similarity(scaled, of_steps, dim=0) > 0.999
    assert scaled.norm() > 100 * of_steps.norm()  # the rate is divided out


ROLLOUT = {"estimators": {"crops": "rollout"}, "rollout": {"steps": 2}}


def test_nothing_reaches_the_learner_or_its_optimiser(make_step, images, keys, snapshot, assert_same):
    step = make_step(
        learner={"centring": "ema"}, designer={"surfaces": ["crops"]}, make_update=warmed, **ROLLOUT
    )
    for number, parameter in enumerate(step.learner.parameters()):
        parameter.grad = None if number % 2 else torch.ones_like(parameter)
    adamw = step.learner_update.adamw
    moments = copy.deepcopy(adamw.state_dict())
    before, random = snapshot(step.learner), torch.get_rng_state()
    designer = [parameter.clone() for parameter in step.designer.parameters()]
    report = step(images, keys, TEMPERATURE)
    assert_same(before, snapshot(step.learner))
    assert torch.equal(random, torch.get_rng_state())
    for then, now in zip(moments["state"].values(), adamw.state_dict()["state"].values(), strict=True):
        assert_same(then, now)
    assert moments["param_groups"] == adamw.state_dict()["param_groups"]
    assert any(not torch.equal(*pair) for pair in zip(designer, step.designer.parameters(), strict=True))
    assert report["designer_skipped"] == 0
    # What is left is all that the next call depends on.
    other = make_step(
        learner={"centring": "ema"}, designer={"surfaces": ["crops"]}, make_update=warmed, **ROLLOUT
    )
    other.designer.load_state_dict(step.designer.state_dict())
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    later = keys._replace(step=keys.step + 1)
    assert_same(step(images, later, TEMPERATURE), other(images, later, TEMPERATURE))
    assert_same(step.designer.state_dict(), other.designer.state_dict())


def test_what_it_needs_is_said(make_step):
    with pytest.raises(UserError, match="learner's update"):
        make_step(designer={"surfaces": ["crops"]}, **ROLLOUT)
    with pytest.raises(UserError, match="random"):
        make_step(designer={"surfaces": ["crops"]}, make_update=warmed, direction="random", **ROLLOUT)
