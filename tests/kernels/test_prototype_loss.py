"""prototype_loss: brute force over tokens and prototypes in fp64, gradients, and nothing of size M · K."""

import math

import pytest
import torch
from closeness import assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest
from torch._subclasses.fake_tensor import FakeTensorMode

from vpt_kernels import Potentials, centre_potentials, masked_distillation_loss, sinkhorn_potentials
from vpt_kernels.prototype_loss import prototype_centre_potentials, prototype_loss, prototype_potentials

module = __import__("importlib").import_module("vpt_kernels.prototype_loss")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    """Make the plain torch operations go through several pieces even of the small inputs here."""
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 64)


def case(tokens, teachers, prototypes, width, partners=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    student, teacher = normal(tokens, width), normal(teachers, width)
    prototypes = normal(prototypes, width), normal(prototypes, width)
    own = (0.3 * (1 + torch.rand(tokens, generator=generator))).to(wide)
    theirs = (0.2 * (1 + torch.rand(teachers, generator=generator))).to(wide)
    rows = None if partners is None else torch.randint(-1, teachers, (tokens, partners), generator=generator)
    return student, prototypes[0], teacher, prototypes[1], own, theirs, rows


def unit(prototypes, weight_norm):
    if not weight_norm:
        return prototypes
    return prototypes / (prototypes**2).sum(1, keepdim=True).sqrt().clamp(min=1e-12)


def brute_force(student, w, teacher, v, potentials, own, theirs, rows, weight_norm):
    """The definition, number by number."""
    student, w, teacher, v = (tensor.double() for tensor in (student, w, teacher, v))
    w, v = unit(w, weight_norm), unit(v, weight_norm)
    losses = []
    for m in range(len(student)):
        z = [float(student[m] @ prototype) / float(own[m]) for prototype in w]
        highest = max(z)
        normaliser = highest + math.log(sum(math.exp(value - highest) for value in z))
        loss = 0.0
        for t in [m] if rows is None else rows[m].tolist():
            if t < 0:
                continue
            for k, value in enumerate(z):
                exponent = float(teacher[t] @ v[k]) / float(theirs[t])
                q = math.exp(exponent + float(potentials.row[t]) + float(potentials.column[k]))
                loss -= q * (value - normaliser)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (0, 0, 5, 3),
        (0, 3, 5, 2, 2),
        (13, 13, 31, 1),
        (7, 7, 1, 5),
        (11, 5, 29, 17, 1),
        (9, 4, 67, 8, 3),
    ],
)
def test_equals_brute_force(shape, dtype, weight_norm):
    student, w, teacher, v, own, theirs, rows = case(*shape, dtype=dtype)
    potentials = prototype_potentials(teacher, v, theirs, weight_norm=weight_norm)
    loss = prototype_loss(
        student,
        w,
        teacher,
        v,
        potentials,
        student_temperature=own,
        teacher_temperature=theirs,
        rows=rows,
        weight_norm=weight_norm,
    )
    arithmetic = torch.promote_types(dtype, torch.float32)
    assert loss.dtype == arithmetic and loss.shape == (shape[0],)
    expected = brute_force(student, w, teacher, v, potentials, own, theirs, rows, weight_norm)
    assert_near(loss, expected, arithmetic)


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 11),
    teachers=st.integers(1, 7),
    prototypes=st.integers(1, 40),
    width=st.integers(1, 20),
    partners=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_equals_the_loss_and_potentials_of_stored_logits(tokens, teachers, prototypes, width, partners, seed):
    student, w, teacher, v, own, theirs, rows = case(tokens, teachers, prototypes, width, partners, seed=seed)
    weights = torch.rand(teachers, dtype=torch.float64) * (torch.arange(teachers) % 3 > 0)
    potentials = prototype_potentials(teacher, v, theirs, iterations=2, weights=weights)
    logits = teacher @ unit(v, True).T
    stored = sinkhorn_potentials(logits, theirs, iterations=2, weights=weights)
    torch.testing.assert_close(tuple(potentials), tuple(stored))
    centre = torch.randn(prototypes, dtype=torch.float64)
    torch.testing.assert_close(
        tuple(prototype_centre_potentials(teacher, v, 0.1, centre)),
        tuple(centre_potentials(logits, 0.1, centre)),
    )
    torch.testing.assert_close(
        tuple(prototype_centre_potentials(teacher, v, theirs, centre, centre_temperature=0.2)),
        tuple(centre_potentials(logits, theirs, centre, centre_temperature=0.2)),
    )
    arguments = {"student_temperature": own, "teacher_temperature": theirs, "rows": rows}
    found = prototype_loss(student, w, teacher, v, potentials, **arguments)
    similar = student @ unit(w, True).T
    torch.testing.assert_close(found, masked_distillation_loss(similar, logits, potentials, **arguments))


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("partners", [None, 2])
def test_gradients(partners, weight_norm):
    """First and second derivatives against finite differences; q's rows keep their sums."""
    student, w, teacher, v, own, theirs, rows = case(5, 5, 7, 3, partners)
    weights = torch.rand(5, dtype=torch.float64)
    column = torch.randn(7, dtype=torch.float64)
    logits = teacher @ unit(v, weight_norm).T

    def loss(student, w, weights, own, theirs):
        row = -torch.logsumexp(logits / theirs.detach()[:, None] + column, 1)
        return prototype_loss(
            student,
            w,
            teacher,
            v,
            Potentials(row, column),
            student_temperature=own,
            teacher_temperature=theirs,
            weights=weights,
            rows=rows,
            weight_norm=weight_norm,
        )

    inputs = [tensor.clone().requires_grad_() for tensor in (student, w, weights, own, theirs)]
    assert torch.autograd.gradcheck(loss, inputs)

    def gradients(student, w, weights, own, theirs):
        with torch.enable_grad():
            gradient = torch.tensor([0.3, -1.0, 0.2, 1.7, 0.9], dtype=torch.float64)
            losses = loss(student, w, weights, own, theirs)
            return torch.autograd.grad(losses, (student, w), gradient, create_graph=True)

    assert torch.autograd.gradcheck(gradients, inputs)


def test_a_third_derivative():
    student, w, teacher, v, own, theirs, _ = case(2, 2, 3, 2)
    potentials = prototype_potentials(teacher, v, theirs)

    def second(student, w):
        loss = prototype_loss(
            student, w, teacher, v, potentials, student_temperature=own, teacher_temperature=theirs
        ).sum()
        (first,) = torch.autograd.grad(loss, w, create_graph=True)
        return torch.autograd.grad((first**2).sum(), student, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (student.requires_grad_(), w.requires_grad_()))


def test_prototypes_too_short_to_be_normalised_are_only_scaled():
    student, w, teacher, v, own, theirs, _ = case(4, 4, 6, 3)
    w[1], w[2] = 0, w[2] * 1e-14
    potentials = prototype_potentials(teacher, v, theirs)
    w.requires_grad_()
    stored = masked_distillation_loss(
        student @ torch.nn.functional.normalize(w).T,
        teacher @ unit(v, True).T,
        potentials,
        student_temperature=own,
        teacher_temperature=theirs,
    )
    loss = prototype_loss(
        student, w, teacher, v, potentials, student_temperature=own, teacher_temperature=theirs
    )
    torch.testing.assert_close(loss, stored)
    expected, found = (torch.autograd.grad(each.sum(), w)[0] for each in (stored, loss))
    torch.testing.assert_close(found, expected)


def test_a_row_without_partner_may_hold_anything():
    student, w, teacher, v, own, theirs, _ = case(4, 3, 6, 3)
    rows = torch.tensor([[1, -1], [-1, -1], [2, 1], [-1, 2]])  # none points to teacher row 0
    student[1], teacher[0] = torch.nan, torch.nan
    weights = torch.tensor([0.0, 1.0, 1.0])
    potentials = prototype_potentials(teacher, v, theirs, weights=weights)
    inputs = [tensor.requires_grad_() for tensor in (student, w, own, theirs)]
    loss = prototype_loss(
        student, w, teacher, v, potentials, student_temperature=own, teacher_temperature=theirs, rows=rows
    )
    assert loss[1] == 0 and loss.isfinite().all()
    gradients = torch.autograd.grad(loss.sum(), inputs, create_graph=True)
    assert (gradients[0][1] == 0).all() and all(gradient.isfinite().all() for gradient in gradients)
    (gradients[0].sum() + gradients[1].sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


def test_extreme_logits_stay_finite():
    """Logits of ±1e4 over a temperature of 0.01."""
    student, w, teacher, v, _, _, _ = case(9, 9, 20, 4, dtype=torch.float32)
    student, teacher = (1e4 * side / side.norm(dim=1, keepdim=True) for side in (student, teacher))
    student.requires_grad_(), w.requires_grad_()
    for potentials in (
        prototype_potentials(teacher, v, 0.01),
        prototype_centre_potentials(teacher, v, 0.01, torch.zeros(20)),
    ):
        assert all(potential.isfinite().all() for potential in potentials)
        loss = prototype_loss(
            student, w, teacher, v, potentials, student_temperature=0.01, teacher_temperature=0.01
        )
        assert loss.isfinite().all() and loss.max() > 1e4
        for gradient in torch.autograd.grad(loss.sum(), (student, w)):
            assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("partners", [None, 2])
def test_nothing_of_the_size_of_the_logits_is_made(partners, monkeypatch):
    tokens, prototypes, width, at_once = 211, 307, 5, 4096
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    student, w, teacher, v, own, theirs, rows = case(tokens, tokens, prototypes, width, partners)
    inputs = [tensor.requires_grad_() for tensor in (student, w, own, theirs)]

    def everything():
        with torch.no_grad():
            prototype_centre_potentials(teacher, v, 0.1, torch.zeros(prototypes))
            potentials = prototype_potentials(teacher, v, theirs)
        loss = prototype_loss(
            student, w, teacher, v, potentials, student_temperature=own, teacher_temperature=theirs, rows=rows
        )
        gradients = torch.autograd.grad(loss.sum(), inputs[:2], create_graph=True)
        torch.autograd.grad(sum(gradient.sum() for gradient in gradients), inputs)
        torch.autograd.grad(
            prototype_loss(
                student,
                w,
                teacher,
                v,
                potentials,
                student_temperature=own,
                teacher_temperature=theirs,
                rows=rows,
            ).sum(),
            inputs,
        )

    # Inside an operator no mode is asked, so the operators' own bodies stand in for them.
    operators = [
        name
        for name in vars(module)
        if name.startswith("prototype_") and hasattr(vars(module)[name], "_init_fn")
    ]
    assert len(operators) == 6
    with Largest() as largest:
        everything()
    seen = largest.numbers
    for name in operators:
        body = vars(module)[name]._init_fn
        original = vars(module)[name]

        def watched(*arguments, body=body, original=original):
            nonlocal seen
            with torch.no_grad(), Largest() as largest:
                body(*arguments)
            seen = max(seen, largest.numbers)
            return original(*arguments)

        monkeypatch.setattr(module, name, watched)
    everything()
    assert 2 * at_once > seen > at_once // 2  # so it was looked at, and is far below tokens * prototypes
    assert seen < tokens * prototypes / 8


def test_autocast_does_not_reach_the_sums():
    student, w, teacher, v, own, theirs, rows = case(11, 7, 29, 12, 2, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (student, w, own, theirs)]

    def everything():
        potentials = prototype_potentials(teacher, v, theirs.detach())
        centred = prototype_centre_potentials(teacher, v, 0.1, torch.zeros(29))
        loss = prototype_loss(
            student, w, teacher, v, potentials, student_temperature=own, teacher_temperature=theirs, rows=rows
        )
        first = torch.autograd.grad(loss.sum(), leaves[:2], create_graph=True)
        second = torch.autograd.grad(sum((gradient**2).sum() for gradient in first), leaves)
        temperatures = torch.autograd.grad(
            prototype_loss(
                student, w, teacher, v, potentials,
                student_temperature=own, teacher_temperature=theirs, rows=rows,
            ).sum(),
            leaves[2:],
        )  # fmt: skip
        return [*potentials, *centred, loss, *first, *second, *temperatures]

    outside = everything()
    with torch.autocast("cpu", torch.bfloat16):
        inside = everything()
    for one, other in zip(inside, outside, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_student_and_teacher_of_different_precision(dtypes):
    """The losses are in the precision of the student, whatever everything else is in."""
    student, w, teacher, v, own, theirs, rows = case(7, 4, 9, 5, 2)
    student, w = (tensor.to(dtypes[0]).requires_grad_() for tensor in (student, w))
    teacher, v, weights = teacher.to(dtypes[1]), v.to(dtypes[1]), torch.rand(7, dtype=dtypes[1])
    own, theirs = own.to(dtypes[1]).requires_grad_(), theirs.to(dtypes[1]).requires_grad_()
    for weight_norm in (True, False):
        potentials = prototype_potentials(teacher, v, theirs.detach(), weight_norm=weight_norm)
        assert potentials.row.dtype == dtypes[1]
        loss = prototype_loss(
            student,
            w,
            teacher,
            v,
            potentials,
            student_temperature=own,
            teacher_temperature=theirs,
            weights=weights,
            rows=rows,
            weight_norm=weight_norm,
        )
        assert loss.dtype == dtypes[0]
        inputs = (tensor.detach() for tensor in (student, w, teacher, v))
        expected = brute_force(*inputs, potentials, own.detach(), theirs.detach(), rows, weight_norm)
        expected = weights * expected
        assert_near(loss, expected, torch.float32)
        leaves = (student, w, own, theirs)
        first = torch.autograd.grad(loss.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(first[0].sum() + first[1].sum(), leaves)
        for found in (first, second):
            assert [gradient.dtype for gradient in found] == [leaf.dtype for leaf in leaves]


def test_double_precision_on_a_gpu_is_refused():
    with FakeTensorMode():
        single, double = (torch.zeros(3, 2, dtype=d, device="cuda") for d in (torch.float32, torch.float64))
        potentials = Potentials(single[:, 0], single[:, 0])
        for side, inputs in {"student": (double,) * 4, "teacher": (single, single, double, double)}.items():
            with pytest.raises(TypeError, match=f"prototype_loss: {side} must not be float64 on a GPU"):
                prototype_loss(*inputs, potentials, student_temperature=0.1, teacher_temperature=0.1)
        with pytest.raises(TypeError, match="prototype_potentials: teacher must not be float64 on a GPU"):
            prototype_potentials(double, double, 0.1)
        with pytest.raises(TypeError, match="prototype_centre_potentials: teacher must not be float64"):
            prototype_centre_potentials(double, double, 0.1, single[:, 0])


def test_compiles_whole():
    student, w, teacher, v, own, theirs, rows = case(6, 4, 9, 5, 2, dtype=torch.float32)
    w, v = w.T.contiguous().T, v.T.contiguous().T
    weights = torch.rand(6)

    def loss(student, w, own, theirs):
        potentials = prototype_potentials(teacher, v, theirs.detach())
        return prototype_loss(
            student,
            w,
            teacher,
            v,
            potentials,
            student_temperature=own,
            teacher_temperature=theirs,
            weights=weights,
            rows=rows,
        ).sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [tensor.clone().requires_grad_() for tensor in (student, w, own, theirs)]
        function(*leaves).backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*gradients)


def test_prototypes_can_be_held():
    student, w, teacher, v, own, theirs, _ = case(4, 4, 6, 3)
    potentials = prototype_potentials(teacher, v, theirs)
    arguments = {"student_temperature": own, "teacher_temperature": theirs}
    both = student.clone().requires_grad_(), w.clone().requires_grad_()
    prototype_loss(*both, teacher, v, potentials, **arguments).sum().backward()
    features = student.clone().requires_grad_()
    prototype_loss(features, w, teacher, v, potentials, **arguments).sum().backward()
    torch.testing.assert_close(features.grad, both[0].grad)
    prototypes = w.clone().requires_grad_()
    prototype_loss(student, prototypes, teacher, v, potentials, **arguments).sum().backward()
    torch.testing.assert_close(prototypes.grad, both[1].grad)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"student": torch.zeros(3)}, ValueError, r"student must be .*\[M, D\]"),
        ({"student": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "student must be"),
        ({"student_prototypes": torch.zeros(4, 3)}, ValueError, r"student_prototypes must be .*\[K, 2\]"),
        (
            {"student_prototypes": torch.zeros(4, 2).bfloat16()},
            TypeError,
            "student_prototypes must be float32",
        ),
        ({"teacher_prototypes": torch.zeros(5, 2)}, ValueError, r"teacher_prototypes must be .*\[4, 2\]"),
        ({"teacher": torch.zeros(3, 5)}, ValueError, r"teacher must be .*\[T, 2\]"),
        ({"teacher": torch.zeros(2, 2)}, ValueError, "equally many rows, got 3 and 2"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, ValueError, r"rows must be int64 \[3, P\]"),
        ({"rows": torch.full((3, 1), 3)}, ValueError, r"rows must lie in -1..2.*got 3..3"),
        ({"weights": torch.ones(4)}, ValueError, r"weights must be .*\[3\]"),
        (
            {"potentials": Potentials(torch.zeros(3), torch.zeros(5))},
            ValueError,
            r"potentials.column .*\[4\]",
        ),
        ({"teacher": torch.zeros(3, 2, device="meta")}, ValueError, "on cpu"),
        ({"student_temperature": 0.0}, ValueError, "student_temperature must be above 0"),
        ({"teacher_temperature": torch.ones(2)}, ValueError, "one element or one for each of 3 rows"),
    ],
)
def test_errors(change, error, word):
    arguments = {
        "student": torch.zeros(3, 2),
        "student_prototypes": torch.zeros(4, 2),
        "teacher": torch.zeros(3, 2),
        "teacher_prototypes": torch.zeros(4, 2),
        "potentials": Potentials(torch.zeros(3), torch.zeros(4)),
        "student_temperature": 0.1,
        "teacher_temperature": 0.1,
        **change,
    }
    with pytest.raises(error, match=f"prototype_loss: .*{word}"):
        prototype_loss(**arguments)


def test_errors_of_potentials():
    teacher, prototypes = torch.zeros(3, 2), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"prototype_potentials: prototypes must be float32 \[K, 2\]"):
        prototype_potentials(teacher, torch.zeros(4, 3), 0.1)
    with pytest.raises(ValueError, match="prototype_potentials: iterations must be at least 1, got 0"):
        prototype_potentials(teacher, prototypes, 0.1, iterations=0)
    with pytest.raises(ValueError, match=r"prototype_potentials: weights must be .*\[3\]"):
        prototype_potentials(teacher, prototypes, 0.1, weights=torch.ones(4))
    with pytest.raises(ValueError, match=r"prototype_centre_potentials: centre must be .*\[4\]"):
        prototype_centre_potentials(teacher, prototypes, 0.1, torch.zeros(3))
