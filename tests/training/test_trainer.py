"""The loop as a whole: exact resume, interrupts, and the bottlenecks between labels and weights."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
import yaml
from logged import lines
from safetensors.torch import load_file

from vpt_vision import UserError, load_config, train
from vpt_vision.loading import load_backbone
from vpt_vision.training.run_folder import BACKBONE_FILE, newest_state
from vpt_vision.training.trainer import Trainer


def same(first, second):
    """Whether two nested states are equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture
def undisturbed(tiny_settings, tmp_path):
    return train(tiny_settings, [f"output={tmp_path / 'undisturbed'}"])


def test_a_record_holds_the_contract(undisturbed):
    records = [json.loads(line) for line in (undisturbed.output / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    for record in records:
        assert {"step", "loss", "value", "images_per_second"} <= record.keys()
        assert record["images_per_second"] > 0
        assert record["loss"] == pytest.approx(
            record["dino"] + record["ibot"] + 0.1 * record["koleo"], rel=1e-5
        )
    assert undisturbed.interrupted is None


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)


def start(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "vpt_vision.cli", "train", str(path)], env=environment)


@pytest.mark.parametrize("lines_written", [1, 7])  # before the first checkpoint, and after some
def test_killed_and_started_again_a_run_is_the_same_bit_for_bit(tiny_settings, tmp_path, lines_written):
    tiny_settings["steps"] = 40  # enough not to end before the kill
    undisturbed = train(tiny_settings, [f"output={tmp_path / 'undisturbed'}"])
    process = start(tiny_settings, tmp_path)
    output = tmp_path / "run"
    wait_for_lines(output / "metrics.jsonl", lines_written, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    result = train(tiny_settings)
    assert result.step == 40
    assert lines(output) == lines(undisturbed.output)
    states = [newest_state(folder) for folder in (output, undisturbed.output)]
    for state in states:
        del state["config"], state["training_seconds"]  # they differ in their output, and in the time it took
    assert same(*states)


def interrupted_run(settings, stop_at, monkeypatch):
    """A run that a signal ends after `stop_at` steps, and that then goes on to its end."""
    whole = Trainer.train_step

    def interrupted(self, batch):
        figures = whole(self, batch)
        if self.steps_done == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return figures

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    first = train(settings)
    assert (first.step, first.interrupted) == (stop_at, signal.SIGTERM)
    monkeypatch.undo()
    second = train(settings)
    assert (second.step, second.interrupted) == (6, None)
    return second


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_a_run_resumed_at_any_step_is_the_same(tiny_settings, undisturbed, stop_at, monkeypatch):
    resumed = interrupted_run(tiny_settings, stop_at, monkeypatch)
    assert lines(resumed.output) == lines(undisturbed.output)


def by_rollout(settings):
    estimators = dict.fromkeys(("crops", "photometrics", "masks"), "rollout")
    return {**settings, "value": {**settings["value"], "estimators": estimators, "rollout": {"steps": 2}}}


def test_a_run_by_rollouts_resumes_the_same(tiny_settings, tmp_path, monkeypatch):
    settings = by_rollout(tiny_settings)
    undisturbed = train(settings, [f"output={tmp_path / 'undisturbed'}"])
    resumed = interrupted_run(settings, 3, monkeypatch)
    assert lines(resumed.output) == lines(undisturbed.output)
    states = [newest_state(run.output) for run in (resumed, undisturbed)]
    assert same(*(state["designer"] for state in states))
    assert same(*(state["learner"] for state in states))
    assert any(weights.any() for name, weights in states[0]["designer"].items() if name.startswith("heads."))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(tiny_settings, tmp_path, number):
    process = start({**tiny_settings, "steps": 2000, "checkpoint": {"every": 2000}}, tmp_path)
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 2, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    state = newest_state(tmp_path / "run")
    assert state["step"] // 2 == len(lines(tmp_path / "run")) >= 2


def learner_states(settings, change=None, steps=4):
    """The learner after every step of a run whose feedback labels `change` replaces."""
    trainer = Trainer(load_config(settings))
    if change is not None:
        for entry in trainer.value_step.feedback_gradient.feedback.tasks.values():
            for split in entry.task.splits:
                split.labels.copy_(change(split.labels))
    states = []
    for batch in trainer.loader:
        trainer.train_step(batch)
        states.append({name: tensor.clone() for name, tensor in trainer.learner.state_dict().items()})
        if len(states) == steps:
            return states, trainer
    raise AssertionError


def permuted(labels):
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("kinds", [["classification"], ["classification", "segmentation", "depth"]])
def test_with_the_designers_learning_rate_at_0_labels_leave_no_trace_in_the_learner(tiny_settings, kinds):
    tasks = {kind: {"kind": kind, **tiny_settings["feedback"]} for kind in kinds}
    tiny_settings["feedback"] = {"tasks": tasks}
    tiny_settings["designer"]["learning_rate"] = 0
    as_they_are, trainer = learner_states(tiny_settings)
    other, _ = learner_states(tiny_settings, permuted)
    assert same(as_they_are, other)
    assert trainer.value_step.latest["u_norm"] > 0
    without = {key: value for key, value in tiny_settings.items() if key not in ("designer", "feedback")}
    assert same(as_they_are, learner_states(without)[0])


def test_rollouts_leave_no_trace_in_the_learner_either(tiny_settings):
    tiny_settings["designer"]["learning_rate"] = 0
    without = {key: value for key, value in tiny_settings.items() if key not in ("designer", "feedback")}
    assert same(learner_states(by_rollout(tiny_settings))[0], learner_states(without)[0])


def test_after_its_time_the_designer_rests_and_value_is_not_measured(tiny_settings, tmp_path):
    tiny_settings["value"] |= {"until": 5}
    tiny_settings["log"]["every"] = 1
    run = train(tiny_settings)
    records = lines(run.output)
    assert [record["value"] is not None for record in records] == [True] * 5 + [False]
    laws = [{name: r[name] for name in r if name.startswith(("kl/", "policy/"))} for r in records]
    assert laws[4] == laws[5]
    assert "u_reliability" in records[4] and "u_reliability" not in records[5]
    trainer = Trainer(load_config(tiny_settings))
    designers, seen = [], []
    for batch in itertools.islice(trainer.loader, 6):
        trainer.train_step(batch)
        designers.append({name: tensor.clone() for name, tensor in trainer.designer.state_dict().items()})
        seen.append(batch.images[: trainer.value_step.config.batch])
    moved = [not same(*pair) for pair in itertools.pairwise(designers)]
    assert moved == [False, True, False, True, False]  # by value steps after steps 2 and 4
    assert trainer.value_step.count == 3
    left_with = trainer.designer.policy(seen[4]).describe()["global/grey_p"].detach()
    assert laws[5]["policy/global/grey_p"] == pytest.approx(float(left_with), rel=1e-5)


def test_before_its_time_nothing_is_measured_and_the_designer_rests(tiny_settings):
    tiny_settings["value"] |= {"since": 3, "every": 2, "burn_in": 0}
    tiny_settings["log"]["every"] = 1
    records = lines(train(tiny_settings).output)
    assert [record["value"] is not None for record in records] == [False] * 3 + [True] * 3
    assert "policy/global/grey_p" not in records[2] and "policy/global/grey_p" in records[3]


def test_a_search_sees_the_images_that_come_next(tiny_settings, monkeypatch):
    """Each repeat those of its own, by later random numbers; training itself sees every one as ever."""
    tiny_settings["designer"]["surfaces"] = ["photometrics"]
    tiny_settings["value"] |= {"every": 4, "until": 1, "repeats": 3, "burn_in": 0}
    trainer = Trainer(load_config(tiny_settings))
    batch = trainer.value_step.config.batch
    searched = []
    monkeypatch.setattr(
        trainer.value_step,
        "_search_goal",
        lambda setting, keys, *_: searched.append((setting.images, keys)) or torch.zeros(()),
    )
    trained = []
    for taken in itertools.islice(trainer.loader, 3):
        trainer.train_step(taken)
        trained.append(taken)
    assert [keys.step for _, keys in searched] == [0, 1, 2]
    row = torch.cat([each.index for each in trained[1:]])
    images = [image for each in trained[1:] for image in each.images]
    for number, (those, keys) in enumerate(searched[1:]):
        assert torch.equal(keys.samples, row[number * batch : (number + 1) * batch])
        assert all(torch.equal(*pair) for pair in zip(those, images[number * batch :], strict=False))
    assert torch.equal(searched[0][1].samples, trained[0].index[:batch])


def test_otherwise_labels_reach_the_learner_through_the_task(tiny_settings):
    assert not same(learner_states(tiny_settings)[0], learner_states(tiny_settings, permuted)[0])


def test_u_and_the_designer_never_reach_the_learners_optimiser(tiny_settings):
    trainer = Trainer(load_config(tiny_settings))
    stepped = {id(p) for group in trainer.optimiser.adamw.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in trainer.learner.student.parameters()}
    gradients = []
    trainer.optimiser.adamw.register_step_post_hook(
        lambda *_: gradients.append([p.grad.clone() for p in trainer.optimiser.parameters])
    )
    trainer.train_step(next(iter(trainer.loader)))  # step 0 takes a value step after the learner's
    assert trainer.value_step.latest
    assert all(
        torch.equal(p.grad, g) for p, g in zip(trainer.optimiser.parameters, gradients[0], strict=True)
    )


def test_the_learner_trains_on_a_task_without_the_designers_graph(tiny_settings, monkeypatch):
    trainer = Trainer(load_config(tiny_settings))
    seen = []
    forward = trainer.learner.forward
    monkeypatch.setattr(trainer.learner, "forward", lambda *args: seen.append(args) or forward(*args))
    trainer.train_step(next(iter(trainer.loader)))
    views, masks, _, targets = seen[0]
    assert masks.relaxed is None
    assert not targets.requires_grad
    assert not any(view.requires_grad for view in views[:2])


def test_a_loss_that_is_not_finite_skips_the_step(tiny_settings, monkeypatch):
    trainer = Trainer(load_config({**tiny_settings, "designer": {"kind": "fixed"}}))
    batches = iter(trainer.loader)
    trainer.train_step(next(batches))
    before = {name: tensor.clone() for name, tensor in trainer.learner.student.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in trainer.optimiser.adamw.state.values()]
    forward = trainer.learner.forward

    def poisoned(*args):
        losses = forward(*args)
        return losses._replace(total=losses.total * float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(trainer.learner, "forward", poisoned)
        assert trainer.train_step(next(batches))["skipped"] == 1
    assert same(before, dict(trainer.learner.student.state_dict()))
    assert same(moments, [state["exp_avg"] for state in trainer.optimiser.adamw.state.values()])
    assert trainer.train_step(next(batches))["skipped"] == 0
    assert not same(before, dict(trainer.learner.student.state_dict()))


def test_the_run_exports_what_timm_takes_strictly(tiny_settings, undisturbed):
    settings = tiny_settings["learner"]["backbone"]
    model = timm.create_model(settings["name"], num_classes=0, **settings["options"])
    model.load_state_dict(load_file(undisturbed.output / BACKBONE_FILE))
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        features = load_backbone(undisturbed.output)(images)
        torch.testing.assert_close(model.eval().forward_features(images)[:, 0], features.cls)


def test_bf16_stays_finite(tiny_settings):
    result = train(tiny_settings, ["precision=bf16", "steps=3"])
    assert all(record["skipped"] == 0 and record["loss"] < 100 for record in lines(result.output))


def test_the_folder_of_another_run_is_refused(tiny_settings, undisturbed):
    with pytest.raises(UserError, match=r"differs at batch_size, seed"):
        train(tiny_settings, [f"output={undisturbed.output}", "seed=3", "batch_size=4"])


def test_a_folder_that_no_run_wrote_is_refused(tiny_settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="was not written by a run"):
        train(tiny_settings)


def test_a_learned_designer_without_feedback_is_refused(tiny_settings):
    del tiny_settings["feedback"]
    with pytest.raises(UserError, match="give the config a 'feedback' part"):
        train(tiny_settings)


def test_an_unknown_device_is_refused(tiny_settings):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=device):
            train(tiny_settings, [f"device={device}"])
