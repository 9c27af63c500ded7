"""What the kernels' tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Give each test the same random tensors whichever tests run before it."""
    torch.manual_seed(0)
