from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import blank, pack
from scipy.integrate import quad
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from vpt_kernels import PackedImages
from vpt_vision.designers import (
    FixedDesigner,
    LearnedDesigner,
    LearnedDesignerConfig,
    RecipeConfig,
    build_designer,
)
from vpt_vision.designers.network import ThumbnailNetwork
from vpt_vision.task import Keys, Task, Views

PATCH = 4
ALL = [
    "crops",
    "photometrics",
    "masks",
]  # what a task's tensors below are of; targets have tests of their own
TensorsOf = Callable[[Task], dict[str, Tensor]]
Wild = Callable[..., LearnedDesigner]


def controlled(surfaces: list[str], name: str) -> bool:
    """Whether a part of a task, by its name, is under one of `surfaces`."""
    if name.endswith("boxes"):
        return "crops" in surfaces
    # Masks are set in the image: they move with the crop and its flip, but only if the designer sets them.
    return ("masks" if name == "masks" else "photometrics") in surfaces


EVERY = [*ALL, "mask_ratio", "targets"]


@pytest.mark.parametrize("kind", ["random", "block"])
@pytest.mark.parametrize("surfaces", [EVERY, *([surface] for surface in EVERY)])
def test_starts_at_the_fixed_recipe(
    recipe: RecipeConfig, images: PackedImages, tensors_of: TensorsOf, surfaces: list[str], kind: str
) -> None:
    recipe = recipe.model_copy(update={"masks": recipe.masks.model_copy(update={"kind": kind})})
    torch.manual_seed(0)
    config = LearnedDesignerConfig(kind="learned", surfaces=surfaces)
    learned = build_designer(config, recipe, patch_size=PATCH)
    fixed = FixedDesigner(recipe, PATCH)
    for step in range(5):
        batch = images[torch.arange(len(images)).roll(step)]
        keys = Keys(3, step, 100 * step + torch.arange(len(images)))
        ours, theirs = learned(batch, keys), fixed(batch, keys)
        for name, value in tensors_of(theirs).items():
            assert tensors_of(ours)[name].equal(value), name
        if "mask_ratio" not in surfaces:
            assert ours.masks.index.equal(theirs.masks.index)
    assert sorted(learned.policy(images).kl()) == sorted(surfaces)
    assert all((kl.abs() < 1e-5).all() for kl in learned.policy(images).kl().values())


@pytest.mark.parametrize("surfaces", [[surface] for surface in ALL])
def test_changes_what_it_controls_and_nothing_else(
    recipe: RecipeConfig,
    images: PackedImages,
    keys: Keys,
    wild: Wild,
    tensors_of: TensorsOf,
    surfaces: list[str],
) -> None:
    ours = tensors_of(wild(recipe, surfaces)(images, keys))
    theirs = tensors_of(FixedDesigner(recipe, PATCH)(images, keys))
    too_rare = ("global.solarize", "local.solarize")  # to expect a change in them
    for name, value in theirs.items():
        if not controlled(surfaces, name) or name.endswith("order"):
            assert ours[name].equal(value), name
        elif name not in too_rare:
            assert not ours[name].equal(value), name


@given(st.integers(0, 2**31), st.floats(-3, 3), st.integers(0, 3), st.integers(5, 90))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stays_within_the_recipe_whatever_its_weights(
    recipe: RecipeConfig, wild: Wild, seed: int, log_scale: float, views: int, size: int
) -> None:
    recipe = recipe.model_copy(update={"crops": recipe.crops.model_copy(update={"local_views": views})})
    designer = wild(recipe, ALL, scale=10**log_scale, seed=seed)
    images = pack(torch.randint(0, 256, (6, 3, size, 40), dtype=torch.uint8))
    keys = Keys(seed, 5, torch.arange(6))
    task = designer(images, keys)
    assert_views_within(recipe, task.global_views, (0.32, 1.0), (1.0, 0.1), (0.0, 0.2), size, 40)
    assert_views_within(recipe, task.local_views, (0.05, 0.32), (0.5,) * views, (0.0,) * views, size, 40)

    fixed = FixedDesigner(recipe, PATCH)(images, keys)
    assert task.masks.hidden.sum(-1).equal(fixed.masks.hidden.sum(-1))
    assert task.masks.total == fixed.masks.total == task.masks.hidden.sum()
    assert task.masks.relaxed is not None
    assert task.masks.relaxed.equal(task.masks.hidden.float())
    for kl in designer.policy(images).kl().values():
        assert kl.shape == (6,)
        assert kl.isfinite().all()
        assert (kl > -1e-4).all()
    assert all(scalar.isfinite() for scalar in designer.policy(images).describe().values())


def assert_views_within(
    recipe: RecipeConfig,
    views: Views,
    scale: tuple[float, float],
    blur_p: tuple[float, ...],
    solarize_p: tuple[float, ...],
    height: int,
    width: int,
) -> None:
    top, left, tall, wide = views.boxes.detach().double().unbind(-1)
    slack = 1e-5
    assert (torch.stack([top, left]) >= 0).all()
    assert (top + tall <= height * (1 + slack)).all()
    assert (left + wide <= width * (1 + slack)).all()
    low_ratio, high_ratio = recipe.crops.ratio
    central_tall, central_wide = min(height, width / low_ratio), min(width, height * high_ratio)
    central = (tall - central_tall).abs() + (wide - central_wide).abs() < 1e-3
    share = tall * wide / (height * width)
    drawn = (share >= scale[0] * (1 - slack)) & (share <= scale[1] * (1 + slack))
    assert (drawn | central).all()
    ratio = wide / tall
    assert ((ratio >= low_ratio * (1 - slack)) & (ratio <= high_ratio * (1 + slack))).all()

    p = views.photometrics
    for name in ("brightness", "contrast", "saturation"):
        strength = getattr(recipe.photometrics, name)
        assert ((getattr(p, name) - 1).abs() <= strength + slack).all(), name
    assert (p.hue.abs() <= recipe.photometrics.hue + slack).all()
    low, high = recipe.photometrics.blur_sigma
    assert ((p.sigma == 0) | ((p.sigma >= low - slack) & (p.sigma <= high + slack))).all()
    assert ((p.order >= 0) & (p.order < 24)).all()
    assert ((p.solarize > 1) | (p.solarize == torch.tensor(128 / 255))).all()
    for view, (blur, solarize) in enumerate(zip(blur_p, solarize_p, strict=True)):
        assert blur < 1 or (p.sigma[view] > 0).all()
        assert solarize > 0 or (p.solarize[view] > 1).all()


def test_a_share_of_the_images_has_the_recipes_task(
    recipe: RecipeConfig, images: PackedImages, wild: Wild, tensors_of: TensorsOf
) -> None:
    """Which ones, the keys say; the others have the task that they have without a share."""
    designer = wild(recipe, ALL, scale=0.3)
    config, fixed = designer.config, FixedDesigner(recipe, PATCH)
    kept, count = 0, 60
    for step in range(count):
        keys = Keys(3, step, 8 * step + torch.arange(8))
        designer.config = config
        ours, theirs = (tensors_of(of(images, keys)) for of in (designer, fixed))
        designer.config = config.model_copy(update={"recipe_share": 0.3})
        mixed = tensors_of(designer(images, keys))
        is_recipes = (mixed["global.boxes"] == theirs["global.boxes"]).flatten(2).all(-1).all(0)  # [B]
        kept += int(is_recipes.sum())
        for name, value in mixed.items():
            expected = torch.where(is_recipes.view(1, 8, *(1,) * (value.ndim - 2)), theirs[name], ours[name])
            assert value.equal(expected), name
        some = torch.tensor([6, 0, 3])
        again = tensors_of(designer(images[some], keys._replace(samples=keys.samples[some])))
        same = (again["global.boxes"] == theirs["global.boxes"][:, some]).flatten(2).all(-1).all(0)
        assert same.equal(is_recipes[some])
    assert abs(kept / (8 * count) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / (8 * count))
    designer.config = config.model_copy(update={"recipe_share": 1.0})
    whole = tensors_of(designer(images, keys))
    assert all(whole[name].equal(value) for name, value in theirs.items())


def test_a_task_is_a_function_of_image_and_key(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, wild: Wild, tensors_of: TensorsOf
) -> None:
    designer = wild(recipe, ALL, scale=0.3)
    task = tensors_of(designer(images, keys))
    for some in (torch.tensor([6, 0, 3]), torch.arange(8).flip(0)):
        part = tensors_of(designer(images[some], keys._replace(samples=keys.samples[some])))
        for name, value in task.items():
            # Convolutions of another batch size may differ in the last digit.
            torch.testing.assert_close(part[name], value[:, some], rtol=1e-5, atol=1e-4, msg=name)


def test_autocast_changes_nothing(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, wild: Wild, tensors_of: TensorsOf
) -> None:
    designer = wild(recipe, ALL)
    task = tensors_of(designer(images, keys))
    with torch.autocast("cpu", torch.bfloat16):
        under = tensors_of(designer(images, keys))
    assert all(under[name].equal(value) for name, value in task.items())


def test_bends_differ_between_images(recipe: RecipeConfig, images: PackedImages, wild: Wild) -> None:
    for name, kl in wild(recipe, ALL, scale=0.3).policy(images).kl().items():
        assert kl.unique().numel() == len(images), name


def test_the_mask_gradient_reaches_the_network(
    recipe: RecipeConfig, images: PackedImages, keys: Keys
) -> None:
    designer = LearnedDesigner(LearnedDesignerConfig(kind="learned", surfaces=ALL), recipe, PATCH)
    masks = designer(images, keys).masks
    assert masks.relaxed is not None
    torch.manual_seed(0)
    (masks.relaxed * torch.randn_like(masks.relaxed)).sum().backward()
    head = designer.heads["masks"].weight
    assert head.grad is not None
    assert head.grad.abs().max() > 0
    # Through the mask alone the crop's box would learn from half of what it does.
    assert designer.heads["crop_shapes"].weight.grad is None

    with torch.no_grad():
        head.normal_()  # at zero, the head passes nothing on
    relaxed = designer(images, keys).masks.relaxed
    (relaxed * torch.randn_like(relaxed)).sum().backward()
    for name, parameter in designer.network.named_parameters():
        if not name.startswith("pool"):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


def test_the_trainers_task_carries_no_relaxed_mask(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, wild: Wild
) -> None:
    with torch.no_grad():
        task = wild(recipe, ALL)(images, keys)
    assert task.masks.relaxed is None
    assert not task.global_views.boxes.requires_grad


def test_boxes_and_strengths_are_differentiable(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, wild: Wild
) -> None:
    designer = wild(recipe, ALL, scale=0.3)
    task = designer(images, keys)
    views = task.local_views
    (views.boxes.sum() + views.photometrics.brightness.sum()).backward()
    for head in ("crop_shapes", "crop_fields", "photometrics"):
        gradient = designer.heads[head].weight.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, head


def test_every_output_shapes_its_surface(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, tensors_of: TensorsOf
) -> None:
    designer = LearnedDesigner(LearnedDesignerConfig(kind="learned", surfaces=ALL), recipe, PATCH)
    outputs = designer.outputs(designer.features(images))
    assert all(len(output) == len(images) and not output.any() for output in outputs.values())
    assert {designer.surface_of[head] for head in outputs} == set(ALL)
    policy = designer.policy_of(images, outputs)
    before = tensors_of(policy.sample(keys))
    assert before.keys() == tensors_of(designer(images, keys)).keys()
    torch.manual_seed(0)
    for head, output in outputs.items():
        moved = outputs | {head: output + torch.randn_like(output)}
        kl = designer.policy_of(images, moved).kl()
        assert {surface for surface, nats in kl.items() if nats.any()} == {designer.surface_of[head]}


def boxes_drawn_by(field: Tensor, recipe: RecipeConfig) -> dict[str, Tensor]:
    """Draw global and local boxes [V, 400, 4] of a 48 x 64 image under one field [8, 8] of positions."""
    policy = FixedDesigner(recipe, PATCH).policy(blank(400, 48, 64))
    bend = policy.global_bend
    drawn = replace(bend, crops=replace(bend.crops, field=field.expand(400, 8, 8)))
    task = replace(policy, global_bend=drawn, local_bend=drawn).sample(Keys(0, 0, torch.arange(400)))
    return {"global": task.global_views.boxes, "local": task.local_views.boxes}


def shows(boxes: Tensor, cell: tuple[int, int]) -> Tensor:
    """Tell which boxes meet a cell, 6 x 8 pixels, of the 8 x 8 field."""
    y, x = 6 * cell[0], 8 * cell[1]
    top, left, tall, wide = boxes.unbind(-1)
    return (top <= y + 6) & (y <= top + tall) & (left <= x + 8) & (x <= left + wide)


@pytest.mark.parametrize("cell", [(0, 0), (1, 6), (4, 3), (7, 2)])
def test_a_peak_in_the_field_draws_the_crops_to_it(recipe: RecipeConfig, cell: tuple[int, int]) -> None:
    field = torch.full((8, 8), -4.0)
    plain = boxes_drawn_by(field, recipe)
    field[cell] = 4.0
    drawn = boxes_drawn_by(field, recipe)
    place = torch.tensor([6 * cell[0] + 3, 8 * cell[1] + 4])
    for kind in ("global", "local"):
        assert drawn[kind][..., 2:].equal(plain[kind][..., 2:])  # sizes are another law's
        # At this height 2 % of positions are drawn from elsewhere.
        assert shows(drawn[kind], cell).float().mean() > 0.97, kind
        centres = {
            name: boxes[..., :2] + boxes[..., 2:] / 2
            for name, boxes in (("plain", plain[kind]), ("drawn", drawn[kind]))
        }
        distance = {name: (centre - place).norm(dim=-1).mean() for name, centre in centres.items()}
        assert distance["drawn"] < 0.95 * distance["plain"], kind
    assert shows(plain["local"], cell).float().mean() < 0.8
    assert distance["drawn"] < 0.6 * distance["plain"]  # of local views, which have room to move


def test_two_peaks_draw_crops_to_both(recipe: RecipeConfig) -> None:
    field = torch.full((8, 8), -4.0)
    field[1, 1] = field[6, 6] = 4.0
    boxes = boxes_drawn_by(field, recipe)["local"]
    first, second = shows(boxes, (1, 1)), shows(boxes, (6, 6))
    assert (first | second).float().mean() > 0.95
    for one in (first & ~second, second & ~first):  # the larger boxes meet both
        assert 0.3 < one.float().mean() < 0.6


def test_kl_counts_every_view_and_quantity(recipe: RecipeConfig, images: PackedImages, wild: Wild) -> None:
    policy = wild(recipe, ALL, scale=0.3).policy(images)
    kl = policy.kl()
    image = 2

    def kumaraswamy_kl(log_a: Tensor, log_b: Tensor) -> float:
        a, b = log_a.exp().item(), log_b.exp().item()

        def integrand(t: float) -> float:  # over u, where x = F^-1(u): no singularity of the density
            x = (1 - (1 - t) ** (1 / b)) ** (1 / a)
            return math.log(a * b) + (a - 1) * math.log(x) + (b - 1) * math.log(1 - x**a)

        return quad(integrand, 0, 1, limit=200)[0]

    photometrics, crops = 0.0, 0.0
    for views, bend, blur_p, solarize_p in (
        (2, policy.global_bend, (1.0, 0.1), (0.0, 0.2)),
        (3, policy.local_bend, (0.5,) * 3, (0.0,) * 3),
    ):
        strengths = bend.photometrics.strengths
        for quantity in range(5):
            photometrics += views * kumaraswamy_kl(
                strengths.log_a[quantity, image], strengths.log_b[quantity, image]
            )
        for view in range(views):
            for event, p in enumerate((0.5, 0.8, 0.2, blur_p[view], solarize_p[view])):
                if 0 < p < 1:
                    recipes = Bernoulli(torch.tensor(p))
                    moved = Bernoulli(logits=recipes.logits + bend.photometrics.offsets[event, image])
                    photometrics += kl_divergence(moved, recipes).item()
        for law in (bend.crops.area, bend.crops.aspect):
            crops += views * kumaraswamy_kl(law.log_a[image], law.log_b[image])
        cells = Categorical(logits=bend.crops.field[image].flatten())
        crops += views * kl_divergence(cells, Categorical(torch.ones(64))).item()
    assert kl["photometrics"][image].item() == pytest.approx(photometrics, rel=1e-3)
    assert kl["crops"][image].item() == pytest.approx(crops, rel=1e-3)


def test_describe_and_fields(recipe: RecipeConfig, images: PackedImages, wild: Wild) -> None:
    config = LearnedDesignerConfig(kind="learned", surfaces=ALL)
    described = LearnedDesigner(config, recipe, PATCH).policy(images).describe()
    expected = {"global/scale": 0.66, "local/scale": 0.185, "global/brightness": 1, "local/blur_p": 0.5}
    expected |= {"global/blur_p": 0.55, "local/sigma": 1.05, "global/hue": 0, "masks/spread": 0}
    for name, value in expected.items():
        assert described[name].item() == pytest.approx(value, abs=1e-6), name
    policy = wild(recipe, ALL, scale=0.3).policy(images)
    fields = (policy.global_bend.crops.field, policy.local_bend.crops.field, policy.mask_bend.field)
    assert all(field.shape == (8, 8, 8) for field in fields)
    moved = policy.describe()
    assert not any(moved[name].isclose(described[name]) for name in expected)


BLIND = ["crops", "photometrics", "mask_ratio", "targets"]


def test_one_that_reads_nothing_has_one_law_and_starts_at_the_recipe(
    recipe: RecipeConfig, images: PackedImages, tensors_of: TensorsOf
) -> None:
    config = LearnedDesignerConfig(kind="learned", surfaces=BLIND, reads="nothing")
    designer = LearnedDesigner(config, recipe, PATCH)
    keys = Keys(3, 0, torch.arange(len(images)))
    expected = tensors_of(FixedDesigner(recipe, PATCH)(images, keys))
    assert all(torch.equal(part, expected[name]) for name, part in tensors_of(designer(images, keys)).items())
    torch.manual_seed(0)
    for parameter in designer.parameters():
        nn.init.normal_(parameter)
    outputs = designer.outputs(designer.features(images))
    assert sum(parameter.numel() for parameter in designer.parameters()) == sum(
        output.shape[1] for output in outputs.values()
    )
    for output in outputs.values():
        assert torch.equal(output, output[:1].expand_as(output)) and output.any()
    policy = designer.policy(images)
    assert not policy.global_bend.crops.field.any() and not policy.local_bend.crops.field.any()
    assert not torch.equal(tensors_of(designer(images, keys))["global.boxes"], expected["global.boxes"])


@pytest.mark.parametrize("reads", ["nothing", "image"])
@pytest.mark.parametrize(
    ("strengths", "shared", "numbers"), [(True, True, 15), (False, False, 10), (False, True, 5)]
)
def test_photometrics_of_fewer_numbers(
    recipe: RecipeConfig,
    images: PackedImages,
    tensors_of: TensorsOf,
    strengths: bool,
    shared: bool,
    numbers: int,
    reads: str,
) -> None:
    """What is left out stays the recipe's; what is shared is the same number for both kinds of view."""
    few = {"strengths": strengths, "shared": shared}
    settings = {"surfaces": ["photometrics"], "reads": reads, "thumbnail": 32, "width": 8, "blocks": 1}
    config = LearnedDesignerConfig(kind="learned", photometrics=few, **settings)
    designer = LearnedDesigner(config, recipe, PATCH)
    keys = Keys(3, 0, torch.arange(len(images)))
    expected = tensors_of(FixedDesigner(recipe, PATCH)(images, keys))
    assert all(torch.equal(part, expected[name]) for name, part in tensors_of(designer(images, keys)).items())
    torch.manual_seed(0)
    for parameter in designer.heads.parameters():
        nn.init.normal_(parameter)
    assert designer.outputs(designer.features(images))["photometrics"].shape == (len(images), numbers)
    policy = designer.policy(images)
    bends = [policy.global_bend.photometrics, policy.local_bend.photometrics]
    assert all(bool(bend.strengths.log_a.any()) == strengths for bend in bends)
    assert all(bend.offsets.any() for bend in bends)
    assert torch.equal(bends[0].offsets, bends[1].offsets) == shared


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"surfaces": ["crops", "masks"]}, "which patches"),
        ({"surfaces": ["targets"], "targets": {"temperature": 0, "mix": 0}}, "cannot weigh tokens"),
    ],
)
def test_one_that_reads_nothing_cannot_set_places(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LearnedDesignerConfig(kind="learned", reads="nothing", **settings)


@pytest.mark.parametrize("sizes", [{}, {"thumbnail": 32, "width": 32, "blocks": 1}])
def test_the_network_is_small_and_normalises_within_an_image(
    recipe: RecipeConfig, images: PackedImages, sizes: dict[str, int]
) -> None:
    config = LearnedDesignerConfig(kind="learned", surfaces=ALL, **sizes)
    designer = LearnedDesigner(config, recipe, PATCH)
    few = 1e5 if sizes else 4e5
    assert 0.9 * few < sum(parameter.numel() for parameter in designer.parameters()) < 1.1 * few
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in designer.modules())
    side = config.thumbnail // 4
    assert designer.policy(images).mask_bend.field.shape == (8, side, side)
    assert set(designer.state_dict()) == {name for name, _ in designer.named_parameters()}


def test_a_cell_of_the_map_sees_as_far_as_is_told() -> None:
    """The gradient of the middle cell reaches 7 + 16 · blocks pixels a side, but for the norms."""
    for blocks in (1, 2):
        network = ThumbnailNetwork(96, 8, blocks)
        for block in network.blocks:
            block[0] = nn.Identity()
        x = torch.randn(1, 3, 96, 96, requires_grad=True)
        y = network.stem(x)
        for block in network.blocks:
            y = y + block(y)
        y[0, :, 12, 12].sum().backward()
        assert x.grad is not None
        seen = x.grad[0].abs().sum(0) > 0
        assert seen.any(0).sum() == seen.any(1).sum() == 7 + 16 * blocks
