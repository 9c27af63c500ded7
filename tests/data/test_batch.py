import pickle

import torch
from images import random_sizes

from vpt_vision.data.batch import Batch
from vpt_vision.data.source import Sample

SIZES = [(3, 4), (1, 1), (7, 2), (5, 5)]


def batch_of(sizes):
    images = random_sizes(sizes)
    return images, Batch.of([Sample(image, 10**12 + 7 * n) for n, image in enumerate(images)], [])


def assert_holds(batch, images):
    assert batch.size == len(batch.images) == len(images)
    assert all(torch.equal(one, other) for one, other in zip(batch.images, images, strict=True))
    assert batch.index.tolist() == [10**12 + 7 * n for n in range(len(images))]


def test_holds_images_and_numbers():
    images, batch = batch_of(SIZES)
    assert_holds(batch, images)
    assert_holds(pickle.loads(pickle.dumps(batch)), images)


def test_all_of_it_lies_in_one_buffer_and_nothing_more():
    images, batch = batch_of(SIZES)
    assert batch.buffer.nbytes == 4 * 8 * len(images) + sum(image.numel() for image in images)
    storage = batch.buffer.untyped_storage()
    assert storage.nbytes() == batch.buffer.nbytes
    for view in (*batch.images.tensors, batch.index):
        assert view.untyped_storage().data_ptr() == storage.data_ptr()


def test_nothing_at_all():
    images, batch = batch_of([])
    assert_holds(batch, images)
    assert batch.buffer.nbytes == 0
