import json
import time

import pytest

from vpt_vision.data import FashionScenes
from vpt_vision.data.batch import Batch
from vpt_vision.training.data_wait import DataWait
from vpt_vision.training.skipped_images import SkippedImages
from vpt_vision.training.trainer import train


def batch(size, seconds):
    return Batch(None, size, [], seconds)


def figures_of(wait, *, decode, model, steps=10, size=64):
    """What `steps` steps give where one worker reads `decode` and the model takes `model` images a second."""
    for _ in range(steps):
        wait.add(batch(size, size / decode))
    rate = min(decode * max(wait.workers, 1), model)
    return wait.read(size / rate, size / rate - size / model)


def test_rates_and_share():
    wait = DataWait(64, 16)
    figures = figures_of(wait, decode=506.25, model=9300)
    assert figures["decode_images_per_second"] == pytest.approx(8100)
    assert figures["model_images_per_second"] == pytest.approx(9300)
    assert figures["data_wait"] == pytest.approx(1 - 8100 / 9300)
    other = figures_of(wait, decode=2000, model=9300, steps=3)  # nothing of the interval before is left
    assert other["decode_images_per_second"] == pytest.approx(32000) and other["data_wait"] == 0


def test_steps_that_wait_are_told_once_with_the_numbers():
    wait = DataWait(64, 16)
    said = [wait.judge(figures_of(wait, decode=506.25, model=9300)) for _ in range(4)]
    assert said[0] is said[2] is said[3] is None  # first the workers have to start
    assert said[1].startswith(
        "16 workers decode 8,100 img/s, the model takes 9,300: it waits 13% of the time; raise data.workers"
    )


def test_steps_that_hardly_wait_are_not():
    wait = DataWait(64, 2)
    assert not any(wait.judge(figures_of(wait, decode=480, model=1000)) for _ in range(3))


def test_a_loader_that_should_be_fast_enough_is_told_apart():
    wait = DataWait(64, 2)
    for _ in range(2):
        wait.add(batch(64, 64 / 1000))
        said = wait.judge(wait.read(0.2, 0.1))
    assert said.startswith(
        "2 workers decode 2,000 img/s, the model takes 640: it waits 50% of the time; decoding"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_a_slow_source_says_so(tiny_settings, monkeypatch, capfd, workers):
    read = FashionScenes.__getitem__

    def slowly(self, index):
        if self.config.split == "train":
            time.sleep(0.1)
        return read(self, index)

    monkeypatch.setattr(FashionScenes, "__getitem__", slowly)
    tiny_settings["data"]["workers"] = workers
    del tiny_settings["feedback"]
    result = train({**tiny_settings, "designer": {"kind": "fixed"}})
    records = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert 0 < record["data_wait"] < 1
        assert 0 < record["decode_images_per_second"] < 10 * max(workers, 1)  # by the tenth of a second
        assert record["model_images_per_second"] > 0
        assert record["host_memory_mb"] > 50
    told = [line for line in capfd.readouterr().err.splitlines() if "of the time" in line]
    assert len(told) == 1 and "step 4: " in told[0]
    assert ("1 workers decode" if workers else "the training process itself decodes") in told[0]


def test_the_first_skipped_images_are_named_and_the_others_counted():
    said = []
    skipped = SkippedImages(said.append)
    for first in range(0, 9, 3):
        skipped.add([f"{number}.jpg: broken" for number in range(first, first + 3)])
    skipped.end_interval()
    assert said[:5] == [f"skipped an image that cannot be read: {number}.jpg: broken" for number in range(5)]
    assert said[5:] == ["skipped 4 more images that cannot be read."]
    skipped.add(["a"])
    skipped.end_interval()
    assert said[6:] == ["skipped an image that cannot be read: a"]
