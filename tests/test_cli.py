"""The command line as a user types it: what it prints, and one sentence with code 2 for bad input."""

import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from vpt_vision.cli import main


@pytest.fixture
def config_file(tiny_settings, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return str(path)


@pytest.fixture
def fails(capsys):
    """Run a command that must fail, and return its one sentence."""

    def run(*arguments):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.splitlines()[-1].startswith(("vpt: ", "  "))
        assert "Traceback" not in told
        return told

    return run


@pytest.mark.parametrize(
    "command",
    [
        *(
            [],
            ["train"],
            ["config"],
            ["eval"],
            ["eval", "knn"],
            ["eval", "few-shot"],
            ["value"],
            ["value", "probe"],
            ["demo"],
            ["report"],
        ),
        *(["data"], ["data", "shard"], ["data", "check"], ["data", "show"]),
    ],
)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    assert "example: vpt " in " ".join(capsys.readouterr().out.split())


def test_config_prints_what_results(config_file, capsys):
    assert main(["config", config_file, "seed=4"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed"] == 4
    assert printed["schedule"]["learning_rate"] == 1e-3


def test_train_then_probe_the_run_its_checkpoint_and_its_backbone(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", config_file, "steps=2"]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2]
    capsys.readouterr()
    accuracies = set()
    for model in (run, next((run / "checkpoints").glob("*.pt")), run / "backbone.safetensors"):
        assert main(["eval", "knn", str(model), "--json"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["results"][0]["test_images"] == 60
        accuracies.add(result["accuracy"])
    assert len(accuracies) == 1
    for probe in ("logistic", "linear"):
        assert main(["eval", probe, str(run), "--json", "evaluation.test.count=40"]) == 0
        told, last = capsys.readouterr().out.splitlines()
        check_linear(told, json.loads(last))


def check_linear(told, result):
    assert f"accuracy {result['accuracy']:.1%} [" in told
    assert f"cross-entropy {result['cross_entropy']:.3f} [" in told
    assert 0 <= result["accuracy"] <= 1
    assert result["cross_entropy"] > 0
    assert result["results"][0]["test_images"] == 40


def test_every_probe_of_classes_by_name(config_file, capsys, caplog):
    base = ["vit_tiny_patch16_224", "--weights", "none", "--config", config_file, "--json"]
    base += ["evaluation.image_size=32", "evaluation.few_shot.shots=[1,2]", "evaluation.few_shot.draws=1"]
    figures = {"few-shot": "accuracy", "retrieval": "map"}
    for probe, figure in figures.items():
        caplog.clear()
        assert main(["eval", probe, *base]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert 0 < result[figure] < 1
        assert (
            result["results"][0][f"{figure}_low"] <= result[figure] <= result["results"][0][f"{figure}_high"]
        )
        first = probe == "few-shot"
        how = "a second" if first else "from the cache"
        assert [how in line.message for line in caplog.records] == [True, True]
    assert main(["eval", "retrieval", *base, "--no-cache"]) == 0
    assert caplog.records[-1].message.endswith("images a second")


def test_probes_of_pixels(config_file, capsys, caplog):
    base = ["vit_tiny_patch16_224", "--weights", "none", "--config", config_file, "--json"]
    for probe, figure in {"segmentation": "miou", "depth": "rmse"}.items():
        small = [f"evaluation.{probe}.{key}" for key in ("image_size=32", "epochs=1", "batch_size=64")]
        assert main(["eval", probe, *base, *small]) == 0
        told, last = capsys.readouterr().out.splitlines()
        result = json.loads(last)
        assert result[figure] > 0
        assert result["results"][0]["test_images"] == 60
        assert result["results"][0]["probe"] in told
        windows = next(line.message for line in caplog.records if line.message.startswith(f"{probe}: "))
        assert "windows of 32 pixels (4 patches), 21 pixels apart: " in windows and "60 test" in windows
    caplog.clear()
    small = ["--no-cache", "evaluation.depth.epochs=1", "evaluation.image_size=40"]
    assert main(["eval", "depth", *base, *small]) == 0
    assert "windows of 32 pixels (4 patches)" in caplog.records[0].message


def test_any_timm_model_is_probed(config_file, capsys):
    command = ["eval", "logistic", "resnet10t", "--weights", "none", "--config", config_file, "--json"]
    assert main([*command, "evaluation.image_size=32"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cross_entropy"] > 0


def test_a_bare_timm_model_is_probed(config_file, capsys):
    command = ["eval", "knn", "vit_tiny_patch16_224", "--weights", "none", "--config", config_file, "--json"]
    assert main([*command, "evaluation.image_size=32"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] <= 1


def image_folder(path, classes, size=32):
    for number in range(classes):
        folder = path / f"class{number}"
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (size, size), (number * 40, index * 60, 9)).save(folder / f"{index}.png")


def test_a_missing_folder(fails, config_file, tmp_path):
    train = f"{{kind: folder, path: {tmp_path / 'nowhere'}}}"
    assert "nowhere" in fails("train", config_file, f"data.train={train}")


def test_an_empty_folder(fails, config_file, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in fails("train", config_file, f"data.train={{kind: folder, path: {tmp_path / 'empty'}}}")


def test_a_folder_of_images_trains(config_file, tmp_path):
    image_folder(tmp_path / "images", 4)
    train = f"{{kind: folder, path: {tmp_path / 'images'}}}"
    assert main(["train", config_file, "steps=1", f"data.train={train}"]) == 0


def test_unreadable_images_beyond_the_share(fails, config_file, tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(4):
        (tmp_path / "images" / f"{index}.jpg").write_bytes(b"no image")
    told = fails("train", config_file, f"data.train={{kind: folder, path: {tmp_path / 'images'}}}")
    assert "unreadable" in told
    assert ".jpg" in told


def test_a_feedback_split_smaller_than_its_batch(fails, config_file):
    assert "meta split holds 60 examples, fewer than its batch of 80" in fails(
        "train", config_file, "feedback.batch=80"
    )


def test_too_few_feedback_examples(fails, config_file):
    assert "head_size + meta_size + heldout_size" in fails("train", config_file, "feedback.head_size=5000")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimiser.betas=[2,2]", "optimiser.betas.0: input should be less than 1"),
        ("data.std=[0,1,1]", "data.std.0: input should be greater than 0"),
        ("evaluation.neighbours=[0]", "evaluation.neighbours.0"),
        ("value.batch=9", "value.batch 9 is above batch_size 8"),
        ("learner.backbone.options.num_heads=0", "timm cannot make"),
        ("device=mps", "'mps' is not a device"),
        ("recipe.crops.global_size=20", "patch"),
        ("recipe.crops.local_size=4", "smaller than"),
        ("recipe.crops.local_size=12", "patches"),
        ("learner.backbone.name=vit_tiny_patch16_223", "nearest name is 'vit_tiny_patch16_224'"),
        ("learner.backbone.options.embed_dmi=3", "embed_dmi"),
        ("learner.backbone.weights=nowhere.safetensors", "nowhere.safetensors"),
        ("value.tail_blocks=9", "3 blocks"),
        ("stpes=3", "nearest known key is 'steps'"),
    ],
)
def test_what_does_not_fit_the_model(fails, config_file, override, sentence):
    assert sentence in fails("train", config_file, override)


def test_weights_of_another_architecture_are_counted(fails, config_file, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 32), "norm.weight": torch.zeros(7)}, path)
    told = fails("train", config_file, f"learner.backbone.weights={path}")
    assert "1 of the model's 42 tensors match" in told


def test_the_folder_of_another_run(fails, config_file):
    assert main(["train", config_file, "steps=1"]) == 0
    assert "differs at seed, steps" in fails("train", config_file, "steps=2", "seed=1")


def test_probing_what_is_not_there(fails, config_file, tmp_path):
    assert "holds no checkpoint" in fails("eval", "knn", str(tmp_path), "--config", config_file)
    assert "nearest name" in fails("eval", "knn", "vit_tiny_patch16_223", "--config", config_file)
    assert "give --config" in fails("eval", "knn", "vit_tiny_patch16_224")
    there = str(tmp_path / "there.pt")
    for command in (
        ["eval", "knn", there, "--config", config_file],
        ["eval", "knn", there],
        ["eval", "knn", str(tmp_path / "runs" / "typo")],
        ["value", "probe", there],
        ["value", "probe", str(tmp_path / "typo")],
    ):
        assert f"{command[2]}" in (told := fails(*command)) and "does not exist" in told
        assert "delete" not in told and "evaluation" not in told
    assert "there.safetensors" in fails(
        "eval", "knn", str(tmp_path / "there.safetensors"), "--config", config_file
    )


def test_numbers_out_of_range_are_refused_as_they_are_read(config_file, capsys):
    for words in (
        ["oracle", config_file, "--steps", "-1"],
        ["oracle", config_file, "--middle", "-5"],
        ["probe", "run", "--permutations", "-1"],
        ["probe", "run", "--learning-rate", "nan"],
        ["probe", "run", "--learning-rate", "-1"],
        ["probe", "run", "--learning-rate", "0"],
        ["probe", "run", "--spread", "inf"],
        ["probe", "run", "--spread", "-1"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(["value", *words])
        assert ended.value.code == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {words[-2]}: {words[-1]} is not" in told


def test_where_nothing_can_be_written_is_told_before_the_work(fails, config_file, tmp_path, monkeypatch):
    """The photo, the run and its data are never read: they are not there."""
    (tmp_path / "file").touch()
    inside = str(tmp_path / "file" / "x")
    assert "file is not a folder" in fails("value", "oracle", config_file, "--markdown", inside)
    assert "it is a folder" in fails("value", "oracle", config_file, "--markdown", str(tmp_path))
    assert "file is not a folder" in fails("report", "nowhere", "--output", inside)
    for picture in ("attention", "pca", "neighbours"):
        assert "file is not a folder" in fails("viz", picture, "nowhere", "no.jpg", "--output", inside)
    assert "file is not a folder" in fails("value", "probe", str(tmp_path), "--picture", inside)


def test_a_demo_of_a_fixed_designer_is_refused(fails, config_file):
    assert "the demo compares a learned designer" in fails("demo", config_file, "designer={kind: fixed}")


def test_the_demo_leaves_table_and_pictures(config_file, tmp_path, capsys):
    assert main(["demo", config_file, "steps=3"]) == 0
    run = tmp_path / "run"
    report = (run / "report.md").read_text()
    for arm in ("start", "fixed recipe", "learned designer"):
        assert arm in report
    for picture in ("designer.png", "curves.png", "features.png"):
        with Image.open(run / picture) as image:
            assert min(image.size) > 300
    capsys.readouterr()
    assert main(["train", config_file, "steps=3"]) == 0  # the learned designer's run is this one
    assert "3 steps done" in capsys.readouterr().out


def test_a_demo_that_could_not_be_probed_is_refused_at_once(fails, config_file, tmp_path):
    assert "41 pixels" in fails("demo", config_file, "evaluation.image_size=41")
    assert "nowhere" in fails("demo", config_file, "evaluation.test={kind: folder, path: nowhere}")
    assert not (tmp_path / "run-fixed").exists()


def test_an_output_that_cannot_be_made(fails, config_file, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written to" in fails("train", config_file, f"output={tmp_path / 'file' / 'run'}")


def test_a_student_is_asked_of_what_has_none(fails, config_file):
    command = ["eval", "knn", "vit_tiny_patch16_224", "--config", config_file, "--student"]
    assert "has no student" in fails(*command)


def test_a_checkpoint_without_its_parts(fails, config_file, tmp_path):
    torch.save({"step": 1}, tmp_path / "step_00000001.pt")
    command = ["eval", "knn", str(tmp_path / "step_00000001.pt"), "--config", config_file]
    assert "has no 'config' entry" in fails(*command)


def test_a_learner_that_stands_still_is_given_up(fails, config_file):
    told = fails(
        "train", config_file, "steps=300", "feedback=null", "designer={kind: fixed}", "data.std=[1e-38,1,1]"
    )
    assert "none of the last 100 steps had a finite loss" in told


class TestData:
    """`vpt data` on a folder of two classes."""

    @pytest.fixture
    def photos(self, tmp_path):
        for number in range(6):
            path = tmp_path / "photos" / ["cat", "dog"][number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        return tmp_path / "photos"

    def test_shard_then_check_and_show(self, photos, tmp_path, capsys):
        shards, picture = tmp_path / "shards", tmp_path / "sheet.png"
        command = ["data", "shard", str(photos), str(shards), "--shard-size", "3", "--workers", "0"]
        assert main(command) == 0
        assert f"{shards}: 2 shards, 6 samples" in capsys.readouterr().out
        assert main([*command]) == 0
        assert "2 were there already" in capsys.readouterr().out
        assert main(["data", "check", str(shards), "--json", "--workers", "0"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert "broken   0" in told
        assert json.loads(told[-1])["labels"] == {"cat": 3, "dog": 3}
        assert main(["data", "show", str(shards), str(picture), "--count", "4", "--size", "32"]) == 0
        assert capsys.readouterr().out == f"{picture}: 4 of 6 samples.\n"
        with Image.open(picture) as image:
            assert image.format == "PNG"

    def test_broken_data_give_exit_code_1(self, photos, tmp_path, capsys):
        (photos / "dog" / "3.png").write_bytes(b"nothing")
        assert main(["data", "check", str(photos), "--workers", "0"]) == 1
        assert "3.png: not a JPEG, PNG or WebP image" in capsys.readouterr().out
        assert main(["data", "shard", str(photos), str(tmp_path / "shards"), "--workers", "0"]) == 1
        told = capsys.readouterr().out
        assert told.startswith(f"left out: {photos}/dog/3.png: not a JPEG")
        assert "1 of 6 samples could not be read" in told

    def test_bad_input(self, photos, tmp_path, fails):
        assert "no shard is at nowhere" in fails("data", "check", "nowhere")
        assert "unknown key; the nearest known key is 'classes'" in fails(
            "data", "check", str(photos), "clases=3"
        )
        assert "no size of a shard" in fails("data", "shard", str(photos), "out", "--shard-size", "big")
        assert "name a .png file" in fails("data", "show", str(photos), str(tmp_path / "no" / "sheet.png"))
