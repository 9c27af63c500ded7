"""The base class of every component's config."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings of one component: typed, immutable, and closed to unknown keys.

    A component declares its config beside its code, and `vpt_vision.config` composes them into the one
    YAML file of a run. Every field has a default or is required there; `Field(description=...)` says
    what it is and in which unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
