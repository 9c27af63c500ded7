"""Nothing waits for the device: every launcher runs up to its launches on tensors that have no values."""

import ast
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from unlaunched import nothing_launched

import vpt_kernels
from vpt_kernels import (
    PackedImages,
    Photometrics,
    blend_views,
    block_masks,
    centre_potentials,
    keyed_uniform,
    masked_distillation_loss,
    pack_masks,
    plackett_luce_log_prob,
    prototype_centre_potentials,
    prototype_loss,
    prototype_potentials,
    render_views,
    sample_masks,
    sinkhorn_potentials,
)

pytest.importorskip("triton")


class WithoutWaiting(TorchDispatchMode):
    """As if meta tensors were CUDA's: they get its operators, and whatever would wait for it fails."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator.namespace == "vpt":
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
            with self, WithoutNumbers():  # both are left while this runs, and it is this that counts
                return operator.redispatch(keys, *args, **kwargs)
        found = operator(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = [tensor.is_meta for tensor in (*given, *tree_leaves(found)) if torch.is_tensor(tensor)]
        name = operator.overloadpacket.__name__
        # Numbers may be tensors of the CPU without dimensions: they go along with the launch.
        from_host = any(on_device) and any(not tensor.is_meta and tensor.dim() for tensor in given)
        if name in ("_to_copy", "copy_"):
            from_host = any(on_device) and not all(on_device)
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            from_host = from_host and not asynchronous
        if from_host:
            raise AssertionError(f"{operator} waits for a copy from the host to the device.")
        return found


class WithoutNumbers(TorchFunctionMode):
    """What torch.tensor copies to a device waits for it too, unseen by operators."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and found.is_meta:
            raise AssertionError(f"{function.__name__} waits for a copy from the host to the device.")
        return found


def views(device, images, **options):
    """Two views of each of four images, blurred and jittered."""
    numbers = [torch.full((2, 4), 0.9, device=device, requires_grad=True) for _ in range(5)]
    photometrics = Photometrics.neutral((2, 4), device)._replace(
        **dict(zip(("brightness", "contrast", "saturation", "hue", "sigma"), numbers, strict=True))
    )
    boxes = torch.ones(2, 4, 4, device=device, requires_grad=True)
    flips = torch.zeros(2, 4, dtype=torch.bool, device=device)
    mean, std = torch.zeros(3, device=device), torch.ones(3, device=device)

    def call():
        made = render_views(images, boxes, flips, photometrics, size=16, mean=mean, std=std, **options)
        return made, [boxes, *numbers]

    return call


def whole_views(device):
    images = torch.zeros(4, 3, 32, 24, dtype=torch.uint8, device=device)
    return views(device, images.transpose(2, 3), dtype=torch.bfloat16)


def packed_views(device):
    sides = torch.full((4,), 9, device=device)
    pixels = torch.zeros(4 * 3 * 9 * 9, dtype=torch.uint8, device=device)
    offsets = torch.arange(4, device=device) * 3 * 9 * 9
    return views(device, PackedImages(pixels, offsets, sides, sides), interpolation="bilinear")


def masks(device):
    sample = torch.arange(4)  # on the host, as a data loader gives them
    there, scores = sample.to(device), torch.zeros(4, 9, device=device, requires_grad=True)
    counts, hidden = torch.ones_like(there), torch.zeros(4, 9, dtype=torch.bool, device=device)
    hidden[:, 2] = True

    def call():
        keys = {"total": 4, "seed": 1, "step": 2}
        drawn = sample_masks(scores, counts, sample=sample, **keys)
        sample_masks(scores, torch.ones_like(sample), sample=there, **keys)
        for key in (sample, there):
            made = block_masks(counts, (3, 3), sample=key, **keys)
            assert made.indices.shape == made.weights.shape == (4,)
        pack_masks(hidden, 4)
        keyed_uniform(1, 2, there, 3, 4)
        return drawn.perturbed.sum() + plackett_luce_log_prob(scores, drawn.perturbed, counts), [scores]

    return call


def temperatures(device, tokens, teachers):
    """Give potentials' temperature and the loss's options, as numbers, of one element and for each row."""
    own = torch.full((tokens,), 0.1, device=device, requires_grad=True)
    theirs = torch.full((teachers,), 0.1, device=device, requires_grad=True)
    one = torch.full((), 0.1, device=device, requires_grad=True)
    weights = torch.ones(tokens, device=device, requires_grad=True)
    rows = torch.zeros(tokens, 2, dtype=torch.int64, device=device)
    return (
        (0.1, {"student_temperature": 0.1, "teacher_temperature": 0.1}, []),
        (one, {"student_temperature": one, "teacher_temperature": one, "weights": weights}, [one, weights]),
        (0.1, {"student_temperature": own, "teacher_temperature": theirs, "rows": rows}, [own, theirs]),
    )


def distillation(device):
    student = torch.zeros(5, 300, device=device, requires_grad=True)
    teacher, weights = torch.zeros(5, 300, device=device), torch.ones(5, device=device)
    given, centre = temperatures(device, 5, 5), torch.zeros(300, device=device)

    def call():
        total, wrt = 0, [student]
        for temperature, options, more in given:
            for potentials in (
                sinkhorn_potentials(teacher, temperature, weights=weights),
                centre_potentials(teacher, temperature, centre),
            ):
                total = total + masked_distillation_loss(student, teacher, potentials, **options)
            wrt += more
        return total, wrt

    return call


def prototypes(device):
    # So many prototypes and tokens that sums are cut in parts, which a second kernel adds up.
    tensors = [torch.ones(size, 16, device=device, requires_grad=True) for size in (150, 5000, 150)]
    student, weight, teacher = tensors
    given, centre = temperatures(device, 150, 150), torch.zeros(5000, device=device)
    fixed, weights = weight.detach(), torch.ones(150, device=device)

    def call():
        total, wrt = 0, [student, weight]
        for weight_norm, (temperature, options, more) in zip((True, False, True), given, strict=True):
            both = {"weight_norm": weight_norm}
            prototype_potentials(teacher, fixed, temperature, weights=weights, **both)
            potentials = prototype_centre_potentials(teacher, fixed, temperature, centre, **both)
            total = total + prototype_loss(student, weight, teacher, fixed, potentials, **options, **both)
            wrt += more
        return total, wrt

    return call


def blends(device):
    images = torch.zeros(2, 3, 40, 33, device=device, requires_grad=True)
    mask = torch.zeros(2, 40, 33, device=device, requires_grad=True)

    def call():
        made = blend_views(images, mask, sigma=1.0, blur_kernel=5)
        return made.blended.sum((1, 2, 3)) + made.tv + made.sparsity, [images, mask]

    return call


def large_potentials(device):
    # Rows so many that the potential of a column is put together of parts.
    logits = torch.zeros(5000, 40, device=device)
    return lambda: (sinkhorn_potentials(logits, 0.1).row, [])


CASES = (whole_views, packed_views, masks, distillation, prototypes, blends, large_potentials)


def differentiate(call):
    """Run a case, forward and backward."""
    out, wrt = call()
    if wrt:
        torch.autograd.grad(out, wrt, torch.ones_like(out), allow_unused=True)


def all_kernels():
    """Name every jit function that is launched, as file.function: its arguments' types are in comments."""
    names = set()
    for path in (Path(vpt_kernels.__file__).parent / "triton").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                names.add(f"{path.stem}.{node.name}")
    return names


def test_no_launcher_waits_for_the_device(monkeypatch):
    with nothing_launched(monkeypatch) as launched:
        for case in CASES:
            call = case("meta")
            with WithoutWaiting(), WithoutNumbers():
                differentiate(call)
    assert launched == all_kernels()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x + torch.ones(3).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
    ],
)
def test_what_waits_is_found(wait, monkeypatch):
    from vpt_kernels.triton import random as launchers

    launch = launchers.keyed_uniform

    def with_wait(sample, *arguments):
        wait(torch.zeros(3, device=sample.device))
        return launch(sample, *arguments)

    sample = torch.zeros(3, dtype=torch.int64, device="meta")
    with nothing_launched(monkeypatch) as launched, WithoutWaiting(), WithoutNumbers():
        keyed_uniform(1, 2, sample, 3, 4)
        assert launched == {"random.keyed_uniform_kernel"}
        monkeypatch.setattr(launchers, "keyed_uniform", with_wait)
        with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
            keyed_uniform(1, 2, sample, 3, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_on_a_gpu(case):
    call = case("cuda")
    differentiate(call)  # compiles, and fills the caches of the allocator
    torch.cuda.set_sync_debug_mode("error")
    try:
        differentiate(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")
