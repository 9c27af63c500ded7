"""Feedback: labelled examples, a light head, and the gradient u of its loss."""

from vpt_vision.data import Source
from vpt_vision.feedback.classification import ClassificationFeedback, FeedbackConfig
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.feedback.examples import Examples, Splits, read_examples, split_examples
from vpt_vision.feedback.gradient import Direction, FeedbackGradient, cosine, inner
from vpt_vision.task import Renderer


def build_feedback(
    config: FeedbackConfig, source: Source, *, renderer: Renderer, size: int, seed: int
) -> ClassificationFeedback:
    """Read and split the labelled examples of `source` as `config` says, to be seen at `size` pixels.

    Raises:
        UserError: the source has no labels or too few examples, or a split does not suffice.
    """
    sizes = (config.head_size, config.meta_size, config.heldout_size)
    examples, classes = read_examples(source, sum(sizes), seed)
    splits = split_examples(examples, classes, sizes, seed)
    return ClassificationFeedback(config, splits, classes, renderer=renderer, size=size)


__all__ = [
    "ClassificationFeedback",
    "Direction",
    "Examples",
    "FeedbackConfig",
    "FeedbackGradient",
    "Splits",
    "build_feedback",
    "cosine",
    "evaluating",
    "inner",
    "read_examples",
    "split_examples",
]
