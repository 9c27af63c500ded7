"""Designers of a run, over its training and as it stands."""

import pytest
import torch
from images import packed

from vpt_vision import load_config, train
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures import Pictured
from vpt_vision.evaluation.run_designers import designers_over_training, patch_size_of_run, tasks_of
from vpt_vision.task import Keys
from vpt_vision.training.designer_history import kept_designers
from vpt_vision.training.run_folder import newest_state
from vpt_vision.training.trainer import Trainer


@pytest.fixture
def pictured():
    return Pictured(packed([(32, 32), (40, 32)]), ("a", "b"), torch.tensor([4, 9]))


def test_an_even_choice_of_the_moments_the_last_always(tiny_settings):
    config = load_config(tiny_settings, ["checkpoint.designers=5", "steps=5"])
    output = train(config).output
    kept = kept_designers(output)
    for most, steps in ((1, [5]), (2, [1, 5]), (3, [1, 3, 5]), (9, [1, 2, 3, 4, 5])):
        designers = designers_over_training(output, config, most)
        assert list(designers) == steps
    for step, designer in designers.items():
        state = designer.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in kept[step].items())
    assert patch_size_of_run(config) == 8


@pytest.mark.parametrize("kind", ["attention_masks", "hard_views", "fixed"])
def test_tasks_are_those_that_the_run_would_set_next(tiny_settings, pictured, kind):
    """The learner of the checkpoint answers; the recipe stands beside, from the same random numbers."""
    config = load_config(tiny_settings, [f"designer={{kind: {kind}}}", "feedback=null", "steps=2"])
    state = newest_state(train(config).output)
    tasks = tasks_of(state, pictured)
    trainer = Trainer(config)
    trainer.load_state_dict(state)
    trainer.learner.eval()
    keys = Keys(0, 2, pictured.numbers)
    with torch.no_grad():
        task = trainer.designer(pictured.images, keys)
        views = trainer.renderer(pictured.images, task)
        expected = trainer.designer.refine(task, views, keys, trainer.learner, 0.07)
    title = f"{kind.replace('_', ' ')} designer, after 2 steps"
    assert list(tasks) == ([title] if kind == "fixed" else ["fixed recipe", title])
    found = tasks[title]
    assert torch.equal(found.task.masks.hidden, expected.task.masks.hidden)
    assert torch.equal(found.views.global_views, expected.views.global_views)
    if kind == "attention_masks":
        recipe = tasks["fixed recipe"].task
        assert torch.equal(recipe.global_views.boxes, found.task.global_views.boxes)
        assert not torch.equal(recipe.masks.hidden, found.task.masks.hidden)


def test_what_is_no_checkpoint_is_told(pictured):
    with pytest.raises(UserError, match="has no 'config' entry"):
        tasks_of({"step": 1}, pictured)


def test_weights_at_the_start_are_not_looked_for(tiny_settings, pictured):
    """A checkpoint holds the learner's weights, so the file that it started from may be gone."""
    config = load_config(tiny_settings, ["designer={kind: fixed}", "feedback=null", "steps=1"])
    state = newest_state(train(config).output)
    state["config"]["learner"]["backbone"]["weights"] = "gone.safetensors"
    assert len(tasks_of(state, pictured)) == 1
