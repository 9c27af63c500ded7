"""Labelled examples, and their three splits that never mix."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_kernels import keyed_uniform
from vpt_vision.data.source import Source, UnreadableSample
from vpt_vision.errors import UserError
from vpt_vision.logistic import check_labels

_LOG = logging.getLogger(__name__)

# Streams of `keyed_uniform`; those below 900 are the designers' (designers/streams.py).
READ_STREAM = 900
SPLIT_STREAM = 901


@dataclass(frozen=True)
class Examples:
    """N labelled images, on the CPU."""

    images: Tensor  # [N, 3, H, W] uint8
    labels: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        return Examples(self.images[index], self.labels[index])


class Splits(NamedTuple):
    """Disjoint examples: the head is fitted on `head`, u is taken on `meta`, `heldout` only watches."""

    head: Examples
    meta: Examples
    heldout: Examples


def read_examples(source: Source, count: int, seed: int) -> tuple[Examples, int]:
    """Read `count` labelled images of `source`, drawn without replacement by `seed`.

    Unreadable images are named in the log and others take their place.

    Returns:
        The examples and the number of classes.

    Raises:
        UserError: the source has no classes, an image has no label, or fewer than `count` can be read.
    """
    if source.classes is None:
        raise UserError("the feedback source has no class labels: name a labelled source for the feedback")
    draws = keyed_uniform(seed, 0, torch.arange(len(source)), READ_STREAM, 1)[:, 0]
    order = draws.argsort(stable=True).tolist()
    images: dict[int, Tensor] = {}
    labels: dict[int, int] = {}
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
            if sample.label is None:
                raise UserError(f"feedback image {index} has no label: label it or take it out of the source")
            images[index], labels[index] = sample.image, sample.label
    if len(images) < count:
        raise _too_few(count, len(images))
    drawn = [index for index in order[:tried] if index in images]
    examples = Examples(
        torch.stack([images[index] for index in drawn]), torch.tensor([labels[index] for index in drawn])
    )
    return examples, len(source.classes)


def split_examples(examples: Examples, classes: int, sizes: tuple[int, int, int], seed: int) -> Splits:
    """Deal `examples` into head, meta and heldout of `sizes`, each with nearly equal shares of the classes.

    Raises:
        UserError: there are too few examples, a label is out of range, or `head` misses a class.
    """
    if len(examples) < sum(sizes):
        raise _too_few(sum(sizes), len(examples))
    check_labels(examples.labels, classes, "the feedback examples")
    order = _stratified_order(examples.labels, classes, seed)
    head, meta, heldout = (examples[part] for part in torch.split(order[: sum(sizes)], list(sizes)))
    absent = (torch.bincount(head.labels, minlength=classes) == 0).nonzero()
    if len(absent):
        raise UserError(
            f"class {int(absent[0])} has no example among the {len(head)} of the feedback's head split: raise"
            " head_size, or give more examples of that class"
        )
    return Splits(head, meta, heldout)


def _too_few(needed: int, given: int) -> UserError:
    return UserError(
        f"the feedback needs head_size + meta_size + heldout_size = {needed} labelled examples and has "
        f"{given}: give it more, or lower these sizes"
    )


def _stratified_order(labels: Tensor, classes: int, seed: int) -> Tensor:
    """Order examples so that every stretch of the order holds the classes in about their overall shares."""
    draws = keyed_uniform(seed, 0, torch.arange(len(labels)), SPLIT_STREAM, 2)
    shuffled = draws[:, 0].argsort(stable=True)
    members = F.one_hot(labels[shuffled], classes)
    rank = members.cumsum(0).gather(1, labels[shuffled, None])[:, 0] - 1
    share = (rank + draws[shuffled, 1]) / members.sum(0)[labels[shuffled]]  # in (0, 1), even within a class
    return shuffled[share.argsort(stable=True)]
