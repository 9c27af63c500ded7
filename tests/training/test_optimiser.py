import pytest
import torch

from vpt_vision.learner import Learner, LearnerConfig
from vpt_vision.training.optimiser import LearnerOptimiser, OptimiserConfig
from vpt_vision.training.schedules import ScheduledValues

SCHEDULED = ScheduledValues(
    learning_rate=0.1,
    weight_decay=0.3,
    momentum=0.9,
    teacher_temperature=0.04,
    prototypes_frozen=False,
    backbone_frozen=False,
)


@pytest.fixture
def learner(tiny_settings):
    torch.manual_seed(0)
    return Learner(LearnerConfig.model_validate(tiny_settings["learner"]))


def a_loss(learner):
    """Something that every parameter of the student has a gradient of."""
    return torch.stack([p.square().sum() + p.sum() for p in learner.student.parameters()]).sum()


def settings_of(learner, optimiser):
    group_of = {p: group for group in optimiser.adamw.param_groups for p in group["params"]}
    return {
        name: (group_of[p]["lr"], group_of[p]["weight_decay"])
        for name, p in learner.student.named_parameters()
    }


def test_learning_rate_falls_from_block_to_block_and_vectors_do_not_decay(learner):
    optimiser = LearnerOptimiser(learner, OptimiserConfig(layer_decay=0.5, patch_embed_multiplier=0.2))
    optimiser.step(a_loss(learner), SCHEDULED)
    got = settings_of(learner, optimiser)
    weights = {f"backbone.vit.blocks.{i}.mlp.fc1.weight": (0.1 * 0.5 ** (3 - i), 0.3) for i in range(3)}
    others = {
        "backbone.vit.blocks.0.mlp.fc1.bias": (0.1 * 0.125, 0.0),
        "backbone.vit.blocks.1.norm1.weight": (0.1 * 0.25, 0.0),
        "backbone.vit.patch_embed.proj.weight": (0.1 * 0.0625 * 0.2, 0.3),
        "backbone.vit.pos_embed": (0.1 * 0.0625, 0.0),
        "backbone.vit.cls_token": (0.1 * 0.0625, 0.0),
        "backbone.mask_token": (0.1 * 0.0625, 0.0),
        "backbone.vit.norm.weight": (0.1, 0.0),
        "cls_head.prototypes": (0.1, 0.3),
        "cls_head.mlp.0.bias": (0.1, 0.0),
    }
    for name, expected in {**weights, **others}.items():
        assert got[name] == pytest.approx(expected), name


def changed(before, learner):
    return {name for name, p in learner.student.named_parameters() if not torch.equal(before[name], p)}


def snapshot(learner):
    return {name: p.detach().clone() for name, p in learner.student.named_parameters()}


def test_frozen_parts_stay_and_all_else_moves(learner):
    optimiser = LearnerOptimiser(learner, OptimiserConfig())
    every = set(snapshot(learner))
    prototypes = {name for name in every if name.endswith("prototypes")}
    backbone = {name for name in every if name.startswith("backbone.")}
    for frozen, flags in (
        (prototypes, {"prototypes_frozen": True}),
        (backbone, {"backbone_frozen": True}),
        (set(), {}),
    ):
        before = snapshot(learner)
        optimiser.step(a_loss(learner), SCHEDULED._replace(**flags))
        assert changed(before, learner) == every - frozen


def test_one_step_is_torchs_adamw_with_the_gradient_clipped(learner):
    before = snapshot(learner)
    config = OptimiserConfig(layer_decay=1, patch_embed_multiplier=1, clip_gradient=0.5, betas=(0.8, 0.9))
    report = LearnerOptimiser(learner, config).step(a_loss(learner), SCHEDULED)
    gradient = {name: 2 * p.double() + 1 for name, p in before.items()}
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
    torch.testing.assert_close(report["gradient_norm"].double(), norm, rtol=1e-5, atol=0)
    for name, p in learner.student.named_parameters():
        clipped = gradient[name] * 0.5 / norm
        decay = 0.3 if p.ndim > 1 and not name.endswith(("_token", "pos_embed")) else 0.0
        # the first step of Adam: both moments' bias corrections cancel their decay rates
        expected = before[name].double() * (1 - 0.1 * decay) - 0.1 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(p.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_skipped_and_the_next_step_is_as_if_it_had_not_been(learner, bad):
    optimiser = LearnerOptimiser(learner, OptimiserConfig())
    optimiser.step(a_loss(learner), SCHEDULED)
    before = snapshot(learner)
    counts = [state["step"].clone() for state in optimiser.adamw.state.values()]
    assert optimiser.step(a_loss(learner) * bad, SCHEDULED)["skipped"] == 1
    assert changed(before, learner) == set()
    assert counts == [state["step"] for state in optimiser.adamw.state.values()]
    assert optimiser.step(a_loss(learner), SCHEDULED)["skipped"] == 0
    assert changed(before, learner) == set(before)
