"""Every designer in whole runs: some steps, a stop, and on again."""

import signal

import pytest
import torch
from logged import lines

from vpt_vision.config import load_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures import crops_and_masks
from vpt_vision.task import Keys
from vpt_vision.training.run_folder import newest_state
from vpt_vision.training.trainer import Trainer, train

RIVALS = {
    "random": {"kind": "random_masks"},
    "attention": {"kind": "attention_masks"},
    "hints": {"kind": "attention_masks", "mode": "hints", "hints": 0.4},
    "hard": {"kind": "hard_views", "local_candidates": 4, "comparisons": 3},
    "soft": {"kind": "soft_mask", "width": 8, "blur_kernel": 5, "learning_rate": 0.01},
    "patchwise": {"kind": "soft_mask", "generator": "transformer", "width": 8, "depth": 1, "blur_kernel": 5},
    "adversary": {"kind": "adversarial_masks", "masks": 2, "width": 8},
    "adversary_s": {"kind": "adversarial_masks", "masks": 2, "width": 8, "forward": "one"},
}


@pytest.fixture
def settings(tiny_settings):
    return {
        **tiny_settings,
        "steps": 4,
        "log": {"every": 1, "tensorboard": False},
        "checkpoint": {"every": 2},
    }


@pytest.mark.parametrize("name", RIVALS)
def test_a_run_trains_and_a_run_resumed_is_the_same(settings, tmp_path, name, monkeypatch):
    settings["designer"] = RIVALS[name]
    whole = train(settings, [f"output={tmp_path / 'whole'}"])
    records = lines(whole.output)
    assert len(records) == 4
    assert all(record["skipped"] == 0 and 0 < record["loss"] < 100 for record in records)
    assert records[-1]["value"] is not None

    step = Trainer.train_step

    def interrupted(self, batch):
        figures = step(self, batch)
        if self.steps_done == 3:
            signal.raise_signal(signal.SIGTERM)
        return figures

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert train(settings).step == 3
    assert lines(train(settings).output) == records


@pytest.mark.parametrize("name", RIVALS)
def test_its_tasks_can_be_drawn(settings, tmp_path, name):
    trainer = Trainer(load_config({**settings, "designer": RIVALS[name]}))
    batch = next(iter(trainer.loader))
    keys = Keys(0, 0, batch.index[:2])
    images = batch.images[:2]
    with torch.no_grad():
        task = trainer.designer(images, keys)
        views = trainer.renderer(images, task)
        refined = trainer.designer.refine(task, views, keys, trainer.learner, 0.05)
    crops_and_masks(images, {name: refined}, tmp_path / "one.png", renderer=trainer.renderer)
    assert (tmp_path / "one.png").stat().st_size > 10_000


CONTROLS = {"permuted labels": "feedback.labels=permuted", "random direction": "value.direction=random"}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_controls_of_feedback_move_the_designer_elsewhere(settings, tmp_path, control):
    designers = []
    for name, overrides in {"true": [], "control": [control], "again": [control]}.items():
        result = train(settings, [f"output={tmp_path / name}", *overrides])
        designers.append(newest_state(result.output)["designer"])
    heads = [key for key in designers[0] if key.startswith("heads.")]
    true, other, again = ([state[key] for key in heads] for state in designers)
    assert all(torch.equal(a, b) for a, b in zip(other, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(true, other, strict=True))


@pytest.mark.parametrize("name", RIVALS)
def test_what_the_learner_trains_on_leads_back_to_no_designer(settings, name, monkeypatch):
    trainer = Trainer(load_config({**settings, "designer": RIVALS[name]}))
    seen = []
    forward = trainer.learner.forward
    monkeypatch.setattr(trainer.learner, "forward", lambda *args: seen.append(args) or forward(*args))
    trainer.train_step(next(iter(trainer.loader)))
    views, masks, *_ = seen[0]  # the adversary's own step asks the learner later
    assert masks.relaxed is None
    assert not any(part.requires_grad for part in views if part is not None)


@pytest.mark.parametrize("name", RIVALS)
def test_bf16_stays_finite(settings, name):
    result = train({**settings, "designer": RIVALS[name]}, ["precision=bf16", "steps=2"])
    assert all(record["skipped"] == 0 and record["loss"] < 100 for record in lines(result.output))


@pytest.mark.parametrize("name", RIVALS)
def test_feedback_is_needed_where_the_designer_learns_by_value_alone(settings, name):
    del settings["feedback"]
    settings["designer"] = RIVALS[name]
    if name in ("soft", "patchwise"):
        with pytest.raises(UserError, match="a soft_mask designer learns from labelled examples"):
            train(settings, ["steps=1"])
    else:
        assert train(settings, ["steps=1"]).step == 1


def test_the_learner_trains_on_the_hardest_pair(settings, monkeypatch):
    """Of the learner's loss on every pair of candidates, it takes the highest."""
    settings["designer"] = {"kind": "hard_views"}
    settings["recipe"]["masks"]["probability"] = 0.0
    settings["learner"] |= {"koleo_weight": 0.0, "ibot_weight": 0.0, "centring": "ema"}
    settings["learner"]["backbone"]["drop_path"] = 0.0
    trainer = Trainer(load_config(settings))
    batch = next(iter(trainer.loader))
    learner, designer = trainer.learner.eval(), trainer.designer
    keys = Keys(0, 0, batch.index)
    with torch.no_grad():
        task = designer(batch.images, keys)
        views = trainer.renderer(batch.images, task)
        kept = designer.refine(task, views, keys, learner, 0.05)
        chosen = learner(kept.views, kept.task.masks, 0.05).per_sample["dino"]
        every = [
            learner(
                views._replace(global_views=views.global_views[[first, second]]), task.masks, 0.05
            ).per_sample["dino"]
            for first in (0, 2)
            for second in (1, 3)
        ]
    torch.testing.assert_close(chosen, torch.stack(every).amax(0))


def test_the_student_does_not_see_what_the_teacher_attends_to(settings):
    """Of the patches of masked views, the hidden ones have the most attention of timm's own teacher."""
    settings["designer"] = {"kind": "attention_masks"}
    settings["recipe"]["masks"] |= {"probability": 1.0, "ratio": [0.4, 0.4]}
    trainer = Trainer(load_config(settings))
    batch = next(iter(trainer.loader))
    keys = Keys(0, 0, batch.index)
    task = trainer.designer(batch.images, keys)
    views = trainer.renderer(batch.images, task)
    with torch.no_grad():
        masks = trainer.designer.refine(task, views, keys, trainer.learner, 0.05).task.masks
        vit = trainer.learner.teacher.backbone.vit
        tokens = views.global_views.flatten(0, 1)
        inputs = []
        hook = vit.blocks[-1].attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        vit.forward_features(tokens)
        hook.remove()
        attn = vit.blocks[-1].attn
        count, length, width = inputs[0].shape
        q, k, _ = attn.qkv(inputs[0]).view(count, length, 3, attn.num_heads, -1).unbind(2)
        scores = torch.einsum("nhd,nthd->nht", q[:, 0], k) / (width // attn.num_heads) ** 0.5
        attention = scores.softmax(-1)[..., 1:].mean(1)
    for row, hidden in zip(attention, masks.hidden.flatten(0, 1), strict=True):
        assert hidden.sum() == int(0.4 * len(row))
        assert row[hidden].min() > row[~hidden].max()
