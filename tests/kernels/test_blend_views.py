"""blend_views: the formula with torchvision's blur, finite differences, and the launchers against fp64."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from closeness import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st

from vpt_kernels.blend_views import Blend, blend_views, blended_views, blended_views_gradients, gaussian
from vpt_kernels.triton import blend_views as launchers

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# views [N, C, H, W], sigma, blur_kernel
SHAPES = [
    ((1, 3, 1, 1), 1.0, 1),
    ((2, 3, 1, 7), 0.8, 1),
    ((2, 3, 5, 1), 0.8, 1),
    ((3, 3, 13, 17), 1.3, 5),
    ((2, 3, 4, 31), 2.0, 7),  # reflects all of a column
    ((1, 1, 37, 41), 3.0, 9),  # more than one program
]


def case(shape, dtype, mask_dtype=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(shape, generator=generator).to(dtype)
    mask = torch.rand(shape[0], *shape[2:], generator=generator)
    mask = (mask * 4).round() / 4  # equal neighbours, too
    return views, mask.to(mask_dtype or dtype)


def reference(views, mask, sigma, blur_kernel):
    """The published formula, term by term, with torchvision's blur."""
    views, mask = views.double(), mask.double()
    blurred = tv.gaussian_blur(views, [blur_kernel] * 2, [sigma] * 2)
    blended = mask[:, None] * views + (1 - mask[:, None]) * blurred
    variation = 0 * mask.sum((1, 2))
    if mask.shape[1] > 1:
        variation = variation + (mask[:, 1:] - mask[:, :-1]).abs().mean((1, 2))
    if mask.shape[2] > 1:
        variation = variation + (mask[:, :, 1:] - mask[:, :, :-1]).abs().mean((1, 2))
    return blended, variation, (1 - mask).mean((1, 2))


def gradients_of_reference(views, mask, sigma, blur_kernel, upstream):
    views, mask = (tensor.double().requires_grad_() for tensor in (views, mask))
    outputs = reference(views, mask, sigma, blur_kernel)
    return torch.autograd.grad(outputs, (views, mask), [tensor.double() for tensor in upstream])


def upstream_of(views, seed=5):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(views.dtype, torch.float32)
    terms = [torch.randn(len(views), generator=generator).to(wide) for _ in range(2)]
    return torch.randn(views.shape, generator=generator).to(views.dtype), *terms


def check_outputs(found, expected, dtype):
    arithmetic = torch.promote_types(dtype, torch.float32)
    assert [tensor.dtype for tensor in found] == [dtype, arithmetic, arithmetic]
    for tensor, wanted, of in zip(found, expected, (dtype, arithmetic, arithmetic), strict=True):
        assert_near(tensor, wanted, of)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "sigma", "blur_kernel"), SHAPES)
def test_equals_the_formula_with_torchvisions_blur(shape, sigma, blur_kernel, dtype):
    views, mask = case(shape, dtype)
    found = blend_views(views, mask, sigma=sigma, blur_kernel=blur_kernel)
    assert isinstance(found, Blend) and found.blended.is_contiguous()
    check_outputs(found, reference(views, mask, sigma, blur_kernel), dtype)


@pytest.mark.parametrize(
    ("shape", "sigma", "blur_kernel", "dtype"),
    [(*shape, torch.float32) for shape in SHAPES]
    + [(*SHAPES[3], dtype) for dtype in DTYPES if dtype != torch.float32],
)
def test_launchers_and_gradients_against_fp64(shape, sigma, blur_kernel, dtype, device):
    views, mask = case(shape, dtype, torch.promote_types(dtype, torch.float32))
    upstream = upstream_of(views)
    expected = gradients_of_reference(views, mask, sigma, blur_kernel, upstream)
    on_device = [tensor.to(device) for tensor in (*upstream, views, mask)]
    weights = gaussian(sigma, blur_kernel, on_device[3])
    check_outputs(
        launchers.forward(*on_device[3:], weights), reference(views, mask, sigma, blur_kernel), dtype
    )
    launched = (
        launchers.views_gradient(on_device[0], on_device[4], weights, dtype),
        launchers.mask_gradient(*on_device, weights),
    )
    operator = blended_views_gradients(*upstream, views, mask, sigma, blur_kernel, True, True)
    for found in (launched, operator):
        assert found[0].dtype == dtype and found[1].dtype == mask.dtype
        assert_near(found[0], expected[0], dtype)
        assert_near(found[1], expected[1], mask.dtype)


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    radius=st.integers(0, 5),
    sigma=st.floats(0.1, 5),
    seed=st.integers(0, 9),
)
def test_random_shapes_and_layouts(count, height, width, radius, sigma, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    blur_kernel = 2 * min(radius, height - 1, width - 1) + 1
    views, mask = case((count, 3, height, width), torch.float32, seed=seed)
    upstream = upstream_of(views)
    expected = gradients_of_reference(views, mask, sigma, blur_kernel, upstream)
    views, mask = views.to(memory_format=torch.channels_last).to(device), mask.mT.contiguous().mT.to(device)
    gradient = upstream[0].to(device).mT.contiguous().mT
    terms = [tensor[:1].expand(count).to(device) for tensor in upstream[1:]]
    if count > 1:  # of stride 0
        expected = gradients_of_reference(
            views.cpu(), mask.cpu(), sigma, blur_kernel, (upstream[0], *(term.cpu() for term in terms))
        )
    weights = gaussian(sigma, blur_kernel, views)
    check_outputs(
        launchers.forward(views, mask, weights),
        reference(views.cpu(), mask.cpu(), sigma, blur_kernel),
        torch.float32,
    )
    assert_near(launchers.views_gradient(gradient, mask, weights, torch.float32), expected[0], torch.float32)
    assert_near(launchers.mask_gradient(gradient, *terms, views, mask, weights), expected[1], torch.float32)


def test_first_and_second_derivatives():
    views, mask = case((2, 3, 5, 4), torch.float64)
    mask = torch.rand(2, 5, 4, dtype=torch.float64)  # no equal neighbours: |difference| has a slope

    def blend(views, mask):
        return tuple(blend_views(views, mask, sigma=1.1, blur_kernel=3))

    inputs = (views.requires_grad_(), mask.requires_grad_())
    assert torch.autograd.gradcheck(blend, inputs)
    assert torch.autograd.gradgradcheck(blend, inputs)
    assert torch.autograd.gradgradcheck(lambda mask: blend(views.detach(), mask), inputs[1:])


def test_only_the_gradient_that_is_wanted():
    views, mask = case((2, 3, 6, 5), torch.float64)
    both = views.clone().requires_grad_(), mask.clone().requires_grad_()
    sum(output.sum() for output in blend_views(*both, sigma=1.0, blur_kernel=5)).backward()
    one = mask.clone().requires_grad_()
    blend_views(views, one, sigma=1.0, blur_kernel=5).blended.sum().backward()  # terms get no gradient
    other = views.clone().requires_grad_()
    blend_views(other, mask, sigma=1.0, blur_kernel=5).blended.sum().backward()
    torch.testing.assert_close(other.grad, both[0].grad)
    three = mask.clone().requires_grad_()
    found = blend_views(views, three, sigma=1.0, blur_kernel=5)
    (found.tv.sum() + found.sparsity.sum()).backward()
    torch.testing.assert_close(one.grad + three.grad, both[1].grad)


def test_ends_of_the_mask():
    views, _ = case((2, 3, 8, 9), torch.float32)
    kept = blend_views(views, torch.ones(2, 8, 9), sigma=2.0, blur_kernel=7)
    torch.testing.assert_close(kept.blended, views)
    assert not kept.tv.any() and not kept.sparsity.any()
    hidden = blend_views(views, torch.zeros(2, 8, 9), sigma=2.0, blur_kernel=7)
    torch.testing.assert_close(hidden.blended, tv.gaussian_blur(views, [7, 7], [2.0, 2.0]))
    torch.testing.assert_close(hidden.sparsity, torch.ones(2))
    stripes = (torch.arange(9) % 2).float().expand(2, 8, 9)
    torch.testing.assert_close(blend_views(views, stripes, sigma=1.0, blur_kernel=1).tv, torch.ones(2))


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 5, 4)])
def test_no_views_or_no_channels(shape, device):
    views, mask = (tensor.to(device) for tensor in case(shape, torch.float32))
    expected = blend_views(views, mask, sigma=1.0, blur_kernel=3)
    weights = gaussian(1.0, 3, views)
    for one, other in zip(launchers.forward(views, mask, weights), expected, strict=True):
        torch.testing.assert_close(one, other)
    upstream = [tensor.to(device) for tensor in upstream_of(views)]
    wanted = blended_views_gradients(*upstream, views, mask, 1.0, 3, True, True)
    torch.testing.assert_close(launchers.views_gradient(upstream[0], mask, weights, torch.float32), wanted[0])
    torch.testing.assert_close(launchers.mask_gradient(*upstream, views, mask, weights), wanted[1])


def test_autocast_does_not_reach_the_blur():
    views, mask = (tensor.requires_grad_() for tensor in case((2, 3, 7, 6), torch.float32))

    def everything():
        made = blend_views(views, mask, sigma=1.3, blur_kernel=5)
        total = (made.blended**2).sum() + made.tv.sum() - made.sparsity.sum()
        first = torch.autograd.grad(total, (views, mask), create_graph=True)
        return [
            *made,
            *first,
            *torch.autograd.grad(sum((gradient**2).sum() for gradient in first), (views, mask)),
        ]

    outside = everything()
    with torch.autocast("cpu", torch.bfloat16):
        inside = everything()
    for one, other in zip(inside, outside, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.parametrize(("dtype", "strided"), [(torch.float64, True), (torch.bfloat16, False)])
def test_opcheck(dtype, strided, device):
    views, mask = (tensor.to(device) for tensor in case((2, 3, 4, 5), dtype))
    if strided:
        views, mask = views.to(memory_format=torch.channels_last), mask.mT.contiguous().mT
        assert not views.is_contiguous() and not mask.is_contiguous()
    inputs = (views.requires_grad_(), mask.requires_grad_())
    torch.library.opcheck(blended_views, (*inputs, 1.0, 3))
    upstream = [tensor.to(device) for tensor in upstream_of(views)]
    for wanted in ((True, True), (False, True)):
        torch.library.opcheck(blended_views_gradients, (*upstream, *inputs, 1.0, 3, *wanted))


def test_compiles_whole(device):
    views, mask = (tensor.to(device) for tensor in case((2, 3, 6, 5), torch.float32))

    def loss(views, mask):
        blended, variation, sparsity = blend_views(views, mask, sigma=1.0, blur_kernel=3)
        return (blended**2).sum() + variation.sum() - sparsity.sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = views.clone().requires_grad_(), mask.clone().requires_grad_()
        function(*leaves).backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"views": torch.zeros(3, 5, 4)}, ValueError, r"views must be .*\[N, C, H, W\]"),
        ({"views": torch.zeros(2, 3, 5, 4, dtype=torch.uint8)}, TypeError, "views must be float16 or"),
        ({"mask": torch.zeros(2, 5, 5)}, ValueError, r"mask must be .*\[2, 5, 4\]"),
        ({"mask": torch.zeros(2, 5, 4, dtype=torch.bool)}, TypeError, "mask must be"),
        ({"mask": torch.zeros(2, 5, 4, device="meta")}, ValueError, "on cpu"),
        ({"sigma": 0.0}, ValueError, "sigma must be above 0, got 0.0"),
        ({"blur_kernel": 4}, ValueError, "blur_kernel must be an odd integer, at least 1, got 4"),
        ({"blur_kernel": 9}, ValueError, "half of blur_kernel must be smaller .* got 9 for 5 x 4 pixels"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "views": torch.zeros(2, 3, 5, 4),
        "mask": torch.zeros(2, 5, 4),
        "sigma": 1.0,
        "blur_kernel": 3,
        **change,
    }
    with pytest.raises(error, match=f"blend_views: .*{word}"):
        blend_views(**arguments)
