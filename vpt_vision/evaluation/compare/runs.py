"""The runs of a comparison: where each lies, how long it is, and what it measured. Nothing is done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from vpt_vision.config import RunConfig
from vpt_vision.data import build_source
from vpt_vision.evaluation.compare.label_budget import LabelBudget, fine_tune_on_labels, linear_on_labels
from vpt_vision.evaluation.compare.shared import Work
from vpt_vision.evaluation.compare.spec import ArmConfig, ComparisonSpec, folder_name, run_config
from vpt_vision.evaluation.probes import EvaluationConfig, probe
from vpt_vision.evaluation.stored import Results, remembered
from vpt_vision.export import load_backbone_file
from vpt_vision.learner import Backbone
from vpt_vision.training.checkpoint import checkpoint_paths
from vpt_vision.training.log import METRICS_FILE
from vpt_vision.training.run_folder import BACKBONE_FILE, CHECKPOINT_FOLDER, claim
from vpt_vision.training.trainer import Trainer, resolve_device

_CONSOLE = Console(stderr=True)
LABELS = "labels"  # name of the results of spending the feedback's labels directly


class Stopped(Exception):
    """A signal ended a run early; what is done stays done."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Measured:
    """One backbone and what it cost."""

    results: Results
    steps: int  # learner updates since the start
    images: int  # source images the learner saw
    seconds: float  # of training


class Runs:
    """What a spec asks for, as pieces of work: each trains and measures, or reads back what is done."""

    def __init__(self, spec: ComparisonSpec) -> None:
        self.spec = spec
        self.folder = Path(spec.output)
        self.budget_arm = spec.arm(spec.primary.arm)
        self._fingerprints: dict[str, str] = {}  # of starts, by backbone and seed

    def trained(
        self, arm: ArmConfig, chosen: Sequence[str], steps: int, seed: int, *, validation: bool = False
    ) -> Work[Measured]:
        """Train `arm` for `steps` updates by `seed`, unless that is done, and probe it.

        With `validation` the probes are judged on the images that settings are picked by, and the run
        lies apart from those that are judged on the test images. A signal that ends the run raises
        `Stopped`.
        """
        config = self.config(arm, chosen, steps, seed, validation=validation)
        return Work(config.output, lambda: self._train(config, arm.name, labels=not validation))

    def _train(self, config: RunConfig, name: str, *, labels: bool) -> Measured:
        run, steps, seed = Path(config.output), config.steps, config.seed
        finished = checkpoint_paths(claim(config) / CHECKPOINT_FOLDER)
        if not finished or finished[-1].name != f"step_{steps:08d}.pt":
            _CONSOLE.print(f"{name}, seed {seed}, {steps} steps", markup=False, highlight=False, style="bold")
            result = Trainer(config).fit()
            if result.interrupted is not None:
                raise Stopped(result.interrupted)
        load = _Once(lambda: load_backbone_file(run / BACKBONE_FILE).to(resolve_device(config.device)).eval())
        results = self._probed(run / "probes.pt", load, config)
        if labels:
            results |= self._on_labels(run / "labels.pt", load, seed)
        return Measured(results, steps, steps * config.batch_size, _training_seconds(run))

    def config(
        self, arm: ArmConfig, chosen: Sequence[str], steps: int, seed: int, *, validation: bool = False
    ) -> RunConfig:
        """The config of one run; the same arm, steps and seed are one run, whatever they are matched by."""
        assert self.spec.selection is not None or not validation
        kind = "selection" if validation else "runs"
        place = self.folder / kind / folder_name(arm.name, chosen) / f"steps-{steps}" / f"seed-{seed}"
        more = [f"output={json.dumps(str(place))}", f"steps={steps}", f"seed={seed}"]
        config = run_config(self.spec, arm, chosen, *more)
        if validation and self.spec.selection is not None and config.evaluation is not None:
            judged = config.evaluation.model_copy(update={"test": self.spec.selection.validation})
            config = config.model_copy(update={"evaluation": judged})
        return config

    def start_key(self, arm: ArmConfig, seed: int) -> str:
        """Hash of what `arm` starts from by `seed`: what begins alike has one key."""
        return self._start_fingerprint(run_config(self.spec, arm, arm.candidates()[0], f"seed={seed}"))

    def start(self, arm: ArmConfig, seed: int) -> Work[Measured]:
        """Probe what `arm` starts from by `seed`: once for all arms and seeds that share it."""
        config = run_config(self.spec, arm, arm.candidates()[0], f"seed={seed}")
        place = self.folder / "start" / self._start_fingerprint(config)

        def measure() -> Measured:
            load = _Once(lambda: self._start(config))
            results = self._probed(place / "probes.pt", load, config)
            results |= self._on_labels(place / f"labels-{seed}.pt", load, seed)
            return Measured(results, 0, 0, 0.0)

        return Work(str(place), measure)

    def fine_tuned(self, chosen: Sequence[str], seed: int) -> Work[Measured]:
        """Fine-tune the primary arm's start on its feedback's labels; see `fine_tune_on_labels`."""
        assert self.spec.controls is not None
        controls = self.spec.controls
        config = run_config(self.spec, self.budget_arm, chosen, f"seed={seed}")
        place = self.folder / "start" / self._start_fingerprint(config) / f"fine-tuned-{seed}.pt"

        def measure() -> Results:
            backbone, own = fine_tune_on_labels(self._start(config), LabelBudget.of(config), controls)
            return {**self._probe(backbone, config), LABELS: own}

        asked = {
            **self._asked(config),
            **self._budget_asked(config),
            "controls": controls.model_dump(),
        }
        return Work(str(place), lambda: Measured(remembered(place, asked, measure), 0, 0, 0.0))

    def fingerprint(self, arm: ArmConfig, chosen: Sequence[str]) -> str:
        """Hash of an arm's config, whatever its seed, its steps, where it lies and how it logs."""
        left_out = {"seed", "steps", "output", "checkpoint", "log"}
        told = self.config(arm, chosen, 1, 0).model_dump_json(exclude=left_out)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def _start_fingerprint(self, config: RunConfig) -> str:
        key = json.dumps([config.learner.backbone.model_dump(mode="json"), config.seed])
        if key not in self._fingerprints:
            self._fingerprints[key] = _fingerprint(self._start(config))
        return self._fingerprints[key]

    def _start(self, config: RunConfig) -> Backbone:
        torch.manual_seed(config.seed)  # as the trainer does: a start at random is then its own
        return Backbone(config.learner.backbone).to(resolve_device(config.device)).eval()

    def _probed(self, path: Path, load: _Once, config: RunConfig) -> Results:
        return remembered(path, self._asked(config), lambda: self._probe(load(), config))

    def _on_labels(self, path: Path, load: _Once, seed: int) -> Results:
        if self.spec.controls is None:
            return {}
        config = run_config(self.spec, self.budget_arm, (), f"seed={seed}")
        return remembered(
            path,
            self._budget_asked(config),
            lambda: {LABELS: linear_on_labels(load(), LabelBudget.of(config))},
        )

    def _probe(self, backbone: Backbone, config: RunConfig) -> Results:
        found = probe(
            backbone,
            _evaluation(config),
            self.spec.probes,
            renderer=config.renderer(),
        )
        return {name: results[0] for name, results in found.items()}

    def _asked(self, config: RunConfig) -> dict[str, object]:
        return {
            "evaluation": _evaluation(config).model_dump(mode="json"),
            "probes": list(self.spec.probes),
            "data": config.data.model_dump(mode="json", exclude={"train", "workers"}),
        }

    def _budget_asked(self, config: RunConfig) -> dict[str, object]:
        feedback = None if config.feedback is None else config.feedback.model_dump(mode="json")
        return {**self._asked(config), "feedback": feedback, "seed": config.seed}

    def labels(self) -> int:
        """How many labels the controls have to spend."""
        config = run_config(self.spec, self.budget_arm, (), f"seed={self.spec.seeds[0]}")
        return LabelBudget.of(config).labels

    def check(self) -> None:
        """Refuse now what would fail only after hours of training.

        Raises:
            UserError: a source cannot be opened, an image size does not fit, or the controls have no labels.
        """
        for arm in self.spec.arms:
            config = self.config(arm, arm.candidates()[0], 1, self.spec.seeds[0])
            evaluation = _evaluation(config)
            self._start(config).grid(evaluation.image_size)
            for source in (evaluation.train, evaluation.test):
                build_source(source)
        if self.spec.controls is not None:
            LabelBudget.of(run_config(self.spec, self.budget_arm, (), f"seed={self.spec.seeds[0]}"))


class _Once:
    """A backbone that is loaded when it is first needed, and then kept."""

    def __init__(self, load: Callable[[], Backbone]) -> None:
        self._load = load
        self._loaded: Backbone | None = None

    def __call__(self) -> Backbone:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded


def _evaluation(config: RunConfig) -> EvaluationConfig:
    assert config.evaluation is not None, "load_spec refuses configs without it"
    return config.evaluation


def _training_seconds(run: Path) -> float:
    """Seconds of training as the run's last line tells them."""
    last = (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["training_seconds"])


def _fingerprint(backbone: Backbone) -> str:
    """Hash of a backbone's architecture and weights."""
    digest = hashlib.sha256(json.dumps(backbone.config.model_dump(mode="json"), sort_keys=True).encode())
    for name, tensor in sorted(backbone.vit.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
