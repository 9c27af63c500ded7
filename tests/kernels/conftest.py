"""What the kernels' tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Give each test the same random tensors whichever tests run before it."""
    torch.manual_seed(0)


@pytest.fixture
def device():
    """Give the device on which launchers are tested: a GPU where there is one, else the interpreter's CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned():
    """Fill what `torch.empty` returns with NaN or the largest integer, so that an unwritten output shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
