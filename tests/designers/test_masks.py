"""The mask surface: masks follow the image, and the relaxed mask carries the gradient of a soft threshold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import blank, pack
from torch import Tensor

from vpt_kernels import Photometrics, block_masks, keyed_uniform
from vpt_vision.designers import FixedDesigner, Policy, RecipeConfig
from vpt_vision.designers.masks import MaskBend, _relax
from vpt_vision.designers.streams import Stream
from vpt_vision.task import Keys

PATCH = 4


@pytest.mark.parametrize("cell", [(1, 2), (3, 6), (6, 4)])
def test_a_peak_in_the_image_is_hidden_where_the_view_shows_it(cell: tuple[int, int]) -> None:
    """A bright spot at the field's peak is rendered; the patches that show it should be the hidden ones."""
    recipe = RecipeConfig.model_validate(
        {
            "crops": {"global_size": 32, "local_views": 0},
            "masks": {"kind": "random", "probability": 1.0, "ratio": [0.1, 0.1]},
        }
    )
    images = torch.zeros(300, 3, 64, 96, dtype=torch.uint8)
    images[:, :, 8 * cell[0] : 8 * cell[0] + 8, 12 * cell[1] : 12 * cell[1] + 12] = 255
    images = pack(images)
    field = torch.full((300, 8, 8), -4.0)
    field[:, cell[0], cell[1]] = 4.0
    keys = Keys(0, 0, torch.arange(300))
    policy = FixedDesigner(recipe, PATCH).policy(images)
    task = replace(policy, mask_bend=MaskBend(field, 0.5, 8)).sample(keys)

    views = replace(task.global_views, photometrics=Photometrics.neutral((2, 300)))
    pixels = views.render(images, mean=torch.zeros(3), std=torch.ones(3), interpolation="bilinear")
    brightness = pixels.mean(2).unflatten(-1, (8, PATCH)).unflatten(-3, (8, PATCH)).mean((-3, -1))
    brightness = brightness.flatten(-2)  # [2, 300, 64 patches]
    shown = brightness.amax(-1) > 0.9  # a whole patch of the spot is in view
    hidden = task.masks.hidden.gather(-1, brightness.argmax(-1, keepdim=True)).squeeze(-1)
    for flipped in (False, True):
        chosen = shown & (views.flips == flipped)
        assert chosen.sum() > 30
        assert hidden[chosen].float().mean() > 0.95
        chance = policy.sample(keys).masks.hidden[chosen].float().mean()
        assert chance < 0.15


def soft_row(perturbed: Tensor, count: int, temperature: float) -> Tensor:
    """One row's soft mask, written out."""
    ranked = sorted(perturbed, key=lambda value: -value.item())
    threshold = (ranked[count - 1] + ranked[count]) / 2
    return torch.stack([1 / (1 + torch.exp(-(value - threshold) / temperature)) for value in perturbed])


@given(st.integers(1, 12), st.integers(0, 1000), st.floats(0.1, 3))
@settings(max_examples=40, deadline=None)
def test_relaxed_mask_against_its_formula(patches: int, seed: int, temperature: float) -> None:
    torch.manual_seed(seed)
    rows = 4
    counts = torch.randint(0, patches + 1, (rows,))
    perturbed = torch.randn(rows, patches, dtype=torch.float64, requires_grad=True)
    places = perturbed.argsort(dim=-1, descending=True).argsort(dim=-1)
    hidden = places < counts[:, None]
    weights = torch.randn(rows, patches, dtype=torch.float64)

    relaxed = _relax(hidden, perturbed, counts, temperature)
    assert relaxed.equal(hidden.double())
    (gradient,) = torch.autograd.grad((relaxed * weights).sum(), perturbed)
    assert gradient.isfinite().all()
    torch.testing.assert_close(
        gradient.sum(-1), torch.zeros(rows, dtype=torch.float64)
    )  # shifts change nothing
    for row, count in enumerate(counts.tolist()):
        if count in (0, patches):
            assert not gradient[row].any()
            continue
        leaf = perturbed[row].detach().requires_grad_()
        (expected,) = torch.autograd.grad((soft_row(leaf, count, temperature) * weights[row]).sum(), leaf)
        torch.testing.assert_close(gradient[row], expected)


def test_random_masks_hide_every_patch_alike_and_zero_logits_are_they(recipe: RecipeConfig) -> None:
    keys = Keys(0, 0, torch.arange(3000))
    policy = FixedDesigner(recipe, PATCH).policy(blank(3000, 32, 32))
    plain = policy.sample(keys).masks
    share = plain.hidden.float().mean((0, 1))
    assert (share - share.mean()).abs().max() < 5 * 0.5 / 6000**0.5
    zero = replace(policy, mask_bend=MaskBend(torch.zeros(3000, 8, 8), 0.5, 8)).sample(keys).masks
    assert zero.hidden.equal(plain.hidden)


def block_policy(field: Tensor, count: int, candidates: int = 8) -> Policy:
    recipe = RecipeConfig.model_validate({"crops": {"global_size": 64, "local_views": 0}})
    policy = FixedDesigner(recipe, 8).policy(blank(count, 64, 64))
    bend = MaskBend(field.expand(count, *field.shape), 0.5, candidates)
    return replace(policy, mask_bend=bend, surfaces=frozenset({"masks"}))


@pytest.mark.parametrize("candidates", [2, 7, 8, 50])
def test_zero_logits_are_the_recipes_blocks(candidates: int) -> None:
    keys = Keys(5, 6, torch.arange(400))
    policy = block_policy(torch.zeros(4, 4), 400, candidates)
    ours, plain = policy.sample(keys).masks, replace(policy, mask_bend=None).sample(keys).masks
    for name in ("hidden", "index", "weights"):
        assert getattr(ours, name).equal(getattr(plain, name))
    zeros = torch.zeros(400)
    torch.testing.assert_close(policy.log_prob(policy.sample(keys), keys)["masks"], zeros, rtol=0, atol=1e-6)


def brute_force_choice(policy: Policy, keys: Keys, image: int, view: int) -> tuple[Tensor, Tensor, int]:
    """Candidates [K, N] of one view, their probabilities in fp64, and the one taken, by plain loops."""
    bend = policy.mask_bend
    assert bend is not None
    task = policy.sample(keys)
    count = int(task.masks.hidden[view, image].sum())
    u = keyed_uniform(keys.seed, keys.step, keys.samples[image], 2 * Stream.MASK_CHOICE, 2)[view].item()
    field = policy.laws.masks.in_views(bend.field, task.global_views, policy.heights, policy.widths)
    logits = field[view, image].flatten().double()
    blind = min(int(u * bend.candidates), bend.candidates - 1)
    masks, scores = [], []
    for number in range(bend.candidates):
        key = int(keys.samples[image]) * 2 + view + ((number - blind) % bend.candidates << 48)
        drawn = block_masks(
            torch.tensor([count]),
            (8, 8),
            total=count,
            seed=keys.seed,
            step=keys.step,
            sample=torch.tensor([key]),
        )
        mask = drawn.hidden[0]
        masks.append(mask)
        scores.append(logits[mask].mean() - logits[~mask].mean())
    shares = torch.stack(scores).softmax(0)
    return torch.stack(masks), shares, int((u > shares.cumsum(0)[:-1]).sum())


def test_the_choice_among_blocks_against_plain_loops() -> None:
    torch.manual_seed(0)
    field = (3 * torch.randn(1, 5, 5)).requires_grad_()
    keys = Keys(8, 1, torch.arange(30, 60))
    policy = block_policy(field[0], 30)
    task = policy.sample(keys)
    log_prob = policy.log_prob(task, keys)["masks"]
    masks = task.masks
    assert masks.relaxed is not None
    assert masks.relaxed.equal(masks.hidden.float())
    expected = torch.zeros(30, dtype=torch.float64)
    for image in range(30):
        for view in range(2):
            if not masks.hidden[view, image].any():
                continue
            candidates, shares, taken = brute_force_choice(policy, keys, image, view)
            assert masks.hidden[view, image].equal(candidates[taken])
            expected[image] += shares[taken].log() + math.log(8)
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-4, atol=1e-4)

    # The relaxed mask's gradient is that of the mean mask over the choice.
    weights = torch.randn(masks.hidden.shape)
    (found,) = torch.autograd.grad((masks.relaxed * weights).sum(), field, retain_graph=True)
    mean = torch.zeros((), dtype=torch.float64)
    for image in range(30):
        for view in range(2):
            if masks.hidden[view, image].any():
                candidates, shares, _ = brute_force_choice(policy, keys, image, view)
                mean = mean + (shares[:, None] * candidates * weights[view, image]).sum()
    (gradient,) = torch.autograd.grad(mean, field)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)
    assert found.abs().max() > 0


def test_blocks_follow_the_field_and_stay_blocks_of_exact_counts() -> None:
    field = torch.full((4, 4), -3.0)
    field[:2, :2] = 3.0
    keys = Keys(0, 0, torch.arange(500))
    drawn = {}
    for name, policy in {"bent": block_policy(field, 500, 32), "plain": block_policy(0 * field, 500)}.items():
        task = policy.sample(keys)
        place = policy.laws.masks.in_views(
            field.expand(500, 4, 4), task.global_views, policy.heights, policy.widths
        ).flatten(2)
        hot = (place > 0) & (task.masks.hidden.any(-1, keepdim=True))
        drawn[name] = (task.masks.hidden & hot).sum() / hot.sum()
        counts = task.masks.hidden.sum(-1)
        drawn[f"{name} counts"] = counts
        assert task.masks.total == counts.sum()
    assert drawn["bent counts"].equal(drawn["plain counts"])
    assert drawn["bent"] > 1.5 * drawn["plain"]
    assert block_policy(field, 4).entropy()["masks"].equal(-block_policy(field, 4).kl()["masks"])


def test_no_choice_of_blocks_is_further_from_the_recipe_than_log_k() -> None:
    """For the wildest field; the mean over draws of the log density is the KL given the candidates."""
    torch.manual_seed(3)
    field = 1e3 * torch.randn(6, 6)
    keys = Keys(3, 0, torch.arange(2000))
    policy = block_policy(field, 2000, 4)
    log_prob = policy.log_prob(policy.sample(keys), keys)["masks"]
    assert log_prob.isfinite().all()
    assert (log_prob <= 2 * math.log(4) + 1e-5).all()
    assert log_prob.mean() > 0.9 * math.log(4)  # one view in two is masked
