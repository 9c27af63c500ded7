"""`vpt viz` as a user types it."""

import shutil

import pytest
import torch
from PIL import Image
from small_run import small_run

from vpt_vision import train
from vpt_vision.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with designers of three moments."""
    output = tmp_path_factory.mktemp("viz") / "run"
    train(small_run(output))
    return output


@pytest.fixture
def photos(tmp_path):
    """Two image files of different shapes."""
    paths = [tmp_path / "cat.png", tmp_path / "dog.png"]
    for path, size in zip(paths, [(40, 30), (30, 60)], strict=True):
        noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def fails(capsys):
    """Run a command that must fail, and return its one sentence."""

    def fail(*arguments):
        capsys.readouterr()
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("vpt: ") and len(told.splitlines()) == 1
        return told

    return fail


PICTURES = ("designer", "tasks", "attention", "pca", "neighbours")


@pytest.mark.parametrize("command", [[], *([picture] for picture in PICTURES)])
def test_every_picture_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main(["viz", *command, "--help"])
    assert done.value.code == 0
    assert "example: vpt viz " in " ".join(capsys.readouterr().out.split())


def test_heat_maps_of_a_run(run, photos, tmp_path, capsys):
    """Of the images named, wherever among the options; without any, of the run's own."""
    path = tmp_path / "maps.png"
    assert (
        main(["viz", "designer", str(run), photos[0], "--draws", "4", "--output", str(path), photos[1]]) == 0
    )
    assert capsys.readouterr().out == f"{path}: cat.png, dog.png.\n"
    with Image.open(path) as image:
        five = image.width  # columns: recipe, three moments, change
    assert main(["viz", "designer", str(run), "--draws", "4", "--count", "1", "--moments", "1"]) == 0
    assert capsys.readouterr().out == f"{run / 'coverage.png'}: scene 0.\n"
    with Image.open(run / "coverage.png") as image:
        assert image.width < 0.75 * five


def test_heat_maps_that_cannot_be_drawn(run, photos, tmp_path, fails, tiny_settings):
    assert "holds no run" in fails("viz", "designer", str(tmp_path))
    assert "cannot be read" in fails("viz", "designer", str(run), "nowhere.jpg")
    assert "is a folder" in fails("viz", "designer", str(run), str(tmp_path))
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    assert "broken.jpg: not a JPEG" in fails(
        "viz", "designer", str(run), photos[0], str(tmp_path / "broken.jpg")
    )
    output = train(tiny_settings, ["designer={kind: fixed}", "steps=1"]).output
    assert "kept no designer over training: its designer (fixed) does not learn" in fails(
        "viz", "designer", str(output)
    )
    settings = {**tiny_settings, "output": str(tmp_path / "photometrics")}
    output = train(settings, ["designer.surfaces=[photometrics]", "steps=1"]).output
    assert "controls photometrics, neither crops nor masks" in fails("viz", "designer", str(output))
    settings = {**tiny_settings, "output": str(tmp_path / "soft")}
    output = train(settings, ["designer={kind: soft_mask, width: 8, blur_kernel: 5}", "steps=1"]).output
    assert "a soft_mask designer finishes its task by the pixels" in fails("viz", "designer", str(output))


def test_tasks_of_a_run_and_of_its_checkpoint(run, photos, tmp_path, capsys, fails):
    paths = [tmp_path / "run.png", tmp_path / "checkpoint.png"]
    checkpoint = next((run / "checkpoints").glob("*.pt"))
    for source, path in zip((run, checkpoint), paths, strict=True):
        assert main(["viz", "tasks", str(source), *photos, "--output", str(path)]) == 0
        assert capsys.readouterr().out == f"{path}: cat.png, dog.png.\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "holds no checkpoint" in fails("viz", "tasks", str(tmp_path))
    assert "nowhere.pt" in fails("viz", "tasks", str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("picture", ["attention", "pca"])
def test_what_features_see(run, photos, tmp_path, capsys, picture):
    """Of a run, its checkpoint and its exported backbone, which are the same network, and of a timm model."""
    path = tmp_path / "seen.png"
    drawn = set()
    files = {
        "run.pt": next((run / "checkpoints").glob("*.pt")),
        "run.safetensors": run / "backbone.safetensors",
    }
    for name, file in files.items():
        shutil.copy(file, tmp_path / name)
    for model in (run, tmp_path / "run.pt", tmp_path / "run.safetensors"):
        assert main(["viz", picture, str(model), *photos, "--output", str(path)]) == 0
        with Image.open(path) as image:
            drawn.add(image.tobytes())
    assert len(drawn) == 1
    assert main(["viz", picture, str(run), "--count", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{run / picture}.png: scene 0."
    timm = ["vit_tiny_patch16_224", "--weights", "none", "--size", "64"]
    assert main(["viz", picture, *timm, *photos, "--output", str(path)]) == 0


def test_neighbours_among_the_runs_images_or_a_folder(run, photos, tmp_path, capsys):
    path = tmp_path / "near.png"
    base = ["viz", "neighbours", str(run), photos[0], "--no-cache", "--output", str(path)]
    assert main([*base, "--nearest", "3"]) == 0
    with Image.open(path) as image:
        three = image.width
    assert main([*base, "--among", str(tmp_path), "--nearest", "2"]) == 0
    assert capsys.readouterr().out == 2 * f"{path}: cat.png.\n"
    with Image.open(path) as image:
        assert image.width < three


def test_what_cannot_be_seen(run, photos, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convolutional = ["resnet10t", "--weights", "none", "--size", "64"]
    assert main(["viz", "pca", *convolutional, photos[0]]) == 0
    assert (tmp_path / "pca.png").is_file()
    assert "resnet10t has no class token" in fails("viz", "attention", *convolutional, photos[0])
    bare = ["vit_tiny_patch16_224", "--weights", "none"]
    assert "does not tell of any images" in fails("viz", "pca", *bare)
    assert "does not tell of a gallery" in fails("viz", "neighbours", *bare, photos[0])
    assert "multiple of 8 pixels" in fails("viz", "attention", str(run), photos[0], "--size", "20")
    assert "nearest name is" in fails("viz", "pca", "vit_tiny_patch16_223", photos[0])
    few = ["--among", str(tmp_path), "--nearest", "9", "--no-cache"]
    assert "fewer than the 9 neighbours" in fails("viz", "neighbours", str(run), photos[0], *few)
