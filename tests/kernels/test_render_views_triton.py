"""render_views' launchers and operators: against the fp64 reference, torchvision and finite differences."""

import itertools
from copy import copy

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from closeness import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode

from vpt_kernels import PackedImages, Photometrics, render_views
from vpt_kernels.render_views import _render, rendered_views, rendered_views_backward
from vpt_kernels.triton import render_views as launchers

pytestmark = pytest.mark.usefixtures("poisoned")
STRENGTHS = ("brightness", "contrast", "saturation", "hue", "sigma")
ADJUST = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Cut small views into several tiles and blocks."""
    monkeypatch.setattr(launchers, "_TILE", 8)
    monkeypatch.setattr(launchers, "_BLOCK", 64)


class Case:
    """Random arguments of the operators."""

    def __init__(
        self, views, batch, size, height, width, dtype=torch.float64, packed=False, seed=0, **options
    ):
        generator = torch.Generator().manual_seed(seed)

        def u(*shape):
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        def sometimes(strength, none):
            return torch.where(u(views, batch) < 0.7, strength, none).to(dtype)

        def pixels(*shape):
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

        sides = torch.tensor([[height, width]] * batch).reshape(batch, 2)
        if packed:
            sides = 1 + (u(batch, 2) * sides).long()
            self.images = [pixels(int(h), int(w), 3) for h, w in sides]
            self.source = PackedImages.pack(self.images).tensors
        else:
            self.images = pixels(batch, 3, height, width)
            self.source = (self.images, None, None, None)
        length = (0.15 + 0.85 * u(views, batch, 2)) * sides
        self.boxes = torch.cat((u(views, batch, 2) * (sides - length), length), -1).to(dtype)
        self.flips = u(views, batch) < 0.5
        shape = (views, batch)
        self.photometrics = Photometrics(
            brightness=sometimes(0.4 + 1.2 * u(*shape), 1.0),
            contrast=sometimes(0.4 + 1.2 * u(*shape), 1.0),
            saturation=sometimes(2 * u(*shape), 1.0),
            hue=sometimes(u(*shape) - 0.5, 0.0),
            order=torch.randint(0, 24, shape, generator=generator),
            grey=u(*shape) < 0.2,
            sigma=sometimes(0.3 + 1.7 * u(*shape), 0.0),
            solarize=torch.where(u(*shape) < 0.3, 0.2 + 0.6 * u(*shape), 2.0).to(dtype),
        )
        self.mean, self.std = u(3).to(dtype), 0.2 + u(3).to(dtype)
        self.size, self.dtype = size, dtype
        self.options = {"interpolation": "bicubic", "blur_kernel": min(5, 2 * size - 1), **options}
        self.gradient = torch.randn(views, batch, 3, size, size, generator=generator, dtype=torch.float64)

    def settings(self):
        return self.size, self.options["interpolation"], self.options["blur_kernel"]

    def arguments(self, device="cpu", dtype=None):
        """Sources, boxes, flips and photometrics, their floats in `dtype`."""

        def placed(tensor):
            if tensor is None:
                return None
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return [placed(t) for t in (*self.source, self.boxes, self.flips, *self.photometrics)]

    def expected(self):
        wide = self.arguments(dtype=torch.float64)
        return rendered_views(*wide, self.mean.double(), self.std.double(), *self.settings(), torch.float64)

    def launched(self, device, out=None):
        constants = (self.mean.to(device), self.std.to(device))
        return launchers.forward(*self.arguments(device), *constants, *self.settings(), out or self.dtype)

    def expected_gradients(self):
        """By autograd through the reference, which does not know the operators' own backward pass."""
        *source, boxes, flips = self.arguments(dtype=torch.float64)[:6]
        strengths = Photometrics(*self.arguments(dtype=torch.float64)[6:])
        inputs = [boxes, *(getattr(strengths, name) for name in STRENGTHS)]
        for tensor in inputs:
            tensor.requires_grad_()
        size, interpolation, kernel = self.settings()
        constants = self.mean.double(), self.std.double()
        views = _render(
            source, boxes, flips, strengths, *constants, size, interpolation, kernel, torch.float64
        )
        found = torch.autograd.grad(views, inputs, self.gradient, materialize_grads=True, allow_unused=True)
        for tensor in inputs:
            tensor.requires_grad_(False)
        return found

    def operators_gradients(self):
        return rendered_views_backward(self.gradient, *self.arguments(), self.std, *self.settings())

    def moved(self, change):
        """The same case with its boxes moved."""
        other = copy(self)
        other.boxes = self.boxes + change
        return other

    def launched_gradients(self, device, out=None):
        gradient = self.gradient.to(device, out or self.dtype)
        return launchers.backward(gradient, *self.arguments(device), self.std.to(device), *self.settings())


def check_gradients(found, expected, dtype, factor=1.0):
    for name, one, other in zip(("boxes", *STRENGTHS), found, expected, strict=True):
        assert one.shape == other.shape, name
        if other.abs().max() < 1e-9:  # nothing but rounding, as of boxes in a single pixel
            assert one.abs().max() < 1e-9, name
        else:
            assert_near(one, other, dtype, factor)


@pytest.mark.parametrize(
    ("shape", "packed", "interpolation"),
    [
        ((1, 1, 13, 17, 11), False, "bicubic"),
        ((1, 2, 7, 11, 13), True, "bicubic"),
        ((2, 1, 7, 13, 17), False, "bilinear"),
        ((2, 1, 1, 5, 3), True, "bilinear"),
        ((1, 1, 5, 1, 1), False, "bicubic"),
        ((1, 1, 3, 19, 7), True, "bicubic"),
    ],
)
def test_forward_and_backward_against_the_reference(shape, packed, interpolation, device):
    case = Case(*shape, packed=packed, interpolation=interpolation)
    assert_near(case.launched(device), case.expected(), torch.float64)
    check_gradients(case.launched_gradients(device), case.expected_gradients(), torch.float64)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("seed", range(4))
def test_the_operators_own_backward_on_the_cpu(packed, interpolation, seed):
    case = Case(6, 7, 11, 23, 19, packed=packed, interpolation=interpolation, seed=seed)
    check_gradients(case.operators_gradients(), case.expected_gradients(), torch.float64)


@settings(max_examples=4, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (1, 2, 9, 11, 11))),
    packed=st.booleans(),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    kernel=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_random_shapes(shape, packed, interpolation, kernel, seed):
    kernel = 2 * min(kernel, shape[2] - 1) + 1
    case = Case(*shape, packed=packed, seed=seed, interpolation=interpolation, blur_kernel=kernel)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert_near(case.launched(device), case.expected(), torch.float64)
    check_gradients(case.launched_gradients(device), case.expected_gradients(), torch.float64)


@pytest.mark.parametrize(
    ("out", "packed"), [(torch.float32, False), (torch.float16, True), (torch.bfloat16, False)]
)
def test_dtypes_of_the_views(out, packed, device):
    case = Case(1, 2, 7, 11, 9, torch.float32, packed)
    found = case.launched(device, out)
    assert found.dtype == out
    assert_near(found, case.expected(), out)
    gradients = case.launched_gradients(device, out)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    case.gradient = case.gradient.to(out).double()
    check_gradients(gradients, case.expected_gradients(), torch.float32, factor=10)


def test_real_tiles_and_blocks(device, monkeypatch):
    monkeypatch.undo()
    case = Case(1, 1, 35, 23, 31, torch.float32, seed=1)
    case.photometrics = Photometrics(
        *(torch.tensor([[value]]) for value in (1.2, 0.7, 1.3, 0.1, 9, False, 0.8, 2.0))
    )
    assert_near(case.launched(device), case.expected(), torch.float32)
    check_gradients(case.launched_gradients(device), case.expected_gradients(), torch.float32, factor=10)


def by_torchvision(case, b, v):
    """One view by torchvision, one operation after the other, in fp64."""
    p = {name: field[v, b].item() for name, field in case.photometrics._asdict().items()}
    view = tv.resized_crop(
        case.images[b].double() / 255,
        *case.boxes[v, b].int().tolist(),
        [case.size] * 2,
        InterpolationMode(case.options["interpolation"]),
        antialias=True,
    )
    view = view.flip(-1) if case.flips[v, b] else view
    order = list(itertools.permutations(range(4)))[p["order"]]
    for operation in order:
        strength = p[("brightness", "contrast", "saturation", "hue")[operation]]
        if strength != (0 if operation == 3 else 1):
            view = ADJUST[operation](view, strength)
    view = tv.rgb_to_grayscale(view, 3) if p["grey"] else view
    view = tv.gaussian_blur(view, [case.options["blur_kernel"]] * 2, [p["sigma"]] * 2) if p["sigma"] else view
    view = tv.solarize(view, p["solarize"]) if p["solarize"] <= 1 else view
    return (view - case.mean[:, None, None]) / case.std[:, None, None]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_order_is_torchvisions(interpolation, device):
    case = Case(24, 1, 7, 9, 8, interpolation=interpolation)
    case.boxes = torch.cat((torch.tensor([1.0, 0, 7, 8]).expand(23, 4), torch.tensor([[3.0, 2, 5, 6]])))[
        :, None
    ]
    case.boxes = case.boxes.double()
    everything = torch.arange(24)[:, None] % 3 > 0  # two of three views have all of the jitter
    change = {"brightness": 1.3, "contrast": 0.6, "saturation": 1.7, "hue": 0.17}
    fields = case.photometrics._asdict()
    jitter = {name: torch.where(everything, value, fields[name]) for name, value in change.items()}
    case.photometrics = case.photometrics._replace(order=torch.arange(24)[:, None], **jitter)
    found = case.launched(device).cpu()
    for view in range(24):
        assert_near(found[view, 0], by_torchvision(case, 0, view), torch.float32)  # it blurs with fp32 taps


def test_packed_images_render_as_each_alone(device):
    case = Case(1, 3, 6, 11, 9, packed=True)
    together = case.launched(device)
    for b, image in enumerate(case.images):
        part = slice(b, b + 1)
        alone = launchers.forward(
            image.permute(2, 0, 1)[None].contiguous().to(device), None, None, None,
            *(t[:, part].to(device) for t in (case.boxes, case.flips, *case.photometrics)),
            case.mean.to(device), case.std.to(device), *case.settings(), torch.float64,
        )  # fmt: skip
        assert torch.equal(alone, together[:, part])


def layouts(images):
    yield images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    yield images.contiguous(memory_format=torch.channels_last)
    padded = torch.zeros(len(images) + 1, 4, images.shape[2] + 2, 2 * images.shape[3], dtype=torch.uint8)
    view = padded[1:, 1:, 1:-1, ::2]
    yield view.copy_(images)


def test_layouts_that_are_not_contiguous(device):
    case = Case(1, 2, 5, 6, 7)
    expected, gradients = case.launched(device), case.launched_gradients(device)
    for images in layouts(case.images):
        assert not images.is_contiguous()
        case.source = (images, None, None, None)
        for field in ("boxes", "flips", "gradient"):
            tensor = getattr(case, field)
            setattr(case, field, torch.stack((tensor, tensor), -1)[..., 0])
        case.photometrics = Photometrics(*(field.T.contiguous().T for field in case.photometrics))
        assert torch.equal(case.launched(device), expected)
        for found, wanted in zip(case.launched_gradients(device), gradients, strict=True):
            assert torch.equal(found, wanted)


def test_one_image_seen_many_times(device):
    """A batch stride of 0, as expand gives it."""
    case = Case(1, 3, 5, 8, 9)
    case.images = case.images[:1].expand(3, -1, -1, -1)
    case.source = (case.images, None, None, None)
    assert_near(case.launched(device), case.expected(), torch.float64)


def test_scratch_is_bounded_by_chunks(device, monkeypatch):
    case = Case(2, 3, 4, 5, 6)
    whole, gradients = case.launched(device), case.launched_gradients(device)
    rooms = []
    new_empty = torch.Tensor.new_empty

    def counting(tensor, size, *rest, **options):
        rooms.append(size)
        return new_empty(tensor, size, *rest, **options)

    monkeypatch.setattr(torch.Tensor, "new_empty", counting)
    monkeypatch.setattr(launchers, "_SCRATCH", 2 * 3 * 4 * 4)  # two views at a time
    case_chunks = case.launched(device), case.launched_gradients(device)
    monkeypatch.undo()
    assert sum(size == (2, 3, 4, 4) for size in rooms) == 2 + 4
    assert torch.equal(case_chunks[0], whole)
    for found, wanted in zip(case_chunks[1], gradients, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("views", "batch"), [(0, 3), (2, 0)])
def test_nothing_to_render(views, batch, device):
    case = Case(views, batch, 4, 5, 6, torch.float32)
    assert case.launched(device, torch.bfloat16).shape == (views, batch, 3, 4, 4)
    shapes = [tuple(gradient.shape) for gradient in case.launched_gradients(device)]
    assert shapes == [(views, batch, 4)] + [(views, batch)] * 5


def test_neutral_strengths_have_no_gradient(device):
    case = Case(1, 2, 5, 9, 9)
    case.photometrics = Photometrics(
        *(f.double() if f.is_floating_point() else f for f in Photometrics.neutral((1, 2)))
    )
    of_boxes, *of_strengths = case.launched_gradients(device)
    assert of_boxes.abs().min() > 0
    assert all((gradient == 0).all() for gradient in of_strengths)


def test_the_launchers_gradient_against_finite_differences(device):
    case = Case(1, 1, 5, 7, 6, seed=3)
    case.images.clamp_(90, 160)  # nothing is clamped
    case.photometrics = case.photometrics._replace(
        brightness=torch.full((1, 1), 1.1).double(),
        contrast=torch.full((1, 1), 0.9).double(),
        saturation=torch.full((1, 1), 1.2).double(),
        hue=torch.full((1, 1), 0.04).double(),
        sigma=torch.full((1, 1), 0.8).double(),
        grey=torch.tensor([[False]]),
        solarize=torch.full((1, 1), 2.0).double(),
    )
    gradients = dict(zip(("boxes", *STRENGTHS), case.launched_gradients(device), strict=True))
    step = 1e-6
    boxes, photometrics = case.boxes, case.photometrics
    for name, gradient in gradients.items():
        base = boxes if name == "boxes" else getattr(photometrics, name)
        direction = torch.randn(base.shape, dtype=torch.float64)
        scores = []
        for sign in (1, -1):
            moved = base + sign * step * direction
            if name == "boxes":
                case.boxes = moved
            else:
                case.boxes, case.photometrics = boxes, photometrics._replace(**{name: moved})
            scores.append(float((case.launched(device).cpu() * case.gradient).sum()))
        case.boxes, case.photometrics = boxes, photometrics
        slope = (scores[0] - scores[1]) / (2 * step)
        assert float((gradient.cpu() * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("launched", [False, True])
def test_gradients_where_channels_are_equal(launched, device):
    """Greys have no hue, and channels that share the highest or lowest value share its gradient."""
    case = Case(1, 3, 7, 8, 9)
    case.images[:, 1] = case.images[:, 0]  # red and green alike, above or below blue
    case.images[2] = case.images[2, :1]  # grey
    case.source = (case.images, None, None, None)
    case.photometrics = case.photometrics._replace(
        hue=torch.tensor([[0.1, -0.2, 0.3]]).double(),
        order=torch.full((1, 3), 18),  # hue first
        brightness=torch.full((1, 3), 1.3).double(),
    )
    found = case.launched_gradients(device) if launched else case.operators_gradients()
    check_gradients(found, case.expected_gradients(), torch.float64)


@pytest.mark.parametrize("launched", [False, True])
def test_boxes_that_end_between_pixels(launched, device):
    """There the slopes of the two sides differ; the gradient is their mean, as of central differences."""
    case = Case(1, 1, 4, 12, 11)
    case.photometrics = Photometrics(
        *(f.double() if f.is_floating_point() else f for f in Photometrics.neutral((1, 1)))
    )
    case.boxes = torch.tensor([2.0, 3, 7, 6]).double().view(1, 1, 4)
    found = case.launched_gradients(device)[0] if launched else case.operators_gradients()[0]
    for side in range(4):
        change = torch.zeros(1, 1, 4).double()
        change[..., side] = 1e-6
        up, down = (Case.expected(case.moved(sign * change)) for sign in (1, -1))
        slope = ((up - down) * case.gradient).sum() / 2e-6
        assert float(found[0, 0, side]) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_sources_beyond_two_to_the_31(packed, device):
    """The second image starts 2**31 + 5 bytes after the first; untouched memory is never taken."""
    far, height, width = 2**31 + 5, 5, 7
    # numpy's, as torch.empty would be poisoned
    flat = torch.from_numpy(np.empty(far + 3 * height * width, dtype=np.uint8))
    case = Case(1, 2, 4, height, width)
    for start, image in zip((0, far), case.images, strict=True):
        flat[start : start + image.numel()] = image.permute(1, 2, 0).flatten()
    expected = case.expected(), case.expected_gradients()
    if packed:
        sides = (torch.tensor([side, side]) for side in (height, width))
        case.source = (flat, torch.tensor([0, far]), *sides)
    else:
        case.source = (flat.as_strided((2, 3, height, width), (far, 1, 3 * width, 3)), None, None, None)
        if device.type == "cuda":
            storage = flat.to(device)
            moved = storage.as_strided((2, 3, height, width), (far, 1, 3 * width, 3))
            case.source = (moved, None, None, None)
    assert_near(case.launched(device), expected[0], torch.float64)
    check_gradients(case.launched_gradients(device), expected[1], torch.float64)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_pass_opcheck(packed, requires_grad, device):
    case = Case(2, 2, 4, 6, 7, packed=packed)
    arguments = case.arguments(device)
    if requires_grad:
        arguments = [
            t.requires_grad_() if t is not None and t.is_floating_point() and index != 13 else t
            for index, t in enumerate(arguments)
        ]
    constants = (case.mean.to(device), case.std.to(device))
    torch.library.opcheck(rendered_views, (*arguments, *constants, *case.settings(), torch.float32))
    arguments = [None if t is None else t.detach() for t in arguments]
    gradient = case.gradient.to(device)
    torch.library.opcheck(rendered_views_backward, (gradient, *arguments, constants[1], *case.settings()))


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_as_one_graph(packed, device):
    case = Case(2, 2, 5, 8, 9, torch.float32, packed)
    images, *_ = case.source
    source = PackedImages(*case.source).to(device) if packed else images.to(device)
    boxes, flips = case.boxes.to(device), case.flips.to(device)
    photometrics = Photometrics(*(field.to(device) for field in case.photometrics))
    mean, std = case.mean.to(device), case.std.to(device)

    def score(boxes, contrast):
        views = render_views(
            source, boxes, flips, photometrics._replace(contrast=contrast), size=5, mean=mean, std=std,
            blur_kernel=5, dtype=torch.bfloat16,
        )  # fmt: skip
        return views.float().square().sum()

    results = []
    for function in (score, torch.compile(score, fullgraph=True, backend="aot_eager")):
        inputs = boxes.clone().requires_grad_(), photometrics.contrast.clone().requires_grad_()
        value = function(*inputs)
        results.append((value.detach(), *torch.autograd.grad(value, inputs)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_the_public_functions_gradients_are_the_references(device):
    """Through autograd, with a gradient for some inputs only and a gradient that is an expanded scalar."""
    case = Case(2, 2, 6, 9, 8)
    case.gradient = torch.ones(()).double().expand(case.gradient.shape)
    expected = dict(zip(("boxes", *STRENGTHS), case.expected_gradients(), strict=True))
    boxes = case.boxes.to(device).requires_grad_()
    sigma = case.photometrics.sigma.to(device).requires_grad_()
    photometrics = Photometrics(*(field.to(device) for field in case.photometrics))._replace(sigma=sigma)
    views = render_views(
        case.images.to(device), boxes, case.flips.to(device), photometrics, size=6, mean=case.mean.to(device),
        std=case.std.to(device), blur_kernel=5, dtype=torch.float64,
    )  # fmt: skip
    views.sum().backward()
    assert_near(boxes.grad, expected["boxes"], torch.float64)
    assert_near(sigma.grad, expected["sigma"], torch.float64)
    detached = render_views(
        case.images.to(device), boxes.detach(), case.flips.to(device),
        photometrics._replace(sigma=sigma.detach()), size=6, mean=case.mean.to(device),
        std=case.std.to(device), blur_kernel=5, dtype=torch.float64,
    )  # fmt: skip
    assert detached.grad_fn is None and torch.equal(detached, views.detach())
