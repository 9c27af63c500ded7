import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vpt_vision.errors import UserError
from vpt_vision.export import load_backbone_file, read_metadata, save_backbone
from vpt_vision.learner.backbone import Backbone, BackboneConfig
from vpt_vision.task import Renderer

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
MODELS = {
    "vit_tiny_patch16_224": {**SMALL, "img_size": 32, "patch_size": 8},
    "vit_small_patch14_reg4_dinov2": {**SMALL, "img_size": 28},
    "vit_small_patch16_dinov3": {**SMALL, "img_size": 32},
}
RENDERER = Renderer((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")


def make(name: str) -> Backbone:
    return Backbone(BackboneConfig(name=name, options=MODELS[name], drop_path=0.2)).eval()


@pytest.mark.parametrize("name", MODELS)
def test_timm_takes_the_file_strictly_and_sees_the_same(name, tmp_path):
    backbone, path = make(name), tmp_path / "new" / "backbone.safetensors"
    save_backbone(backbone, path, RENDERER)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    model = timm.create_model(
        json.loads(header["name"]), num_classes=0, **json.loads(header["options"])
    ).eval()
    model.load_state_dict(load_file(path), strict=True)
    images = torch.randn(2, 3, MODELS[name]["img_size"], MODELS[name]["img_size"])
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), backbone.vit.forward_features(images))


@pytest.mark.parametrize("name", MODELS)
def test_a_file_builds_its_backbone_again(name, tmp_path):
    backbone, path = make(name), tmp_path / "backbone.safetensors"
    save_backbone(backbone, path, RENDERER)
    again = load_backbone_file(path).eval()
    state = again.vit.state_dict()
    assert state.keys() == backbone.vit.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.vit.state_dict().items())
    size = 2 * MODELS[name]["img_size"]  # of another size than the position embedding's
    with torch.no_grad():
        images = torch.randn(1, 3, size, size)
        torch.testing.assert_close(again(images).patches, backbone(images).patches)
    save_backbone(again, tmp_path / "second.safetensors", RENDERER)
    assert read_metadata(tmp_path / "second.safetensors") == read_metadata(path)


def test_metadata_says_how_images_are_normalised_and_who_wrote_it(tmp_path):
    save_backbone(make("vit_tiny_patch16_224"), tmp_path / "a.safetensors", RENDERER)
    metadata = read_metadata(tmp_path / "a.safetensors")
    assert metadata.renderer() == RENDERER
    assert metadata.options == MODELS["vit_tiny_patch16_224"]
    assert metadata.versions["timm"] == timm.__version__
    assert metadata.versions.keys() == {"vpt-vision", "timm", "torch"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_backbone(make("vit_tiny_patch16_224"), path, RENDERER)
    before = path.read_bytes()

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("vpt_vision.export.os.fsync", killed)  # written, not yet on disk under its name
    with pytest.raises(KeyboardInterrupt):
        save_backbone(make("vit_tiny_patch16_224"), path, RENDERER)
    assert path.read_bytes() == before
    monkeypatch.undo()
    save_backbone(make("vit_tiny_patch16_224"), path, RENDERER)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_export_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no backbone at"):
        load_backbone_file(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not a tensor in sight")
    with pytest.raises(UserError, match="no readable safetensors file"):
        load_backbone_file(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="does not say which timm model it holds"):
        load_backbone_file(tmp_path / "plain.safetensors")
    save_backbone(make("vit_tiny_patch16_224"), tmp_path / "a.safetensors", RENDERER)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({**tensors, "norm.weight": torch.zeros(3)}, tmp_path / "bent.safetensors", header)
    with pytest.raises(UserError, match="of another architecture"):
        load_backbone_file(tmp_path / "bent.safetensors")
