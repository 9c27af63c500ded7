import pytest
import torch

from vpt_vision.errors import UserError
from vpt_vision.training.checkpoint import CheckpointConfig, Checkpoints, checkpoint_paths, read_checkpoint


def test_what_is_written_is_read_back(tmp_path):
    state = {"step": 3, "weights": {"a": torch.randn(5)}, "nothing": None}
    path = Checkpoints(tmp_path / "new", CheckpointConfig()).save(3, state)
    back = read_checkpoint(path)
    assert back["step"] == 3
    assert back["nothing"] is None
    assert torch.equal(back["weights"]["a"], state["weights"]["a"])


def test_only_the_newest_are_kept_and_nothing_half_written_counts(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=2))
    (tmp_path / "step_00000099.part").write_bytes(b"cut short")
    for step in (5, 50, 7):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step_00000007.pt", "step_00000050.pt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "step_00000001.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"step_00000001.pt is not a readable checkpoint"):
        read_checkpoint(path)


def test_another_programs_file_is_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="no 'step' entry"):
        read_checkpoint(path)
