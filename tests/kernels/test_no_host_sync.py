"""Nothing waits for the device: every function runs on tensors whose values no one can look at."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vpt_kernels import (
    Photometrics,
    block_masks,
    centre_potentials,
    keyed_uniform,
    masked_distillation_loss,
    render_views,
    sample_masks,
    sinkhorn_potentials,
)
from vpt_kernels.packing import pack_masks
from vpt_kernels.plackett_luce import plackett_luce_log_prob


@pytest.fixture
def device():
    """Give a CUDA device of fake tensors: they have shapes and devices, and refuse to tell a value."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with pytest.raises(DataDependentOutputException):
            bool(torch.ones(1, device="cuda").any())
        yield torch.device("cuda:0")


def test_render_views(device):
    views = render_views(
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device=device),
        torch.zeros(2, 4, 4, device=device),
        torch.zeros(2, 4, dtype=torch.bool, device=device),
        Photometrics.neutral((2, 4), device),
        size=16,
        mean=torch.zeros(3, device=device),
        std=torch.ones(3, device=device),
    )
    assert views.shape == (2, 4, 3, 16, 16) and views.device == device


def test_masks_and_keys_from_the_cpu(device):
    sample = torch.arange(4)
    counts = torch.zeros(4, dtype=torch.int64, device=device)
    assert keyed_uniform(1, 2, sample.to(device), 3, 4).device == device
    keys = {"total": 11, "seed": 1, "step": 2, "sample": sample}
    logits = torch.zeros(4, 9, device=device)
    for masks in (block_masks(counts, (7, 6), **keys), sample_masks(logits, counts, **keys)):
        assert all(part.device == device for part in masks)
        assert masks.indices.shape == masks.weights.shape == (11,)
    assert plackett_luce_log_prob(logits, logits, counts).device == device
    packed = pack_masks(torch.zeros(4, 9, dtype=torch.bool, device=device), 11)
    assert packed.indices.shape == (11,) and packed.inverse.shape == (4, 9)


def test_potentials_and_loss(device):
    logits, weights = torch.zeros(5, 6, device=device), torch.ones(5, device=device)
    temperature = torch.full((), 0.1, device=device)
    for potentials in (
        sinkhorn_potentials(logits, temperature, weights=weights),
        centre_potentials(logits, temperature, torch.zeros(6, device=device)),
    ):
        loss = masked_distillation_loss(
            logits, logits, potentials, student_temperature=0.1, teacher_temperature=temperature
        )
        assert loss.shape == (5,) and loss.device == device
