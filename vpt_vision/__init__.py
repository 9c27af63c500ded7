"""Value-based pretraining for vision: a designer network makes the self-supervised task.

Method: Ke & Fanti, "Value-Based Pre-Training with Downstream Feedback", arXiv 2601.22108.
"""

from vpt_vision.config import RunConfig, load_config
from vpt_vision.errors import UserError
from vpt_vision.loading import load_backbone
from vpt_vision.training.trainer import TrainingResult, train

__all__ = ["RunConfig", "TrainingResult", "UserError", "load_backbone", "load_config", "train"]
