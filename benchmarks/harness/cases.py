"""What `kernels.py` measures: for each kernel and shape the providers, and what the work must cost at least.

Bytes are what has to be read and written once in `mode`, operations what the matrix products need; neither
counts what a provider reads or computes again. So GB/s and TFLOP/s of all providers of a case are comparable,
and a share of the copy bandwidth says how far from the floor each is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vpt_kernels

from . import baselines, peers, specimens
from .specimens import BF16, FP32, PROTOTYPES, SHORT, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, TOKENS, WIDTH

FORWARD, COLD, BACKWARD, FULL = MODES = ("forward", "forward, cold", "backward", "full")
OURS, EAGER, COMPILED, STORED = "ours", "eager", "torch.compile", "matmuls + kernels"
PYTHON, PYTHON_LISTS = "python, per image", "python, per image, lists"
KORNIA, TORCHVISION, TORCHVISION_8BIT = "kornia", "torchvision v2", "torchvision v2, uint8"
LIGER, CUT = "liger-kernel", "cut-cross-entropy"
PACKAGES = {
    KORNIA: "kornia", TORCHVISION: "torchvision", TORCHVISION_8BIT: "torchvision", LIGER: "liger-kernel",
    CUT: "cut-cross-entropy",
}  # fmt: skip
GPU_ONLY = (LIGER, CUT)
ITERATIONS = 3

_TIMES = {"own": STUDENT_TEMPERATURE, "theirs": TEACHER_TEMPERATURE}
_TEMPERATURES = {
    "student_temperature": STUDENT_TEMPERATURE,
    "teacher_temperature": TEACHER_TEMPERATURE,
}


def _same(output: Any) -> Sequence[Tensor]:
    return output if isinstance(output, tuple) else (output,)


class Work(NamedTuple):
    """How one provider does one case."""

    forward: Callable[[], Any]
    wrt: tuple[Tensor, ...] = ()  # what its gradients are taken of; none: forward alone
    compare: Callable[[Any], Sequence[Tensor]] | None = _same  # None: it computes something else
    note: str = ""
    held: tuple[int, ...] | None = None  # of wrt: the gradients that are compared; None: all


class Problem(NamedTuple):
    """One case's inputs and all who work on them."""

    providers: dict[str, Callable[[], Work]]
    bytes: dict[str, float]
    operations: dict[str, float] = {}  # noqa: RUF012
    tolerance: float = 1e-3  # relative error of outputs and gradients against ours


class Case(NamedTuple):
    """A kernel at one shape."""

    kernel: str
    sizes: dict[str, Any]
    dtype: str
    x_name: str  # the size that its sweep varies
    make: Callable[[torch.device], Problem]
    providers: tuple[str, ...] | None = None  # None: all

    @property
    def shape(self) -> str:
        """The sizes in one string."""
        return " ".join(f"{name}={size}" for name, size in self.sizes.items())

    @property
    def label(self) -> str:
        """What to call it in a line of text."""
        return f"{self.kernel} {self.shape} {self.dtype}"


# Losses and targets.


def _tolerance(dtype: torch.dtype) -> float:
    return 3e-2 if dtype != FP32 else 1e-3


def _passes(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> float:
    """Bytes of one pass over [rows, columns]."""
    return float(rows * columns * dtype.itemsize)


def _first_rows(teacher: Tensor, made: Any) -> Sequence[Tensor]:
    """Give the targets of the first rows, from potentials or stored: what providers are compared by."""
    if isinstance(made, Tensor):
        return (made[:64],)
    row, column = made
    return (torch.exp(teacher[:64].float() / TEACHER_TEMPERATURE + row[:64, None] + column),)


def sinkhorn(device: torch.device, M: int, K: int, dtype: torch.dtype) -> Problem:
    """Targets of 3 iterations; a fused iteration reads the logits once, after one read for the first rows."""
    teacher = specimens.logits(device, M, K, dtype)
    eager = partial(baselines.sinkhorn_targets, teacher, TEACHER_TEMPERATURE, ITERATIONS)
    compare = partial(_first_rows, teacher)
    return Problem(
        {
            OURS: lambda: Work(
                partial(vpt_kernels.sinkhorn_potentials, teacher, TEACHER_TEMPERATURE, iterations=ITERATIONS),
                compare=compare,
            ),
            EAGER: lambda: Work(eager, compare=compare, note="stores Q in fp32"),
            COMPILED: lambda: Work(
                partial(compiled(baselines.sinkhorn_targets), teacher, TEACHER_TEMPERATURE, ITERATIONS),
                compare=compare,
            ),
        },
        {FORWARD: (ITERATIONS + 1) * _passes(device, M, K, dtype)},
        tolerance=_tolerance(dtype),
    )


def distillation(device: torch.device, M: int, K: int, dtype: torch.dtype) -> Problem:
    """One read of both logits forward; one read of both and one write backward."""
    student = specimens.logits(device, M, K, dtype).requires_grad_()
    teacher = specimens.logits(device, M, K, dtype)
    potentials = specimens.potentials(device, M, K)
    weights = specimens.token_weights(device, M)
    arguments = (student, teacher, *potentials, weights, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE)
    ours = partial(
        vpt_kernels.masked_distillation_loss, student, teacher, potentials, weights=weights, **_TEMPERATURES
    )

    def liger() -> Tensor:
        targets = baselines.potential_targets(teacher, *potentials, TEACHER_TEMPERATURE)
        return peers.liger_kl(student, targets, STUDENT_TEMPERATURE) * weights

    one = _passes(device, M, K, dtype)
    return Problem(
        {
            OURS: lambda: Work(ours, (student,)),
            EAGER: lambda: Work(partial(baselines.distillation, *arguments), (student,)),
            COMPILED: lambda: Work(partial(compiled(baselines.distillation), *arguments), (student,)),
            LIGER: lambda: Work(
                liger, (student,), compare=None,
                note="KL: the loss less the entropy of the targets; torch makes the tensors that it takes",
            ),
        },
        {FORWARD: 2 * one, BACKWARD: 3 * one, FULL: 5 * one},
        tolerance=_tolerance(dtype),
    )  # fmt: skip


def targets_and_loss(device: torch.device, M: int, K: int, dtype: torch.dtype) -> Problem:
    """Sinkhorn's targets and the loss together, where eager code makes and stores the targets but once."""
    student = specimens.logits(device, M, K, dtype).requires_grad_()
    teacher = specimens.logits(device, M, K, dtype)
    weights = specimens.token_weights(device, M)
    arguments = (student, teacher, weights, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, ITERATIONS)

    def ours() -> Tensor:
        potentials = vpt_kernels.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE, iterations=ITERATIONS)
        return vpt_kernels.masked_distillation_loss(
            student, teacher, potentials, weights=weights, **_TEMPERATURES
        )

    one = _passes(device, M, K, dtype)
    forward = (ITERATIONS + 1 + 2) * one
    return Problem(
        {
            OURS: lambda: Work(ours, (student,)),
            EAGER: lambda: Work(partial(baselines.sinkhorn_distillation, *arguments), (student,)),
            COMPILED: lambda: Work(
                partial(compiled(baselines.sinkhorn_distillation), *arguments), (student,)
            ),
        },
        {FORWARD: forward, BACKWARD: 3 * one, FULL: forward + 3 * one},
        tolerance=_tolerance(dtype),
    )


class _Heads(NamedTuple):
    student: Tensor
    weight: Tensor
    teacher: Tensor
    teacher_weight: Tensor
    weights: Tensor

    @property
    def wrt(self) -> tuple[Tensor, Tensor]:
        return self.student, self.weight


def _heads(device: torch.device, M: int, K: int, D: int, dtype: torch.dtype) -> _Heads:
    student, weight = specimens.prototypes(device, M, K, D, dtype)
    teacher, teacher_weight = specimens.prototypes(device, M, K, D, dtype)
    weights = specimens.token_weights(device, M)
    return _Heads(student.requires_grad_(), weight.requires_grad_(), teacher, teacher_weight, weights)


def _counted_prototypes(M: int, K: int, D: int, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Two products forward, two backward."""
    product = 2.0 * M * K * D
    read = 2.0 * (M + K) * D * dtype.itemsize
    return {
        "bytes": {FORWARD: read, BACKWARD: 2 * read, FULL: 3 * read},
        "operations": {FORWARD: 2 * product, BACKWARD: 2 * product, FULL: 4 * product},
    }


def prototype(device: torch.device, M: int, K: int, D: int, dtype: torch.dtype) -> Problem:
    """From features to losses, potentials given."""
    heads = _heads(device, M, K, D, dtype)
    potentials = specimens.potentials(device, M, K)
    arguments = (*heads[:4], *potentials, heads.weights, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE)
    labels = torch.randint(K, (M,), device=device)
    eager = baselines.prototype_distillation
    ours = partial(
        vpt_kernels.prototype_loss, *heads[:4], potentials, weights=heads.weights, **_TEMPERATURES
    )  # fmt: skip

    def stored() -> Tensor:
        with torch.no_grad():
            teacher = baselines.head(heads.teacher, heads.teacher_weight)
        student = baselines.head(heads.student, heads.weight)
        return vpt_kernels.masked_distillation_loss(
            student, teacher, potentials, weights=heads.weights, **_TEMPERATURES
        )

    return Problem(
        {
            OURS: lambda: Work(ours, heads.wrt),
            STORED: lambda: Work(stored, heads.wrt, note="torch's products, then masked_distillation_loss"),
            EAGER: lambda: Work(partial(eager, *arguments), heads.wrt),
            COMPILED: lambda: Work(partial(compiled(eager), *arguments), heads.wrt),
            LIGER: lambda: Work(
                partial(peers.liger_fused_linear_kl, *heads[:4], STUDENT_TEMPERATURE), heads.wrt,
                compare=None,
                note="fused linear JSD, beta 0: mean KL of softmax targets, one temperature, no potentials, "
                "no weight norm, no weights; its forward makes the gradients",
            ),
            CUT: lambda: Work(
                partial(peers.cut_cross_entropy, heads.student, heads.weight, labels, STUDENT_TEMPERATURE),
                heads.wrt, compare=None,
                note="hard labels, no teacher: half the products and none of the targets; a lower bound",
            ),
        },
        **_counted_prototypes(M, K, D, dtype),
        tolerance=_tolerance(dtype),
    )  # fmt: skip


def prototype_targets_and_loss(
    device: torch.device, M: int, K: int, D: int, dtype: torch.dtype
) -> Problem:  # fmt: skip
    """From features to losses with Sinkhorn's targets: all that one training step asks of the heads' ends."""
    heads = _heads(device, M, K, D, dtype)
    arguments = (*heads, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, ITERATIONS)

    def ours() -> Tensor:
        potentials = vpt_kernels.prototype_potentials(
            heads.teacher, heads.teacher_weight, TEACHER_TEMPERATURE, iterations=ITERATIONS
        )
        return vpt_kernels.prototype_loss(*heads[:4], potentials, weights=heads.weights, **_TEMPERATURES)

    def stored() -> Tensor:
        with torch.no_grad():
            teacher = baselines.head(heads.teacher, heads.teacher_weight)
            potentials = vpt_kernels.sinkhorn_potentials(teacher, TEACHER_TEMPERATURE, iterations=ITERATIONS)
        student = baselines.head(heads.student, heads.weight)
        return vpt_kernels.masked_distillation_loss(
            student, teacher, potentials, weights=heads.weights, **_TEMPERATURES
        )

    eager = baselines.prototype_sinkhorn_distillation
    return Problem(
        {
            OURS: lambda: Work(ours, heads.wrt),
            STORED: lambda: Work(
                stored,
                heads.wrt,
                note="torch's products, then sinkhorn_potentials and masked_distillation_loss",
            ),
            EAGER: lambda: Work(partial(eager, *arguments), heads.wrt),
            COMPILED: lambda: Work(partial(compiled(eager), *arguments), heads.wrt),
        },
        **_counted_prototypes(M, K, D, dtype),
        tolerance=_tolerance(dtype),
    )


# Masks.


def _hidden(output: Any) -> Tensor:
    return getattr(output, "hidden", output if isinstance(output, Tensor) else output[0])


def _numbers_hidden(output: Any) -> Sequence[Tensor]:
    """Compare masks by how many patches each hides: their draws differ."""
    hidden = _hidden(output)
    return (hidden.flatten(1).sum(1).float(),)


def _packed(masks: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Pack masks on the host and send them to the device."""
    return tuple(one.to(device) for one in baselines.pack(masks))


def _mask_bytes(batch: int, patches: int, hidden: int) -> float:
    """Counts and samples read; the mask, the inverse, and an index and a weight of what is hidden written."""
    return float(batch * 16 + batch * patches * 9 + hidden * 12)


def block_masks(device: torch.device, N: int, grid: int) -> Problem:
    """Masks of N images of grid x grid patches, which hide a tenth to a half of them."""
    patches = grid * grid
    counts = specimens.counts(device, N, patches)
    on_host = counts.tolist()
    number = torch.arange(N, device=device)
    total = sum(on_host)
    ours = partial(vpt_kernels.block_masks, counts, (grid, grid), total=total, seed=1, step=2, sample=number)
    generator = random.Random(0)

    def python(draw: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: _packed(draw(on_host, (grid, grid), generator), device)

    return Problem(
        {
            OURS: lambda: Work(ours, compare=_numbers_hidden),
            PYTHON: lambda: Work(
                python(baselines.python_block_masks), compare=_numbers_hidden, note="NumPy cells, as DINOv2"
            ),
            PYTHON_LISTS: lambda: Work(
                python(baselines.list_block_masks), compare=_numbers_hidden, note="the same without NumPy"
            ),
        },
        # A training step calls it once, after much else.
        dict.fromkeys([FORWARD, COLD] if device.type == "cpu" else [FORWARD], _mask_bytes(N, patches, total)),
    )


def sample_masks(device: torch.device, N: int, T: int) -> Problem:
    """Gumbel top-k masks of N images of T patches."""
    logits, counts = torch.randn(N, T, device=device), specimens.counts(device, N, T)
    on_host = counts.tolist()
    number = torch.arange(N, device=device)
    total = sum(on_host)
    ours = partial(vpt_kernels.sample_masks, logits, counts, total=total, seed=1, step=2, sample=number)
    generator = random.Random(0)

    def python() -> tuple[Tensor, ...]:
        return _packed(baselines.python_random_masks(on_host, T, generator), device)

    return Problem(
        {
            OURS: lambda: Work(ours, compare=_numbers_hidden),
            EAGER: lambda: Work(partial(baselines.gumbel_masks, logits, counts), compare=_numbers_hidden),
            COMPILED: lambda: Work(
                partial(compiled(baselines.gumbel_masks), logits, counts), compare=_numbers_hidden
            ),
            PYTHON: lambda: Work(python, compare=_numbers_hidden, note="uniform masks, no logits"),
        },
        {FORWARD: _mask_bytes(N, T, total) + 8 * N * T},
    )


def plackett_luce(device: torch.device, N: int, T: int) -> Problem:
    """Log-probability of a drawn order, and its gradient."""
    logits = torch.randn(N, T, device=device, requires_grad=True)
    counts = specimens.counts(device, N, T)
    perturbed = torch.randn(N, T, device=device)
    eager = baselines.order_log_probability
    return Problem(
        {
            OURS: lambda: Work(
                partial(vpt_kernels.plackett_luce_log_prob, logits, perturbed, counts), (logits,)
            ),
            EAGER: lambda: Work(partial(eager, logits, perturbed, counts), (logits,)),
            COMPILED: lambda: Work(partial(compiled(eager), logits, perturbed, counts), (logits,)),
        },
        {FORWARD: 12.0 * N * T, BACKWARD: 16.0 * N * T, FULL: 28.0 * N * T},
    )


def keyed_uniform(device: torch.device, N: int, count: int) -> Problem:
    """Keyed numbers, beside torch's own stream of numbers."""
    number = torch.arange(N, device=device)
    return Problem(
        {
            OURS: lambda: Work(partial(vpt_kernels.keyed_uniform, 1, 2, number, 3, count)),
            EAGER: lambda: Work(
                partial(torch.rand, N, count, device=device), compare=None,
                note="torch.rand: not keyed by sample",
            ),
        },
        {FORWARD: 4.0 * N * count},
    )  # fmt: skip


# Views.


def render(
    device: torch.device, B: int, views: str, side: int, photometrics: str, dtype: torch.dtype
) -> Problem:  # fmt: skip
    """Views of B sources of side x side; `views` is like "2x224+8x96": globals, then locals of less area."""
    groups = []
    for place, group in enumerate(views.split("+")):
        count, size = map(int, group.split("x"))
        scale = (0.32, 1.0) if place == 0 else (0.05, 0.32)
        groups.append(
            specimens.views(device, B, count, size, side=side, scale=scale, photometrics=photometrics)
        )
    images, normalise = specimens.sources(device, B, side), specimens.statistics(device)
    kernel = 9 if min(group.size for group in groups) > 9 else 5
    sinks: tuple[Tensor, ...] = ()
    if device.type == "cuda":  # on the CPU only designers ask for gradients, of a few views
        sinks = tuple(tensor.requires_grad_() for group in groups for tensor in specimens.grown(group))
    # Boxes of integers lie where the gradient of a box has a step: one may differ from another there.
    held = tuple(place for place, tensor in enumerate(sinks) if tensor.dim() == 2)

    def ours() -> tuple[Tensor, ...]:
        return tuple(
            vpt_kernels.render_views(
                images, group.boxes, group.flips, group.photometrics, size=group.size, blur_kernel=kernel,
                dtype=dtype, **normalise,
            )
            for group in groups
        )  # fmt: skip

    def by(function: Callable[..., Tensor], **options: Any) -> Callable[[], tuple[Tensor, ...]]:
        def all_groups() -> tuple[Tensor, ...]:
            return tuple(
                function(
                    images, group.boxes, group.flips, group.photometrics, normalise["mean"], normalise["std"],
                    group.size, kernel, dtype, **options,
                )
                for group in groups
            )  # fmt: skip

        return all_groups

    drawn = sum(group.boxes.shape[0] * 3 * group.size**2 for group in groups) * B * dtype.itemsize
    source = float(B * 3 * side**2)
    gradient = {BACKWARD: source + drawn, FULL: 2 * (source + drawn)} if sinks else {}
    return Problem(
        {
            OURS: lambda: Work(ours, sinks, held=held),
            EAGER: lambda: Work(
                by(baselines.render), sinks, held=held, note="two dense products, then colours"
            ),
            COMPILED: lambda: Work(by(compiled(baselines.render)), sinks, held=held),
            TORCHVISION: lambda: Work(by(peers.torchvision_views, as_float=True), note="one view at a time"),
            TORCHVISION_8BIT: lambda: Work(
                by(peers.torchvision_views, as_float=False), note="one view at a time; rounds to 8 bits"
            ),
            KORNIA: lambda: Work(
                by(peers.kornia_views), note="batched; no antialiasing, one order of jitter for all"
            ),
        },
        {FORWARD: source + drawn, **gradient},
        tolerance=_tolerance(dtype) if dtype != FP32 else 3e-3,
    )


def blend(device: torch.device, N: int, side: int, dtype: torch.dtype) -> Problem:
    """Blend of views and their blur by masks, with both terms."""
    images = torch.randn(N, 3, side, side, device=device).to(dtype)
    mask = torch.rand(N, side, side, device=device).requires_grad_()
    sigma, kernel = 4.0, 17

    def ours() -> tuple[Tensor, ...]:
        return tuple(vpt_kernels.blend_views(images, mask, sigma=sigma, blur_kernel=kernel))

    arguments = (images, mask, sigma, kernel)
    pixels = float(N * side * side)
    read, moved = pixels * (3 * dtype.itemsize + 4), pixels * 3 * dtype.itemsize
    return Problem(
        {
            OURS: lambda: Work(ours, (mask,)),
            EAGER: lambda: Work(partial(baselines.blend, *arguments), (mask,)),
            COMPILED: lambda: Work(partial(compiled(baselines.blend), *arguments), (mask,)),
            TORCHVISION: lambda: Work(
                partial(peers.torchvision_blend, *arguments), (mask,), note="its blur alone"
            ),
            KORNIA: lambda: Work(
                partial(peers.kornia_blend, *arguments), (mask,), note="its blur and variation"
            ),
        },
        {FORWARD: read + moved, BACKWARD: read + moved + 4 * pixels, FULL: 2 * (read + moved) + 4 * pixels},
        tolerance=_tolerance(dtype),
    )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile for the shapes at hand."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


# The table of cases.


def _case(
    kernel: str, make: Callable[..., Problem], x_name: str, dtype: torch.dtype | None = None, **sizes: Any
) -> Case:  # fmt: skip
    known = {} if dtype is None else {"dtype": dtype}
    written = "bool" if "masks" in kernel else SHORT[dtype or FP32]
    return Case(
        kernel,
        sizes,
        written,
        x_name,
        lambda device: make(device, **sizes, **known),
    )


_LOSSES: dict[str, Callable[..., Problem]] = {
    "masked_distillation_loss": distillation,
    "sinkhorn_potentials": sinkhorn,
    "targets_and_loss": targets_and_loss,
    "prototype_loss": prototype,
    "prototype_targets_and_loss": prototype_targets_and_loss,
}
_MASKS: dict[str, Callable[..., Problem]] = {
    "sample_masks": sample_masks,
    "plackett_luce_log_prob": plackett_luce,
}
VIEWS = "2x224+8x96"
PROTOTYPE_SWEEP = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
TOKEN_SWEEP = (256, 512, 1024, 2048, 3763, 8192, 16384)
BATCH_SWEEP = (32, 64, 128, 256, 512)
GRID_SWEEP = (14, 16, 20, 24, 28, 32)  # 196 to 1,024 tokens


def _loss(kernel: str, x_name: str, M: int, K: int, dtype: torch.dtype = BF16, D: int = WIDTH) -> Case:
    width = {"D": D} if kernel.startswith("prototype") else {}
    return _case(kernel, _LOSSES[kernel], x_name, dtype, M=M, K=K, **width)


def main_cases() -> list[Case]:
    """The shapes that the targets speak of, and the other kernels at the shapes of the same step."""
    return [
        _loss("masked_distillation_loss", "K", TOKENS, PROTOTYPES),
        _loss("sinkhorn_potentials", "K", TOKENS, PROTOTYPES),
        _loss("prototype_targets_and_loss", "K", TOKENS, PROTOTYPES),
        _case("block_masks", block_masks, "N", N=512, grid=16),
        _case("sample_masks", sample_masks, "N", N=512, T=256),
        _case("render_views", render, "B", BF16, B=256, views=VIEWS, side=256, photometrics="all"),
        _loss("prototype_loss", "K", TOKENS, PROTOTYPES),
        _loss("targets_and_loss", "K", TOKENS, PROTOTYPES),
        _case("blend_views", blend, "N", BF16, N=256, side=224),
        _case("plackett_luce_log_prob", plackett_luce, "N", N=512, T=256),
        _case("keyed_uniform", keyed_uniform, "N", N=512, count=256),
    ]


def sweep_cases() -> list[Case]:
    """Everything else, the middle of each sweep being a main case."""
    cases = [
        _case("render_views", render, "B", BF16, B=batch, views=VIEWS, side=256, photometrics="all")
        for batch in BATCH_SWEEP if batch != 256
    ]  # fmt: skip
    for kernel in ("masked_distillation_loss", "sinkhorn_potentials", "prototype_loss"):
        cases += [_loss(kernel, "K", TOKENS, K) for K in PROTOTYPE_SWEEP if K != PROTOTYPES]
        cases += [_loss(kernel, "M", M, PROTOTYPES) for M in TOKEN_SWEEP if M != TOKENS]
        cases += [_loss(kernel, "K", TOKENS, PROTOTYPES, FP32)]
    for batch in BATCH_SWEEP:
        cases += [_case("block_masks", block_masks, "N", N=batch, grid=16)] if batch != 512 else []
        for kernel, make in _MASKS.items():
            cases += [_case(kernel, make, "N", N=batch, T=256)] if batch != 512 else []
        cases += [_case("blend_views", blend, "N", BF16, N=batch, side=224)] if batch != 256 else []
    for grid in GRID_SWEEP:
        if grid != 16:
            cases += [_case("block_masks", block_masks, "grid", N=512, grid=grid)]
            cases += [_case(kernel, make, "T", N=512, T=grid * grid) for kernel, make in _MASKS.items()]
    for kernel in ("targets_and_loss", "prototype_targets_and_loss"):
        cases += [_loss(kernel, "K", TOKENS, K) for K in PROTOTYPE_SWEEP if K != PROTOTYPES]
    return cases


def quick_cases() -> list[Case]:
    """Sizes that a CPU core works through in a minute, the CPU's targets first."""
    small: dict[str, Any] = {"M": 64, "K": 4096, "dtype": FP32}
    return [
        _case("block_masks", block_masks, "N", N=128, grid=16),
        _case("render_views", render, "B", FP32, B=8, views=VIEWS, side=256, photometrics="recipe"),
        _case("render_views", render, "B", FP32, B=16, views="2x64+8x32", side=96, photometrics="recipe"),
        _case("render_views", render, "B", FP32, B=16, views="2x48+8x32", side=64, photometrics="recipe"),
        _case("sample_masks", sample_masks, "N", N=128, T=256),
        _case("plackett_luce_log_prob", plackett_luce, "N", N=128, T=256),
        _case("keyed_uniform", keyed_uniform, "N", N=128, count=256),
        *(_loss(kernel, "K", D=64, **small) for kernel in _LOSSES),
        _case("blend_views", blend, "N", FP32, N=4, side=96),
    ]
