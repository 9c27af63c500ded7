"""What a config may say of feedback, and what is built from it."""

import pytest
import torch

from vpt_vision import UserError, load_config, train
from vpt_vision.feedback import (
    ClassificationFeedback,
    DepthFeedback,
    FeedbackConfig,
    SegmentationFeedback,
    build_feedback,
)
from vpt_vision.task import Renderer

SOURCE = {"kind": "fashion_scenes", "split": "feedback", "count": 100, "size": 32}
SIZES = {"source": SOURCE, "head_size": 40, "meta_size": 20, "heldout_size": 10, "batch": 10}
SEVERAL = {
    "tasks": {
        "garment": {**SIZES, "weight": 2.0},
        "parts": {"kind": "segmentation", **SIZES},
        "layers": {"kind": "depth", **SIZES, "loss": "l1", "depth_range": [0.5, 20]},
    },
    "ema": 0.5,
}


class Constant:
    """A task of one's own that wants nothing, and knows what it was made with."""

    def __init__(self, *, renderer, size, seed, value):
        self.made_with = (size, seed, value)


def build(config):
    return build_feedback(
        FeedbackConfig.model_validate(config),
        renderer=Renderer(),
        size=16,
        patch_size=8,
        seed=0,
    )


def test_one_task_may_stand_by_itself():
    short = FeedbackConfig.model_validate({**SIZES, "every": 3, "l2": 0.5})
    assert short == FeedbackConfig.model_validate(
        {"tasks": {"classification": {**SIZES, "l2": 0.5}}, "every": 3}
    )
    assert FeedbackConfig.model_validate(short.model_dump(mode="json")) == short
    assert list(FeedbackConfig.model_validate({**SIZES, "kind": "depth"}).tasks) == ["depth"]


def test_several_tasks():
    feedback = build(SEVERAL)
    kinds = [type(entry.task) for entry in feedback.tasks.values()]
    assert kinds == [ClassificationFeedback, SegmentationFeedback, DepthFeedback]
    assert [entry.weight for entry in feedback.tasks.values()] == [2, 1, 1]
    assert feedback.ema == 0.5 and feedback.normalise and feedback.tasks["parts"].batch == 10
    # Tasks of one source and of the same sizes have the same images in each split.
    first, *others = (entry.task.splits for entry in feedback.tasks.values())
    for other in others:
        assert all(torch.equal(a.images.pixels, b.images.pixels) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("feedback", "sentences"),
    [
        ({**SIZES, "head_sise": 3}, ["head_sise: unknown key; the nearest known key is 'head_size'"]),
        ({"head_size": 3}, ["feedback.tasks.classification.source: required"]),
        ({"tasks": {"a": {**SIZES, "kind": "depth", "los": 1}}}, ["feedback.tasks.a.los: unknown", "'loss'"]),
        ({"tasks": {"a": {**SIZES, "kind": "deep"}}}, ["feedback.tasks.a: kind is none of classification, "]),
        ({"tasks": {}}, ["feedback.tasks"]),
        ({"tasks": {"a/b": SIZES}}, ["feedback.tasks.a/b"]),
        ({"tasks": {"a": SIZES}, "batch": 3}, ["feedback.batch: unknown key"]),
        ({"tasks": {"a": {**SIZES, "weight": 0}}}, ["feedback.tasks.a.weight: input should be greater"]),
        ({"tasks": {"a": {"kind": "custom", "factory": "nothing"}}}, ["feedback.tasks.a.factory"]),
    ],
)
def test_what_is_wrong_is_named(tiny_settings, feedback, sentences):
    with pytest.raises(UserError) as told:
        load_config({**tiny_settings, "feedback": feedback})
    assert all(sentence in str(told.value) for sentence in sentences), str(told.value)


def test_the_task_that_cannot_be_built_is_named(tmp_path):
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    sizes = {"head_size": 4, "meta_size": 2, "heldout_size": 2, "batch": 2}
    folder = {"source": {"kind": "folder", "path": str(tmp_path)}, **sizes}
    with pytest.raises(
        UserError, match=r"feedback task 'far': image \d of its source has no depth map: name"
    ):
        build({"tasks": {"pet": folder, "far": {"kind": "depth", **folder}}})
    with pytest.raises(UserError, match="feedback task 'pet': the feedback needs head_size"):
        build({"tasks": {"pet": {**folder, "meta_size": 40}}})


def test_a_task_of_ones_own():
    own = {"kind": "custom", "factory": f"{__name__}:Constant", "options": {"value": 4}, "batch": 6}
    feedback = build({"tasks": {"mine": own}})
    assert feedback.tasks["mine"].task.made_with == (16, 0, 4)
    assert feedback.tasks["mine"].batch == 6
    for factory in ("nowhere:Constant", f"{__name__}:Nobody"):
        with pytest.raises(UserError, match=f"feedback task 'mine': factory {factory} cannot be imported"):
            build({"tasks": {"mine": {**own, "factory": factory}}})


def test_a_run_with_several_tasks_resumes_exactly(tiny_settings, tmp_path):
    import json

    from vpt_vision.training.trainer import Trainer

    sizes = {**SIZES, "source": tiny_settings["feedback"]["source"]}
    several = {"tasks": {name: {**task, **sizes} for name, task in SEVERAL["tasks"].items()}}
    settings = {**tiny_settings, "feedback": {**several, "every": 2}, "steps": 6}
    whole = train(settings, [f"output={tmp_path / 'whole'}"])
    halves = Trainer(load_config(settings, [f"output={tmp_path / 'halves'}"]))
    step, trained = halves.train_step, []

    def interrupted(batch):
        trained.append(batch)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return step(batch)

    halves.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        halves.fit()
    again = train(settings, [f"output={tmp_path / 'halves'}"])
    records = [
        json.loads((run.output / "metrics.jsonl").read_text().splitlines()[-1]) for run in (whole, again)
    ]
    for key in ("loss", "value", "meta_loss/garment", "u_reliability/layers", "heldout_loss/parts"):
        assert records[0][key] == records[1][key], key
