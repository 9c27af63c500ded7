"""Similarities with prototypes, made tile by tile and used on the spot: nothing of size [M, K] is stored.

Let U = 2 N K D be the operations of one matrix product over N pairs of a student and a teacher row: 126 GFLOP
at N = 3763, K = 65536, D = 256.

| kernel | operations | what stays | what is streamed past it |
| --- | --- | --- | --- |
| `logsumexp_kernel`, half a Sinkhorn iteration | 1 U | 128 features or prototypes | all of the other side |
| `forward_kernel` | 2 U | both features of 128 pairs | both prototypes |
| `features_kernel` | 3 U | the same | the same |
| `prototypes_kernel` | 3 U | both prototypes, 128 of each | both features |

A step with 3 Sinkhorn iterations is 14 U, 1.76 PFLOP. Where logits are stored it is 4 U and 15 passes over
[M, K], each 493 MB in bf16: products write two and read two, Sinkhorn reads six, the loss reads four, writes
one. Here HBM gives next to nothing: features are 2 MB a side and prototypes 34 MB, and programs that run at
the same time stream the same tiles, which all but the first find in the L2 cache. From there one pass of both
prototypes over 3763 rows is 30 × 67 MB = 2 GB. Allocated beyond the results are [K] lengths, 20 bytes for
each pair and part (forward), partial sums of a gradient where one side has too few blocks to fill the
device: 15 MB at the sizes above, 1 % of the three matrices of 493 MB that are not there; and features and
prototypes once more where D is no multiple of 16.

A student row with several teacher rows is as many pairs, each of which makes the student's similarities anew.
That is up to twice the operations, and keeps shared memory and registers the same for every P.

On Hopper and the B200 D lies whole in shared memory (`WHOLE`), up to 256 in half precision. Elsewhere, in
fp32 and for fp16's gradients, it goes through in blocks, which reads more from L2: fp32 is made right, not
fast. A gradient is made for at most 256 columns of D at a time (128 in fp32), so that its accumulator fits
the registers; a wider one makes the similarities once for each 256. No index runs over M · K; what runs over
K · D or N · D is in 64 bits. None of this has been timed on a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..prototype_loss import EPSILON
from .launch import block, cdiv, on_device_of
from .sinkhorn_potentials import combined

_PROCESSORS = 132  # of an H100 or H200; elsewhere the last wave is only less full
_PARTS = 2**22  # numbers in a gradient's partial sums, at most


@triton.jit
def _tile(pointer, index, there, first, D, BLOCK_D: tl.constexpr):
    """Rows `index` of a matrix [*, D], its columns from `first` on: [R, BLOCK_D], 0 beyond D or not there."""
    d = first + tl.arange(0, BLOCK_D)
    place = pointer + index.to(tl.int64)[:, None] * D + d[None, :]
    return tl.load(place, mask=there[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Matrix product added to `total`, in fp32 if WIDEN: Triton's interpreter takes bf16 for integers."""
    if WIDEN:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _rounded(x, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """An fp32 tile as a matrix product with that precision takes it: what is lost is lost here, in sight.

    TF32 has 10 digits after the first; tensor cores ignore the other 13 of fp32.
    """
    if PRECISION == "tf32":
        return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def _inner(
    a,  # [A, BLOCK_D], the whole rows where WHOLE
    a_ptr,
    a_index,
    a_there,
    b,  # [B, BLOCK_D], the whole rows where WHOLE
    b_ptr,
    b_index,
    b_there,
    D,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Inner products of rows of two matrices: [A, B] fp32."""
    total = tl.zeros([a_index.shape[0], b_index.shape[0]], tl.float32)
    if WHOLE:
        return _dot(a, tl.trans(b), total, PRECISION, WIDEN)
    for first in range(0, D, BLOCK_D):
        x = _tile(a_ptr, a_index, a_there, first, D, BLOCK_D)
        y = _tile(b_ptr, b_index, b_there, first, D, BLOCK_D)
        total = _dot(x, tl.trans(y), total, PRECISION, WIDEN)
    return total


@triton.jit
def _scale(lengths_ptr, k, inside, EPSILON: tl.constexpr, HAS_LENGTHS: tl.constexpr):
    """What the similarities with prototypes `k` are multiplied with: 1 / length."""
    if HAS_LENGTHS:
        return 1.0 / tl.maximum(tl.load(lengths_ptr + k, mask=inside, other=1.0), EPSILON)
    return tl.full([k.shape[0]], 1.0, tl.float32)


@triton.jit
def _pairs(rows_ptr, pairs, there, P, HAS_ROWS: tl.constexpr):
    """Give the student and the teacher rows of `pairs`, and which pairs have both."""
    if HAS_ROWS:
        teachers = tl.load(rows_ptr + pairs, mask=there, other=-1).to(tl.int32)
        return pairs // P, teachers, teachers >= 0
    return pairs, pairs, there


@triton.jit
def logsumexp_kernel(
    x_ptr,  # [R, D] float
    x_scale_ptr,  # [R] fp32
    y_ptr,  # [C, D] float
    y_scale_ptr,  # [C] fp32
    bias_ptr,  # [C] fp32; rows of -inf are not read
    out_ptr,  # [splits, R] fp32
    R,
    C,
    D,
    c_per_split,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Log-sum-exp over a part of the rows of y of x_scale y_scale ⟨x, y⟩ + bias, for BLOCK_R rows of x.

    Rows are features and y prototypes, or the other way round.
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = r < R
    split = tl.program_id(1)
    end = tl.minimum((split + 1) * c_per_split, C)
    x_scale = tl.load(x_scale_ptr + r, mask=there, other=1.0)
    x = _tile(x_ptr, r, there, 0, D, BLOCK_D)
    highest = tl.full([BLOCK_R], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for first in range(split * c_per_split, end, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = c < end
        bias = tl.load(bias_ptr + c, mask=inside, other=-float("inf"))
        counts = bias > -float("inf")
        y_scale = tl.load(y_scale_ptr + c, mask=counts, other=1.0)
        y = _tile(y_ptr, c, counts, 0, D, BLOCK_D)
        inner = _inner(x, x_ptr, r, there, y, y_ptr, c, counts, D, BLOCK_D, WHOLE, PRECISION, WIDEN)
        z = inner * (x_scale[:, None] * y_scale[None, :]) + bias[None, :]
        risen = tl.maximum(highest, tl.max(z, 1))
        base = tl.where(risen == -float("inf"), 0.0, risen)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(z - base[:, None]), 1)
        highest = risen
    base = tl.where(highest == -float("inf"), 0.0, highest)
    tl.store(out_ptr + split.to(tl.int64) * R + r, base + tl.log(total), mask=there)


@triton.jit
def forward_kernel(
    student_ptr,  # [M, D] float
    student_prototypes_ptr,  # [K, D] float
    student_lengths_ptr,  # [K] fp32, or nothing
    teacher_ptr,  # [T, D] float
    teacher_prototypes_ptr,  # [K, D] float
    teacher_lengths_ptr,  # [K] fp32, or nothing
    row_ptr,  # [N] fp32, the teacher rows' potentials
    column_ptr,  # [K] fp32
    inverse_ptr,  # [N] fp32, 1 / student_temperature
    their_inverse_ptr,  # [N] fp32, 1 / teacher_temperature
    rows_ptr,  # [N] int64, the teacher rows of the pairs or -1, or nothing
    parts_ptr,  # [5, splits, N] fp32: highest z, then four sums
    N,
    P,
    K,
    D,
    k_per_split,
    HAS_ROWS: tl.constexpr,
    HAS_STUDENT_LENGTHS: tl.constexpr,
    HAS_TEACHER_LENGTHS: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """BLOCK_N pairs against a part of the prototypes, BLOCK_K at a time."""
    pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = pairs < N
    split = tl.program_id(1)
    end = tl.minimum((split + 1) * k_per_split, K)
    students, teachers, paired = _pairs(rows_ptr, pairs, there, P, HAS_ROWS)
    inverse = tl.load(inverse_ptr + pairs, mask=there, other=1.0)
    their_inverse = tl.load(their_inverse_ptr + pairs, mask=there, other=1.0)
    row = tl.load(row_ptr + pairs, mask=paired, other=-float("inf"))
    s = _tile(student_ptr, students, paired, 0, D, BLOCK_D)
    t = _tile(teacher_ptr, teachers, paired, 0, D, BLOCK_D)

    highest = tl.full([BLOCK_N], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)  # of e = exp(z - highest)
    moment = tl.zeros([BLOCK_N], tl.float32)  # of e (z - highest)
    mass = tl.zeros([BLOCK_N], tl.float32)  # of q
    dot = tl.zeros([BLOCK_N], tl.float32)  # of q (z - highest): one sign, so nothing cancels
    for first in range(split * k_per_split, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = k < end
        w = _tile(student_prototypes_ptr, k, inside, 0, D, BLOCK_D)
        inner = _inner(
            s, student_ptr, students, paired, w, student_prototypes_ptr, k, inside,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        scale = _scale(student_lengths_ptr, k, inside, EPSILON, HAS_STUDENT_LENGTHS)
        z = inner * (inverse[:, None] * scale[None, :])
        z = tl.where(inside[None, :], z, -float("inf"))
        v = _tile(teacher_prototypes_ptr, k, inside, 0, D, BLOCK_D)
        inner = _inner(
            t, teacher_ptr, teachers, paired, v, teacher_prototypes_ptr, k, inside,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        their_scale = _scale(teacher_lengths_ptr, k, inside, EPSILON, HAS_TEACHER_LENGTHS)
        column = tl.load(column_ptr + k, mask=inside, other=-float("inf"))
        y = inner * (their_inverse[:, None] * their_scale[None, :])
        q = tl.exp(y + row[:, None] + column[None, :])
        risen = tl.maximum(highest, tl.max(z, 1))
        fall = highest - risen  # -inf at first, when nothing has been added up
        fading = tl.exp(fall)
        fall = tl.where(fall == -float("inf"), 0.0, fall)
        below = z - risen[:, None]
        e = tl.exp(below)
        below = tl.where(inside[None, :], below, 0.0)
        moment = fading * (moment + total * fall) + tl.sum(e * below, 1)
        total = fading * total + tl.sum(e, 1)
        dot += mass * fall + tl.sum(q * below, 1)
        mass += tl.sum(q, 1)
        highest = risen
    out = parts_ptr + split.to(tl.int64) * N + pairs
    step = tl.num_programs(1).to(tl.int64) * N
    tl.store(out, highest, mask=there)
    tl.store(out + step, total, mask=there)
    tl.store(out + 2 * step, moment, mask=there)
    tl.store(out + 3 * step, mass, mask=there)
    tl.store(out + 4 * step, dot, mask=there)


@triton.jit
def combine_kernel(
    parts_ptr,  # [5, splits, N] fp32
    losses_ptr,  # [N] fp32
    normaliser_ptr,  # [N] fp32
    mass_ptr,  # [N] fp32
    entropy_ptr,  # [N] fp32
    N,
    splits,
    step,  # splits N
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put the parts of the prototypes together."""
    pairs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = pairs < N
    parts = tl.arange(0, SPLITS).to(tl.int64)
    mask = (parts < splits)[:, None] & there[None, :]
    place = parts_ptr + parts[:, None] * N + pairs[None, :]
    totals_place = place + step  # added, not multiplied: four steps may be more than 32 bits count
    moments_place = totals_place + step
    masses_place = moments_place + step
    dots_place = masses_place + step
    highest = tl.load(place, mask=mask, other=-float("inf"))
    top = tl.where(there, tl.max(highest, 0), 0.0)
    fall = highest - top[None, :]
    fading = tl.exp(fall)
    fall = tl.where(mask, fall, 0.0)
    totals = tl.load(totals_place, mask=mask, other=0.0)
    total = tl.where(there, tl.sum(fading * totals, 0), 1.0)
    moments = tl.load(moments_place, mask=mask, other=0.0)
    moment = tl.sum(fading * (moments + totals * fall), 0)
    masses = tl.load(masses_place, mask=mask, other=0.0)
    mass = tl.sum(masses, 0)
    dot = tl.sum(tl.load(dots_place, mask=mask, other=0.0) + masses * fall, 0)
    log_total = tl.log(total)
    tl.store(losses_ptr + pairs, mass * log_total - dot, mask=there)
    tl.store(normaliser_ptr + pairs, top + log_total, mask=there)
    tl.store(mass_ptr + pairs, mass, mask=there)
    tl.store(entropy_ptr + pairs, log_total - moment / total, mask=there)


@triton.jit
def features_kernel(
    weight_ptr,  # [N] fp32, gradient / student_temperature
    student_ptr,  # [M, D] float
    student_prototypes_ptr,  # [K, D] float
    student_lengths_ptr,  # [K] fp32, or nothing
    teacher_ptr,  # [T, D] float
    teacher_prototypes_ptr,  # [K, D] float
    teacher_lengths_ptr,  # [K] fp32, or nothing
    row_ptr,  # [N] fp32, the teacher rows' potentials
    column_ptr,  # [K] fp32
    inverse_ptr,  # [N] fp32, 1 / student_temperature
    their_inverse_ptr,  # [N] fp32, 1 / teacher_temperature
    rows_ptr,  # [N] int64, the teacher rows of the pairs or -1, or nothing
    shift_ptr,  # [N] fp32, normaliser - log mass: mass softmax(z) = exp(z - shift), 0 if there is none
    out_ptr,  # [splits, N, D] fp32, or the features' dtype where nothing remains to be added up
    N,
    P,
    K,
    D,
    k_per_split,
    HAS_ROWS: tl.constexpr,
    HAS_STUDENT_LENGTHS: tl.constexpr,
    HAS_TEACHER_LENGTHS: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SLOPE: tl.constexpr,
    SLOPE_PRECISION: tl.constexpr,
):
    """The features' gradient of BLOCK_N pairs, BLOCK_OUT columns of it, from a part of the prototypes."""
    pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = pairs < N
    split = tl.program_id(1)
    end = tl.minimum((split + 1) * k_per_split, K)
    students, teachers, paired = _pairs(rows_ptr, pairs, there, P, HAS_ROWS)
    inverse = tl.load(inverse_ptr + pairs, mask=there, other=1.0)
    their_inverse = tl.load(their_inverse_ptr + pairs, mask=there, other=1.0)
    row = tl.load(row_ptr + pairs, mask=paired, other=-float("inf"))
    s = _tile(student_ptr, students, paired, 0, D, BLOCK_D)
    t = _tile(teacher_ptr, teachers, paired, 0, D, BLOCK_D)
    first_out = tl.program_id(2) * BLOCK_OUT
    shift = tl.load(shift_ptr + pairs, mask=there, other=float("inf"))

    total = tl.zeros([BLOCK_N, BLOCK_OUT], tl.float32)
    for first in range(split * k_per_split, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = k < end
        w = _tile(student_prototypes_ptr, k, inside, 0, D, BLOCK_D)
        inner = _inner(
            s, student_ptr, students, paired, w, student_prototypes_ptr, k, inside,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        scale = _scale(student_lengths_ptr, k, inside, EPSILON, HAS_STUDENT_LENGTHS)
        z = inner * (inverse[:, None] * scale[None, :])
        slope = tl.exp(tl.where(inside[None, :], z, -float("inf")) - shift[:, None])
        v = _tile(teacher_prototypes_ptr, k, inside, 0, D, BLOCK_D)
        inner = _inner(
            t, teacher_ptr, teachers, paired, v, teacher_prototypes_ptr, k, inside,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        their_scale = _scale(teacher_lengths_ptr, k, inside, EPSILON, HAS_TEACHER_LENGTHS)
        column = tl.load(column_ptr + k, mask=inside, other=-float("inf"))
        y = inner * (their_inverse[:, None] * their_scale[None, :])
        q = tl.exp(y + row[:, None] + column[None, :])
        slope = (slope - q) * scale[None, :]
        if not WHOLE:
            w = _tile(student_prototypes_ptr, k, inside, first_out, D, BLOCK_OUT)
        total = _dot(slope.to(SLOPE), w.to(SLOPE), total, SLOPE_PRECISION, WIDEN)
    total *= tl.load(weight_ptr + pairs, mask=there, other=0.0)[:, None]
    d = first_out + tl.arange(0, BLOCK_OUT)
    corner = out_ptr + (split.to(tl.int64) * N + tl.program_id(0) * BLOCK_N) * D
    place = corner + tl.arange(0, BLOCK_N)[:, None] * D + d[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])


@triton.jit
def prototypes_kernel(
    weight_ptr,  # [N] fp32, gradient / student_temperature
    student_ptr,  # [M, D] float
    student_prototypes_ptr,  # [K, D] float
    student_lengths_ptr,  # [K] fp32, or nothing
    teacher_ptr,  # [T, D] float
    teacher_prototypes_ptr,  # [K, D] float
    teacher_lengths_ptr,  # [K] fp32, or nothing
    row_ptr,  # [N] fp32, the teacher rows' potentials
    column_ptr,  # [K] fp32
    inverse_ptr,  # [N] fp32, 1 / student_temperature
    their_inverse_ptr,  # [N] fp32, 1 / teacher_temperature
    rows_ptr,  # [N] int64, the teacher rows of the pairs or -1, or nothing
    shift_ptr,  # [N] fp32, normaliser - log mass: mass softmax(z) = exp(z - shift), 0 if there is none
    out_ptr,  # [splits, K, D] fp32, or the prototypes' dtype where nothing remains to be added up
    N,
    P,
    K,
    D,
    n_per_split,
    HAS_ROWS: tl.constexpr,
    HAS_STUDENT_LENGTHS: tl.constexpr,
    HAS_TEACHER_LENGTHS: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    SLOPE: tl.constexpr,
    SLOPE_PRECISION: tl.constexpr,
):
    """Gradient of BLOCK_K student prototypes, BLOCK_OUT columns of it, from a part of the pairs.

    Tiles are [BLOCK_K, BLOCK_N]. Let g be the gradient to a prototype n of length 1. To the one as it is it
    is (g - n ⟨n, g⟩) / length, where ⟨n, g⟩ = Σ slope ⟨n, feature⟩ is added up on the way. All this is linear
    in the pairs, so parts of them need not know of each other, and neither need columns of D.
    """
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = k < K
    split = tl.program_id(1)
    first_out = tl.program_id(2) * BLOCK_OUT
    end = tl.minimum((split + 1) * n_per_split, N)
    column = tl.load(column_ptr + k, mask=inside, other=-float("inf"))
    scale = _scale(student_lengths_ptr, k, inside, EPSILON, HAS_STUDENT_LENGTHS)
    their_scale = _scale(teacher_lengths_ptr, k, inside, EPSILON, HAS_TEACHER_LENGTHS)
    w = _tile(student_prototypes_ptr, k, inside, 0, D, BLOCK_D)
    v = _tile(teacher_prototypes_ptr, k, inside, 0, D, BLOCK_D)

    total = tl.zeros([BLOCK_K, BLOCK_OUT], tl.float32)
    along = tl.zeros([BLOCK_K], tl.float32)
    for first in range(split * n_per_split, end, BLOCK_N):
        pairs = first + tl.arange(0, BLOCK_N)
        there = pairs < end
        students, teachers, paired = _pairs(rows_ptr, pairs, there, P, HAS_ROWS)
        s = _tile(student_ptr, students, paired, 0, D, BLOCK_D)
        similarity = _inner(
            w, student_prototypes_ptr, k, inside, s, student_ptr, students, paired,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        inverse = tl.load(inverse_ptr + pairs, mask=there, other=1.0)
        shift = tl.load(shift_ptr + pairs, mask=there, other=float("inf"))
        slope = tl.exp(similarity * (inverse[None, :] * scale[:, None]) - shift[None, :])

        t = _tile(teacher_ptr, teachers, paired, 0, D, BLOCK_D)
        inner = _inner(
            v, teacher_prototypes_ptr, k, inside, t, teacher_ptr, teachers, paired,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        their_inverse = tl.load(their_inverse_ptr + pairs, mask=there, other=1.0)
        row = tl.load(row_ptr + pairs, mask=paired, other=-float("inf"))
        y = inner * (their_inverse[None, :] * their_scale[:, None])
        slope -= tl.exp(y + row[None, :] + column[:, None])
        slope *= tl.load(weight_ptr + pairs, mask=there, other=0.0)[None, :]
        # Rounded before either sum, so that what one adds the other takes out.
        slope = _rounded(slope, SLOPE, SLOPE_PRECISION)
        along += tl.sum(slope.to(tl.float32) * similarity, 1)
        if not WHOLE:
            s = _tile(student_ptr, students, paired, first_out, D, BLOCK_OUT)
        total = _dot(slope, s.to(SLOPE), total, SLOPE_PRECISION, WIDEN)
    if HAS_STUDENT_LENGTHS:
        lengths = tl.load(student_lengths_ptr + k, mask=inside, other=1.0)
        along = tl.where(lengths >= EPSILON, along * scale * scale, 0.0)  # a shorter one is only scaled
        # As a product with a diagonal matrix: w lies in shared memory and finds no room in the registers.
        number = tl.arange(0, BLOCK_K)
        diagonal = tl.where(number[:, None] == number[None, :], -along[:, None], 0.0)
        if not WHOLE:
            w = _tile(student_prototypes_ptr, k, inside, first_out, D, BLOCK_OUT)
        coarse = _rounded(diagonal, SLOPE, SLOPE_PRECISION)
        total = _dot(coarse, w.to(SLOPE), total, SLOPE_PRECISION, WIDEN)
        if tl.float32 != SLOPE or SLOPE_PRECISION == "tf32":  # what that rounded off
            rest = (diagonal - coarse.to(tl.float32)).to(SLOPE)
            total = _dot(rest, w.to(SLOPE), total, SLOPE_PRECISION, WIDEN)
        total *= scale[:, None]
    d = first_out + tl.arange(0, BLOCK_OUT)
    corner = out_ptr + (split.to(tl.int64) * K + tl.program_id(0) * BLOCK_K) * D
    place = corner + tl.arange(0, BLOCK_K)[:, None] * D + d[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])


@triton.jit
def teacher_temperature_kernel(
    student_ptr,  # [M, D] float
    student_prototypes_ptr,  # [K, D] float
    student_lengths_ptr,  # [K] fp32, or nothing
    teacher_ptr,  # [T, D] float
    teacher_prototypes_ptr,  # [K, D] float
    teacher_lengths_ptr,  # [K] fp32, or nothing
    row_ptr,  # [N] fp32, the teacher rows' potentials
    column_ptr,  # [K] fp32
    inverse_ptr,  # [N] fp32, 1 / student_temperature
    their_inverse_ptr,  # [N] fp32, 1 / teacher_temperature
    rows_ptr,  # [N] int64, the teacher rows of the pairs or -1, or nothing
    normaliser_ptr,  # [N] fp32
    parts_ptr,  # [4, splits, N] fp32: mass, mean of t, mean of log p, sum of q (t - mean) (log p - mean)
    N,
    P,
    K,
    D,
    k_per_split,
    HAS_ROWS: tl.constexpr,
    HAS_STUDENT_LENGTHS: tl.constexpr,
    HAS_TEACHER_LENGTHS: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Covariance under q of the teacher's logits t and log p, for BLOCK_N pairs and a part of the prototypes.

    Means and covariance are carried from block to block (Chan, Golub, LeVeque 1983), so that nothing cancels.
    """
    pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = pairs < N
    split = tl.program_id(1)
    end = tl.minimum((split + 1) * k_per_split, K)
    students, teachers, paired = _pairs(rows_ptr, pairs, there, P, HAS_ROWS)
    inverse = tl.load(inverse_ptr + pairs, mask=there, other=1.0)
    their_inverse = tl.load(their_inverse_ptr + pairs, mask=there, other=1.0)
    row = tl.load(row_ptr + pairs, mask=paired, other=-float("inf"))
    s = _tile(student_ptr, students, paired, 0, D, BLOCK_D)
    t = _tile(teacher_ptr, teachers, paired, 0, D, BLOCK_D)
    normaliser = tl.load(normaliser_ptr + pairs, mask=there, other=0.0)

    mass = tl.zeros([BLOCK_N], tl.float32)
    mean = tl.zeros([BLOCK_N], tl.float32)
    mean_log = tl.zeros([BLOCK_N], tl.float32)
    covariance = tl.zeros([BLOCK_N], tl.float32)
    for first in range(split * k_per_split, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = k < end
        w = _tile(student_prototypes_ptr, k, inside, 0, D, BLOCK_D)
        inner = _inner(
            s, student_ptr, students, paired, w, student_prototypes_ptr, k, inside,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        scale = _scale(student_lengths_ptr, k, inside, EPSILON, HAS_STUDENT_LENGTHS)
        z = inner * (inverse[:, None] * scale[None, :])
        log_p = z - normaliser[:, None]
        v = _tile(teacher_prototypes_ptr, k, inside, 0, D, BLOCK_D)
        inner = _inner(
            t, teacher_ptr, teachers, paired, v, teacher_prototypes_ptr, k, inside,
            D, BLOCK_D, WHOLE, PRECISION, WIDEN,
        )  # fmt: skip
        their_scale = _scale(teacher_lengths_ptr, k, inside, EPSILON, HAS_TEACHER_LENGTHS)
        column = tl.load(column_ptr + k, mask=inside, other=-float("inf"))
        y = inner * (their_inverse[:, None] * their_scale[None, :])
        q = tl.exp(y + row[:, None] + column[None, :])
        logits = inner * their_scale[None, :]

        here = tl.sum(q, 1)
        share = 1.0 / tl.where(here > 0, here, 1.0)
        center = tl.sum(q * logits, 1) * share
        center_log = tl.sum(q * log_p, 1) * share
        together = tl.sum(q * (logits - center[:, None]) * (log_p - center_log[:, None]), 1)
        both = mass + here
        weight = here / tl.where(both > 0, both, 1.0)
        step, step_log = center - mean, center_log - mean_log
        covariance += together + step * step_log * mass * weight
        mean += step * weight
        mean_log += step_log * weight
        mass = both
    out = parts_ptr + split.to(tl.int64) * N + pairs
    far = tl.num_programs(1).to(tl.int64) * N
    tl.store(out, mass, mask=there)
    tl.store(out + far, mean, mask=there)
    tl.store(out + 2 * far, mean_log, mask=there)
    tl.store(out + 3 * far, covariance, mask=there)


class _Blocks(NamedTuple):
    """How a kernel cuts its sides: rows that stay, rows streamed past them, columns of D read and written."""

    still: int
    stream: int
    depth: int
    out: int
    warps: int
    stages: int


# Chosen so that nothing spills anywhere. With D whole: up to 193 KB of shared memory a program.
_WHOLE = {
    "logsumexp": _Blocks(128, 128, 256, 0, 8, 2),
    "forward": _Blocks(128, 32, 256, 0, 8, 2),
    "features": _Blocks(128, 32, 256, 256, 8, 2),
    "prototypes": _Blocks(128, 32, 256, 256, 8, 2),
}
_HALF = {
    "logsumexp": _Blocks(128, 64, 64, 0, 8, 3),
    "forward": _Blocks(128, 64, 64, 0, 8, 3),
    "features": _Blocks(64, 64, 64, 256, 8, 3),
    "prototypes": _Blocks(64, 64, 64, 256, 8, 3),
}
_HALF_ON_AMD = {**_HALF, "prototypes": _Blocks(64, 32, 64, 256, 8, 2)}
# A B200's products come out of tensor memory into registers all at once: a block makes fewer.
_WHOLE_ON_BLACKWELL = {**_WHOLE, "logsumexp": _Blocks(128, 64, 256, 0, 4, 2)}
_HALF_ON_BLACKWELL = {**_HALF, "features": _Blocks(128, 32, 64, 256, 8, 2)}
_SINGLE = {
    "logsumexp": _Blocks(128, 64, 16, 0, 8, 3),
    "forward": _Blocks(64, 64, 16, 0, 8, 3),
    "features": _Blocks(64, 32, 16, 128, 8, 2),
    "prototypes": _Blocks(64, 32, 16, 128, 8, 2),
}


def _capability(x: Tensor) -> int:
    """Return an NVIDIA GPU's compute capability, ten times it, 90 for the interpreter and 0 for AMD."""
    if not (x.is_cuda or x.is_meta):
        return 90
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else 0


def _plan(kernel: str, still: int, stream: int, *matrices: Tensor) -> tuple[_Blocks, dict[str, Any]]:
    """Choose the blocks of a kernel for so many rows that stay and that are streamed, and its constants."""
    width = matrices[0].shape[1]
    half = all(matrix.element_size() == 2 for matrix in matrices)
    capability = _capability(matrices[0]) if half else 0
    blackwell = capability in (100, 103)
    roomy = blackwell or capability == 90  # a program may have 227 KB of shared memory
    whole = roomy and width <= 256
    if kernel in ("features", "prototypes") and matrices[0].dtype == torch.float16:
        whole = False  # its second product is in TF32, for which registers would not suffice
    if any(matrix.dtype == torch.float64 for matrix in matrices):
        raise TypeError("prototype_loss: float64 is computed on the CPU only.")
    hip = torch.version.hip is not None
    if whole:
        table = _WHOLE_ON_BLACKWELL if blackwell else _WHOLE
    elif half:
        table = _HALF_ON_AMD if hip else _HALF_ON_BLACKWELL if blackwell else _HALF
    else:
        table = _SINGLE
    sides = table[kernel]
    blocks = _Blocks(
        block(still, sides.still),
        block(stream, sides.stream),
        block(width, sides.depth),
        block(width, sides.out) if sides.out else 0,
        sides.warps,
        min(sides.stages, 2) if hip else sides.stages,
    )
    options: dict[str, Any] = {
        "BLOCK_D": blocks.depth,
        "WHOLE": whole,
        "PRECISION": "ieee" if hip else "tf32x3",  # of fp32
        "WIDEN": matrices[0].is_cpu,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }
    if blocks.out:
        # Slopes may be as small as weight / K, where fp16 has few digits left and TF32 as many as ever.
        dtype = matrices[0].dtype
        options |= {
            "BLOCK_OUT": blocks.out,
            "SLOPE": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
            "SLOPE_PRECISION": "tf32" if dtype == torch.float16 and not hip else options["PRECISION"],
        }
    return blocks, options


@lru_cache(maxsize=1024)
def _parts(blocks: int, stream: int, streamed: int, most: int) -> tuple[int, int]:
    """Cut what is streamed so that the last wave of programs is fullest: in how many parts, and how long."""

    def fullness(parts: int) -> float:
        programs = blocks * parts
        return programs / (_PROCESSORS * cdiv(programs, _PROCESSORS))

    most = max(1, min(most, cdiv(streamed, 8 * stream)))
    parts = max(range(1, most + 1), key=lambda parts: (round(fullness(parts), 2), -parts))
    length = cdiv(cdiv(streamed, parts), stream) * stream
    return cdiv(streamed, length), length


def row_logsumexp(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, column: Tensor, temperature: Tensor
) -> Tensor:
    """See `vpt_kernels.prototype_loss.prototype_row_logsumexp`."""
    scale = _inverse_lengths(prototypes, lengths, column)
    return _logsumexp(features, temperature.reciprocal(), prototypes, scale, column)


def column_logsumexp(
    features: Tensor, prototypes: Tensor, lengths: Tensor | None, row: Tensor, temperature: Tensor
) -> Tensor:
    """See `vpt_kernels.prototype_loss.prototype_column_logsumexp`."""
    scale = _inverse_lengths(prototypes, lengths, row)
    return _logsumexp(prototypes, scale, features, temperature.reciprocal(), row)


def _inverse_lengths(prototypes: Tensor, lengths: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(len(prototypes)) if lengths is None else 1 / lengths.clamp(min=EPSILON)


def _logsumexp(x: Tensor, x_scale: Tensor, y: Tensor, y_scale: Tensor, bias: Tensor) -> Tensor:
    count, others = len(x), len(y)
    if count == 0 or others == 0:
        return bias.new_full((count,), -torch.inf)
    # Contiguous, all of them: they are small, and rows read whole are what the kernels are made for.
    x, y = _whole_rows(x), _whole_rows(y)
    x_scale, y_scale, bias = (tensor.contiguous() for tensor in (x_scale, y_scale, bias))
    with on_device_of(x):
        blocks, options = _plan("logsumexp", count, others, x, y)
        programs = cdiv(count, blocks.still)
        parts, length = _parts(programs, blocks.stream, others, 64)
        made = bias.new_empty(parts, count)
        logsumexp_kernel[(programs, parts)](
            x, x_scale, y, y_scale, bias, made, count, others, x.shape[1], length,
            BLOCK_R=blocks.still, BLOCK_C=blocks.stream, **options,
        )  # fmt: skip
        return combined(made)


def _whole_rows(x: Tensor) -> Tensor:
    """Give features or prototypes as the kernels read them: contiguous, in rows of a multiple of 16 numbers.

    Of other rows a thread would read a number or two at a time, with an address for each: that spilled.
    """
    return F.pad(x, (0, -x.shape[1] % 16)) if x.shape[1] % 16 else x.contiguous()


class _Launch(NamedTuple):
    """Arguments that the kernels over pairs share."""

    tensors: tuple[Tensor | None, ...]
    inverse: Tensor
    sizes: tuple[int, ...]
    options: dict[str, Any]


def _launch(
    student: Tensor,
    student_prototypes: Tensor,
    student_lengths: Tensor | None,
    teacher: Tensor,
    teacher_prototypes: Tensor,
    teacher_lengths: Tensor | None,
    row: Tensor,
    column: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
    rows: Tensor | None,
) -> _Launch:
    inverse, their_inverse = student_temperature.reciprocal(), teacher_temperature.reciprocal()
    row, column = row.to(inverse.dtype), column.to(inverse.dtype)
    partners = 1
    if rows is not None:
        partners = rows.shape[1]
        inverse = inverse[:, None].expand(rows.shape).flatten()
        rows = rows.flatten()
        present, teachers = rows >= 0, rows.clamp(min=0)
        their_inverse, row = their_inverse[teachers], row[teachers].masked_fill(~present, -torch.inf)
    # Contiguous, for the reason above. Numbers of a row are given to its pairs here: gathering them costs
    # little, and the kernels' inner loops are spared it.
    student = _whole_rows(student)
    tensors = (
        student,
        _whole_rows(student_prototypes),
        None if student_lengths is None else student_lengths.contiguous(),
        _whole_rows(teacher),
        _whole_rows(teacher_prototypes),
        None if teacher_lengths is None else teacher_lengths.contiguous(),
        row.contiguous(),
        column.contiguous(),
        inverse.contiguous(),
        their_inverse.contiguous(),
        rows,
    )
    sizes = (len(student) * partners, partners, len(student_prototypes), student.shape[1])
    options = {
        "HAS_ROWS": rows is not None,
        "HAS_STUDENT_LENGTHS": student_lengths is not None,
        "HAS_TEACHER_LENGTHS": teacher_lengths is not None,
        "EPSILON": EPSILON,
    }
    return _Launch(tensors, inverse, sizes, options)


def _slope(gradient: Tensor, launch: _Launch, normaliser: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Give for each pair [N] what the slopes of its losses are made of, beside p and q."""
    return gradient.flatten() * launch.inverse, (normaliser - mass.log()).flatten()


def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `vpt_kernels.prototype_loss.prototype_distillation`."""
    student, student_prototypes, _, teacher, teacher_prototypes, *_, temperature, _, rows = inputs
    shape = (len(student), 1 if rows is None else rows.shape[1])
    pairs, prototypes = shape[0] * shape[1], len(student_prototypes)
    losses, normaliser, mass, entropy = (temperature.new_empty(shape) for _ in range(4))
    if prototypes == 0 or len(teacher) == 0:
        return losses.zero_(), normaliser.zero_(), mass.zero_(), entropy.zero_()
    if pairs > 0:
        launch = _launch(*inputs)
        with on_device_of(student):
            blocks, options = _plan(
                "forward", pairs, prototypes, student, student_prototypes, teacher, teacher_prototypes
            )
            programs = cdiv(pairs, blocks.still)
            parts, length = _parts(programs, blocks.stream, prototypes, 64)
            made = temperature.new_empty(5, parts, pairs)
            forward_kernel[(programs, parts)](
                *launch.tensors, made, *launch.sizes, length, **launch.options,
                BLOCK_N=blocks.still, BLOCK_K=blocks.stream, **options,
            )  # fmt: skip
            combine_kernel[(cdiv(pairs, 64),)](
                made, losses, normaliser, mass, entropy, pairs, parts, parts * pairs,
                SPLITS=triton.next_power_of_2(parts), BLOCK=64, num_warps=4,
            )  # fmt: skip
    return losses, normaliser, mass, entropy


def features_gradient(gradient: Tensor, *inputs_and_saved: Any) -> Tensor:
    """See `vpt_kernels.prototype_loss.prototype_distillation_gradients`: the student features', [M, D]."""
    *inputs, normaliser, mass = inputs_and_saved
    student, student_prototypes, _, teacher, teacher_prototypes, *_ = inputs
    pairs, prototypes, width = gradient.numel(), len(student_prototypes), student.shape[1]
    if pairs == 0 or len(teacher) == 0 or prototypes == 0 or width == 0:
        return torch.zeros(student.shape, dtype=student.dtype, device=student.device)
    launch = _launch(*inputs)
    weight, shift = _slope(gradient, launch, normaliser, mass)
    wide = launch.sizes[-1]
    with on_device_of(student):
        blocks, options = _plan(
            "features", pairs, prototypes, student, student_prototypes, teacher, teacher_prototypes
        )
        programs, columns = cdiv(pairs, blocks.still), cdiv(wide, blocks.out)
        most = _PARTS // (pairs * wide)
        parts, length = _parts(programs * columns, blocks.stream, prototypes, most)
        alone = parts == 1 and gradient.shape[1] == 1
        dtype = student.dtype if alone else normaliser.dtype
        made = torch.empty(parts, *gradient.shape, wide, dtype=dtype, device=student.device)
        features_kernel[(programs, parts, columns)](
            weight, *launch.tensors, shift, made, *launch.sizes, length,
            **launch.options, BLOCK_N=blocks.still, BLOCK_K=blocks.stream, **options,
        )  # fmt: skip
    out = made.view(len(student), wide) if alone else made.sum((0, 2)).to(student.dtype)
    return out[:, :width].contiguous()


def prototypes_gradient(gradient: Tensor, *inputs_and_saved: Any) -> Tensor:
    """See `vpt_kernels.prototype_loss.prototype_distillation_gradients`: the student prototypes', [K, D]."""
    *inputs, normaliser, mass = inputs_and_saved
    student, student_prototypes, _, teacher, teacher_prototypes, *_ = inputs
    pairs, (prototypes, width) = gradient.numel(), student_prototypes.shape
    dtype = student_prototypes.dtype
    if pairs == 0 or len(teacher) == 0 or prototypes == 0 or width == 0:
        return torch.zeros(student_prototypes.shape, dtype=dtype, device=student.device)
    launch = _launch(*inputs)
    weight, shift = _slope(gradient, launch, normaliser, mass)
    wide = launch.sizes[-1]
    with on_device_of(student):
        blocks, options = _plan(
            "prototypes", prototypes, pairs, student, student_prototypes, teacher, teacher_prototypes
        )
        programs, columns = cdiv(prototypes, blocks.still), cdiv(wide, blocks.out)
        most = _PARTS // (prototypes * wide)
        parts, length = _parts(programs * columns, blocks.stream, pairs, most)
        made = torch.empty(
            parts, prototypes, wide, dtype=dtype if parts == 1 else normaliser.dtype, device=student.device
        )
        prototypes_kernel[(programs, parts, columns)](
            weight, *launch.tensors, shift, made, *launch.sizes, length,
            **launch.options, BLOCK_N=blocks.stream, BLOCK_K=blocks.still, **options,
        )  # fmt: skip
    return (made[0] if parts == 1 else made.sum(0).to(dtype))[:, :width].contiguous()


def teacher_temperature_gradient(gradient: Tensor, *inputs_and_normaliser: Any) -> Tensor:
    """See `vpt_kernels.prototype_loss.prototype_distillation_teacher_temperature`."""
    *inputs, normaliser = inputs_and_normaliser
    student, student_prototypes, _, teacher, teacher_prototypes, *_, temperature, rows = inputs
    pairs, prototypes = gradient.numel(), len(student_prototypes)
    out = torch.zeros(len(teacher), dtype=temperature.dtype, device=student.device)
    if pairs == 0 or len(teacher) == 0 or prototypes == 0:
        return out
    launch = _launch(*inputs)
    with on_device_of(student):
        blocks, options = _plan(
            "forward", pairs, prototypes, student, student_prototypes, teacher, teacher_prototypes
        )
        programs = cdiv(pairs, blocks.still)
        parts, length = _parts(programs, blocks.stream, prototypes, 64)
        made = temperature.new_empty(4, parts, *gradient.shape)
        teacher_temperature_kernel[(programs, parts)](
            *launch.tensors, normaliser, made, *launch.sizes, length, **launch.options,
            BLOCK_N=blocks.still, BLOCK_K=blocks.stream, **options,
        )  # fmt: skip
    masses, means, log_means, covariances = made
    share = masses / masses.sum(0).clamp(min=torch.finfo(masses.dtype).tiny)
    apart, log_apart = means - (share * means).sum(0), log_means - (share * log_means).sum(0)
    of_pairs = gradient * (covariances + masses * apart * log_apart).sum(0)
    if rows is None:
        return of_pairs[:, 0] / temperature**2
    # Sorts the indices first, so unlike atomic additions it gives the same sum every time. Pairs of -1 add 0.
    out.index_put_((rows.clamp(min=0).flatten(),), of_pairs.flatten(), accumulate=True)
    return out / temperature**2
