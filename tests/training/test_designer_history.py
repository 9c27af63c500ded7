import pytest
import torch

from vpt_vision import train
from vpt_vision.training.designer_history import kept_after, kept_designers
from vpt_vision.training.run_folder import newest_state


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(100, 4, {25, 50, 75, 100}), (7, 3, {2, 5, 7}), (2, 6, {1, 2}), (5, 1, {5}), (9, 0, set())],
)
def test_states_are_kept_evenly_and_at_the_end(steps, count, expected):
    assert kept_after(steps, count) == expected


def test_a_run_keeps_its_designer_as_it_was(tiny_settings):
    output = train(
        tiny_settings, ["checkpoint.designers=3", "checkpoint.every=2", "checkpoint.keep=3"]
    ).output
    kept = kept_designers(output)
    assert list(kept) == [2, 4, 6]
    newest = newest_state(output)["designer"]
    assert all(torch.equal(tensor, newest[name]) for name, tensor in kept[6].items())
    assert any(not torch.equal(tensor, newest[name]) for name, tensor in kept[2].items())


def test_a_fixed_designer_leaves_no_history(tiny_settings):
    assert kept_designers(train(tiny_settings, ["designer={kind: fixed}"]).output) == {}
