"""Feedback: labelled examples, light heads, and the gradient u of their losses."""

from vpt_vision.feedback.beyond_chance import BeyondChance
from vpt_vision.feedback.classification import ClassificationConfig, ClassificationFeedback
from vpt_vision.feedback.config import FeedbackConfig, build_feedback
from vpt_vision.feedback.depth import DepthConfig, DepthFeedback
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.feedback.examples import Examples, Splits, split_examples
from vpt_vision.feedback.gradient import (
    Direction,
    FeedbackGradient,
    all_features,
    cosine,
    feedback_gradient,
    gradients_over,
    gradients_through_fit,
    inner,
    whole_loss,
)
from vpt_vision.feedback.permuted import PermutedLabels
from vpt_vision.feedback.random_direction import random_direction
from vpt_vision.feedback.segmentation import SegmentationConfig, SegmentationFeedback
from vpt_vision.feedback.task import Feedback, FeedbackTask, Split, WeightedTask

__all__ = [
    "BeyondChance",
    "ClassificationConfig",
    "ClassificationFeedback",
    "DepthConfig",
    "DepthFeedback",
    "Direction",
    "Examples",
    "Feedback",
    "FeedbackConfig",
    "FeedbackGradient",
    "FeedbackTask",
    "PermutedLabels",
    "SegmentationConfig",
    "SegmentationFeedback",
    "Split",
    "Splits",
    "WeightedTask",
    "all_features",
    "build_feedback",
    "cosine",
    "evaluating",
    "feedback_gradient",
    "gradients_over",
    "gradients_through_fit",
    "inner",
    "random_direction",
    "split_examples",
    "whole_loss",
]
