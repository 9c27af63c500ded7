"""Labelled examples, and their three splits that never mix."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_kernels import PackedImages, keyed_uniform
from vpt_vision.data.source import Sample, Source, UnreadableSample
from vpt_vision.errors import UserError

_LOG = logging.getLogger(__name__)

# Streams of `keyed_uniform`; those below 900 are the designers' (designers/streams.py).
READ_STREAM = 900
SPLIT_STREAM = 901


@dataclass(frozen=True)
class Examples:
    """N labelled images, on the CPU."""

    images: PackedImages  # N of them
    labels: Tensor  # [N, ...]: whatever the task knows of each

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        return Examples(self.images[index], self.labels[index])

    def __add__(self, other: Examples) -> Examples:
        images = PackedImages.pack([*self.images, *other.images])
        return Examples(images, torch.cat([self.labels, other.labels]))


class Splits(NamedTuple):
    """Disjoint examples: the head is fitted on `head`, u is taken on `meta`, `heldout` only watches."""

    head: Examples
    meta: Examples
    heldout: Examples


def read_splits(
    source: Source, sizes: tuple[int, int, int], seed: int, label: Callable[[Sample], Tensor]
) -> Splits:
    """Read examples of `source` and deal them into head, meta and heldout of `sizes`.

    Which images are read is drawn by `seed` without replacement, and which split each goes to depends on
    its number and class alone: tasks that share source, sizes and seed share their splits. Unreadable images
    are named in the log and others take their place.

    Args:
        source: of images with labels or maps.
        sizes: examples of each split.
        seed: of the draw.
        label: what the task keeps of a sample, all of one shape; raises `UserError` where it lacks what is
            needed.

    Raises:
        UserError: fewer than `sizes` can be read.
    """
    examples, classes = read_examples(source, sum(sizes), seed, label)
    return split_examples(examples, classes, sizes, seed)


def read_examples(
    source: Source, count: int, seed: int, label: Callable[[Sample], Tensor]
) -> tuple[Examples, Tensor]:
    """Read `count` images of `source` as `read_splits` says.

    Returns:
        The examples, and the class of each, int64 [count]; 0 where the source has no class labels.
    """
    draws = keyed_uniform(seed, 0, torch.arange(len(source)), READ_STREAM, 1)[:, 0]
    order = draws.argsort(stable=True).tolist()
    images: dict[int, Tensor] = {}
    labels: dict[int, Tensor] = {}
    classes: dict[int, int] = {}
    tried = 0
    while len(images) < count and tried < len(order):
        wanted = order[tried : tried + count - len(images)]
        tried += len(wanted)
        for index in sorted(wanted):  # as they lie: a remote shard is then fetched once, not for each image
            try:
                sample = source[index]
            except UnreadableSample as error:
                _LOG.warning("skipped an unreadable feedback image: %s", error)
                continue
            images[index], labels[index] = sample.image, label(sample)
            classes[index] = sample.label or 0
    if len(images) < count:
        raise _too_few(count, len(images))
    drawn = [index for index in order[:tried] if index in images]
    examples = Examples(
        PackedImages.pack([images[index] for index in drawn]), torch.stack([labels[index] for index in drawn])
    )
    return examples, torch.tensor([classes[index] for index in drawn])


def split_examples(examples: Examples, classes: Tensor, sizes: tuple[int, int, int], seed: int) -> Splits:
    """Deal `examples` into head, meta and heldout of `sizes`, each with nearly equal shares of the classes.

    Args:
        examples: N of them; those left over are dropped.
        classes: int64 [N], 0 or above; all alike where there are none.
        sizes: examples of each split.
        seed: of the deal.

    Raises:
        UserError: there are too few examples.
    """
    if len(examples) < sum(sizes):
        raise _too_few(sum(sizes), len(examples))
    order = _stratified_order(classes, seed)
    return Splits(*(examples[part] for part in torch.split(order[: sum(sizes)], list(sizes))))


def _too_few(needed: int, given: int) -> UserError:
    return UserError(
        f"the feedback needs head_size + meta_size + heldout_size = {needed} labelled examples and has "
        f"{given}: give it more, or lower these sizes"
    )


def _stratified_order(classes: Tensor, seed: int) -> Tensor:
    """Order examples so that every stretch of the order holds the classes in about their overall shares."""
    draws = keyed_uniform(seed, 0, torch.arange(len(classes)), SPLIT_STREAM, 2)
    shuffled = draws[:, 0].argsort(stable=True)
    members = torch.nn.functional.one_hot(classes[shuffled])
    rank = members.cumsum(0).gather(1, classes[shuffled, None])[:, 0] - 1
    share = (rank + draws[shuffled, 1]) / members.sum(0)[classes[shuffled]]  # in (0, 1), even within a class
    return shuffled[share.argsort(stable=True)]
