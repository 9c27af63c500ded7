import runpy
import subprocess
import sys
from pathlib import Path

import torch

from vpt_vision import collectives

SCRIPT = Path(__file__).with_name("two_ranks.py")


def test_one_process_needs_no_group() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert collectives.group() is None
    assert (collectives.world_size(), collectives.rank()) == (1, 0)
    assert collectives.all_gather_rows(rows) is rows
    assert torch.equal(collectives.all_reduce_sum(rows), rows)
    assert torch.equal(collectives.all_reduce_mean(rows), rows)
    assert not collectives.all_reduce_sum(rows).requires_grad


def test_two_ranks_equal_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    second = subprocess.Popen([sys.executable, str(SCRIPT), "1", str(tmp_path)])
    script = runpy.run_path(str(SCRIPT))
    alone = script["compute"]()
    script["compute_as_rank"](0, tmp_path)
    assert second.wait(timeout=180) == 0
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(found[name], value, atol=1e-7, rtol=1e-6), (rank, name)
