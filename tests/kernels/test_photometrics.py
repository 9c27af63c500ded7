"""Photometrics of rendered views against torchvision's functional transforms on float images."""

import itertools

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import InterpolationMode

from vpt_kernels import Photometrics, photometrics, render_views
from vpt_kernels.photometrics import apply_photometrics

NAMES = ("brightness", "contrast", "saturation", "hue")
ADJUST = {name: getattr(tv, f"adjust_{name}") for name in NAMES}
ORDERS = list(itertools.permutations(NAMES))


def random_views(n, size=12, seed=0, dtype=torch.float32):
    """Images [n, 3, S, S] in [0, 1] with greys, blacks, whites and equal channels among their pixels."""
    views = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    views[:, :, 0] = views[:, :1, 0]  # greys
    views[:, 1, 1] = views[:, 0, 1]  # two equal channels
    views[:, 2, 2] = views[:, 0, 2]
    views[:, 1, 3] = views[:, 2, 3]
    views[:, :, 4] = 0
    views[:, :, 5] = 1
    return views


def random_strengths(n, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def u():
        return torch.rand(n, generator=generator, dtype=dtype)

    def sometimes(strength, none):
        return torch.where(u() < 0.7, strength, none)

    return Photometrics(
        brightness=sometimes(0.4 + 1.2 * u(), 1.0),
        contrast=sometimes(0.4 + 1.2 * u(), 1.0),
        saturation=sometimes(2 * u(), 1.0),
        hue=sometimes(u() - 0.5, 0.0),
        order=torch.randint(0, 24, (n,), generator=generator),
        grey=u() < 0.2,
        sigma=sometimes(0.1 + 1.9 * u(), 0.0),
        solarize=torch.where(u() < 0.3, u(), 2.0),
    )


def by_torchvision(view, strengths, index):
    """One view [3, S, S] changed by torchvision, one operation after the other."""
    for name in ORDERS[strengths.order[index]]:
        strength = float(getattr(strengths, name)[index])
        if strength != (0 if name == "hue" else 1):
            view = ADJUST[name](view, strength)
    if strengths.grey[index]:
        view = tv.rgb_to_grayscale(view, num_output_channels=3)
    if strengths.sigma[index] > 0:
        view = tv.gaussian_blur(view, [9, 9], [float(strengths.sigma[index])] * 2)
    if strengths.solarize[index] <= 1:
        view = tv.solarize(view, float(strengths.solarize[index]))
    return view


def neutral(n, **changes):
    fields = Photometrics(*(field[0] for field in Photometrics.neutral((1, n))))
    return fields._replace(**changes)


@pytest.mark.parametrize(
    ("name", "strengths"),
    [
        ("brightness", [0.0, 0.3, 0.9, 1.4, 3.0]),
        ("contrast", [0.0, 0.3, 0.9, 1.4, 3.0]),
        ("saturation", [0.0, 0.3, 0.9, 1.4, 3.0]),
        ("hue", [-0.5, -0.31, -1e-3, 0.1, 0.5]),
    ],
)
def test_each_adjustment_is_torchvisions(name, strengths):
    views = random_views(len(strengths))
    changed = apply_photometrics(views.clone(), neutral(len(strengths), **{name: torch.tensor(strengths)}), 9)
    for view, found, strength in zip(views, changed, strengths, strict=True):
        torch.testing.assert_close(found, ADJUST[name](view, strength), atol=2e-5, rtol=0)


@pytest.mark.parametrize("order", range(24))
def test_the_orders_are_the_permutations_of_itertools(order):
    views = random_views(2, seed=order)
    strengths = neutral(
        2,
        brightness=torch.tensor([1.5, 0.6]),
        contrast=torch.tensor([0.5, 1.6]),
        saturation=torch.tensor([1.9, 0.4]),
        hue=torch.tensor([0.2, -0.4]),
        order=torch.tensor([order, order]),
    )
    changed = apply_photometrics(views.clone(), strengths, 9)
    for index in range(2):
        expected = views[index]
        for name in ORDERS[order]:
            expected = ADJUST[name](expected, float(getattr(strengths, name)[index]))
        torch.testing.assert_close(changed[index], expected, atol=5e-5, rtol=0)


def test_grey_and_blur_are_torchvisions():
    views = random_views(4)
    grey = apply_photometrics(views.clone(), neutral(4, grey=torch.tensor([True, False, True, True])), 9)
    torch.testing.assert_close(grey[0], tv.rgb_to_grayscale(views[0], 3), atol=1e-6, rtol=0)
    assert torch.equal(grey[1], views[1])
    sigma = torch.tensor([0.1, 0.7, 2.0, 50.0])
    for kernel in (1, 3, 9, 23):
        blurred = apply_photometrics(views.clone(), neutral(4, sigma=sigma), kernel)
        for index in range(4):
            expected = tv.gaussian_blur(views[index], [kernel] * 2, [float(sigma[index])] * 2)
            torch.testing.assert_close(blurred[index], expected, atol=5e-6, rtol=0)


def test_solarize_inverts_at_the_threshold_exactly():
    views = random_views(3)
    views[:, :, 6, :2] = 0.5
    threshold = torch.tensor([0.5, 1.0, 0.0])
    changed = apply_photometrics(views.clone(), neutral(3, solarize=threshold), 9)
    for index in range(3):
        assert torch.equal(changed[index], tv.solarize(views[index], float(threshold[index])))


@pytest.mark.parametrize("counted_freely", [("cpu",), ()])
def test_everything_together_is_torchvisions(monkeypatch, counted_freely):
    monkeypatch.setattr(photometrics, "_COUNTED_FREELY", counted_freely)  # (): as on an accelerator
    n = 64
    images = torch.randint(
        0, 256, (n, 3, 14, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    strengths = random_strengths(n, seed=3)
    flips = torch.arange(n) % 2 == 1
    views = render_views(
        images,
        torch.tensor([1.0, 2.0, 11.0, 12.0]).expand(1, n, 4),
        flips[None],
        Photometrics(*(field[None] for field in strengths)),
        size=18,
        mean=torch.zeros(3),
        std=torch.ones(3),
    )[0]
    lowest, highest = 0.0, 1.0
    for index in range(n):
        view = tv.resized_crop(
            images[index].float() / 255, 1, 2, 11, 12, [18, 18], InterpolationMode.BICUBIC, antialias=True
        )
        lowest, highest = min(lowest, float(view.min())), max(highest, float(view.max()))
        expected = by_torchvision(view.flip(-1) if flips[index] else view, strengths, index)
        # solarising and hue jump somewhere: leave out the few pixels that rounding carries over
        apart = (views[index] - expected).abs() > 1e-4
        assert apart.float().mean() < 0.003, [field[index] for field in strengths]
    assert lowest < -0.05 and highest > 1.05  # the overshoot of bicubic resampling took part


def test_neutral_is_the_exact_identity_even_beyond_the_unit_interval():
    views = random_views(6) * 1.4 - 0.2
    assert torch.equal(apply_photometrics(views.clone(), neutral(6), 9), views)
    strengths = random_strengths(6)
    some = torch.tensor([True, False, True, True, False, False])
    mixed = Photometrics(*(torch.where(some, a, b) for a, b in zip(strengths, neutral(6), strict=True)))
    assert torch.equal(apply_photometrics(views.clone(), mixed, 9)[~some], views[~some])


def test_skipping_on_the_cpu_changes_nothing(monkeypatch):
    views, strengths = random_views(40), random_strengths(40)
    skipping = apply_photometrics(views.clone(), strengths, 9)
    monkeypatch.setattr(photometrics, "_COUNTED_FREELY", ())
    torch.testing.assert_close(apply_photometrics(views.clone(), strengths, 9), skipping, atol=1e-6, rtol=0)


@pytest.mark.parametrize("counted_freely", [("cpu",), ()])
def test_gradients_in_the_strengths(monkeypatch, counted_freely):
    monkeypatch.setattr(photometrics, "_COUNTED_FREELY", counted_freely)
    n = 6
    generator = torch.Generator().manual_seed(1)
    views = 0.3 + 0.3 * torch.rand(n, 3, 8, 8, generator=generator, dtype=torch.float64)  # nothing is clamped
    base = random_strengths(n, seed=2, dtype=torch.float64)
    u = torch.rand(4, n, generator=generator, dtype=torch.float64)
    strengths = (0.9 + 0.2 * u[0], 0.9 + 0.2 * u[1], 0.9 + 0.2 * u[2], 0.02 + 0.05 * u[3], 0.5 + base.sigma)
    weight = torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64)

    def score(brightness, contrast, saturation, hue, sigma):
        fields = base._replace(
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            sigma=sigma,
            solarize=torch.full_like(hue, 0.45),
            grey=torch.arange(n) == 0,
        )
        return (apply_photometrics(views.clone(), fields, 9) * weight).sum((1, 2, 3))

    arguments = tuple(strength.clone().requires_grad_() for strength in strengths)
    assert torch.autograd.gradcheck(score, arguments, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("counted_freely", [("cpu",), ()])
def test_gradients_are_finite_at_greys_borders_and_neutral_strengths(monkeypatch, counted_freely):
    monkeypatch.setattr(photometrics, "_COUNTED_FREELY", counted_freely)
    views, strengths = random_views(40), random_strengths(40)
    strengths = Photometrics(*(f.requires_grad_() if f.is_floating_point() else f for f in strengths))
    apply_photometrics(views.clone(), strengths, 9).square().sum().backward()
    for field in strengths[:4]:
        assert field.grad.isfinite().all() and (field.grad != 0).any()
    assert strengths.sigma.grad.isfinite().all()
    assert (strengths.hue.grad[strengths.hue == 0] == 0).all()
