"""What can be seen of the way to a device without one: the `meta` device keeps shapes and no numbers."""

import torch
from images import random_sizes

from vpt_vision.data import Loader, Sample, on_device
from vpt_vision.data.batch import Batch


class Noise:
    classes = None

    def __len__(self):
        return 20

    def __getitem__(self, index):
        (image,) = random_sizes([(3 + index % 4, 5)], index)
        return Sample(image, index)

    def name(self, index):
        return str(index)


def test_on_the_cpu_batches_pass_through():
    loader = Loader(Noise(), batch_size=4, seed=0)
    expected = [next(iter(Loader(Noise(), batch_size=4, seed=0)))]
    batches = on_device(iter(loader), torch.device("cpu"))
    first = next(batches)
    assert torch.equal(first.buffer, expected[0].buffer) and first.to(torch.device("cpu")) is first
    assert loader.state_dict()["position"] == 4  # nothing is taken ahead of the batch handed out
    batches.close()
    next(iter(loader))  # and the loader goes on
    assert loader.state_dict()["position"] == 8


def test_elsewhere_the_images_are_views_of_one_copy_and_the_numbers_stay_at_hand():
    batch = Batch.of([Noise()[index] for index in (3, 1, 2)], [])
    (there,) = on_device((b for b in [batch]), torch.device("meta"))
    assert there.buffer.device.type == "meta" and there.buffer.nbytes == batch.buffer.nbytes
    assert there.index.device.type == "cpu" and there.index.tolist() == [3, 1, 2]
    for one, other in zip(there.images.tensors, batch.images.tensors, strict=True):
        assert one.untyped_storage()._cdata == there.buffer.untyped_storage()._cdata  # a view
        assert one.shape == other.shape and one.dtype == other.dtype
        assert one.storage_offset() == other.storage_offset() and one.stride() == other.stride()


def test_a_batch_is_pinned_as_a_whole(monkeypatch):
    pinned = []

    def pin(self):
        pinned.append(self)
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = Batch.of([Noise()[index] for index in (3, 1)], [])
    copy = batch.pin_memory()
    assert len(pinned) == 1 and pinned[0] is batch.buffer
    assert all(torch.equal(a, b) for a, b in zip(copy.images, batch.images, strict=True))


class FakeCuda:
    """Streams that only note what is asked of them."""

    def __init__(self, log):
        self.log = log

    def Stream(self, device):
        return self.stream("side")

    def current_stream(self, device):
        return self.stream("compute")

    def stream(self, name):
        class Named:
            def __enter__(this):
                self.log.append(f"on {name}")

            def __exit__(this, *error):
                self.log.append(f"off {name}")

            def wait_stream(this, other):
                self.log.append(f"{name} waits")

        return name if isinstance(name, Named) else Named()


class FakeBuffer:
    def __init__(self, log):
        self.log = log

    def record_stream(self, stream):
        self.log.append("kept for compute")


def test_each_copy_goes_by_a_stream_of_its_own_which_the_computing_one_waits_for(monkeypatch):
    log = []
    fake = FakeCuda(log)
    monkeypatch.setattr(torch.cuda, "Stream", fake.Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", fake.current_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)

    def to(self, device):
        log.append("copy")
        return Batch(FakeBuffer(log), 0, [])

    monkeypatch.setattr(Batch, "to", to)
    empty = Batch.of([], [])
    made = on_device((log.append("read") or empty for _ in range(2)), torch.device("cuda"))
    for _ in made:
        log.append("step")
    one = ["read", "on side", "copy", "off side", "compute waits", "kept for compute", "step"]
    assert log == one * 2
