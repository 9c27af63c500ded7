"""The config of a run: one YAML file, typed, checked as a whole, with dotted overrides."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from vpt_vision.data import DataConfig, SourceConfig
from vpt_vision.designers import DesignerConfig, FixedDesignerConfig, LearnedDesignerConfig, RecipeConfig
from vpt_vision.errors import UserError
from vpt_vision.evaluation.probes import EvaluationConfig
from vpt_vision.feedback import FeedbackConfig
from vpt_vision.learner import LearnerConfig
from vpt_vision.schema import Config
from vpt_vision.task import Renderer
from vpt_vision.training.checkpoint import CheckpointConfig
from vpt_vision.training.log import LogConfig
from vpt_vision.training.optimiser import OptimiserConfig
from vpt_vision.training.schedules import ScheduleConfig
from vpt_vision.value import ValueConfig

# Keys of earlier versions, and what to do about them
GONE = {
    "data.source_size": "images keep their own sizes, so leave it out; fashion_scenes have a 'size' of theirs"
}

Checked = TypeVar("Checked", bound=Config)


class RunConfig(Config):
    """Everything a run depends on. `vpt config FILE` prints it with every default filled in."""

    output: str = Field(description="folder of the run: config, metrics, checkpoints, backbone")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of every random number of the run")
    steps: int = Field(ge=1, description="learner updates")
    batch_size: int = Field(ge=2, description="source images per step")
    device: str = Field("auto", description="auto (CUDA where there is one), cpu, cuda or cuda:N")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="arithmetic of the learner: fp32, or bf16 autocast"
    )
    data: DataConfig
    recipe: RecipeConfig = RecipeConfig()
    learner: LearnerConfig
    designer: DesignerConfig = FixedDesignerConfig(kind="fixed")
    feedback: FeedbackConfig | None = Field(
        None, description="labelled examples; a learned designer needs them"
    )
    value: ValueConfig = ValueConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    evaluation: EvaluationConfig | None = Field(
        None, description="labelled data of `vpt eval` and `vpt demo`"
    )

    @model_validator(mode="after")
    def _value_within_batch(self) -> RunConfig:
        if self.feedback is not None and self.value.batch > self.batch_size:
            raise ValueError(
                f"value.batch {self.value.batch} is above batch_size {self.batch_size}: value is measured on "
                "images of the learner's batch"
            )
        return self

    @model_validator(mode="after")
    def _mix_of_what_is_valued(self) -> RunConfig:
        """Refuse a surface that raises value by weighing valued terms up, the others' cost being left out."""
        designer = self.designer
        if self.value.terms is None or not isinstance(designer, LearnedDesignerConfig):
            return self
        if "targets" in designer.surfaces and designer.targets.mix:
            raise ValueError(
                "value.terms leaves out what designer.targets.mix takes from the other terms, so that more "
                "of a valued term always pays: set designer.targets.mix to 0, or leave value.terms out"
            )
        return self

    @model_validator(mode="after")
    def _heads_of_the_step(self) -> RunConfig:
        """Refuse to judge by heads that the backbone has moved away from."""
        every = 1 if self.feedback is None else self.feedback.every
        if self.value.guard.every % every:
            raise ValueError(
                f"value.guard.every {self.value.guard.every} is no multiple of feedback.every {every}: heads "
                "that were fitted some steps ago would judge held-out examples"
            )
        estimators = self.value.estimators.model_dump().values()
        if every > 1 and "rollout" in estimators:
            raise ValueError(
                f"feedback.every is {every}, and rollout judges by the heads: it needs them fitted at every "
                "value step, feedback.every: 1"
            )
        return self

    def shorter_side(self) -> int:
        """Return the pixels of an image's shorter side that are enough for every view."""
        return self.data.shorter_side or self.recipe.shorter_side()

    def renderer(self) -> Renderer:
        """The renderer of the run's views, and of the images that its probes and feedback see."""
        return Renderer(self.data.mean, self.data.std, self.recipe.crops.interpolation)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a run's config.

    Args:
        source: a YAML file, or its contents as a mapping.
        overrides: `dotted.key=value` strings, the value read as YAML; applied in order.

    Raises:
        UserError: naming every problem at once: unknown keys with the nearest known one, wrong types,
            values out of bounds.
    """
    return load_as(RunConfig, source, overrides)


def load_as(
    kind: type[Checked], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Checked:
    """Read and check the settings of any `kind` of config, as `load_config` does those of a run."""
    name = "config" if isinstance(source, Mapping) else str(source)
    settings = dict(source) if isinstance(source, Mapping) else read_yaml(Path(source))
    for override in overrides:
        _apply(settings, override)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise _told(error, name, kind) from None


def load_source(source: Mapping[str, Any], overrides: Sequence[str] = ()) -> SourceConfig:
    """Check the settings of a single source, changed by `key=value` strings as in `load_config`.

    Raises `UserError` naming every problem at once.
    """
    settings = dict(source)
    for override in overrides:
        _apply(settings, override)
    try:
        return TypeAdapter[SourceConfig](SourceConfig).validate_python(settings)
    except ValidationError as error:
        raise _told(error, "the source", SourceConfig) from None


def dump_config(config: RunConfig) -> str:
    """Return the config as YAML, every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ between two dumped configs."""
    a, b = _flatten(first), _flatten(second)
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; raises `UserError` where it is none."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: name a config file, such as configs/demo.yaml.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(settings, dict):
        raise UserError(
            f"{path} should hold a mapping of keys to values, and holds {type(settings).__name__}."
        )
    return settings


def _apply(settings: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place, without changing mappings that the caller shares."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(
            f"override '{override}' should read dotted.key=value, such as schedule.learning_rate=1e-4."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': '{text}' is not a YAML value.") from None
    *parents, last = dotted.split(".")
    for depth, parent in enumerate(parents):
        child = settings.get(parent)
        if child is not None and not isinstance(child, Mapping):
            where = ".".join(parents[: depth + 1])
            raise UserError(f"override '{override}': {where} is a value and has no keys below it.")
        settings[parent] = dict(child or {})
        settings = settings[parent]
    settings[last] = value


def _told(error: ValidationError, name: str, root: Any) -> UserError:
    """All that is wrong with settings of the type `root`, called `name`."""
    found = error.errors()
    # Items that are wrong are left out before the rest is counted, so their list then seems too short.
    places = {details["loc"][:depth] for details in found for depth in range(len(details["loc"]))}
    problems = [
        _sentence(details, root)
        for details in found
        if details["type"] != "too_short" or details["loc"] not in places
    ]
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return UserError(f"{name} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))


def _sentence(details: Any, root: Any) -> str:
    """One line for one pydantic error: where, what, and for an unknown key the nearest known one."""
    location = [str(part) for part in details["loc"]]
    known, path = _walk(location, root)
    where = ".".join(path) or "config"
    if where in GONE:
        return f"{where}: there is no such key any more: {GONE[where]}."
    if details["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
        return (
            f"{where}: unknown key; the nearest known key is '{nearest[0]}'."
            if nearest
            else f"{where}: unknown key."
        )
    if details["type"] == "missing":
        return f"{where}: required, and not given."
    got = details.get("input")
    shown = "" if isinstance(got, (Mapping, BaseModel)) else f" (got {got!r})"
    if details["type"] == "value_error":  # one of our own sentences
        said = str(details["ctx"]["error"])
        return f"{where}: {said}{shown}." if path else f"{said}{shown}."
    return f"{where}: {details['msg'][0].lower()}{details['msg'][1:]}{shown}."


def _walk(location: Sequence[str], root: Any) -> tuple[list[str], list[str]]:
    """Follow a pydantic location: the keys known beside its last part, and the path without union tags."""
    annotation = root
    known: list[str] = []
    path: list[str] = []
    for part in location:
        if get_origin(annotation) is dict:  # of names that a user chose
            path.append(part)
            known, annotation = [], get_args(annotation)[1]
            continue
        members = _models(annotation)
        tagged = [model for model in members if part in _tags(model)]
        if tagged and not any(part in model.model_fields for model in members):
            annotation = tagged[0]  # pydantic names the chosen member of a union in the location
            continue
        path.append(part)
        known = [key for model in members for key in model.model_fields]
        fields = [model.model_fields[part] for model in members if part in model.model_fields]
        annotation = fields[0].annotation if fields else None
    return known, path


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that an annotation admits: itself, or the members of a union."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for member in get_args(annotation) for model in _models(member)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    """What names this class in a location: its class name, and its `kind` where it has one."""
    kind = model.model_fields.get("kind")
    return (model.__name__, *(get_args(kind.annotation) if kind else ()))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
