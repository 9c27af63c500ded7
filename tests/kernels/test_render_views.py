"""render_views: geometry against torchvision, brute force and calculus; layout, chunks, errors."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from images import packed, random_sizes
from torchvision.transforms import InterpolationMode

from vpt_kernels import PackedImages, Photometrics, render_views

module = importlib.import_module("vpt_kernels.render_views")  # the package's attribute is the function


def plain(images, boxes, size, *, flips=None, photometrics=None, **options):
    """Render with no normalisation, by default without flips and photometrics."""
    shape = boxes.shape[:2]
    neutral = Photometrics.neutral(shape)
    neutral = Photometrics(*(f.to(boxes.dtype) if f.dtype == torch.float32 else f for f in neutral))
    options.setdefault("blur_kernel", 1)
    return render_views(
        images,
        boxes,
        torch.zeros(shape, dtype=torch.bool) if flips is None else flips,
        neutral if photometrics is None else photometrics,
        size=size,
        mean=torch.zeros(3),
        std=torch.ones(3),
        **options,
    )


def random_images(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def random_boxes(views, batch, height, width, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(views, batch, 4, generator=generator, dtype=torch.float64)
    sides = torch.tensor([height, width], dtype=torch.float64)
    lengths = 2 + u[..., 2:] * (sides - 2)
    return torch.cat((u[..., :2] * (sides - lengths), lengths), -1).to(dtype)


def plain_weights(start, length, size, pixels, interpolation):
    """Weights [size][pixels] of one axis, from the definition of the filters, in Python floats."""
    a = -0.5

    def kernel(x):
        x = abs(x)
        if interpolation == "bilinear":
            return max(0.0, 1 - x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    scale = length / size
    rows = []
    for i in range(size):
        centre = start + (i + 0.5) * scale
        row = []
        for j in range(pixels):
            overlap = max(0.0, min(j + 1, start + length) - max(j, start))
            row.append(overlap * kernel((j + 0.5 - centre) / max(scale, 1.0)))
        total = sum(row)
        rows.append([value / total for value in row])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 16), (41, 53, 17), (20, 133, 11), (12, 64, 24), (7, 5, 31), (96, 96, 8), (3, 3, 1)],
)
def test_integer_boxes_agree_with_torchvision(interpolation, height, width, size):
    images = random_images(3, height, width)
    boxes = random_boxes(4, 3, height, width).floor()
    boxes[0] = torch.tensor([0, 0, height, width])
    views = plain(images, boxes, size, interpolation=interpolation)
    for v in range(4):
        for b in range(3):
            expected = tv.resized_crop(
                images[b].float() / 255,
                *boxes[v, b].int().tolist(),
                [size, size],
                interpolation=InterpolationMode(interpolation),
                antialias=True,
            )
            torch.testing.assert_close(views[v, b], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(9, 14, 5), (8, 6, 13), (23, 23, 4)])
def test_real_boxes_agree_with_the_definition(interpolation, height, width, size):
    images = random_images(2, height, width, seed=1)
    boxes = random_boxes(3, 2, height, width, seed=2, dtype=torch.float64)
    boxes[0, 0] = torch.tensor([1.25, 2.75, 0.5, 0.125])  # smaller than a pixel
    views = plain(images, boxes, size, interpolation=interpolation, dtype=torch.float64)
    for v in range(3):
        for b in range(2):
            top, left, tall, wide = boxes[v, b].tolist()
            rows = plain_weights(top, tall, size, height, interpolation)
            columns = plain_weights(left, wide, size, width, interpolation)
            expected = rows @ (images[b].double() / 255) @ columns.T
            torch.testing.assert_close(views[v, b], expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_view_depends_on_its_box_alone(memory_format):
    """Narrow and wide boxes at and across blocks of columns, whose surroundings change or are cut away."""
    left, wide = (31.0, 32.0, 32.5, 63.25, 33.0), (1.0, 32.0, 31.5, 64.75, 99.0)
    images = random_images(2, 9, 139).contiguous(memory_format=memory_format)
    boxes = torch.tensor([[[1.5, at, 6.25, length]] * 2 for at, length in zip(left, wide, strict=True)])
    boxes[:, 1, 1] += 0.75  # the second image's lie elsewhere
    flips = torch.rand(5, 2) < 0.5
    weight = torch.randn(5, 2, 3, 7, 7, dtype=torch.float64)

    def views_and_gradient(images, boxes):
        boxes = boxes.double().requires_grad_()
        views = plain(images, boxes, 7, flips=flips[: len(boxes)], dtype=torch.float64)
        return views.detach(), *torch.autograd.grad((views * weight[: len(boxes)]).sum(), boxes)

    views, gradient = views_and_gradient(images, boxes)
    for other in (images[:, :, :, 29:136], torch.cat((255 - images[..., :29], images[..., 29:]), 3)):
        moved = boxes - torch.tensor([0.0, 139 - other.shape[3] and 29.0, 0.0, 0.0])
        found, found_gradient = views_and_gradient(other, moved)
        torch.testing.assert_close(found, views, atol=1e-12, rtol=0)
        torch.testing.assert_close(found_gradient, gradient, atol=1e-9, rtol=0)
    few = slice(0, 2)  # fewer taps and blocks than with wide boxes beside them
    alone = views_and_gradient(images, boxes[few])
    torch.testing.assert_close(alone[0], views[few], atol=1e-12, rtol=0)
    torch.testing.assert_close(alone[1], gradient[few], atol=1e-9, rtol=0)


def test_columns_far_from_a_box_are_not_resized(monkeypatch):
    seen = []
    weigh = module._weigh_rows
    monkeypatch.setattr(
        module, "_weigh_rows", lambda *arguments: seen.append(arguments[-1].tolist()) or weigh(*arguments)
    )
    boxes = torch.tensor([[0.0, 0, 9, 32], [0, 32, 9, 33], [0, 20, 9, 107], [0, 127.5, 9, 1]])
    plain(random_images(1, 9, 139), boxes[:, None], 4)
    assert seen == [[0, 1, 2, 0, 1, 2, 3, 3, 4]]


def test_views_are_continuous_where_a_box_crosses_a_pixel():
    images = random_images(1, 20, 20)
    boxes = torch.tensor([[4.0, 5.0, 11.0, 9.0]], dtype=torch.float64)
    at = plain(images, boxes[None], 12, dtype=torch.float64)
    for side in range(4):
        for change in (-1e-7, 1e-7):
            moved = boxes.clone()
            moved[0, side] += change
            assert (plain(images, moved[None], 12, dtype=torch.float64) - at).abs().max() < 1e-5


def test_flips_mirror_left_to_right():
    images = random_images(4, 15, 18)
    boxes = random_boxes(3, 4, 15, 18)
    flips = torch.rand(3, 4) < 0.5
    views, flipped = plain(images, boxes, 9), plain(images, boxes, 9, flips=flips)
    assert flips.any() and not flips.all()
    torch.testing.assert_close(flipped[flips], views[flips].flip(-1), atol=1e-6, rtol=0)
    assert torch.equal(flipped[~flips], views[~flips])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 20])
def test_gradient_in_boxes(interpolation, size):
    images = random_images(2, 13, 11, seed=4)
    boxes = random_boxes(2, 2, 13, 11, seed=5, dtype=torch.float64).requires_grad_()
    flips = torch.tensor([[True, False], [False, True]])
    weight = torch.randn(2, 2, 3, size, size, dtype=torch.float64)

    def score(boxes):
        views = plain(images, boxes, size, flips=flips, interpolation=interpolation, dtype=torch.float64)
        return (views * weight).sum((2, 3, 4))

    assert torch.autograd.gradcheck(score, (boxes,), atol=1e-6, rtol=1e-4)


def test_fp32_and_fp64_agree():
    images = random_images(2, 200, 180)
    boxes = random_boxes(2, 2, 200, 180)
    views = plain(images, boxes, 32)
    torch.testing.assert_close(views, plain(images, boxes.double(), 32), atol=3e-5, rtol=0)


def test_normalisation_and_dtype():
    images, boxes = random_images(2, 16, 16), random_boxes(2, 2, 16, 16)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    flips = torch.zeros(2, 2, dtype=torch.bool)
    neutral = Photometrics.neutral((2, 2))
    views = render_views(images, boxes, flips, neutral, size=8, mean=mean, std=std, dtype=torch.bfloat16)
    expected = tv.normalize(plain(images, boxes, 8), mean.tolist(), std.tolist())
    assert views.dtype == torch.bfloat16
    assert torch.equal(views, expected.to(torch.bfloat16))


def strong_photometrics(views, batch):
    generator = torch.Generator().manual_seed(9)

    def u():
        return torch.rand(views, batch, generator=generator)

    return Photometrics(
        brightness=0.6 + u(),
        contrast=0.6 + u(),
        saturation=0.6 + u(),
        hue=u() * 0.4 - 0.2,
        order=torch.randint(0, 24, (views, batch), generator=generator),
        grey=u() < 0.3,
        sigma=torch.where(u() < 0.5, 0.3 + u(), 0),
        solarize=torch.where(u() < 0.3, 0.5, 2.0),
    )


def test_a_view_does_not_depend_on_its_company(monkeypatch):
    images, boxes = random_images(5, 30, 26), random_boxes(3, 5, 30, 26)
    photometrics = strong_photometrics(3, 5)
    flips = torch.rand(3, 5) < 0.5
    whole = plain(images, boxes, 12, flips=flips, photometrics=photometrics, blur_kernel=9)
    some, few = torch.tensor([4, 1]), slice(1, 3)
    part = plain(
        images[some],
        boxes[few, some],
        12,
        flips=flips[few, some],
        photometrics=Photometrics(*(field[few, some] for field in photometrics)),
        blur_kernel=9,
    )
    torch.testing.assert_close(part, whole[few, some], atol=1e-6, rtol=0)
    monkeypatch.setattr(module, "_CHUNK", 1)  # an image at a time
    chunked = plain(images, boxes, 12, flips=flips, photometrics=photometrics, blur_kernel=9)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)


def test_memory_is_bounded_by_chunks(monkeypatch):
    seen = []
    resize = module._resize
    monkeypatch.setattr(
        module, "_resize", lambda images, *rest: seen.append(len(images)) or resize(images, *rest)
    )
    images = random_images(1, 256, 256).expand(60, -1, -1, -1)
    plain(images, torch.tensor([0.0, 0.0, 256.0, 256.0]).expand(2, 60, 4), 64)
    assert sum(seen) == 60
    assert max(seen) * 2 * 64 * 3 * 64 <= module._CHUNK


def test_autocast_does_not_reach_the_pixels():
    images, boxes = random_images(3, 20, 20), random_boxes(2, 3, 20, 20)
    photometrics = strong_photometrics(2, 3)
    outside = plain(images, boxes, 12, photometrics=photometrics, blur_kernel=9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plain(images, boxes, 12, photometrics=photometrics, blur_kernel=9)
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


def test_layouts_that_are_not_contiguous():
    images = random_images(3, 16, 20)
    boxes = random_boxes(2, 3, 16, 20)
    odd = images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    strided = boxes.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not odd.is_contiguous() and not strided.is_contiguous()
    assert torch.equal(plain(odd, strided, 7), plain(images, boxes, 7))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_packed_images_render_as_each_alone(interpolation):
    images = random_sizes([(17, 23), (1, 1), (40, 9), (8, 8)])
    boxes = torch.stack([random_boxes(3, 1, *i.shape[:2], seed=i.shape[0])[:, 0] for i in images], 1)
    boxes[:, 1] = torch.tensor([0.0, 0, 1, 1])
    photometrics, flips = strong_photometrics(3, 4), torch.rand(3, 4) < 0.5
    options = {"interpolation": interpolation, "blur_kernel": 5}
    views = plain(PackedImages.pack(images), boxes, 11, flips=flips, photometrics=photometrics, **options)
    for b, image in enumerate(images):
        part = slice(b, b + 1)
        alone = plain(
            image.permute(2, 0, 1)[None].contiguous(),
            boxes[:, part],
            11,
            flips=flips[:, part],
            photometrics=Photometrics(*(field[:, part] for field in photometrics)),
            **options,
        )
        torch.testing.assert_close(views[:, part], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [0, 2, 1, 4, 3], [1, 1, 3], [4, 3]])
def test_packed_images_of_one_size_are_rendered_together_wherever_they_lie(order, monkeypatch):
    images = random_images(5, 12, 10)
    some = PackedImages.pack(images, channels_first=True)[torch.tensor(order)]
    boxes = random_boxes(3, len(order), 12, 10)
    options = {"flips": torch.rand(3, len(order)) < 0.5, "photometrics": strong_photometrics(3, len(order))}
    together = []
    resize = module._resize
    monkeypatch.setattr(module, "_resize", lambda group, *a: together.append(len(group)) or resize(group, *a))
    views = plain(some, boxes, 7, **options)
    assert together == [len(order)]
    assert torch.equal(views, plain(images[order], boxes, 7, **options))


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (
            {"offsets": torch.tensor([0, 60])},
            ValueError,
            "inside their 132 pixel values, got image 1 of 4 x 7 at",
        ),
        ({"heights": torch.tensor([0, 4])}, ValueError, "got image 0 of 0 x 4"),
        ({"widths": torch.tensor([4.0, 7.0])}, TypeError, r"images.widths must be int64 \[2\]"),
        ({"offsets": torch.tensor([0])}, ValueError, r"images.heights must be int64 \[1\]"),
        ({"pixels": torch.zeros(132)}, TypeError, "images.pixels must be uint8"),
    ],
)
def test_errors_of_packed_images(change, error, word):
    images = replace(packed([(4, 4), (4, 7)]), **change)
    with pytest.raises(error, match=word):
        plain(images, torch.tensor([0.0, 0, 4, 4]).expand(1, len(images), 4), 6)


def test_boxes_must_lie_inside_their_own_image():
    images = packed([(9, 9), (4, 7)])
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 4, 7]])
    plain(images, boxes[None], 6)
    with pytest.raises(ValueError, match=r"4 x 7 image, got top, left, height, width \[0.0, 0.0, 9.0, 9.0\]"):
        plain(images, boxes[None, [0, 0]], 6)


def test_gradient_in_boxes_and_strengths():
    images = random_images(2, 9, 10, seed=6).clamp(90, 160)  # nothing is clamped
    base = strong_photometrics(2, 2)
    u = torch.rand(5, 2, 2, dtype=torch.float64)
    inputs = [random_boxes(2, 2, 9, 10, seed=7, dtype=torch.float64)]
    inputs += [0.9 + 0.2 * u[0], 0.9 + 0.2 * u[1], 0.9 + 0.2 * u[2], 0.02 + 0.05 * u[3], 0.5 + u[4]]
    weight = torch.randn(2, 2, 3, 6, 6, dtype=torch.float64)

    def score(boxes, brightness, contrast, saturation, hue, sigma):
        photometrics = Photometrics(
            brightness, contrast, saturation, hue, base.order, base.grey, sigma, torch.full_like(hue, 2.0)
        )
        views = plain(images, boxes, 6, photometrics=photometrics, blur_kernel=5, dtype=torch.float64)
        return (views * weight).sum((2, 3, 4))

    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(score, inputs, atol=1e-6, rtol=1e-4)


def test_second_derivatives_are_refused():
    boxes = random_boxes(1, 1, 9, 9, dtype=torch.float64).requires_grad_()
    views = plain(random_images(1, 9, 9), boxes, 5, dtype=torch.float64)
    (first,) = torch.autograd.grad(views.square().sum(), boxes, create_graph=True)
    with pytest.raises(RuntimeError, match="render_views_backward"):
        first.sum().backward()


@pytest.mark.parametrize(("views", "batch"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_render(views, batch):
    empty = plain(random_images(batch, 8, 8), torch.zeros(views, batch, 4), 6, dtype=torch.bfloat16)
    assert empty.shape == (views, batch, 3, 6, 6) and empty.dtype == torch.bfloat16


def test_rounding_beyond_the_border_is_forgiven():
    images = random_images(1, 24, 24)
    full = torch.tensor([[[0.0, 0.0, 24.0, 24.0]]])
    over = torch.tensor([[[-1e-5, 1e-5, 24.0, 24.0]]])
    torch.testing.assert_close(plain(images, over, 24), plain(images, full, 24), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, TypeError, r"images must be uint8 \[B, 3, H, W\], got float32"),
        ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, ValueError, "images must be"),
        (
            {"boxes": torch.zeros(1, 3, 4)},
            ValueError,
            r"boxes must be .*\[V, 2, 4\], got float32 \[1, 3, 4\]",
        ),
        ({"boxes": torch.zeros(1, 2, 4).half()}, TypeError, "boxes must be float32 or float64"),
        ({"boxes": torch.tensor([0.0, 0, 0, 8]).expand(1, 2, 4)}, ValueError, "positive size"),
        (
            {"boxes": torch.tensor([2.3, 2, 1e-9, 1e-9]).expand(1, 2, 4)},
            ValueError,
            "positive size, also once",
        ),
        ({"boxes": torch.tensor([-5e-3, 2, 1e-3, 4]).expand(1, 2, 4)}, ValueError, "lie inside the 8 x 8"),
        (
            {"photometrics": Photometrics.neutral((1, 2))._replace(order=torch.tensor([[0, 24]]))},
            ValueError,
            "order must lie in 0..23, got 0..24",
        ),
        (
            {"boxes": torch.tensor([0.0, 2, 4, 7]).expand(1, 2, 4)},
            ValueError,
            r"8 x 8.*\[0.0, 2.0, 4.0, 7.0\]",
        ),
        ({"boxes": torch.full((1, 2, 4), math.nan)}, ValueError, "inside the 8 x 8 image"),
        ({"flips": torch.zeros(2, 2, dtype=torch.bool)}, ValueError, r"flips must be bool \[1, 2\]"),
        ({"flips": torch.zeros(1, 2)}, TypeError, "flips must be bool"),
        ({"mean": torch.zeros(1)}, ValueError, r"mean must be .*\[3\]"),
        ({"std": torch.ones(3, device="meta")}, ValueError, "std must be .* on cpu, got .* on meta"),
        ({"interpolation": "lanczos"}, ValueError, "bilinear, bicubic, got 'lanczos'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be one of float32, float16, bfloat16"),
        ({"size": 0}, ValueError, "size must be at least 1"),
        ({"blur_kernel": 4}, ValueError, "blur_kernel must be odd"),
        ({"size": 4}, ValueError, "below twice the size 4, got 9"),
        (
            {"photometrics": Photometrics.neutral((1, 2))._replace(hue=torch.zeros(2, 2))},
            ValueError,
            r"photometrics.hue must be float32 \[1, 2\], got float32 \[2, 2\]",
        ),
        (
            {"photometrics": Photometrics.neutral((1, 2))._replace(grey=torch.zeros(1, 2))},
            TypeError,
            "photometrics.grey must be bool",
        ),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "boxes": torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(1, 2, 4),
        "flips": torch.zeros(1, 2, dtype=torch.bool),
        "photometrics": Photometrics.neutral((1, 2)),
        "size": 8,
        "mean": torch.zeros(3),
        "std": torch.ones(3),
        **change,
    }
    with pytest.raises(error, match=word):
        render_views(**arguments)
