"""The distillation loss of pairs, with weights and temperatures, against plain fp64 autograd."""

import pytest
import torch
from closeness import TOLERANCES, assert_near
from far_rows import far_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest
from unlaunched import nothing_launched

from vpt_kernels import Potentials, masked_distillation_loss, sinkhorn_potentials
from vpt_kernels.masked_distillation_loss import (
    masked_distillation,
    masked_distillation_student,
    masked_distillation_temperatures,
)
from vpt_kernels.triton import masked_distillation_loss as launchers

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def plain_loss(student, teacher, column, row_mass, own, theirs, rows):
    """The definition, in the dtype it is given; a row of q sums to row_mass whatever the temperature."""
    log_p = (student / own[:, None]).log_softmax(1)
    q = row_mass[:, None] * (teacher / theirs[:, None] + column).softmax(1)
    losses = []
    for m in range(len(student)):
        partners = [m] if rows is None else [int(t) for t in rows[m] if t >= 0]
        losses.append(sum((-(q[t] * log_p[m]).sum() for t in partners), torch.zeros(()).to(student)))
    return torch.stack(losses) + 0 * student.sum()  # so that it has a gradient where no row has a partner


def case(tokens, teachers, prototypes, partners, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    student = torch.randn(tokens, prototypes, generator=generator).to(dtype)
    teacher = torch.randn(teachers, prototypes, generator=generator).to(dtype)
    own = (0.1 * (1 + torch.rand(tokens, generator=generator))).to(wide)
    theirs = (0.05 * (1 + torch.rand(teachers, generator=generator))).to(wide)
    potentials = sinkhorn_potentials(teacher, theirs)
    rows = None
    if partners is not None:
        rows = torch.randint(-1, teachers, (tokens, partners), generator=generator)
    return student, teacher, potentials, own, theirs, rows


def reference(student, teacher, potentials, own, theirs, rows, gradient):
    """Losses and the gradients of student and temperatures, by autograd in fp64."""
    student, own, theirs = (tensor.double().requires_grad_() for tensor in (student, own, theirs))
    teacher, row, column = teacher.double(), potentials.row.double(), potentials.column.double()
    mass = (teacher / theirs.detach()[:, None] + row[:, None] + column).exp().sum(1)
    losses = plain_loss(student, teacher, column, mass, own, theirs, rows)
    inputs = (student, own, theirs)
    gradients = torch.autograd.grad(
        losses, inputs, gradient.double(), allow_unused=True, materialize_grads=True
    )
    return losses.detach(), gradients


def launched(student, teacher, potentials, own, theirs, rows, gradient, device):
    inputs = (student, teacher, *potentials, own, theirs, rows)
    inputs = [None if tensor is None else tensor.to(device) for tensor in inputs]
    gradient = gradient.to(device)
    losses, normaliser, mass = launchers.forward(*inputs)
    of_student = launchers.student_gradient(gradient, *inputs, normaliser, mass)
    of_own, of_theirs = launchers.temperature_gradients(gradient, *inputs, normaliser)
    return losses, (of_student, of_own, of_theirs)


def check(shape, dtype, device, seed=0):
    arguments = case(*shape, dtype, seed)
    gradient = torch.randn(shape[0], generator=torch.Generator().manual_seed(1)).to(arguments[3].dtype)
    expected, expected_gradients = reference(*arguments, gradient)
    losses, gradients = launched(*arguments, gradient, device)
    arithmetic = torch.promote_types(dtype, torch.float32)
    assert losses.dtype == arithmetic and gradients[0].dtype == dtype
    assert_near(losses, expected, arithmetic)
    assert_near(gradients[0], expected_gradients[0], dtype)  # rounded to the student's dtype
    check_temperatures(arguments, gradient, gradients[1:], expected_gradients[1:], arithmetic)


def check_temperatures(arguments, gradient, found, expected, dtype):
    """Sums of either sign, which may cancel: their error is compared with the size of what is added up."""
    student, teacher, _, own, theirs, rows = arguments
    size = (student.double() / own[:, None]).log_softmax(1).abs().max() * gradient.abs().max() / own.min()
    of_theirs = size * teacher.abs().max() * own.min() / theirs.min() ** 2
    pairs = len(student) if rows is None else rows.numel()  # most that can meet in one teacher row
    for one, other, bound in zip(found, expected, (size * pairs, of_theirs * pairs), strict=True):
        assert one.isfinite().all() and one.shape == other.shape
        assert ((one.cpu().double() - other).abs() <= TOLERANCES[dtype] * bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, None), (1, 1, 13, None), (11, 11, 1, None), (7, 7, 1031, None), (5, 3, 64, 1), (9, 4, 67, 3)],
)
def test_against_fp64_autograd(shape, dtype, device):
    check(shape, dtype, device)


@pytest.mark.parametrize("at_once", [2, 4])
def test_several_rows_a_program(at_once, device, monkeypatch):
    monkeypatch.setattr(launchers, "rows_at_once", lambda rows: at_once)
    check((11, 5, 7, 2), torch.float32, device)


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 12),
    teachers=st.integers(1, 9),
    prototypes=st.integers(1, 70),
    partners=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_random_shapes(tokens, teachers, prototypes, partners, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check((tokens, teachers, prototypes, partners), torch.float32, device, seed)


def test_public_function_with_pairs_weights_and_temperatures(device):
    student, teacher, potentials, own, theirs, rows = case(8, 3, 21, 2, torch.float64)
    weights = torch.rand(8, dtype=torch.float64)
    expected, _ = reference(student, teacher, potentials, own, theirs, rows, weights)
    inputs = [tensor.to(device).requires_grad_() for tensor in (student, own, theirs, weights)]

    def loss(student, own, theirs, weights):
        return masked_distillation_loss(
            student,
            teacher.to(device),
            Potentials(*(potential.to(device) for potential in potentials)),
            student_temperature=own,
            teacher_temperature=theirs,
            weights=weights,
            rows=rows.to(device),
        )

    torch.testing.assert_close(loss(*inputs).cpu(), weights * expected)
    loss(*inputs).sum().backward()
    _, wanted = reference(student, teacher, potentials, own, theirs, rows, weights)
    found = [tensor.grad.cpu() for tensor in inputs]
    for one, other in zip(found, (*wanted, expected), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.autograd.gradgradcheck(
        lambda student, weights: loss(student, own.to(device), theirs.to(device), weights),
        (inputs[0], inputs[3]),
    )


@pytest.mark.parametrize("partners", [None, 2])
def test_gradient_of_the_students_gradient_in_all_that_it_depends_on(partners, device):
    student, teacher, potentials, own, theirs, rows = case(5, 5, 7, partners, torch.float64)
    mass = (teacher / theirs[:, None] + potentials.row[:, None] + potentials.column).exp().sum(1)
    teacher, rows = teacher.to(device), None if rows is None else rows.to(device)
    potentials = Potentials(*(potential.to(device) for potential in potentials))
    weights = torch.rand(5, dtype=torch.float64)
    found = []
    for plain in (False, True):
        inputs = [tensor.to(device).requires_grad_() for tensor in (student, own, theirs, weights)]
        if plain:
            column, held = potentials.column, mass.to(device)
            losses = plain_loss(inputs[0], teacher, column, held, inputs[1], inputs[2], rows) * inputs[3]
        else:
            losses = masked_distillation_loss(
                inputs[0],
                teacher,
                potentials,
                student_temperature=inputs[1],
                teacher_temperature=inputs[2],
                weights=inputs[3],
                rows=rows,
            )
        (first,) = torch.autograd.grad(losses.sum(), inputs[0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), inputs))
    torch.testing.assert_close(*found)


def test_layouts_that_are_not_contiguous(device):
    student, teacher, potentials, own, theirs, rows = case(9, 4, 33, 2, torch.float32)
    gradient = torch.randn(1).expand(9)
    _, expected = reference(student, teacher, potentials, own, theirs, rows, gradient)
    strided = student.T.contiguous().T, torch.stack((teacher, teacher), 2)[..., 1]
    spaced = Potentials(*(torch.stack((p, p), 1)[:, 1] for p in potentials))
    rows = rows.T.contiguous().T
    _, (of_student, of_own, of_theirs) = launched(*strided, spaced, own, theirs, rows, gradient, device)
    assert of_student.is_contiguous()
    assert_near(of_student, expected[0], torch.float32)
    arguments = (student, teacher, potentials, own, theirs, rows)
    check_temperatures(arguments, gradient, (of_own, of_theirs), expected[1:], torch.float32)


@pytest.mark.parametrize("temperature", [0.1, 0.0, float("nan")])
@pytest.mark.parametrize("upstream", [1.0, float("nan")])
def test_a_row_without_partner_may_hold_anything(temperature, upstream, device):
    student, teacher, potentials, own, theirs, _ = case(4, 4, 10, None, torch.float32)
    rows = torch.tensor([[0, 1], [-1, -1], [-1, 2], [3, -1]])
    expected, (of_student, _, _) = reference(student, teacher, potentials, own, theirs, rows, torch.ones(4))
    student[1], own[1] = torch.nan, temperature
    upstream = torch.tensor([1.0, upstream, 1.0, 1.0])
    found, (gradient, of_own, _) = launched(student, teacher, potentials, own, theirs, rows, upstream, device)
    assert_near(found, expected, torch.float32)
    assert_near(gradient, of_student, torch.float32)
    assert found[1] == 0 and (gradient[1] == 0).all() and of_own[1] == 0
    public = masked_distillation_loss(
        student, teacher, potentials, student_temperature=own, teacher_temperature=theirs, rows=rows
    )
    assert_near(public, expected, torch.float32)


def test_nothing_of_the_size_of_the_logits_is_made_but_their_gradient(monkeypatch):
    rows, prototypes = 3763, 65536  # of tensors without values, for the interpreter would copy the logits
    logits = torch.empty(rows, prototypes, dtype=torch.bfloat16, device="meta")
    number, column = torch.empty(rows, device="meta"), torch.empty(prototypes, device="meta")
    arguments = (logits, logits, number, column, number, number, None)
    with nothing_launched(monkeypatch) as launched:
        with Largest() as largest:
            _, normaliser, mass = launchers.forward(*arguments)
            launchers.temperature_gradients(number, *arguments, normaliser)
        assert len(launched) == 2 and rows <= largest.numbers < logits.numel() / 60
        with Largest() as largest:
            launchers.student_gradient(number, *arguments, normaliser, mass)
        assert len(launched) == 3 and largest.bytes == logits.nbytes


@pytest.mark.parametrize("shape", [(0, 3, 5, 2), (0, 0, 5, None), (4, 3, 5, 0)])
def test_nothing_to_compare(shape, device):
    arguments = case(*shape, torch.float32)
    losses, (of_student, of_own, of_theirs) = launched(*arguments, torch.ones(shape[0]), device)
    assert torch.equal(losses.cpu(), torch.zeros(shape[0]))
    assert of_student.shape == (shape[0], 5) and not of_student.any()
    assert not of_own.any() and torch.equal(of_theirs.cpu(), torch.zeros(shape[1]))


def test_extreme_logits_stay_finite_and_right(device):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.rand(2, 9, 20, generator=generator) * 2 - 1) * 1e4
    own, theirs = torch.full((9,), 0.1), torch.full((9,), 0.01)
    column = torch.zeros(20)
    row = -torch.logsumexp(teacher * (1 / theirs)[:, None] + column, 1)
    arguments = (student, teacher, Potentials(row, column), own, theirs, None)
    losses, gradients = launched(*arguments, torch.ones(9), device)
    assert all(tensor.isfinite().all() for tensor in (losses, *gradients))
    # Nearly one-hot targets: the loss is the distance of the student's logits to its highest.
    z = student.double() / 0.1
    expected = z.logsumexp(1) - z.gather(1, teacher.argmax(1, keepdim=True))[:, 0]
    assert_near(losses, expected, torch.float32, factor=100)


def test_more_entries_than_32_bits_count(device):
    student, teacher, potentials, own, theirs, _ = case(3, 3, 4, None, torch.bfloat16)
    wide = far_rows(student.to(device))
    expected, (of_student, _, _) = reference(student, teacher, potentials, own, theirs, None, torch.ones(3))
    losses, gradients = launched(wide, teacher, potentials, own, theirs, None, torch.ones(3), device)
    assert_near(losses, expected, torch.float32)
    assert_near(gradients[0], of_student, torch.bfloat16)


@pytest.mark.parametrize("partners", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(partners, dtype, device):
    student, teacher, potentials, own, theirs, rows = case(5, 5, 8, partners, dtype)
    inputs = [
        tensor if tensor is None else tensor.to(device)
        for tensor in (student, teacher, *potentials, own, theirs, rows)
    ]
    _, normaliser, mass = masked_distillation(*inputs)
    gradient = torch.ones_like(normaliser)
    torch.library.opcheck(masked_distillation_temperatures, (gradient, *inputs, normaliser))
    for index in (0, 4, 5):
        inputs[index] = inputs[index].requires_grad_()
    torch.library.opcheck(masked_distillation, tuple(inputs))
    inputs[4], inputs[5] = inputs[4].detach(), inputs[5].detach()
    torch.library.opcheck(masked_distillation_student, (gradient, *inputs, normaliser, mass))


def test_opcheck_of_strided_inputs(device):
    student, teacher, potentials, own, theirs, rows = case(5, 4, 8, 2, torch.float32)
    student, teacher = student.T.contiguous().T.to(device), teacher.T.contiguous().T.to(device)
    inputs = [student, teacher, *(tensor.to(device) for tensor in (*potentials, own, theirs, rows))]
    _, normaliser, mass = masked_distillation(*inputs)
    gradient = torch.ones_like(normaliser)
    torch.library.opcheck(masked_distillation, tuple(inputs))
    torch.library.opcheck(masked_distillation_student, (gradient, *inputs, normaliser, mass))
    torch.library.opcheck(masked_distillation_temperatures, (gradient, *inputs, normaliser))


def test_sides_of_different_dtypes(device):
    student, teacher, potentials, own, theirs, rows = case(5, 4, 8, 2, torch.float64)
    expected, expected_gradients = reference(
        student.float(), teacher, potentials, own, theirs, rows, torch.ones(5)
    )
    inputs = [tensor.float().to(device).requires_grad_() for tensor in (student, own, theirs)]
    losses = masked_distillation_loss(
        inputs[0],
        teacher.to(device),
        Potentials(*(potential.to(device) for potential in potentials)),
        student_temperature=inputs[1],
        teacher_temperature=inputs[2],
        rows=rows.to(device),
    )
    assert losses.dtype == torch.float32
    assert_near(losses, expected, torch.float32)
    losses.sum().backward()
    assert_near(inputs[0].grad, expected_gradients[0], torch.float32)


def test_compiles_whole(device):
    student, teacher, potentials, own, theirs, rows = (
        tensor if isinstance(tensor, tuple) else tensor.to(device)
        for tensor in case(6, 3, 9, 2, torch.float32)
    )
    weights = torch.rand(6, device=device)

    def loss(student):
        return masked_distillation_loss(
            student,
            teacher,
            Potentials(*(potential.to(device) for potential in potentials)),
            student_temperature=own,
            teacher_temperature=theirs,
            weights=weights,
            rows=rows,
        ).sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = student.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"teacher": torch.zeros(2, 4)}, ValueError, "equally many rows, got 3 and 2"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, ValueError, r"rows must be int64 \[3, P\]"),
        ({"rows": torch.zeros(3, 1)}, TypeError, "rows must be int64"),
        ({"rows": torch.full((3, 1), 3)}, ValueError, r"rows must lie in -1..2.*got 3..3"),
        ({"weights": torch.ones(4)}, ValueError, r"weights must be .*\[3\]"),
        ({"student_temperature": torch.ones(2)}, ValueError, "one element or one for each of 3 rows"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "student": torch.zeros(3, 4),
        "teacher": torch.zeros(3, 4),
        "potentials": Potentials(torch.zeros(3), torch.zeros(4)),
        "student_temperature": 0.1,
        "teacher_temperature": 0.1,
        **change,
    }
    with pytest.raises(error, match=word):
        masked_distillation_loss(**arguments)
