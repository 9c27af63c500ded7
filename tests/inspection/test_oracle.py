import itertools
import json
import math

import numpy as np
import pytest
import torch

from vpt_vision import UserError
from vpt_vision.cli import main
from vpt_vision.designers import FixedDesigner, LearnedDesigner, Refined
from vpt_vision.evaluation.result import Interval
from vpt_vision.feedback import BeyondChance, evaluating
from vpt_vision.inspection import oracle as oracle_module
from vpt_vision.inspection.branch import Branch
from vpt_vision.inspection.oracle import CLIMBED, WHOLE, Answer, Asked, ask_oracle
from vpt_vision.inspection.oracle_report import OracleReport, verdict
from vpt_vision.task import Keys
from vpt_vision.training.schedules import scheduled_values
from vpt_vision.value import Setting
from vpt_vision.value.known import KnownPolicy
from vpt_vision.value.objective import Objective
from vpt_vision.value.oracle import Ranking

ASKED = Asked(batches=2, permutations=4, steps=2, repeats=2)


@pytest.fixture(scope="module")
def config(run):
    from vpt_vision import load_config

    return load_config(run / "config.yaml")


@pytest.fixture(scope="module")
def answered(config):
    branch = Branch(config)

    def later():
        branch.advance(2, FixedDesigner(config.recipe, 8))
        return branch

    return ask_oracle(branch, ASKED, ("crops", "photometrics"), later=later)


def test_every_policy_is_asked_about_at_every_moment(answered):
    assert [moment.step for moment in answered.moments] == [0, 2]
    for moment in answered.moments:
        asked = [(answer.task, answer.policy.surface, answer.expected) for answer in moment.answers]
        assert sorted(asked) == sorted(
            (task, surface, sign)
            for task in ("classes", "layers")
            for surface in ("crops", "photometrics")
            for sign in (1, -1)
        )
        for answer in moment.answers:
            assert list(answer.rankings) == ["dino", "ibot", "koleo", WHOLE, CLIMBED]
            assert all(math.isfinite(ranking.z) for ranking in answer.rankings.values())
            assert answer.outcome.low <= answer.outcome.mean <= answer.outcome.high


def test_the_whole_is_the_weighted_sum_of_the_terms(answered):
    for answer in answered.moments[1].answers:
        gains = {term: ranking.gain for term, ranking in answer.rankings.items()}
        weighted = gains["dino"] + gains["ibot"] + 0.1 * gains["koleo"]
        assert gains[WHOLE] == pytest.approx(weighted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("normalise", ["running", "cosine", "none"])
def test_what_is_climbed_is_the_value_steps_objective(config, normalise):
    """That of the value step on the same batches: of running sizes, those of the recipe's tasks."""
    value = config.value.model_copy(update={"normalise": normalise})
    config = config.model_copy(update={"value": value})
    branch = Branch(config)
    batches = branch.batches(3)
    designers = [FixedDesigner(config.recipe, 8), LearnedDesigner(config.designer, config.recipe, 8)]
    torch.nn.init.normal_(designers[1].heads["crop_fields"].weight)
    tail = branch.backbone.tail_parameters(1)
    directions = [{name: torch.randn_like(p) for name, p in tail.items()} for _ in range(4)]
    measured = [
        oracle_module._values(branch, designer, batches, {"classes": directions})["classes"]
        for designer in designers
    ]
    found = oracle_module._rankings(branch, measured[1], measured[0])[CLIMBED]
    objective = Objective(value, branch.learner.config.weights, exact=True)
    temperature = scheduled_values(config.schedule, 0, config.steps).teacher_temperature
    with evaluating(branch.learner), torch.no_grad():
        given = []
        for designer, batch in itertools.product(designers, batches):
            task = designer(batch.images, Keys(config.seed, 0, batch.index))
            refined = Refined(task, branch.trainer.renderer(batch.images, task))
            setting = Setting(branch.learner, branch.trainer.renderer, batch.images, temperature, 1)
            given.append((setting, refined, directions[0]))
        of_recipe = [objective._values(*each) for each in given[:3]]
        squares = {t: torch.stack([v[t].square() for v in of_recipe]).mean() for t in of_recipe[0]}
        objective.scale.load_state_dict({"mean_square": squares, "count": 1})
        objective.scale.decay = 0.0
        goals = [objective.measure(*each).objective.item() for each in given]
    gain = np.mean(goals[3:]) - np.mean(goals[:3])
    assert found.gain == pytest.approx(gain, rel=1e-3, abs=1e-5)


def test_the_recipe_against_itself_gains_nothing(config, monkeypatch):
    """No ranking, no outcome: what is compared sees the same images, random numbers and start."""

    def itself(recipe, patch_size, source, surfaces):
        policy = KnownPolicy("crops", "the recipe again", FixedDesigner(recipe, patch_size), 1)
        return [policy], []

    monkeypatch.setattr(oracle_module, "known_policies", itself)
    oracle = ask_oracle(Branch(config), ASKED)
    for answer in oracle.moments[0].answers:
        assert all(ranking.gain == 0 and ranking.z == 0 for ranking in answer.rankings.values())
        assert abs(answer.outcome.mean) < 1e-4  # heads are fitted to a tolerance


def test_outcomes_are_of_real_steps_and_best_heads(config):
    """Against the same steps taken here, and a head fitted here."""
    from vpt_vision.feedback import all_features

    branch = Branch(config)
    designers = [FixedDesigner(config.recipe, 8), branch.designer]
    tasks = {name: entry.task for name, entry in branch.feedback_gradient.feedback.tasks.items()}
    branch.feedback_gradient.fit(branch.backbone)
    losses = oracle_module._outcomes(branch, designers, tasks, ASKED, lambda arm: None)
    assert losses["classes"].shape == (2, 2, 4 + 3)  # 60 meta and 40 held-out examples, in groups of 16
    batches = branch.batches(4)
    other = Branch(config)
    task = other.feedback_gradient.feedback.tasks["classes"].task
    for batch in batches[2:]:
        other.take(batch, designers[0])
    task.fit(all_features(task, other.backbone, "head"))
    with torch.no_grad():
        features = all_features(task, other.backbone, "heldout")
        expected = task.loss(features, "heldout", torch.arange(40)).item()
    found = losses["classes"][0, 1, 4:]  # groups of 16, 16 and 8
    assert np.average(found, weights=[16, 16, 8]) == pytest.approx(expected, rel=1e-3)


def test_a_fall_of_loss_is_above_0(config, monkeypatch):
    """Losses lower than the recipe's by 0.5 in every run and group of examples but for some noise."""

    def outcomes(branch, designers, tasks, asked, progress):
        recipe = 2 + np.random.default_rng(0).normal(size=(asked.repeats, 7))
        noise = 0.01 * np.random.default_rng(1).normal(size=recipe.shape)
        return {name: np.stack([recipe, *([recipe - 0.5 + noise] * (len(designers) - 1))]) for name in tasks}

    monkeypatch.setattr(oracle_module, "_outcomes", outcomes)
    for answer in ask_oracle(Branch(config), ASKED, ("photometrics",)).moments[0].answers:
        assert answer.outcome.mean == pytest.approx(0.5, abs=0.02)
        assert 0 < answer.outcome.low < answer.outcome.high


def test_outcomes_are_of_the_labels_own_loss_whatever_u_leaves_out(config, monkeypatch):
    judged = []

    def outcomes(branch, designers, tasks, asked, progress):
        judged.extend(tasks.values())
        return {name: np.zeros((len(designers), asked.repeats, 7)) for name in tasks}

    monkeypatch.setattr(oracle_module, "_outcomes", outcomes)
    beyond = config.model_copy(update={"feedback": config.feedback.model_copy(update={"null_heads": 2})})
    branch = Branch(beyond)
    ask_oracle(branch, ASKED, ("photometrics",))
    tasks = [entry.task for entry in branch.feedback_gradient.feedback.tasks.values()]
    assert all(isinstance(task, BeyondChance) for task in tasks)
    assert judged == [task.task for task in tasks]


def test_asking_leaves_the_branch_as_it_was(config):
    branch = Branch(config)
    before = {name: value.clone() for name, value in branch.learner.state_dict().items()}
    ask_oracle(branch, ASKED, ("photometrics",))
    assert branch.step == 0
    assert all(torch.equal(before[name], value) for name, value in branch.learner.state_dict().items())


def answer(z, outcome, expected=1, climbed=None, **terms):
    given = {**terms, WHOLE: z, CLIMBED: z if climbed is None else climbed}
    rankings = {term: Ranking(value, 0.0, 1.0) for term, value in given.items()}
    interval = None if outcome is None else Interval(outcome, outcome - 1, outcome + 1)
    return Answer(0, "classes", KnownPolicy("crops", "p", None, 1), expected, rankings, interval)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (answer(3, 2), "agree: better"),
        (answer(-3, -2, -1), "agree: worse"),
        (answer(3, -2, -1), "DISAGREE: value says better, the runs came out worse"),
        (answer(0.5, 2), "DISAGREE: value is inside the null, the runs came out better"),
        (answer(3, 0.5), "value says better; the runs do not tell"),
        (answer(1, 0.5), "neither tells"),
        (answer(3, 2, -1), "agree: better; taken for bad, it is not"),
        (answer(3, 2, dino=4, ibot=-5), "agree: better; ibot against the runs"),
        (answer(3, None), "ranked as known"),
        (answer(-3, None), "AGAINST what is known: value says worse"),
        (answer(-3, None, 0), "value says worse"),
        (answer(1, None), "inside the null"),
        (answer(3, None, climbed=-3), "ranked as known; what a designer climbs says worse"),
        (answer(1, 2, climbed=1.9), "DISAGREE: value is inside the null, the runs came out better"),
        (answer(-3, -2, -1, climbed=1), "agree: worse; what a designer climbs is inside the null"),
    ],
)
def test_verdicts(given, said):
    assert verdict(given) == said


def test_a_gain_below_0_that_the_null_lies_further_below_is_told():
    given = answer(3, None)
    given.rankings[WHOLE] = given.rankings[CLIMBED] = Ranking(-1.0, -4.0, 1.0)
    said = verdict(given)
    assert said == "ranked as known; the gain itself, which a designer climbs, has the other sign"


def test_tables_say_what_was_answered(answered):
    told = OracleReport(answered).markdown()
    for word in (
        "## classes, step 0",
        "## layers, step 2",
        "crops at the object",
        "ibot, z",
        "| bad |",
    ):
        assert word in told
    for moment in answered.moments:
        for each in moment.answers:
            assert verdict(each) in told


def test_the_command(run, tmp_path, capsys):
    table = tmp_path / "tables" / "oracle.md"  # a folder that is not there yet
    config = str(run / "config.yaml")
    options = ["--surfaces", "photometrics", "--batches", "1", "--permutations", "2", "--steps", "0"]
    command = [
        "value",
        "oracle",
        config,
        *options,
        "--checkpoint",
        str(run),
        "--markdown",
        str(table),
        "--json",
    ]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [moment["step"] for moment in told["moments"]] == [0, 30]
    assert told["moments"][0]["answers"][0]["outcome"] is None
    assert "colour never changed" in table.read_text()
    adamw = ["value.preconditioner=adamw", "--checkpoint", str(run)]
    assert main(["value", "oracle", config, *options, *adamw, "--markdown", str(table)]) == 0
    titles = [line for line in table.read_text().splitlines() if line.startswith("## classes")]
    assert [title.split("; ")[-1] for title in titles] == ["P: identity", "P: adamw"]
    colour = ["feedback.tasks.classes.source.goal=colour", "--middle", "0"]
    assert main(["value", "oracle", config, *options, *colour, "--json"]) == 0
    (moment,) = json.loads(capsys.readouterr().out.splitlines()[-1])["moments"]
    known = {(entry["task"], entry["policy"]): entry["known"] for entry in moment["answers"]}
    assert known["classes", "colour never changed"] == "good"
    assert known["layers", "colour never changed"] == "bad"


def test_recipes_are_asked_about_by_name(run, capsys):
    config = str(run / "config.yaml")
    few = ["--batches", "1", "--permutations", "2", "--steps", "0", "--middle", "0"]
    grey = "all grey: recipe.photometrics.grey_p=1 'recipe.photometrics.global_solarize_p=[0, 0]'"
    same = "the same: recipe.photometrics.hue=0.1"
    command = ["value", "oracle", config, *few, "--surfaces", "--good", same, "--bad", grey, "--json"]
    assert main(command) == 0
    (moment,) = json.loads(capsys.readouterr().out.splitlines()[-1])["moments"]
    answers = {(entry["policy"], entry["known"]): entry for entry in moment["answers"]}
    assert {name for name, _ in answers} == {"all grey", "the same"}
    assert answers["the same", "good"]["value"][WHOLE]["gain"] == 0  # hue's range is 0.1 by default
    assert answers["all grey", "bad"]["value"][WHOLE]["gain"] != 0
    for said in ("no name", "name:", "lr: schedule.learning_rate=1"):
        assert main(["value", "oracle", config, "--good", said]) == 2
        assert "changes to keys of 'recipe'" in capsys.readouterr().err


def test_bad_input_is_told(run, tmp_path, capsys, config, monkeypatch):
    path = str(run / "config.yaml")
    assert main(["value", "oracle", path, "--repeats", "1"]) == 2
    assert "raise --repeats" in capsys.readouterr().err
    with monkeypatch.context() as unasked:  # a checkpoint that is not there is told before the work
        unasked.setattr("vpt_vision.commands.value.ask_oracle", lambda *args, **kwargs: pytest.fail("asked"))
        assert main(["value", "oracle", path, "--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "none.pt does not exist" in capsys.readouterr().err
    narrow = "learner.backbone.options={patch_size: 8, embed_dim: 16, depth: 3, num_heads: 2, img_size: 24}"
    assert (
        main(
            [
                "value",
                "oracle",
                path,
                narrow,
                "--checkpoint",
                str(run),
                "--surfaces",
                "crops",
                "--steps",
                "0",
                "--permutations",
                "2",
                "--batches",
                "1",
            ]
        )
        == 2
    )
    assert "differs from the config's" in capsys.readouterr().err
    with pytest.raises(UserError, match="knows no good or bad task here: mask"):
        ask_oracle(Branch(config), ASKED, ("mask_ratio",))
