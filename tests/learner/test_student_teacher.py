"""The learner against a recomputation that takes one view, one pair and one token at a time, in fp64."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpt_vision.learner import BackboneConfig, HeadConfig, Learner, LearnerConfig
from vpt_vision.learner.scores import Scores
from vpt_vision.task import Masks, RenderedViews, Targets

Batch = tuple[RenderedViews, Masks]
MakeLearner = Callable[..., Learner]


def relax(masks: Masks) -> tuple[Masks, Tensor]:
    shares = masks.hidden.double().requires_grad_()
    return replace(masks, relaxed=shares), shares


def aim(masks: Masks) -> Targets:
    """Targets far from neutral, of every kind."""
    generator = torch.Generator().manual_seed(4)

    def positive(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5

    hidden = masks.hidden.double()
    tokens = positive(*hidden.shape)
    count, mass = hidden.sum(-1, keepdim=True), (tokens * hidden).sum(-1, keepdim=True)
    samples = positive(hidden.shape[1])
    return Targets(
        token_weights=torch.where(count > 0, tokens * count / mass, tokens),
        sample_weights=samples / samples.mean(),
        temperature=positive(hidden.shape[1]),
        mix=positive(3, hidden.shape[1]),
    )


def balanced(logits: Tensor, temperature: Tensor) -> Tensor:
    q = torch.exp(logits / temperature[:, None])
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * len(q)


def outright(scores: Scores) -> Tensor:
    if scores.prototypes is None:
        return scores.rows
    return scores.rows @ (scores.prototypes / scores.prototypes.norm(dim=1, keepdim=True)).T


def term_by_term(
    learner: Learner, views: RenderedViews, masks: Masks, temperature: float, targets: Targets | None
) -> dict[str, Tensor]:
    globals_, batch = masks.hidden.shape[:2]
    weights = {"dino": torch.ones(batch), "ibot": torch.ones(batch), "gram": torch.ones(batch)}
    token_weights, sharpness = torch.ones(masks.hidden.shape), torch.ones(batch).double()
    if targets is not None:
        token_weights, sharpness = targets.token_weights, targets.temperature
        for sample in range(batch):
            odds = dict(zip(("dino", "ibot", "gram"), targets.mix[:, sample].tolist(), strict=True))
            kept = sum(learner.weights[term] for term in odds)
            mass = sum(learner.weights[term] * factor for term, factor in odds.items())
            for term, factor in odds.items():
                weights[term][sample] = targets.sample_weights[sample] * factor * kept / mass
    student, teacher = learner.student, learner.teacher

    def patch_logits(network: torch.nn.Module, features: Tensor) -> Tensor:
        return outright((network.patch_head or network.cls_head)(features))

    teacher_cls, teacher_patches = [], []
    student_cls: dict[tuple[int, int], Tensor] = {}
    student_patches, shares, global_cls, gram, patch_sharpness = [], [], [], [], []
    for view in range(globals_):
        for sample in range(batch):
            image = views.global_views[view, sample][None]
            hidden = masks.hidden[view, sample]
            seen = teacher.backbone(image)
            answered = student.backbone(image, hidden[None])
            teacher_cls.append(outright(teacher.cls_head(seen.cls))[0])
            teacher_patches.append(patch_logits(teacher, seen.patches[0, hidden]))
            student_cls[view, sample] = outright(student.cls_head(answered.cls))[0]
            student_patches.append(patch_logits(student, answered.patches[0, hidden]))
            shares += (weights["ibot"][sample] * token_weights[view, sample, hidden] / hidden.sum()).tolist()
            patch_sharpness += [sharpness[sample]] * int(hidden.sum())
            global_cls.append(answered.cls[0])
            if learner.anchor is not None:
                own = torch.nn.functional.normalize(answered.patches[0], dim=-1)
                held = torch.nn.functional.normalize(learner.anchor(image).patches[0], dim=-1)
                gram.append(weights["gram"][sample] * (own @ own.T - held @ held.T).square().mean())
    for view in range(len(views.local_views)):
        for sample in range(batch):
            answered = student.backbone(views.local_views[view, sample][None])
            student_cls[globals_ + view, sample] = outright(student.cls_head(answered.cls))[0]

    def soft(logits: Tensor, centre: Tensor | None, factor: Tensor) -> Tensor:
        if centre is None:
            return balanced(logits, temperature * factor)
        return torch.softmax(logits / temperature / factor[:, None] - centre / temperature, dim=1)

    ema = learner.config.centring == "ema"
    of_views = sharpness.repeat(globals_)
    q_cls = soft(torch.stack(teacher_cls), learner.cls_centre.value if ema else None, of_views)
    of_patches = torch.stack(patch_sharpness)
    q_patches = soft(torch.cat(teacher_patches), learner.patch_centre.value if ema else None, of_patches)
    log_p_patches = torch.log_softmax(torch.cat(student_patches) / 0.1, dim=1)
    pairs = [
        -weights["dino"][sample]
        * (q_cls[view * batch + sample] * torch.log_softmax(logits / 0.1, dim=0)).sum()
        for (other, sample), logits in student_cls.items()
        for view in range(globals_)
        if view != other
    ]
    entropies = -(q_patches * log_p_patches).sum(1)
    terms = {
        "dino": torch.stack(pairs).mean(),
        "ibot": (entropies * torch.tensor(shares)).sum() / (globals_ * batch),
        "koleo": torch.zeros(()).double(),
    }
    for view in range(globals_):
        rows = torch.stack(global_cls[view * batch : (view + 1) * batch])
        distances = torch.cdist(*[torch.nn.functional.normalize(rows, dim=1)] * 2)
        distances = distances + torch.diag(torch.full((batch,), torch.inf))
        terms["koleo"] = terms["koleo"] - torch.log(distances.min(1).values).mean()
    if gram:
        terms["gram"] = torch.stack(gram).mean()
    return terms


@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("aimed", [False, True])
@pytest.mark.parametrize("store_scores", [False, True])
def test_terms_equal_those_taken_one_by_one(
    make_learner: MakeLearner, batch: Batch, centring: str, shared: bool, aimed: bool, store_scores: bool
) -> None:
    weights = {"dino_weight": 0.7, "ibot_weight": 1.3, "koleo_weight": 0.2, "gram_weight": 2.0}
    learner = make_learner(centring=centring, shared=shared, store_scores=store_scores, **weights)
    if learner.cls_centre is not None and learner.patch_centre is not None:
        learner.cls_centre.value.normal_()
        learner.patch_centre.value.normal_()
    targets = aim(batch[1]) if aimed else None
    losses = learner(*batch, 0.05, targets or Targets())
    with torch.no_grad():
        expected = term_by_term(learner, *batch, 0.05, targets)
    assert losses.terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(losses.terms[term], value, atol=1e-6, rtol=1e-6)
    total = sum(weights[f"{term}_weight"] * value for term, value in expected.items())
    torch.testing.assert_close(losses.total, total, atol=1e-6, rtol=1e-6)
    for term, per_sample in losses.per_sample.items():
        assert per_sample.shape == (4,)
        torch.testing.assert_close(per_sample.mean(), losses.terms[term])


@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
@pytest.mark.parametrize("store_scores", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_neutral_targets_change_no_bit(
    make_learner: MakeLearner, batch: Batch, centring: str, store_scores: bool, dense: bool
) -> None:
    learner = make_learner(centring=centring, store_scores=store_scores, gram_weight=0.7).float()
    views = RenderedViews(*(view.float() for view in batch[0][:2]))
    masks = replace(batch[1], relaxed=batch[1].hidden.float()) if dense else batch[1]
    globals_, samples, tokens = masks.hidden.shape
    neutral = Targets(
        torch.ones(globals_, samples, tokens),
        torch.ones(samples),
        torch.ones(samples),
        torch.ones(3, samples),
    )
    found = []
    for targets in (Targets(), neutral):
        losses = learner(views, masks, 0.07, targets)
        gradients = torch.autograd.grad(losses.total, list(learner.student.parameters()), allow_unused=True)
        found.append([losses.total, *losses.terms.values(), *(g for g in gradients if g is not None)])
    assert len(found[0]) > 20
    assert all(torch.equal(plain, ones) for plain, ones in zip(*found, strict=True))


@pytest.mark.parametrize("store_scores", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_losses_are_differentiable_in_the_targets(
    make_learner: MakeLearner, batch: Batch, store_scores: bool, dense: bool
) -> None:
    """With a running centre, for Sinkhorn's potentials are held and central differences would move them."""
    learner = make_learner(centring="ema", store_scores=store_scores, gram_weight=1.0)
    assert learner.cls_centre is not None and learner.patch_centre is not None
    learner.cls_centre.value.normal_()
    learner.patch_centre.value.normal_()
    views, masks = batch
    if dense:
        masks = replace(masks, relaxed=masks.hidden.double())
    start = aim(masks)

    def total(targets: Targets) -> Tensor:
        return learner(views, masks, 0.3, targets).total

    for field in ("token_weights", "sample_weights", "temperature", "mix"):
        leaf = getattr(start, field).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total(replace(start, **{field: leaf})), leaf)
        assert gradient.isfinite().all()
        if field == "token_weights":
            assert (gradient[~masks.hidden] == 0).all()
        with torch.no_grad():
            for place in (0, leaf.numel() // 2, leaf.numel() - 1):
                bump = torch.zeros_like(leaf)
                bump.view(-1)[place] = 1e-5
                above, below = (total(replace(start, **{field: leaf + sign * bump})) for sign in (1, -1))
                expected = (above - below) / 2e-5
                torch.testing.assert_close(gradient.view(-1)[place], expected, rtol=1e-5, atol=1e-8)
        if field == "mix":  # a common factor says nothing
            torch.testing.assert_close((gradient * leaf.detach()).sum(0), torch.zeros(4).double())


def test_student_and_teacher_start_equal_and_the_teacher_stays_in_eval_mode() -> None:
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", options={"embed_dim": 32, "depth": 2, "num_heads": 2}, drop_path=0.5
    )
    learner = Learner(LearnerConfig(backbone=backbone, head=HeadConfig(prototypes=8), gram_weight=1.0))
    teacher = learner.teacher.state_dict()
    assert teacher.keys() == learner.student.state_dict().keys()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in learner.student.state_dict().items())
    assert learner.student.training and not any(part.training for part in learner.teacher.modules())
    assert learner.anchor is not None and not any(part.training for part in learner.anchor.modules())
    assert not any(p.requires_grad for p in [*learner.teacher.parameters(), *learner.anchor.parameters()])
    assert all(p.requires_grad for p in learner.student.parameters())
    assert max(getattr(part, "drop_prob", 0.0) for part in learner.student.modules()) == 0.5
    assert not any(hasattr(part, "drop_prob") for part in learner.teacher.modules())


@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
@pytest.mark.parametrize("shared", [False, True])
def test_relaxed_masks_leave_every_value_as_it_is(
    make_learner: MakeLearner, batch: Batch, centring: str, shared: bool
) -> None:
    learner = make_learner(centring=centring, shared=shared)
    views, masks = batch
    packed, dense = learner(views, masks, 0.05), learner(views, relax(masks)[0], 0.05)
    for term, value in packed.terms.items():
        torch.testing.assert_close(dense.terms[term], value, atol=1e-7, rtol=1e-6)


def test_relaxed_masks_have_the_gradient_of_finite_differences(
    make_learner: MakeLearner, batch: Batch
) -> None:
    learner = make_learner()
    views, masks = batch
    relaxed, shares = relax(masks)
    targets = learner.teacher_targets(views.global_views, relaxed, 0.05)

    def loss(shares: Tensor) -> Tensor:
        relaxed = replace(masks, relaxed=shares)
        return learner.losses(learner.student_outputs(views, relaxed), targets, relaxed).total

    (gradient,) = torch.autograd.grad(loss(shares), shares)
    for position in [(0, 0, 3), (0, 1, 5), (1, 3, 0), (1, 0, 15)]:
        step = torch.zeros_like(shares)
        step[position] = 1e-5
        with torch.no_grad():
            difference = (loss(shares + step) - loss(shares - step)) / 2e-5
        torch.testing.assert_close(gradient[position], difference, atol=1e-6, rtol=1e-4)


def test_losses_can_be_differentiated_twice(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner(gram_weight=1.0)
    views, masks = batch
    relaxed, shares = relax(masks)
    tail = list(learner.student.backbone.tail_parameters(1).values())
    with sdpa_kernel(SDPBackend.MATH):
        first = torch.autograd.grad(learner(views, relaxed, 0.05).total, tail, create_graph=True)
        (second,) = torch.autograd.grad(sum(g.square().sum() for g in first), shares)
    assert second.isfinite().all() and second.abs().sum() > 0


@pytest.mark.parametrize("dense", [False, True])
def test_tail_after_trunk_gives_the_outputs(make_learner: MakeLearner, batch: Batch, dense: bool) -> None:
    learner = make_learner()
    views, masks = batch
    masks = relax(masks)[0] if dense else masks
    whole = learner.student_outputs(views, masks)
    in_two = learner.student_tail(learner.student_trunk(views, masks, 2))
    assert torch.equal(in_two.cls.rows, whole.cls.rows)
    assert torch.equal(in_two.patches.rows, whole.patches.rows)
    assert torch.equal(in_two.global_features.cls, whole.global_features.cls)


def test_tail_parameters_act_on_all_views(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner()
    views, masks = batch
    trunk = learner.student_trunk(views, masks, 1)
    tail = learner.student.backbone.tail_parameters(1)
    moved = {name: tensor.detach() * 1.1 for name, tensor in tail.items()}
    functional = learner.student_tail(trunk, moved)
    with torch.no_grad():
        for name, tensor in tail.items():
            tensor.copy_(moved[name])
    torch.testing.assert_close(functional.cls.rows, learner.student_outputs(views, masks).cls.rows)


def test_gradient_reaches_all_of_the_student_and_nothing_else(
    make_learner: MakeLearner, batch: Batch
) -> None:
    learner = make_learner(gram_weight=1.0).train()
    learner(*batch, 0.05).total.backward()
    assert all(p.grad is not None for p in learner.student.parameters())
    assert all(p.grad is None for p in learner.teacher.parameters())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
def test_scores_made_anew_give_the_losses_and_gradients_of_stored_ones(
    make_learner: MakeLearner, batch: Batch, centring: str, shared: bool, dense: bool
) -> None:
    views, masks = batch
    found = []
    for store_scores in (True, False):
        learner = make_learner(store_scores=store_scores, centring=centring, shared=shared).train(not dense)
        relaxed, shares = relax(masks) if dense else (masks, None)
        losses = learner(views, relaxed, 0.05)
        losses.total.backward()
        gradients = {name: parameter.grad for name, parameter in learner.student.named_parameters()}
        centres = [buffer.clone() for buffer in learner.buffers()]
        found.append((losses[:3], gradients, centres, None if shares is None else shares.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_teacher_is_the_moving_average_of_the_student(make_learner: MakeLearner, momentum: float) -> None:
    learner = make_learner()
    before = {name: tensor.clone() for name, tensor in learner.teacher.state_dict().items()}
    learner.update_teacher(momentum)
    student = learner.student.state_dict()
    for name, tensor in learner.teacher.state_dict().items():
        torch.testing.assert_close(tensor, momentum * before[name] + (1 - momentum) * student[name])


def test_centres_move_in_training_steps_alone(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner(centring="ema", centre_momentum=0.6)
    learner(*batch, 0.05)
    assert learner.cls_centre.value.abs().sum() == 0
    targets = learner.teacher_targets(batch[0].global_views, batch[1], 0.05)
    learner.train()
    learner(*batch, 0.05)
    torch.testing.assert_close(learner.cls_centre.value, 0.4 * targets.cls.scores.rows.mean(0))
    torch.testing.assert_close(learner.patch_centre.value, 0.4 * targets.patches.scores.rows.mean(0))


def test_anchor_is_the_starting_teacher_and_part_of_the_state(
    make_learner: MakeLearner, batch: Batch
) -> None:
    learner = make_learner(gram_weight=1.0)
    start = learner.teacher.backbone(batch[0].global_views[0]).patches
    learner.update_teacher(0.0)
    torch.testing.assert_close(learner.anchor(batch[0].global_views[0]).patches, start)
    assert not torch.allclose(learner.teacher.backbone(batch[0].global_views[0]).patches, start)
    twin = make_learner(gram_weight=1.0, apart=0.3)
    twin.load_state_dict(learner.state_dict())
    torch.testing.assert_close(twin(*batch, 0.05).total, learner(*batch, 0.05).total)
    assert make_learner().anchor is None


def test_terms_without_weight_are_left_out(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner(ibot_weight=0.0, koleo_weight=0.0)
    losses = learner(*batch, 0.05)
    assert losses.terms.keys() == losses.per_sample.keys() == {"dino"}
    assert learner.student.patch_head is None
    with pytest.raises(ValidationError, match="every loss has weight 0"):
        LearnerConfig(dino_weight=0, ibot_weight=0, koleo_weight=0)


def test_recipes_without_local_views_or_hidden_tokens(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner()
    views, masks = batch
    no_locals = RenderedViews(views.global_views, views.local_views[:0])
    nothing = Masks.of(torch.zeros_like(masks.hidden), 0)
    losses = learner(no_locals, nothing, 0.05)
    losses.total.backward()
    assert losses.terms["ibot"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in learner.student.parameters())
    outputs = learner.student_tail(learner.student_trunk(no_locals, masks, 1))
    assert torch.equal(outputs.cls.rows, learner.student_outputs(no_locals, masks).cls.rows)
    assert outputs.cls.rows.shape == (2 * 4, 24)


def test_prototypes_are_those_of_the_student_heads(make_learner: MakeLearner) -> None:
    learner = make_learner()
    prototypes = learner.prototype_parameters()
    assert prototypes[0] is learner.student.cls_head.prototypes
    assert prototypes[1] is learner.student.patch_head.prototypes
    assert len(make_learner(shared=True).prototype_parameters()) == 1


def test_bf16_autocast_gives_fp32_losses_near_those_of_fp32(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner(gram_weight=1.0, centring="ema").float()
    views, masks = RenderedViews(*(pixels.float() for pixels in batch[0][:2])), batch[1]
    expected = learner(views, masks, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner(views, masks, 0.1)
    for term, value in expected.terms.items():
        assert losses.terms[term].dtype == torch.float32
        torch.testing.assert_close(losses.terms[term], value, atol=0.02, rtol=0.03)


def test_scores_made_anew_equal_stored_ones_under_autocast(make_learner: MakeLearner, batch: Batch) -> None:
    views, masks = RenderedViews(*(pixels.float() for pixels in batch[0][:2])), batch[1]
    found = []
    for store_scores in (True, False):
        learner = make_learner(store_scores=store_scores).float()
        with torch.autocast("cpu", torch.bfloat16):
            losses = learner(views, masks, 0.05)
        losses.total.backward()
        gradients = [prototypes.grad for prototypes in learner.prototype_parameters()]
        found.append((losses.terms, gradients))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_stochastic_depth_is_off_outside_training(make_learner: MakeLearner, batch: Batch) -> None:
    learner = make_learner(drop_path=0.8)
    assert torch.equal(learner(*batch, 0.05).total, learner(*batch, 0.05).total)
    learner.train()
    assert not torch.equal(learner(*batch, 0.05).total, learner(*batch, 0.05).total)


def test_the_teachers_attention_is_that_of_its_backbone_and_the_teacher_runs_once(
    make_learner: MakeLearner, batch: Batch
) -> None:
    learner, (views, masks) = make_learner(), batch
    expected = learner(views, masks, 0.05)
    runs = []
    learner.teacher.backbone.vit.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    attention = learner.cls_attention(views.global_views)
    for view, row in zip(views.global_views, attention, strict=True):
        torch.testing.assert_close(row, learner.teacher.backbone.attend(view)[1])
    runs.clear()
    learner.cls_attention(views.global_views)
    losses = learner(views, masks, 0.05)
    assert len(runs) == 1
    assert torch.equal(losses.total, expected.total)
    learner(views, masks, 0.05)
    assert len(runs) == 2  # what the teacher said is used once: it may have moved since
    learner.cls_attention(views.global_views)
    other = views._replace(global_views=views.global_views + 1)
    assert not torch.equal(learner(other, masks, 0.05).total, expected.total)


@pytest.mark.parametrize("settings", [{}, {"centring": "ema"}, {"store_scores": False}])
def test_cross_entropies_are_those_of_every_pair(
    make_learner: MakeLearner, batch: Batch, settings: dict[str, object]
) -> None:
    learner, views = make_learner(**settings), batch[0]
    if learner.cls_centre is not None:
        learner.cls_centre.value.copy_(torch.linspace(-1, 1, 24))
    losses = learner.cross_entropies(views, 0.05)
    assert losses.shape == (5, 2, 4) and not losses.requires_grad

    def logits(network: torch.nn.Module, images: Tensor) -> Tensor:
        features = network.backbone(images).cls
        head = network.cls_head
        directions = torch.nn.functional.normalize(head.mlp(features), dim=-1)
        return directions @ torch.nn.functional.normalize(head.prototypes, dim=-1).T

    with torch.no_grad():
        teacher = logits(learner.teacher, views.global_views.flatten(0, 1))
        if learner.cls_centre is None:
            q = balanced(teacher, torch.full((len(teacher),), 0.05))
        else:
            q = torch.softmax((teacher - learner.cls_centre.value) / 0.05, dim=-1)
        every = [*views.global_views, *views.local_views]
        for number, view in enumerate(every):
            log_p = torch.log_softmax(logits(learner.student, view) / 0.1, dim=-1)
            for other in range(2):
                expected = -(q.view(2, 4, -1)[other] * log_p).sum(-1)
                torch.testing.assert_close(losses[number, other].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings", [{}, {"centring": "ema", "shared": True}, {"koleo_weight": 0.3, "gram_weight": 0.5}]
)
def test_the_loss_of_several_versions_is_the_mean_over_versions(
    make_learner: MakeLearner, batch: Batch, settings: dict[str, object]
) -> None:
    learner, (views, masks) = make_learner(**settings), batch
    whole = views.global_views
    versions = [whole * factor for factor in (0.2, 0.7, 1.0)]
    repeated = Masks.of(masks.hidden.repeat(3, 1, 1), 3 * masks.total)
    together = learner(RenderedViews(torch.cat(versions), views.local_views, whole), repeated, 0.05)
    apart = [learner(RenderedViews(one, views.local_views, whole), masks, 0.05) for one in versions]
    for term, loss in together.terms.items():
        expected = torch.stack([losses.terms[term] for losses in apart]).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for term, losses in together.per_sample.items():
        expected = torch.stack([one.per_sample[term] for one in apart]).mean(0)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_the_teacher_sees_views_of_its_own(make_learner: MakeLearner, batch: Batch) -> None:
    learner, (views, masks) = make_learner(), batch
    changed = views._replace(global_views=views.global_views * 0.5, teacher_views=views.global_views)
    targets = learner.teacher_targets(views.global_views, masks, 0.05)
    expected = learner.losses(learner.student_outputs(changed, masks), targets, masks).total
    assert torch.equal(learner(changed, masks, 0.05).total, expected)
    assert not torch.equal(learner(changed._replace(teacher_views=None), masks, 0.05).total, expected)
