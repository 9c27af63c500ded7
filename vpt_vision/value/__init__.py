"""Value: how much the learner's next step on a task is predicted to lower downstream loss."""

from vpt_vision.value.config import ValueConfig
from vpt_vision.value.estimator import Estimator, EstimatorsConfig, Occasion
from vpt_vision.value.exact import exact_value
from vpt_vision.value.finite_difference import finite_difference_value
from vpt_vision.value.pathwise import opened
from vpt_vision.value.population import population
from vpt_vision.value.preconditioner import adamw_step
from vpt_vision.value.rollout import LearnerUpdate, Rollout, RolloutConfig, rollout
from vpt_vision.value.scale import RunningScale
from vpt_vision.value.score import score
from vpt_vision.value.setting import Setting
from vpt_vision.value.step import ValueStep

__all__ = [
    "Estimator",
    "EstimatorsConfig",
    "LearnerUpdate",
    "Occasion",
    "Rollout",
    "RolloutConfig",
    "RunningScale",
    "Setting",
    "ValueConfig",
    "ValueStep",
    "adamw_step",
    "exact_value",
    "finite_difference_value",
    "opened",
    "population",
    "rollout",
    "score",
]
