"""The mask surface: masks follow the image, and the relaxed mask carries the gradient of a soft threshold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import blank, pack
from torch import Tensor

from vpt_kernels import Photometrics
from vpt_vision.designers import FixedDesigner, RecipeConfig
from vpt_vision.designers.masks import MaskBend, _relax
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
    task = replace(policy, mask_bend=MaskBend(field, 0.5)).sample(keys)

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
    zero = replace(policy, mask_bend=MaskBend(torch.zeros(3000, 8, 8), 0.5)).sample(keys).masks
    assert zero.hidden.equal(plain.hidden)
