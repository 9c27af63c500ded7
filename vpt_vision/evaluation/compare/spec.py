"""What a comparison compares: one YAML file, checked as a whole before anything is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vpt_vision.config import RunConfig, load_as, load_config
from vpt_vision.data import SourceConfig, share_images
from vpt_vision.errors import UserError
from vpt_vision.evaluation.dense import DenseConfig
from vpt_vision.evaluation.probes import EvaluationConfig, Probe
from vpt_vision.evaluation.revisited import RetrievalConfig
from vpt_vision.schema import Config

START = "start"  # the row of step 0
FINE_TUNED = "fine-tuned on the feedback's labels"  # the row of the control

Match = Literal["updates", "seconds", "images"]
MATCHED = {
    "updates": "equal learner updates",
    "seconds": "equal seconds of training",
    "images": "equal images",
}


class ArmConfig(Config):
    """One side of a comparison."""

    name: str = Field(
        pattern=r"^\w[\w .,+×=-]*$", description="as tables and sentences call it: lower case, no article"
    )
    config: str | None = Field(None, description="its run config; left out, the comparison's")
    overrides: dict[str, Any] = Field({}, description="changes to it, by dotted key")
    choose: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        {}, description="dotted keys, each with values of which one is picked on the validation images"
    )

    def candidates(self) -> list[tuple[str, ...]]:
        """Every combination of what is to be chosen, as overrides; one empty one where there is nothing."""
        return [
            tuple(_as_words(dict(zip(self.choose, values, strict=True))))
            for values in product(*self.choose.values())
        ]


class SelectionConfig(Config):
    """How settings are picked: on images and by seeds that the comparison itself does not use."""

    validation: SourceConfig = Field(
        description="labelled images, none of them among the test images or those that the probes learn from"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="seeds of the runs that candidates are judged by, none of the comparison's"
    )


class PrimaryConfig(Config):
    """The one question that the comparison answers, named before it is run."""

    arm: str = Field(description="the arm asked about")
    against: str | None = Field(None, description="the arm it is held against; left out, `reference`")
    metric: str = Field(description="probe.figure, such as logistic.cross_entropy")
    match: Match = Field(description="at which budget")


class FineTuneConfig(Config):
    """Full fine-tuning on the feedback's labels; its held-out split picks learning rate and epoch."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 3e-4, 1e-3), min_length=1, description="peak learning rates of AdamW that are tried"
    )
    epochs: int = Field(20, ge=1, description="passes over the feedback's examples")
    batch_size: int = Field(64, ge=2, description="images per step")
    layer_decay: float = Field(0.75, gt=0, le=1, description="factor on the learning rate, block by block")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")


class ComparisonSpec(Config):
    """Everything a comparison depends on."""

    output: str = Field(description="folder of the comparison: its runs, tables, plots and page")
    config: str = Field(description="run config of every arm; a relative path starts at the spec's folder")
    overrides: dict[str, Any] = Field({}, description="changes to it for every arm, by dotted key")
    arms: tuple[ArmConfig, ...] = Field(min_length=2, description="what is compared")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=2, description="each trains every arm once; below 6 the sign-flip test cannot reach 5 %"
    )
    match: tuple[Match, ...] = Field(
        ("updates",), min_length=1, description="budgets at which arms are compared: updates, seconds, images"
    )
    reference: str = Field(description="the arm whose steps, seconds and images are the budget")
    primary: PrimaryConfig
    probes: tuple[Probe, ...] = Field(
        ("knn", "logistic"), min_length=1, description="what every row is judged by"
    )
    controls: FineTuneConfig | None = Field(
        FineTuneConfig(),
        description="spend the labels that the primary arm's feedback uses directly: linear probes and full "
        "fine-tuning; null leaves that out",
    )
    selection: SelectionConfig | None = Field(None, description="needed where an arm has settings to choose")

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonSpec:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or {START, FINE_TUNED} & set(names):
            raise ValueError(f"arms: names must differ, and '{START}' and '{FINE_TUNED}' are taken")
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.match)) < len(self.match):
            raise ValueError("seeds and match: each may stand there once")
        for where, name in (("reference", self.reference), ("primary.arm", self.primary.arm)):
            if name not in names:
                raise ValueError(f"{where}: '{name}' is none of the arms: {', '.join(names)}")
        if self.against == self.primary.arm or self.against not in (*names, START):
            raise ValueError(f"primary.against: '{self.against}' is no other arm and not '{START}'")
        if self.primary.match not in self.match:
            raise ValueError(f"primary.match: {self.primary.match} is not among match")
        probe, _, figure = self.primary.metric.partition(".")
        if probe not in self.probes or not figure:
            raise ValueError(
                f"primary.metric: '{self.primary.metric}' should be a probe of {', '.join(self.probes)}, a "
                f"dot and its figure, such as {self.probes[0]}.accuracy"
            )
        folders = [folder_name(arm.name, chosen) for arm in self.arms for chosen in arm.candidates()]
        if len(set(folders)) < len(folders):
            raise ValueError(
                "arms: two names, with what is chosen, would have one folder; change a letter or digit of one"
            )
        if any(arm.choose for arm in self.arms):
            if self.selection is None:
                raise ValueError(
                    "selection: an arm has settings to choose, so name seeds and validation images"
                )
            if set(self.selection.seeds) & set(self.seeds):
                raise ValueError("selection.seeds: none may be a seed of the comparison")
        self._check_overrides()
        return self

    def _check_overrides(self) -> None:
        """Refuse keys that the comparison would set over."""
        changed = {"overrides": set(self.overrides)}
        changed |= {f"arm '{arm.name}'": {*arm.overrides, *arm.choose} for arm in self.arms}
        for where, keys in changed.items():
            if keys & {"seed", "output"}:
                raise ValueError(
                    f"{where}: seed and output are the comparison's own, by its keys of that name"
                )
        for arm in self.arms:
            judged = [key for key in arm.choose if key.partition(".")[0] == "evaluation"]
            if judged:
                raise ValueError(
                    f"arm '{arm.name}': {judged[0]} decides how it is judged and cannot be chosen"
                )
            if "steps" in arm.choose or ("steps" in arm.overrides and arm.name != self.reference):
                raise ValueError(
                    f"arm '{arm.name}': steps are those of '{self.reference}', and what match makes of them"
                )

    @property
    def against(self) -> str:
        """The arm that the primary question holds its arm against."""
        return self.primary.against or self.reference

    def arm(self, name: str) -> ArmConfig:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


def folder_name(name: str, chosen: Sequence[str]) -> str:
    """What the folder of an arm of that name with the settings `chosen` is called."""
    return re.sub(r"[^\w.=-]", "-", "-".join([name, *chosen]))


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> ComparisonSpec:
    """Read and check a spec, and every config that it asks for.

    Raises:
        UserError: naming what is wrong in the spec or in an arm's config; where arms are not judged on the
            same images; or where settings would be picked on the test images.
    """
    spec = load_as(ComparisonSpec, path, overrides)
    folder = Path(path).parent
    arms = tuple(
        arm.model_copy(update={"config": _beside(folder, arm.config or spec.config)}) for arm in spec.arms
    )
    spec = spec.model_copy(update={"config": _beside(folder, spec.config), "arms": arms})
    evaluations = {}
    for arm in spec.arms:
        for candidate in arm.candidates():
            evaluations[arm.name] = _checked(spec, arm, candidate)
    first, *others = evaluations.items()
    for name, evaluation in others:
        if evaluation != first[1]:
            raise UserError(
                f"{path}: arms '{first[0]}' and '{name}' have different 'evaluation' parts, so their test "
                "images cannot be paired: give them one."
            )
    if spec.selection is not None:
        _check_validation(path, spec.selection.validation, first[1], spec.primary)
    return spec


def run_config(spec: ComparisonSpec, arm: ArmConfig, chosen: Sequence[str] = (), *more: str) -> RunConfig:
    """The config of a run of `arm` with its chosen settings and `more` overrides."""
    assert arm.config is not None, "load_spec fills it in"
    changes = [*_as_words(spec.overrides), *_as_words(arm.overrides), *chosen, *more]
    return load_config(arm.config, changes)


def _as_words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line gives them."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def _checked(spec: ComparisonSpec, arm: ArmConfig, candidate: Sequence[str]) -> EvaluationConfig:
    try:
        config = run_config(spec, arm, candidate)
    except UserError as error:
        raise UserError(f"arm '{arm.name}': {error}") from error
    if config.evaluation is None:
        raise UserError(
            f"arm '{arm.name}': its config has no 'evaluation' part, which names the test images."
        )
    return config.evaluation


def _check_validation(
    path: str | Path, validation: SourceConfig, evaluation: EvaluationConfig, primary: PrimaryConfig
) -> None:
    """Refuse validation images that are test images, or that the probe which judges them learns from."""
    probe = primary.metric.partition(".")[0]
    own = getattr(evaluation, probe, None)
    test, train = ("evaluation.test", evaluation.test), ("evaluation.train", evaluation.train)
    if isinstance(own, RetrievalConfig) and own.ground_truth is not None:
        raise UserError(
            f"{path}: evaluation.retrieval.ground_truth names the test queries, and settings are never "
            "picked on them: pick by another metric."
        )
    if isinstance(own, DenseConfig):
        if own.test is not None:
            raise UserError(
                f"{path}: evaluation.{probe}.test would stand in for selection.validation, and settings are "
                "never picked on the test images: name them as evaluation.test."
            )
        if own.train is not None:
            train = (f"evaluation.{probe}.train", own.train)
    reasons = ((test, "settings are never picked on it"), (train, "the probe would know the answers"))
    for (name, source), reason in reasons:
        if share_images(validation, source):
            raise UserError(
                f"{path}: selection.validation shows images of {name}, and {reason}: name others, such as "
                "another split (another size or seed shows the same ones)."
            )


def _beside(folder: Path, name: str) -> str:
    return str(folder / name)
