from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vpt_vision.designers.field import sample_field


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_agrees_with_grid_sample(rows: int, columns: int, views: int, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    field = torch.randn(batch, rows, columns)
    y = torch.rand(views, batch, 5)
    x = torch.rand(views, batch, 7)
    ours = sample_field(field, y, x)
    assert ours.shape == (views, batch, 5, 7)
    for view in range(views):
        grid = torch.stack(
            [x[view][:, None, :].expand(-1, 5, -1), y[view][:, :, None].expand(-1, -1, 7)], dim=-1
        )
        reference = functional.grid_sample(
            field[:, None], 2 * grid - 1, padding_mode="border", align_corners=False
        )
        torch.testing.assert_close(ours[view], reference[:, 0], rtol=1e-4, atol=1e-5)


def test_stays_in_fp32_under_autocast() -> None:
    field = torch.randn(2, 5, 5)
    y, x = torch.rand(1, 2, 3), torch.rand(1, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        sampled = sample_field(field, y, x)
    torch.testing.assert_close(sampled, sample_field(field, y, x), rtol=0, atol=0)
