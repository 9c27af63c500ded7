import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
import torch
from images import first_pixels
from PIL import Image
from torch.distributed.checkpoint.stateful import Stateful

from vpt_vision.data import FolderConfig, build_source, workers
from vpt_vision.data.loader import Loader
from vpt_vision.data.source import Sample, UnreadableSample
from vpt_vision.errors import UserError


class Numbers:
    """Samples whose pixels tell their number; those in `broken` cannot be read."""

    classes = None

    def __init__(self, count, broken=()):
        self.count = count
        self.broken = frozenset(broken)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableSample(self.name(index), "broken")
        return Sample(torch.full((1 + index % 3, 2, 3), index % 256, dtype=torch.uint8), index)

    def name(self, index):
        return f"{index}.jpg"


class WorkerFacts(Numbers):
    """Tells of the process that reads it."""

    def __getitem__(self, index):
        facts = [torch.get_num_threads(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN, True]
        return Sample(torch.tensor(facts, dtype=torch.uint8).reshape(1, 1, 3), os.getpid())


class Deadly(Numbers):
    """Ends the process that reads one of its samples, as a crash in a decoder or a full memory would."""

    def __init__(self, count, deadly, number):
        super().__init__(count)
        self.deadly, self.number = deadly, number

    def __getitem__(self, index):
        if index == self.deadly:
            if self.number is None:
                os._exit(5)
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


def loader(source, batch_size=4, seed=0, **options):
    return Loader(source, batch_size=batch_size, seed=seed, **options)


def take(iterable, batches):
    iterator = iter(iterable)
    taken = list(itertools.islice(iterator, batches))
    iterator.close()
    return taken


def row(batches):
    return [int(index) for batch in batches for index in batch.index]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (11, 4), (7, 16), (1, 3)])
def test_every_epoch_is_the_data_set(count, batch_size, workers):
    epochs = 5 * batch_size
    batches = take(loader(Numbers(count), batch_size, workers=workers), epochs * count // batch_size)
    for batch in batches:
        assert len(batch.images) == batch.size == batch_size
        assert [len(image) for image in batch.images] == [1 + index % 3 for index in batch.index.tolist()]
        assert batch.index.dtype == torch.int64 and batch.unreadable == []
        assert torch.equal(first_pixels(batch.images)[:, 0].long(), batch.index)
    samples = np.array(row(batches)).reshape(epochs, count)
    assert (np.sort(samples) == np.arange(count)).all()
    if count > 10:
        assert len({tuple(epoch) for epoch in samples}) == epochs


def test_order_is_uniform():
    """Over many epochs every sample comes at every position equally often."""
    count, epochs = 5, 4000
    samples = np.array(row(take(loader(Numbers(count), 100), count * epochs // 100))).reshape(epochs, count)
    occurrences = np.stack([(samples == number).sum(0) for number in range(count)])
    expected = epochs / count
    assert (
        (occurrences - expected) ** 2 / expected
    ).sum() < 45.3  # chi-squared, 16 degrees of freedom, p = 1e-4


def test_order_depends_on_the_seed():
    orders = {tuple(row(take(loader(Numbers(10), 5, seed), 2))) for seed in range(20)}
    assert len(orders) == 20


def test_order_is_the_same_on_every_machine():
    assert row(take(loader(Numbers(10), 5, seed=3), 4)) == [
        6,
        1,
        8,
        5,
        2,
        7,
        9,
        4,
        3,
        0,
        9,
        7,
        8,
        3,
        5,
        6,
        4,
        0,
        2,
        1,
    ]


@pytest.mark.parametrize("trial", range(3))
@pytest.mark.parametrize("broken", [(), (2, 3, 11)])
def test_resumes_at_any_sample_with_any_number_of_workers(trial, broken):
    draw = random.Random(trial)
    count, batch_size, total = draw.randint(15, 40), draw.randint(1, 9), 30
    done = draw.randint(0, total - 1)
    settings = {"batch_size": batch_size, "max_unreadable": 1}
    whole = take(loader(Numbers(count, broken), **settings), total)
    for before, after in [(0, 2), (2, 0), (1, 2)]:
        first = loader(Numbers(count, broken), workers=before, **settings)
        start = take(first, done)
        state = first.state_dict()
        assert (state["epoch"], state["position"]) == divmod(done * batch_size, count)
        second = loader(Numbers(count, broken), workers=after, **settings)
        second.load_state_dict(state)
        rest = take(second, total - done)
        assert row(start) + row(rest) == row(whole)
        assert [batch.unreadable for batch in start + rest] == [batch.unreadable for batch in whole]
        assert second.state_dict()["unreadable"] == sum(len(batch.unreadable) for batch in whole)


def test_iterates_on_from_where_it_stands():
    one, two = loader(Numbers(9)), loader(Numbers(9))
    assert row(take(one, 3)) + row(take(one, 3)) == row(take(two, 6))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_comes_next_can_be_seen_before(workers):
    """In batches of another size, past an epoch's end, with what cannot be read replaced alike."""
    ahead = loader(Numbers(9, broken=[3]), 4, workers=workers, max_unreadable=1)
    iterator = iter(ahead)
    next(iterator)
    before = ahead.state_dict()
    seen = take(ahead.upcoming(6), 4)
    assert [batch.size for batch in seen] == [6] * 4
    assert ahead.state_dict() == before
    assert row(seen) == row(itertools.islice(iterator, 6))
    iterator.close()


def test_is_stateful():
    assert isinstance(loader(Numbers(9)), Stateful)


def test_other_data_cannot_be_resumed():
    state = loader(Numbers(9)).state_dict()
    with pytest.raises(UserError, match="had 9 samples when the run was saved and now has 10"):
        loader(Numbers(10)).load_state_dict(state)


def test_a_state_of_an_earlier_version_counts_from_here():
    first = loader(Numbers(50, broken=[3]), 5, max_unreadable=1)
    take(first, 10)
    state = first.state_dict()
    assert state["unreadable"] == 1
    for gone in (["unreadable_by_shard"], ["reads", "unreadable_by_shard"], ["reads", "unreadable"]):
        again = loader(Numbers(50, broken=[3]), 5, max_unreadable=1)
        again.load_state_dict({key: value for key, value in state.items() if key not in gone})
        assert row(take(again, 3)) == row(take(loader_at(first, state), 3))
        assert again.state_dict()["unreadable"] == (state["unreadable"] if gone[0] != "reads" else 0) * (
            "unreadable" not in gone
        )


def loader_at(like, state):
    again = loader(like.source, like.batch_size, max_unreadable=1)
    again.load_state_dict(state)
    return again


def test_a_state_without_a_place_is_refused():
    state = loader(Numbers(9)).state_dict()
    del state["epoch"], state["position"]
    with pytest.raises(UserError, match="lacks epoch, position: go on with the version"):
        loader(Numbers(9)).load_state_dict(state)


class TestUnreadable:
    def test_is_named_and_replaced(self):
        batches = take(loader(Numbers(50, broken=[7, 8]), 5, max_unreadable=1), 20)  # two epochs
        samples = row(batches)
        assert len(samples) == 100
        assert {7, 8}.isdisjoint(samples)
        named = Counter(str(item) for batch in batches for item in batch.unreadable)
        assert named.keys() == {"7.jpg: broken", "8.jpg: broken"} and min(named.values()) >= 2
        for batch in batches:
            assert torch.equal(first_pixels(batch.images)[:, 0].long(), batch.index)
        for epoch in (samples[:50], samples[50:]):
            assert set(epoch) == set(range(50)) - {7, 8}

    def test_substitutes_are_spread(self):
        broken = range(1, 200)
        batches = take(loader(Numbers(400, broken), 50, max_unreadable=1), 8)
        substitutes = Counter(row(batches))
        assert sum(substitutes.values()) == 400
        assert max(substitutes.values()) < 10

    def test_a_few_are_put_up_with_early_on(self):
        take(loader(Numbers(100, broken=range(10)), 100), 1)  # 10 % of 100, 1 % of 1,000

    @pytest.mark.parametrize("workers", [0, 2])
    def test_past_the_share_is_an_error(self, workers):
        batches = iter(
            loader(Numbers(1000, broken=range(0, 1000, 20)), 10, workers=workers, max_unreadable=0.02)
        )
        unreadable, reads = 0, 0
        with pytest.raises(UserError, match="are unreadable, the last ") as caught:
            for batch in batches:
                unreadable += len(batch.unreadable)
                reads += 10 + len(batch.unreadable)
                assert unreadable <= 20
        count, total = (int(word) for word in str(caught.value).split()[:3:2])
        assert 20 < count <= 30 and total > reads
        assert f"({count / total:.1%})" in str(caught.value) and ".jpg: broken" in str(caught.value)

    def test_just_below_the_share_goes_on(self):
        batches = take(loader(Numbers(1000, broken=range(9)), 100), 100)
        assert sum(len(batch.unreadable) for batch in batches) >= 90

    def test_none_allowed(self):
        with pytest.raises(UserError, match=r"the last 3\.jpg: broken"):
            take(loader(Numbers(10, broken=[3]), 10, max_unreadable=0), 1)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_all_of_them_is_an_error_at_once(self, workers):
        with pytest.raises(UserError, match=r"100 of 100 .*\(100.0%\).*\.jpg: broken: mend") as caught:
            take(loader(Numbers(10, broken=range(10)), 2, workers=workers, max_unreadable=1), 1)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_damage_behind_a_header_that_is_whole(self, tmp_path, workers):
        """The substitute has another size than the place that was made for the image it stands for."""
        pixels = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
        for number in range(6):
            Image.fromarray(pixels[: 20 + 5 * number]).save(tmp_path / f"{number}.jpg")
        whole = (tmp_path / "4.jpg").read_bytes()
        (tmp_path / "4.jpg").write_bytes(whole[: len(whole) // 2])
        source = build_source(FolderConfig(kind="folder", path=tmp_path))
        batches = take(loader(source, 6, workers=workers, max_unreadable=1), 3)
        for batch in batches:
            assert {item.name for item in batch.unreadable} == {str(tmp_path / "4.jpg")}
            assert sorted(set(batch.index.tolist()) | {4}) == list(range(6))
            for image, index in zip(batch.images, batch.index.tolist(), strict=True):
                assert torch.equal(image, source[index].image)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_corrupt_files(self, tmp_path, workers):
        for number in range(6):
            Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
        whole = (tmp_path / "4.png").read_bytes()
        (tmp_path / "4.png").write_bytes(whole[:50])
        source = build_source(FolderConfig(kind="folder", path=tmp_path))
        batch = take(loader(source, 6, workers=workers), 1)[0]
        assert {item.name for item in batch.unreadable} == {str(tmp_path / "4.png")}
        assert torch.equal(first_pixels(batch.images)[:, 0].long(), batch.index)


def test_empty_source():
    with pytest.raises(UserError, match="no sample"):
        loader(Numbers(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_leaves_the_global_generators_alone(workers):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    take(loader(Numbers(9), workers=workers), 10)
    assert states() == before


class TestWorkers:
    def test_run_on_one_thread_and_leave_signals_to_the_main_process(self):
        for batch in take(loader(WorkerFacts(10), workers=2), 4):
            assert first_pixels(batch.images).tolist() == [[1, 1, 1]] * 4
            assert os.getpid() not in batch.index

    def test_a_signal_to_all_processes_loses_no_batch(self):
        batches = iter(loader(WorkerFacts(10), workers=2))
        for _ in range(3):
            workers = {str(worker) for worker in next(batches).index.tolist()}
            assert workers <= {str(child.pid) for child in multiprocessing.active_children()}  # none but ours
            for name in ("INT", "TERM"):  # by a process other than the workers' parent
                subprocess.run(["kill", f"-{name}", *workers], check=True)
        assert len(take(batches, 8)) == 8

    @pytest.mark.parametrize("way", ["close", "drop"])
    def test_end_with_the_iteration(self, way):
        batches = iter(loader(Numbers(10), workers=2))
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        if way == "close":
            batches.close()
        del batches
        assert multiprocessing.active_children() == []

    def test_end_with_an_error(self):
        with pytest.raises(UserError):
            next(iter(loader(Numbers(10, range(10)), workers=2)))
        assert multiprocessing.active_children() == []

    def test_end_when_the_main_process_tells_them(self):
        batches = iter(loader(Numbers(10), workers=2))
        next(batches)
        worker = multiprocessing.active_children()[0]
        worker.terminate()
        worker.join(timeout=10)
        assert worker.exitcode == 0

    @pytest.mark.parametrize(
        ("number", "cause"),
        [(signal.SIGKILL, "signal 9"), (signal.SIGSEGV, "signal 11"), (None, "exit code 5")],
    )
    def test_one_that_dies_is_named_with_its_last_sample(self, number, cause):
        order = row(take(loader(Numbers(40)), 10))
        batches = iter(loader(Deadly(40, order[22], number), workers=2))  # the sixth batch: worker 1's third
        with pytest.raises(UserError) as caught:
            for _ in range(10):
                next(batches)
                time.sleep(0.2)  # the main thread is at other work when the worker dies
        told = str(caught.value)
        assert told.startswith(f"worker 1 died ({cause}) while reading {order[22]}.jpg: ")
        assert ("use fewer workers" in told) == (number == signal.SIGKILL)
        assert multiprocessing.active_children() == []

    def test_an_error_of_the_source_is_not_taken_for_a_death(self):
        class Broken(Numbers):
            def __getitem__(self, index):
                raise RuntimeError("a bug")

        with pytest.raises(RuntimeError, match="a bug"):
            take(loader(Broken(9), workers=1), 1)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_end_with_the_main_process(self, number, capfd):
        """Ctrl-C interrupts the main process alone and ends all; SIGKILL too leaves no worker behind."""
        self.end_with_the_main_process(number)
        if number == signal.SIGINT:
            assert capfd.readouterr().err.count("\nKeyboardInterrupt") == 1

    def test_end_with_a_main_process_that_is_killed_while_they_start(self, monkeypatch):
        obey = workers._obey_parent_only

        def start_late(worker):
            time.sleep(2 * worker)  # worker 0 has read a batch, on which the killing waits
            obey(worker)

        monkeypatch.setattr(workers, "_obey_parent_only", start_late)
        self.end_with_the_main_process(signal.SIGKILL)

    def end_with_the_main_process(self, number):
        context = multiprocessing.get_context("fork")
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_read_for_ever, args=(writer,))
        process.start()
        started = reader.recv()
        assert len(started) == 2 and all(_runs(worker) for worker in started)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.kill()
        process.join(timeout=30)
        assert process.exitcode == (1 if number == signal.SIGINT else -number)
        deadline = time.monotonic() + 120  # workers look for their parent every few seconds
        while any(_runs(worker) for worker in started):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _read_for_ever(writer):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    batches = iter(loader(Numbers(10), workers=2))
    next(batches)
    writer.send([child.pid for child in multiprocessing.active_children()])
    while True:
        next(batches)


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
