"""The launchers of prototype_loss against fp64 autograd of stored logits, and its operators."""

import pytest
import torch
import triton
import triton.language as tl
from closeness import TOLERANCES, assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest

from vpt_kernels import Potentials, sinkhorn_potentials
from vpt_kernels.prototype_loss import (
    prototype_column_logsumexp,
    prototype_distillation,
    prototype_distillation_gradients,
    prototype_distillation_student_temperature,
    prototype_distillation_teacher_temperature,
    prototype_potentials,
    prototype_row_logsumexp,
)
from vpt_kernels.triton import prototype_loss as launchers

module = __import__("importlib").import_module("vpt_kernels.prototype_loss")
pytestmark = pytest.mark.usefixtures("poisoned")


def unit(prototypes, weight_norm):
    return torch.nn.functional.normalize(prototypes) if weight_norm else prototypes


def case(tokens, teachers, prototypes, width, partners, dtype, weight_norm=True, seed=0):
    """Give the arguments of the operator."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    student, teacher = normal(tokens, width), normal(teachers, width)
    w, v = normal(prototypes, width), normal(prototypes, width)
    own = 0.3 * (1 + torch.rand(tokens, generator=generator))
    theirs = 0.2 * (1 + torch.rand(teachers, generator=generator))
    rows = None if partners is None else torch.randint(-1, teachers, (tokens, partners), generator=generator)
    logits = teacher.double() @ unit(v.double(), weight_norm).T
    potentials = sinkhorn_potentials(logits, theirs.double())
    lengths = [p.float().norm(dim=1) if weight_norm else None for p in (w, v)]
    row, column = (potential.float() for potential in potentials)
    return [student, w, lengths[0], teacher, v, lengths[1], row, column, own, theirs, rows]


def reference(inputs, gradient):
    """Losses of the pairs, and gradients to student, prototypes and temperatures, by autograd in fp64."""
    student, w, weight_norm, teacher, v, _, row, column, own, theirs, rows = (
        tensor.double() if tensor is not None and tensor.is_floating_point() else tensor for tensor in inputs
    )
    weight_norm = weight_norm is not None
    leaves = student, w, own, theirs = [tensor.requires_grad_() for tensor in (student, w, own, theirs)]
    log_p = (student @ unit(w, weight_norm).T / own[:, None]).log_softmax(1)
    logits = teacher @ unit(v, weight_norm).T
    mass = (logits / theirs.detach()[:, None] + row[:, None] + column).exp().sum(1, keepdim=True)
    q = mass * (logits / theirs[:, None] + column).softmax(1)
    if rows is None:
        rows = torch.arange(len(student))[:, None]
    q = torch.cat((q, torch.zeros_like(q[:1]) if len(q) else q.new_zeros(1, q.shape[1])))
    losses = -(q[rows] * log_p[:, None]).sum(2)
    gradients = torch.autograd.grad(
        losses, leaves, gradient.double(), allow_unused=True, materialize_grads=True
    )
    return losses.detach(), gradients


def launched(inputs, gradient, device):
    inputs = [None if tensor is None else tensor.to(device) for tensor in inputs]
    gradient = gradient.to(device)
    losses, normaliser, mass, entropy = launchers.forward(*inputs)
    gradients = (
        launchers.features_gradient(gradient, *inputs, normaliser, mass),
        launchers.prototypes_gradient(gradient, *inputs, normaliser, mass),
        prototype_distillation_student_temperature(gradient, losses, mass, entropy, inputs[8]),
        launchers.teacher_temperature_gradient(gradient, *inputs, normaliser),
    )
    return losses, gradients


def check(shape, dtype, device, weight_norm=True, seed=0):
    inputs = case(*shape, dtype, weight_norm, seed)
    tokens, partners = shape[0], shape[4] or 1
    gradient = torch.randn(tokens, partners, generator=torch.Generator().manual_seed(1))
    expected, expected_gradients = reference(inputs, gradient)
    losses, gradients = launched(inputs, gradient, device)
    assert losses.dtype == torch.float32
    assert gradients[0].dtype == gradients[1].dtype == dtype
    assert_near(losses, expected, torch.float32)
    for place, (found, wanted) in enumerate(zip(gradients, expected_gradients, strict=True)):
        if wanted.norm() < 1e-9:  # one prototype, or one of length 1 in one dimension: nothing can change
            assert found.abs().max() < TOLERANCES[dtype]
        elif place < 2:
            assert_near(found, wanted, dtype)
        else:
            assert_near(found, wanted, torch.float32, factor=10)  # a difference of sums


@pytest.fixture(
    params=[
        (torch.float32, 80),
        (torch.bfloat16, 80),
        (torch.bfloat16, 90),
        (torch.bfloat16, 100),
        (torch.float16, 90),
        (torch.float16, 100),
    ],
    ids=lambda param: f"{str(param[0]).removeprefix('torch.')}, sm_{param[1]}",
)
def dtype(request, monkeypatch):
    """Give a dtype, and programs the blocks of an A100 or, where there is room for them, of a later GPU."""
    dtype, capability = request.param
    own = launchers._capability
    monkeypatch.setattr(launchers, "_capability", lambda x: capability if own(x) >= 90 else own(x))
    return dtype


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, None),
        (11, 11, 1, 3, None),
        (67, 67, 137, 7, None),
        (5, 3, 64, 67, 1),
        (23, 4, 150, 16, 3),
    ],
)
def test_against_fp64_autograd(shape, dtype, device):
    check(shape, dtype, device)


def test_prototypes_as_they_are(dtype, device):
    check((9, 9, 41, 6, 2), dtype, device, weight_norm=False)


@pytest.mark.parametrize(("width", "dtype"), [(257, torch.bfloat16), (131, torch.float32)], ids=str)
def test_gradients_in_several_parts_of_d(width, dtype, device):
    check((17, 17, 33, width, None), dtype, device)


def test_many_parts_of_either_side(device):
    check((3, 3, 521, 3, None), torch.float32, device)
    check((211, 5, 17, 3, 2), torch.float32, device)


def test_parts_fill_the_last_wave():
    assert launchers._parts(30, 128, 65536, 64) == (22, 3072)  # 660 programs, five waves of 132
    assert launchers._parts(512, 128, 3763, 64) == (1, 3840)
    assert launchers._parts(1, 16, 5, 64) == (1, 16)
    for blocks in range(1, 40):
        parts, length = launchers._parts(blocks, 32, 10007, 9)
        assert parts <= 9 and length % 32 == 0 and (parts - 1) * length < 10007 <= parts * length


@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(1, 20),
    teachers=st.integers(1, 9),
    prototypes=st.integers(1, 70),
    width=st.integers(1, 40),
    partners=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_random_shapes(tokens, teachers, prototypes, width, partners, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check((tokens, teachers, prototypes, width, partners), torch.float32, device, seed=seed)


@pytest.mark.parametrize(
    ("rows", "prototypes", "width"), [(1, 1, 1), (37, 1, 3), (1, 300, 9), (261, 5, 2), (31, 1033, 19)]
)
def test_logsumexps_against_fp64(rows, prototypes, width, dtype, device):
    _, _, _, teacher, v, lengths, row, column, _, theirs, _ = (
        None if tensor is None else tensor.to(device) for tensor in case(1, rows, prototypes, width, 1, dtype)
    )
    row.normal_(), column.normal_()
    row[rows // 2 + 1 :: 3] = -torch.inf
    counted = row > -torch.inf
    z = teacher.double() @ unit(v.double(), True).T / theirs.double()[:, None]
    found = launchers.row_logsumexp(teacher, v, lengths, column, theirs)
    assert_near(found, torch.logsumexp(z + column.double(), 1), torch.float32)
    teacher[~counted] = torch.nan
    own = theirs.where(counted, torch.tensor([0.0, torch.nan]).repeat(rows)[:rows].to(device))
    found = launchers.column_logsumexp(teacher, v, lengths, row, own)
    assert_near(found, torch.logsumexp((z + row.double()[:, None])[counted], 0), torch.float32)
    found = launchers.row_logsumexp(v, teacher, None, row, theirs[:1].expand(prototypes))
    z = v.double() @ teacher.double().T[:, counted] / theirs[0].double()
    assert_near(found, torch.logsumexp(z + row.double()[counted], 1), torch.float32)


def test_whole_iteration_with_the_launchers_equals_the_reference(device, monkeypatch):
    teacher, prototypes = torch.randn(29, 7, device=device), torch.randn(71, 7, device=device)
    weights = torch.rand(29, device=device) * (torch.arange(29, device=device) % 4 > 0)
    expected = prototype_potentials(
        teacher.double().cpu(), prototypes.double().cpu(), 0.05, weights=weights.double().cpu()
    )
    monkeypatch.setattr(module, "prototype_row_logsumexp", launchers.row_logsumexp)
    monkeypatch.setattr(module, "prototype_column_logsumexp", launchers.column_logsumexp)
    found = prototype_potentials(teacher, prototypes, 0.05, weights=weights)
    assert_near(found.row, expected.row, torch.float32)
    assert_near(found.column, expected.column, torch.float32)


def test_layouts_that_are_not_contiguous(device):
    inputs = case(9, 4, 33, 5, 2, torch.float32)
    gradient = torch.randn(9, 1).expand(9, 2)
    expected, expected_gradients = reference(inputs, gradient)
    for place in (0, 1, 3, 4, 10):
        inputs[place] = inputs[place].T.contiguous().T
    for place in (2, 6, 7, 8, 9):
        inputs[place] = torch.stack((inputs[place],) * 2, 1)[:, 1]
    losses, gradients = launched(inputs, gradient, device)
    assert_near(losses, expected, torch.float32)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert found.is_contiguous()
        assert_near(found, wanted, torch.float32, factor=10)


def test_prototypes_too_short_to_be_normalised_are_only_scaled(device):
    inputs = case(9, 9, 21, 5, None, torch.float32)
    inputs[1][3], inputs[1][4] = 0, inputs[1][4] * 1e-14
    inputs[2] = inputs[1].norm(dim=1)
    gradient = torch.randn(9, 1)
    expected, expected_gradients = reference(inputs, gradient)
    losses, gradients = launched(inputs, gradient, device)
    assert_near(losses, expected, torch.float32)
    for some in (slice(3, 5), torch.arange(21) % 21 > 4):
        assert_near(gradients[1][some], expected_gradients[1][some], torch.float32)


def test_a_row_without_partner_may_hold_anything(device):
    inputs = case(4, 3, 10, 5, 2, torch.float32)
    inputs[10] = torch.tensor([[1, -1], [-1, -1], [2, 1], [-1, 2]])  # none points to teacher row 0
    expected, expected_gradients = reference(inputs, torch.ones(4, 2))
    inputs[0][1], inputs[3][0] = torch.nan, torch.nan
    losses, gradients = launched(inputs, torch.ones(4, 2), device)
    assert_near(losses, expected, torch.float32)
    assert (losses[1] == 0).all() and (gradients[0][1] == 0).all() and gradients[2][1] == 0
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert_near(found, wanted, torch.float32, factor=10)


@pytest.mark.parametrize("shape", [(0, 3, 5, 4, 2), (0, 0, 5, 4, None), (4, 3, 5, 4, 0), (4, 0, 5, 4, 2)])
def test_nothing_to_compare(shape, device):
    tokens, teachers, prototypes, width, partners = shape
    inputs = case(tokens, max(teachers, 1), prototypes, width, partners, torch.float32)
    if teachers == 0:
        inputs[3], inputs[6], inputs[9] = (inputs[place][:0] for place in (3, 6, 9))
        inputs[10] = None if partners is None else torch.full_like(inputs[10], -1)
    columns = 1 if partners is None else partners
    losses, gradients = launched(inputs, torch.ones(tokens, columns), device)
    assert torch.equal(losses.cpu(), torch.zeros(tokens, columns))
    shapes = [(tokens, width), (prototypes, width), (tokens,), (len(inputs[3]),)]
    for gradient, expected in zip(gradients, shapes, strict=True):
        assert gradient.shape == expected and not gradient.any()
    inputs = [None if tensor is None else tensor.to(device) for tensor in inputs]
    assert not prototype_distillation(*inputs)[0].any()


def test_extreme_logits_stay_finite_and_right(dtype, device):
    """Logits up to 1e4 over temperatures of 0.01."""
    inputs = case(9, 9, 20, 6, None, dtype)
    for place in (0, 3):
        inputs[place] = (1e4 * inputs[place].float() / inputs[place].float().norm(dim=1, keepdim=True)).to(
            dtype
        )
    inputs[8], inputs[9] = torch.full((9,), 0.01), torch.full((9,), 0.01)
    teacher, v = inputs[3].double(), unit(inputs[4].double(), True)
    z = teacher @ v.T / 0.01
    inputs[6], inputs[7] = -torch.logsumexp(z, 1).float(), torch.zeros(20)
    losses, gradients = launched(inputs, torch.ones(9, 1), device)
    if dtype == torch.float16:  # the gradient to prototypes is 1e4 / 0.01, more than fp16 holds
        gradients = gradients[:1]
    assert all(tensor.isfinite().all() for tensor in (losses, *gradients))
    # Nearly one-hot targets: the loss is the distance of the student's logits to its highest. What single
    # precision leaves of q is 1e6 · 2**-24 = 6 %.
    s = inputs[0].double() @ unit(inputs[1].double(), True).T / 0.01
    expected = s.logsumexp(1) - s.gather(1, z.argmax(1, keepdim=True))[:, 0]
    assert expected.max() > 1e5
    assert_near(losses[:, 0], expected, torch.bfloat16, factor=4)


def test_more_entries_than_32_bits_count(device):
    """Row t begins at t · D, beyond 2**31 here; of the 4.3 GB little is touched. No index runs over M · K."""
    far, width = 2**23 + 2, 256
    inputs = case(2, 1, 5, width, 1, torch.bfloat16)
    inputs[10] = torch.zeros(2, 1, dtype=torch.int64)
    expected, (_, of_prototypes, _, _) = reference(inputs, torch.ones(2, 1))
    teacher = torch.zeros(far + 1, width, dtype=torch.bfloat16, device=device)
    teacher[far] = inputs[3][0]
    inputs[3], inputs[6], inputs[9] = teacher, inputs[6].expand(far + 1), inputs[9].expand(far + 1)
    inputs[10] += far
    inputs = [tensor.to(device) for tensor in inputs]
    losses, normaliser, mass, _ = launchers.forward(*inputs)
    assert_near(losses, expected, torch.float32)
    gradient = torch.ones_like(losses)
    found = launchers.prototypes_gradient(gradient, *inputs, normaliser, mass)
    assert_near(found, of_prototypes, torch.bfloat16)


@pytest.mark.parametrize("width", [3, 16])
def test_nothing_near_the_size_of_the_logits_is_made(width, device):
    tokens, prototypes = 257, 211
    inputs = [tensor.to(device) for tensor in case(tokens, tokens, prototypes, width, 1, torch.float32)]
    gradient = torch.ones(tokens, 1, device=device)
    _, _, _, teacher, v, lengths, row, column, _, theirs, _ = inputs
    with Largest() as largest:
        _, normaliser, mass, _ = launchers.forward(*inputs)
        launchers.features_gradient(gradient, *inputs, normaliser, mass)
        launchers.prototypes_gradient(gradient, *inputs, normaliser, mass)
        launchers.teacher_temperature_gradient(gradient, *inputs, normaliser)
        launchers.row_logsumexp(teacher, v, lengths, column, theirs)
        launchers.column_logsumexp(teacher, v, lengths, row, theirs)
    # In bytes, as which the interpreter copies tensors. Rows are of a multiple of 16 numbers.
    assert largest.bytes >= prototypes * 16 * 4  # so it was looked at
    assert largest.bytes < tokens * prototypes * 4 / 6


def test_double_precision_is_left_to_the_cpu(device):
    inputs = [tensor.to(device) for tensor in case(3, 3, 4, 2, 1, torch.float64)]
    with pytest.raises(TypeError, match="prototype_loss: float64 is computed on the CPU only"):
        launchers.forward(*inputs)


@pytest.mark.parametrize(
    ("partners", "dtype", "weight_norm"), [(None, torch.float32, True), (2, torch.bfloat16, False)]
)
def test_opcheck(partners, dtype, weight_norm, device):
    inputs = [
        tensor if tensor is None else tensor.to(device)
        for tensor in case(5, 5, 8, 3, partners, dtype, weight_norm)
    ]
    _, _, _, teacher, v, lengths, row, column, _, theirs, _ = inputs
    torch.library.opcheck(prototype_row_logsumexp, (teacher, v, lengths, column, theirs))
    torch.library.opcheck(prototype_column_logsumexp, (teacher, v, lengths, row, theirs))
    losses, normaliser, mass, entropy = prototype_distillation(*inputs)
    gradient = torch.ones_like(losses)
    torch.library.opcheck(
        prototype_distillation_student_temperature, (gradient, losses, mass, entropy, inputs[8])
    )
    torch.library.opcheck(prototype_distillation_teacher_temperature, (gradient, *inputs, normaliser))
    for index in (0, 1, 8, 9):
        inputs[index] = inputs[index].requires_grad_()
    torch.library.opcheck(prototype_distillation, tuple(inputs))
    for wanted in ((True, True), (False, True)):
        torch.library.opcheck(
            prototype_distillation_gradients, (gradient, *inputs, normaliser, mass, *wanted)
        )


def test_opcheck_of_layouts_that_are_not_contiguous(device):
    inputs = [tensor.to(device) for tensor in case(5, 5, 8, 3, 2, torch.float32)]
    for place in (0, 1, 3, 4, 10):
        inputs[place] = inputs[place].T.contiguous().T
    for place in (2, 5, 6, 7, 8, 9):
        inputs[place] = torch.stack((inputs[place],) * 2, 1)[:, 1]
    assert not any(tensor.is_contiguous() for tensor in inputs)
    _, _, _, teacher, v, lengths, row, column, own, theirs, _ = inputs
    losses, normaliser, mass, entropy = (
        tensor.T.contiguous().T for tensor in prototype_distillation(*inputs)
    )
    gradient = torch.ones(5, 1, device=device).expand(5, 2)

    def check(operator, *arguments):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))

    check(prototype_row_logsumexp, teacher, v, lengths, column, theirs)
    check(prototype_column_logsumexp, teacher, v, lengths, row, theirs)
    check(prototype_distillation, *inputs)
    check(prototype_distillation_student_temperature, gradient, losses, mass, entropy, own)
    check(prototype_distillation_teacher_temperature, gradient, *inputs, normaliser)
    check(prototype_distillation_gradients, gradient, *inputs, normaliser, mass, True, True)


@pytest.mark.parametrize("sign", [1, -1])
def test_all_logits_far_from_zero(sign, dtype, device):
    """What lies beyond the last prototype counts for nothing, also where 0 is far above every logit."""
    inputs = case(5, 5, 21, 3, None, torch.float32, weight_norm=False)
    inputs[0] = sign * (40 + inputs[0])
    inputs[1] = inputs[1].abs() + 2
    inputs[:2] = (tensor.to(dtype) for tensor in inputs[:2])
    inputs[3:5] = (tensor.to(dtype) for tensor in inputs[3:5])
    gradient = torch.randn(5, 1)
    expected, expected_gradients = reference(inputs, gradient)
    losses, gradients = launched(inputs, gradient, device)
    factor = 30 if dtype == torch.float32 else 1  # logits of 1000 leave so much of single precision
    assert_near(losses, expected, torch.float32, factor=30)
    for found, wanted in zip(gradients[:2], expected_gradients, strict=False):
        assert_near(found, wanted, dtype, factor=factor)


def test_gradient_across_a_prototype_that_features_lie_along(dtype, device):
    """Most of the gradient is taken out by the weight norm; what remains must not drown in its rounding."""
    generator = torch.Generator().manual_seed(0)
    inputs = case(3, 3, 19, 8, None, dtype)
    along = 3 * inputs[1][:1].float() + 0.05 * torch.randn(3, 8, generator=generator)
    inputs[0] = along.to(dtype)
    inputs[8] = torch.full((3,), 3.0)
    gradient = torch.randn(3, 1)
    _, expected_gradients = reference(inputs, gradient)
    _, gradients = launched(inputs, gradient, device)
    assert_near(gradients[1][:1], expected_gradients[1][:1], dtype)


@triton.jit
def truncating_dot(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Matrix product as tensor cores make it in TF32: the last 13 bits of fp32 are ignored, not rounded."""
    if PRECISION == "tf32":
        a = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        b = (b.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), total)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does it by itself")
def test_the_same_where_products_truncate(device, monkeypatch):
    monkeypatch.setattr(launchers, "_dot", truncating_dot)
    test_gradient_across_a_prototype_that_features_lie_along(torch.float16, device)


def test_potentials_of_any_mass(device):
    inputs = case(6, 6, 15, 4, None, torch.float32)
    inputs[6] = inputs[6] + torch.linspace(-3, 3, 6)
    inputs[7] = Potentials(inputs[6], inputs[7] + 0.5).column
    gradient = torch.randn(6, 1)
    expected, expected_gradients = reference(inputs, gradient)
    losses, gradients = launched(inputs, gradient, device)
    assert_near(losses, expected, torch.float32)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert_near(found, wanted, torch.float32, factor=10)
