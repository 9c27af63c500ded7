import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import first_pixels, pack

from vpt_vision.data import Sample, UnreadableSample
from vpt_vision.errors import UserError
from vpt_vision.feedback import Examples, split_examples
from vpt_vision.feedback.examples import read_examples, read_splits


def numbered(labels):
    """Make examples whose image is their number."""
    number = torch.arange(len(labels))
    images = torch.stack([number // 256, number % 256, number * 0], 1)[:, :, None, None]
    return Examples(pack(images.to(torch.uint8)), labels)


def numbers(examples):
    return (first_pixels(examples.images).long() @ torch.tensor([256, 1, 0])).tolist()


def label(sample):
    return torch.tensor(sample.label)


class Listed:
    """A source over a list of labels; images hold their index."""

    def __init__(self, labels, classes=("a", "b"), unreadable=()):
        self.labels, self.classes, self.unreadable = labels, classes, unreadable

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index in self.unreadable:
            raise UnreadableSample(f"{index}.png", "truncated")
        return Sample(torch.full((2, 2, 3), index, dtype=torch.uint8), index, self.labels[index])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(10, 60), min_size=2, max_size=6), st.integers(0, 2**20))
def test_splits_are_disjoint_whole_and_hold_classes_in_their_shares(counts, seed):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    total = len(labels)
    sizes = (total // 2, total // 3, total // 8)
    splits = split_examples(numbered(labels), labels, sizes, seed)
    dealt = [numbers(split) for split in splits]
    assert tuple(map(len, dealt)) == sizes
    assert len(set().union(*dealt)) == sum(sizes)
    for split in splits:
        assert torch.equal(split.labels, labels[numbers(split)])
    # The deal takes each class at the same pace: up to any cut there is one share that is dealt of every
    # class, to within one example.
    for last in range(1, 4):
        dealt_of = torch.bincount(torch.cat([split.labels for split in splits[:last]]), minlength=len(counts))
        lowest = max((held - 1) / count for held, count in zip(dealt_of.tolist(), counts, strict=True))
        highest = min((held + 1) / count for held, count in zip(dealt_of.tolist(), counts, strict=True))
        assert lowest < highest


def test_the_seed_decides_the_deal():
    examples = numbered(torch.arange(60) % 2)
    first, again, other = (
        split_examples(examples, examples.labels, (20, 20, 20), seed) for seed in (1, 1, 2)
    )
    assert numbers(first.meta) == numbers(again.meta) != numbers(other.meta)


def test_reading_draws_without_replacement_and_passes_over_unreadable_images(caplog):
    labels = [index % 2 for index in range(30)]
    with caplog.at_level(logging.WARNING):
        examples, classes = read_examples(Listed(labels, unreadable={4, 9}), 28, 0, label)
    drawn = first_pixels(examples.images)[:, 0].tolist()
    assert torch.equal(classes, examples.labels) and sorted(drawn) == [
        i for i in range(30) if i not in (4, 9)
    ]
    assert examples.labels.tolist() == [labels[i] for i in drawn]
    assert "4.png: truncated" in caplog.text and "9.png: truncated" in caplog.text
    fewer, _ = read_examples(Listed(labels, unreadable={4, 9}), 10, 0, label)
    assert first_pixels(fewer.images)[:, 0].tolist() == drawn[:10] != sorted(drawn[:10])


def test_images_are_read_as_they_lie():
    """In the order of the draw, each image of a remote source would fetch its shard anew."""

    class Recorded(Listed):
        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    source = Recorded([0, 1] * 15)
    source.read = []
    examples, _ = read_examples(source, 20, 0, label)
    assert source.read == sorted(first_pixels(examples.images)[:, 0].tolist())


def test_tasks_of_one_source_share_their_splits():
    """Whatever each keeps of a sample, the same images are head, meta and held out."""
    source = Listed([0, 0, 1] * 20)
    first = read_splits(source, (20, 20, 10), 3, label)
    second = read_splits(source, (20, 20, 10), 3, lambda sample: sample.image.float())
    for one, other in zip(first, second, strict=True):
        images = torch.stack(list(one.images))
        assert torch.equal(images, torch.stack(list(other.images))) and torch.equal(other.labels, images)
    unlabelled = read_splits(Listed([None] * 60, classes=None), (20, 20, 10), 3, lambda s: s.image)
    assert [len(split) for split in unlabelled] == [20, 20, 10]


def test_too_few_examples_are_told():
    with pytest.raises(UserError, match=r"= 5 labelled examples and has 3"):
        read_examples(Listed([0, 1, 0]), 5, 0, label)
    with pytest.raises(UserError, match=r"= 30 labelled examples and has 20"):
        split_examples(numbered(torch.arange(20) % 2), torch.arange(20) % 2, (10, 10, 10), seed=0)
