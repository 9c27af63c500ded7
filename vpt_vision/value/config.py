"""The settings of the value step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vpt_vision.schema import Config
from vpt_vision.value.estimator import EstimatorsConfig
from vpt_vision.value.guard import GuardConfig
from vpt_vision.value.leash import LeashConfig
from vpt_vision.value.rollout import RolloutConfig


class ValueConfig(Config):
    """How often, on what and by which estimator the value of a task is measured."""

    every: int = Field(8, ge=1, description="learner steps from one value step to the next")
    since: int = Field(
        0,
        ge=0,
        description="learner step of the first value step: of a learner whose head is still as it was drawn "
        "value is mostly noise",
    )
    burn_in: int = Field(
        0, ge=0, description="learner steps in which value is measured but the designer rests"
    )
    repeats: int = Field(
        1,
        ge=1,
        description="steps of the designer at each value step, each on other images, those that the learner "
        "sees next, by other random numbers: one u and one learner serve them all. For the estimators "
        "population and score",
    )
    until: int | None = Field(
        None,
        ge=1,
        description="learner step from which a designer that learns from value stays as it is and value is "
        "measured no more, so that the rest of the run costs little over the recipe's; the guard has only "
        "the looks before it. null: none",
    )
    batch: int = Field(32, ge=2, description="images of the learner's batch that value is measured on")
    tail_blocks: int = Field(
        2, ge=1, description="last blocks of the student that u and value speak of; 2 to 4"
    )
    direction: Literal["feedback", "random"] = Field(
        "feedback",
        description="random: value is along a random direction of u's length, anew each time, a control",
    )
    estimators: EstimatorsConfig = Field(
        EstimatorsConfig(), description="how each surface's gradient is found"
    )
    follow_targets: bool = Field(
        True,
        description="derivatives of value go through the teacher's targets and their balance too; false "
        "holds these, which is cheaper, and wrong where one image's views shift the targets of others",
    )
    terms: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="weights of the loss terms (dino, ibot, koleo, gram) in what the designer climbs, 0 for "
        "one left out; null: the learner's. The learner's own loss stays as it is",
    )
    rho: float = Field(
        1e-3, gt=0, description="finite difference: length of the step, in lengths of the weights"
    )
    pairs: int = Field(2, ge=1, description="population search: antithetic pairs of candidate designers")
    sigma: float = Field(
        0.25, gt=0, description="population search: root mean square of what is added to a head's outputs"
    )
    draws: int = Field(4, ge=2, description="score function: batches of tasks drawn from the policy")
    rollout: RolloutConfig = Field(RolloutConfig(), description="how candidates are judged by real steps")
    preconditioner: Literal["identity", "adamw"] = Field(
        "identity",
        description="identity: value of a plain gradient step, as published; adamw: of the step that the "
        "learner's AdamW makes of it",
    )
    lead: bool = Field(
        False,
        description="true: u is taken where momentum and weight decay carry the last blocks in the next "
        "step, whatever the task; false: where the learner stands, as published",
    )
    normalise: Literal["running", "cosine", "none"] = Field(
        "running",
        description="running: each loss term's value is divided by its running size; cosine: by the lengths "
        "of u and of the term's gradient, so that a longer gradient is worth no more; none: as published",
    )
    scale_decay: float = Field(0.9, ge=0, lt=1, description="decay of the running size, per value step")
    pace: Literal["reliability", "full"] = Field(
        "reliability",
        description="reliability: the designer's step shrinks as u's two halves disagree; full: it does not",
    )
    leash: LeashConfig = Field(LeashConfig(), description="how the designer is held close to the recipe")
    guard: GuardConfig = Field(GuardConfig(), description="what held-out examples have to say")

    @model_validator(mode="after")
    def _time_to_learn(self) -> ValueConfig:
        rests = max(self.burn_in - self.since, 0)
        first = (
            self.since + -(-rests // self.every) * self.every
        )  # value step at which the designer may learn
        if self.until is not None and self.until <= first:
            raise ValueError(
                f"until is {self.until}, and the first value step after since and burn_in comes at step "
                f"{first}, so the designer would never learn: set until to {first + 1} or more"
            )
        if self.repeats > self.every and (self.until is None or self.until > first + self.every):
            raise ValueError(
                f"repeats is {self.repeats} and every {self.every}: repeats draw by the random numbers of "
                "the steps up to the next value step, so raise every or lower repeats"
            )
        return self
