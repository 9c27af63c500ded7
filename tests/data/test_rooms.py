"""Shared memory is used again when nobody looks into it, and never before."""

import gc
import os

import pytest
import torch

from vpt_vision.data.batch import Batch, Packing
from vpt_vision.data.loader import Loader
from vpt_vision.data.rooms import MOST, Rooms, content, held
from vpt_vision.data.source import Sample, UnreadableSample


class Sizes:
    """Images whose pixels all are their number, of sizes that differ."""

    classes = None

    def __init__(self, count, largest, broken=()):
        self.count, self.largest, self.broken = count, largest, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableSample(self.name(index), "broken")
        side = 1 + index * 7 % self.largest
        return Sample(torch.full((side, 3, 3), index % 256, dtype=torch.uint8), index)

    def name(self, index):
        return f"{index}.jpg"


def assert_untouched(batch):
    assert len(batch.images) == batch.size
    for image, index in zip(batch.images, batch.index.tolist(), strict=True):
        assert image.shape == (1 + index * 7 % 50, 3, 3) and (image == index % 256).all()


class TestRooms:
    def test_one_that_is_held_is_left_alone(self):
        rooms = Rooms()
        first = rooms.take(100)
        second = rooms.take(100)
        assert first.data_ptr() != second.data_ptr()
        rooms.give_back(first)
        assert rooms.take(100).data_ptr() == first.data_ptr()

    def test_one_too_small_gives_way(self):
        rooms = Rooms()
        small = rooms.take(100)
        rooms.give_back(small)
        large = rooms.take(1000)
        assert len(content(large)) >= 1000
        rooms.give_back(large)
        assert rooms.take(10).data_ptr() == large.data_ptr()

    def test_where_all_are_held_another_one_is_not_kept(self):
        rooms = Rooms()
        taken = [rooms.take(10) for _ in range(MOST + 2)]
        assert len({room.data_ptr() for room in taken}) == MOST + 2
        for room in taken:
            rooms.give_back(room)
        again = {rooms.take(10).data_ptr() for _ in range(MOST)}
        assert again == {room.data_ptr() for room in taken[:MOST]}


class TestHeld:
    def test_until_the_last_view_is_gone(self):
        rooms = Rooms()
        room = rooms.take(64)
        tensor = held(room, 40)
        assert tensor.nbytes == 40 and tensor.untyped_storage().nbytes() == 40
        view = tensor[3:9].view(2, 3).T
        array = view.numpy()
        del tensor
        assert room[0] == 1
        del view
        assert room[0] == 1
        del array
        assert room[0] == 0

    def test_a_forked_process_lets_go_of_nothing(self):
        room = Rooms().take(64)
        tensor = held(room, 40)
        process = os.fork()
        if process == 0:
            del tensor
            gc.collect()
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0
        assert room[0] == 1
        del tensor
        assert room[0] == 0


class TestPacking:
    @pytest.mark.parametrize("expected", [0, 10, 10**6])
    def test_whatever_was_expected(self, expected):
        packing = Packing(7, expected)
        source = Sizes(7, 50)
        for index in range(7):
            packing.room(200, 300)  # of an image that then could not be read
            packing.room(*source[index].image.shape[:2])[...] = source[index].image.numpy()
            packing.keep(index)
        batch = packing.batch([])
        assert_untouched(batch)
        assert batch.buffer.nbytes == Batch.of([source[i] for i in range(7)], []).buffer.nbytes


class TestLoader:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_batches_that_are_held_stay_as_they_are(self, workers):
        """Some are dropped at once, some late, and more are held than there are rooms."""
        loader = Loader(Sizes(97, 50, broken=[5, 6]), batch_size=6, seed=0, workers=workers, max_unreadable=1)
        held_ones, batches = [], iter(loader)
        for step in range(120):
            batch = next(batches)
            assert_untouched(batch)
            if step % 3:
                held_ones.append(batch)
            if step % 10 == 9:
                held_ones.pop(step * 7 % len(held_ones))
            if step == 60:
                del held_ones[5:]
        for batch in held_ones:
            assert_untouched(batch)
        batches.close()
        for batch in held_ones:
            assert_untouched(batch)  # the workers are gone

    def test_few_rooms_are_enough(self):
        """What a batch lies in, seen through the inode of its memory, comes back again and again."""
        loader = Loader(Sizes(97, 50), batch_size=6, seed=0, workers=1)
        seen = []
        batches = iter(loader)
        for _ in range(60):
            batch = next(batches)
            seen.append(_inode(batch.buffer))
            del batch
        batches.close()
        assert len(set(seen[20:])) <= MOST


def _inode(tensor):
    """The inode of the file that is mapped where a tensor lies."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            span, _, _, _, inode, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= tensor.data_ptr() < end:
                return int(inode)
    raise AssertionError("mapped nowhere")
