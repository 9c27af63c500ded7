from __future__ import annotations

import torch

from vpt_kernels.random import BLOCK_MASKS_STREAM, SAMPLE_MASKS_STREAM
from vpt_vision.designers import RecipeConfig
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.task import Keys


def test_every_quantity_has_a_stream_of_its_own() -> None:
    ours = [2 * stream + kind for stream in Stream.__members__.values() for kind in (0, 1)]
    assert len(set(ours)) == 2 * len(Stream.__members__)
    assert not {BLOCK_MASKS_STREAM, SAMPLE_MASKS_STREAM} & set(ours)


def test_draws_are_independent_uniforms() -> None:
    keys = Keys(0, 0, torch.arange(4000))
    kinds = RecipeConfig().view_kinds()
    columns = [draw(keys, stream, kind)[:2, :, 0] for stream in Stream for kind in kinds]
    u = torch.cat(columns).double()  # [4 * streams, 4000]
    assert (u.mean(1) - 0.5).abs().max() < 5 / (12 * 4000) ** 0.5
    off_diagonal = torch.corrcoef(u) - torch.eye(len(u))
    assert off_diagonal.abs().max() < 5 / 4000**0.5


def test_a_view_keeps_its_numbers_when_there_are_more() -> None:
    keys = Keys(1, 2, torch.arange(5))
    few, many = (RecipeConfig.model_validate({"crops": {"local_views": n}}).view_kinds()[1] for n in (3, 8))
    assert draw(keys, Stream.AREA, few, attempts=10).equal(draw(keys, Stream.AREA, many, attempts=10)[:3])
