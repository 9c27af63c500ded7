"""The learner: student, EMA teacher, heads and objectives."""

from vpt_vision.learner.backbone import Backbone, BackboneConfig, Features
from vpt_vision.learner.heads import HeadConfig, ProjectionHead
from vpt_vision.learner.student_teacher import Learner, LearnerConfig, Losses, TeacherTargets

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Features",
    "HeadConfig",
    "Learner",
    "LearnerConfig",
    "Losses",
    "ProjectionHead",
    "TeacherTargets",
]
